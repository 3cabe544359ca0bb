"""A host that preprocesses otherwise than the export did fails the gate, and every output says so."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest

from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, encode_manifest, read_manifest
from resnet_export.runtime.parity import decode_report, encode_report, run_parity
from resnet_export.runtime.parity.report import junit, markdown, text
from resnet_export.runtime.parity.report.schema import ParityReport
from tests.parity_bundle import write
from tests.tiny_bundle import FP32


@pytest.fixture(scope="module")
def drifted(resnet18_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> ParityReport:
    """A bundle whose manifest has another filter: no logits of golden images depend on it."""
    folder = Path(shutil.copytree(resnet18_bundle, tmp_path_factory.mktemp("drifted") / "bundle"))
    manifest = read_manifest(folder)
    bicubic = msgspec.structs.replace(manifest.preprocessing, interpolation="bicubic")
    changed = msgspec.structs.replace(manifest, preprocessing=bicubic)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    return run_parity(folder, artifacts=["fp32"], backends=["onnxruntime"], threads=1)


def test_the_check_fails_although_every_artifact_agrees(drifted: ParityReport) -> None:
    assert all(entry.passed for entry in drifted.entries)
    verdict = drifted.verdict
    assert (verdict.status, verdict.exit_code, verdict.stage) == ("failed", 1, "preprocessing")
    assert re.match(
        r"FAILED: preprocessing is not the export's \(\d+ of 12288 values of the crop differ, expected 0\)\. "
        "First stage to look at: preprocessing, so compare the manifest's resize, crop and interpolation, and this "
        "host's Pillow, with the export's",
        verdict.sentence,
    )
    assert [criterion.passed for criterion in drifted.preprocessing] == [False, True]


def test_the_text_names_what_differs(drifted: ParityReport) -> None:
    assert re.search(r"preprocessing: \d+ of 12288 values of the crop differ", text.render(drifted))
    assert "once decoded, resized and cropped" in text.render(drifted)


def test_junit_has_a_case_for_each_step(drifted: ParityReport) -> None:
    root = ElementTree.fromstring(junit.render(drifted))
    cases = {
        case.get("name"): case for case in root.iter("testcase") if case.get("classname") == "preprocessing"
    }
    assert set(cases) == {"crop", "normalize"}
    assert cases["crop"].find("failure") is not None
    assert cases["normalize"].find("failure") is None


def test_markdown_and_json_hold_it(drifted: ParityReport) -> None:
    assert "| ❌ | preprocessing |" in markdown.render(drifted)
    assert decode_report(encode_report(drifted)).preprocessing[0].passed is False


def test_a_bundle_without_a_sample_is_checked_without_and_says_so(tmp_path: Path) -> None:
    report = run_parity(write(tmp_path / "tiny", (FP32,)), backends=["onnxruntime"], threads=1)
    assert report.verdict.status == "passed"
    assert report.preprocessing == ()
    assert any("no sample of its preprocessing" in note for note in report.notes)
