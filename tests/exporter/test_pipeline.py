"""The whole line: what goes in as a network comes out as a bundle that was checked."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.cli import cli
from resnet_export.exporter.config import read_config
from resnet_export.exporter.graph import lower
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.pipeline import prepare
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import BatchRange, read_manifest, verify_bundle
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.report.schema import decode_report
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import normalize
from tests.natural_crops import natural_crops

SIZE = 64
MODEL = ModelSpec(depth=18, image_size=SIZE)
QUICK = ExportSpec(engine="none", batch=BatchRange(min=1, opt=2, max=4))


@pytest.fixture(scope="module")
def raw_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18 with normalization in the graph."""
    out = tmp_path_factory.mktemp("raw") / "bundle"
    export(MODEL, replace(QUICK, input="uint8", fp16=True), out)
    return out


def test_the_bundle_holds_what_its_manifest_says_and_nothing_unchecked(resnet18_bundle: Path) -> None:
    manifest = verify_bundle(resnet18_bundle)
    files = {
        path.relative_to(resnet18_bundle).as_posix() for path in resnet18_bundle.rglob("*") if path.is_file()
    }
    assert files == {file.file for file in manifest.contents()} | {"manifest.json"}
    for artifact in manifest.artifacts:
        if artifact.kind == "onnx":
            assert {verdict.backend for verdict in artifact.parity} == {"onnxruntime", "openvino"}
            assert all(verdict.passed for verdict in artifact.parity)


def test_golden_logits_hold_every_stage_and_the_eager_ones_are_the_networks(resnet18_bundle: Path) -> None:
    golden = read_golden(resnet18_bundle)
    assert set(golden.logits) == {"eager", "onnx", "simplified", "fp32", "fp16"}
    network = load_classifier(MODEL)
    with torch.inference_mode():
        eager = network.module(torch.from_numpy(normalize(golden.images, network.preprocessing))).numpy()
    # Convolution order depends on the batch size; the same seed and images leave only that.
    np.testing.assert_allclose(golden.logits["eager"], eager, rtol=1e-3, atol=1e-4)


def test_the_report_in_the_bundle_is_that_of_its_artifacts(resnet18_bundle: Path) -> None:
    report = decode_report((resnet18_bundle / "report.json").read_bytes())
    manifest = read_manifest(resnet18_bundle)
    assert report.exit_code == 0
    assert {entry.artifact for entry in report.entries} == {"fp32", "fp16"}
    for entry in report.entries:
        assert entry.sha256 == manifest.artifact(entry.artifact).sha256
    assert (
        (resnet18_bundle / "report.md").read_text().startswith("### ⚠️ Parity of resnet18")
    )  # its engine ran nowhere
    page = (resnet18_bundle / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert report.verdict.sentence.removeprefix("PASSED: ").partition(".")[0] in page


def test_every_node_of_an_artifact_is_mapped_to_a_module_that_the_network_has(resnet18_bundle: Path) -> None:
    manifest = read_manifest(resnet18_bundle)
    paths = {path for path, _ in load_classifier(MODEL).module.named_modules()}
    for artifact in manifest.artifacts:
        if artifact.kind == "onnx":
            nodes = onnx.load(resnet18_bundle / artifact.file).graph.node
            assert {manifest.modules[node.name] for node in nodes} <= paths


def test_a_uint8_bundle_gives_the_logits_of_the_float_bundle(resnet18_bundle: Path, raw_bundle: Path) -> None:
    crops = natural_crops(16, SIZE, seed=3)
    with (
        open_session(resnet18_bundle, artifact="fp32", backend="onnxruntime") as normalized,
        open_session(raw_bundle, artifact="fp32", backend="onnxruntime") as raw,
    ):
        expected = normalized.run(normalize(crops, normalized.manifest.preprocessing))
        found = raw.run(crops)
    assert np.linalg.norm(found - expected) <= 1e-4 * np.linalg.norm(expected)


def test_a_uint8_bundle_records_the_step_that_put_preprocessing_into_the_graph(raw_bundle: Path) -> None:
    manifest = read_manifest(raw_bundle)
    assert manifest.input.dtype == "uint8"
    assert manifest.preprocessing.in_graph
    assert "simplified" in manifest.golden.stages


def test_the_same_export_gives_the_same_graphs_byte_for_byte(resnet18_bundle: Path, tmp_path: Path) -> None:
    again = export(MODEL, ExportSpec(fp16=True, engine="none"), tmp_path / "again").bundle.manifest
    first = read_manifest(resnet18_bundle)
    for name in ("fp32", "fp16"):
        assert again.artifact(name).sha256 == first.artifact(name).sha256


def test_another_seed_gives_another_network(resnet18_bundle: Path, tmp_path: Path) -> None:
    other = export(ModelSpec(depth=18, image_size=SIZE, seed=1), QUICK, tmp_path / "other").bundle.manifest
    assert other.artifact("fp32").sha256 != read_manifest(resnet18_bundle).artifact("fp32").sha256


def test_a_fallback_to_the_older_exporter_is_in_manifest_and_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.onnx.export

    def broken(*arguments: object, **options: object) -> object:
        if options.get("dynamo"):
            raise RuntimeError("no dynamo today")
        return real(*arguments, **options)

    monkeypatch.setattr(torch.onnx, "export", broken)
    bundle = export(MODEL, QUICK, tmp_path / "bundle").bundle
    assert bundle.manifest.provenance.exporter == "torchscript"
    assert any("no dynamo today" in notice for notice in bundle.manifest.provenance.notices)
    assert "no dynamo today" in (bundle.path / "report.md").read_text()


def test_an_artifact_outside_its_tolerance_is_kept_marked_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lower.to_fp16

    def damaged(*arguments: object, **options: object) -> object:
        typed = real(*arguments, **options)
        for tensor in typed.graph.model.graph.initializer:
            if tensor.name == "layer2.0.conv1.weight":
                values = np.frombuffer(tensor.raw_data, np.float16) * np.float16(1.5)
                tensor.raw_data = values.tobytes()
                return typed
        raise AssertionError("the graph has no such weight")

    monkeypatch.setattr(lower, "to_fp16", damaged)
    out = tmp_path / "bundle"
    result = CliRunner().invoke(
        cli, ["--depth", "18", "--image-size", str(SIZE), "--fp16", "--engine", "none", "--out", str(out)]
    )
    assert result.exit_code == 1, result.output
    assert "FAILED" in result.stdout
    manifest = read_manifest(out)
    assert not any(verdict.passed for verdict in manifest.artifact("fp16").parity)
    with open_session(out) as session:
        assert session.choice.artifact == "fp32"
        assert any(item.artifact == "fp16" and item.outcome == "rejected" for item in session.trace)


def test_a_dry_run_checks_everything_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["--depth", "18", "--fp16", "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "resnet18" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_calibration_images_replace_the_bundled_ones(tmp_path: Path) -> None:
    crops = natural_crops(6, SIZE, seed=9)
    np.savez(tmp_path / "photos.npz", images=crops)
    bundle = export(
        MODEL, replace(QUICK, fp16=True, calib=tmp_path / "photos.npz"), tmp_path / "bundle"
    ).bundle
    assert bundle.manifest.golden.source == "calibration"
    np.testing.assert_array_equal(read_golden(bundle.path).images, crops)


def test_an_engine_is_built_where_there_is_a_builder(resnet18_bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    manifest = read_manifest(resnet18_bundle)
    (engine,) = (artifact for artifact in manifest.artifacts if artifact.kind == "engine")
    assert engine.precision is Precision.FP16
    assert engine.engine is not None
    assert engine.engine.source == "fp16"
    assert engine.parity == ()  # nothing on a host without a GPU can have run it


@pytest.mark.parametrize("seconds", [2.5, 5.0, 6.5])
def test_an_export_killed_over_an_old_bundle_leaves_a_whole_one(
    tmp_path: Path, raw_bundle: Path, seconds: float
) -> None:
    out = Path(shutil.copytree(raw_bundle, tmp_path / "bundle"))
    command = [sys.executable, "-c", "from resnet_export.exporter.cli import main; main()"]
    options = ["--depth", "18", "--image-size", str(SIZE), "--out", str(out), "--force", "--engine", "none"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert verify_bundle(out).model.arch == "resnet18"


def test_a_bf16_graph_goes_through_every_command_and_report(tmp_path: Path) -> None:
    out, arguments = tmp_path / "bundle", ["--depth", "18", "--image-size", str(SIZE), "--bf16"]
    made = CliRunner().invoke(cli, [*arguments, "--engine", "none", "-o", str(out)])
    assert made.exit_code == 0, made.output
    manifest = read_manifest(out)
    assert manifest.artifact("bf16").file == "model.bf16.onnx"
    assert "bf16" in read_golden(out).logits
    ran = {verdict.backend for verdict in manifest.artifact("bf16").parity if verdict.passed}
    report = decode_report((out / "report.json").read_bytes())
    refused = [item.reason for item in report.skipped if item.artifact == "bf16"]
    # Never silently in another precision: OpenVINO on a CPU that has bf16, nothing else here, and every why not.
    assert ran <= {"openvino"}
    assert any("no kernels for bf16" in reason for reason in refused)
    assert "bf16" in (out / "report.md").read_text()
    assert "--bf16:" in (out / "report.html").read_text()
    for command in (
        ["inspect"],
        ["parity", "--layers", "bf16"],
        ["bench", "--artifact", "bf16", "--rounds", "1"],
    ):
        result = CliRunner().invoke(cli, [command[0], str(out), *command[1:]])
        assert "bf16" in result.output, (command, result.output)
        assert result.exit_code == 0 or not ran, (command, result.output)


def test_the_bundle_holds_the_request_that_it_was_made_from(raw_bundle: Path) -> None:
    assert read_config(raw_bundle / "export.toml") == {
        "depth": 18, "image_size": SIZE, "fp16": True, "input": "uint8", "batch": "1,2,4", "engine": "none",
    }  # fmt: skip


def test_the_time_of_the_bundle_is_that_of_source_date_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert prepare(MODEL, QUICK, tmp_path / "bundle").created.isoformat() == "1970-01-02T00:00:00+00:00"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(RequestError, match="'yesterday', expected seconds since 1970"):
        prepare(MODEL, QUICK, tmp_path / "bundle")
