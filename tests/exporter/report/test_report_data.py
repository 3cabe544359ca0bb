"""The pictures are those of the images that flipped, whatever was drawn, skipped or called alike."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from resnet_export.calibration.data.dataset import DatasetWarning
from resnet_export.calibration.observe.table import encode_table
from resnet_export.calibration.quantize.plan import QuantPlan, summarize
from resnet_export.exporter.report import gather, read_recorded, render
from resnet_export.exporter.report.charts.clipping import clippings
from resnet_export.exporter.report.report_data import flipped
from resnet_export.runtime.errors import IntegrityError
from resnet_export.runtime.parity.measure.comparison import printable
from resnet_export.runtime.parity.report.schema import ParityReport, encode_report
from resnet_export.runtime.parity.report.search_report import PlanSummary, SearchReport
from tests.parity_bundle import crops, write
from tests.parity_page import archive, checked, damaged_bundle, table, with_file
from tests.tiny_bundle import FP32, LABELS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return damaged_bundle(tmp_path_factory.mktemp("damaged") / "tiny")


def names(report: ParityReport) -> dict[int, str]:
    return {
        flip.index: flip.name
        for entry in report.entries
        for check in entry.checks
        if check.images == "data"
        for flip in check.comparison.flips
    }


@pytest.mark.parametrize("limit", [None, 60])
def test_pictures_of_a_folder_are_found_by_name_behind_unreadable_ones(
    bundle: Path, tmp_path: Path, limit: int | None
) -> None:
    images = crops(90, seed=4)
    for i, image in enumerate(images):
        folder = tmp_path / LABELS[i % 5]
        folder.mkdir(exist_ok=True)
        odd = "<b>\n" if i % 3 == 0 else "plain"
        path = folder / f"{odd}{i:03}.png"
        if i in (1, 40):
            path.write_bytes(b"no image")
        else:
            Image.fromarray(image).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DatasetWarning)
        report = checked(bundle, tmp_path, limit=limit, seed=5)
    found = gather(bundle, report, data=tmp_path)
    named = names(report)
    shown = [key for key in flipped(report) if key.images == "data"]
    assert len(shown) > 5
    originals = {printable(f"{path.parent.name}/{path.name}"): path for path in tmp_path.rglob("*.png")}
    for key in shown:
        with Image.open(originals[named[key.number]]) as picture:
            assert np.array_equal(found.crops[key], np.asarray(picture))


def test_pictures_of_an_archive_are_those_that_were_drawn(bundle: Path, tmp_path: Path) -> None:
    data = archive(tmp_path, 120)
    report = checked(bundle, data, limit=70, seed=2)
    found = gather(bundle, report, data=data)
    with np.load(data) as stored:
        images = stored["images"]
    named = names(report)
    shown = [key for key in flipped(report) if key.images == "data"]
    assert shown
    for key in shown:
        number = int(named[key.number].removeprefix("images[").removesuffix("]"))
        assert np.array_equal(found.crops[key], images[number])


def test_pictures_of_golden_images_come_from_the_bundle(bundle: Path) -> None:
    report = checked(bundle)
    found = gather(bundle, report)
    assert found.crops
    for key, crop in found.crops.items():
        assert key.images == "golden"
        assert np.array_equal(crop, crops()[key.number])


def test_what_is_said_of_the_data_when_they_are_checked_is_not_said_again(
    bundle: Path, tmp_path: Path
) -> None:
    for i, image in enumerate(crops(60, seed=4)):
        folder = tmp_path / "edcba"[i % 5]
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    with pytest.warns(DatasetWarning, match="alphabetical order"):
        report = checked(bundle, tmp_path)
    found = gather(bundle, report, data=tmp_path)  # a warning would be an error
    assert any(key.images == "data" for key in found.crops)


def test_what_was_recorded_is_not_read_again(tmp_path: Path) -> None:
    bundle = with_file(write(tmp_path / "tiny", [FP32]), "calibration.json", encode_table(table()))
    recorded = read_recorded(bundle)
    report = checked(bundle)
    (bundle / "calibration.json").unlink()
    assert gather(bundle, report, recorded=recorded).table == table()
    with pytest.raises(IntegrityError, match=r"'calibration\.json'"):
        gather(bundle, report)


def test_data_that_vanished_leave_the_page_without_pictures(bundle: Path, tmp_path: Path) -> None:
    data = archive(tmp_path, 60)
    report = checked(bundle, data)
    data.unlink()
    found = gather(bundle, report, data=data)
    assert {key.images for key in found.crops} <= {"golden"}
    assert found.labels == LABELS


def search_report(plan: PlanSummary) -> SearchReport:
    return SearchReport(
        images=16,
        held_out=0,
        steps=(),
        methods=(),
        method=plan.method,
        layers=(),
        rankings=(),
        mixed_precision=(),
        verdicts=(),
        plan=plan,
        notices=(),
    )


def test_ranges_are_those_that_the_graphs_were_emitted_with(tmp_path: Path) -> None:
    """Against `QuantPlan.choose_ranges`, which the graphs are emitted from."""
    given = table()
    plan = QuantPlan(
        method="percentile",
        methods={"layer1.output": "minmax"},
    )
    bundle = with_file(write(tmp_path / "tiny", [FP32]), "calibration.json", encode_table(given))
    export = msgspec.structs.replace(checked(bundle), int8=search_report(summarize(plan)))
    with_file(bundle, "report.json", encode_report(export))
    later = checked(bundle)
    assert later.int8 is None
    found = gather(bundle, later)
    assert found.table == given
    chosen = {one.tensor: one.range for one in clippings(given, found.choice)}
    for tensor, expected in plan.choose_ranges(given).items():
        assert chosen[tensor].amax == pytest.approx(expected.amax, rel=1e-6)
        assert chosen[tensor].low == pytest.approx(expected.low, rel=1e-6)
    assert b"clip by percentile" in render(later, found)


def test_a_report_of_another_version_leaves_the_tables_own_ranges(tmp_path: Path) -> None:
    bundle = with_file(write(tmp_path / "tiny", [FP32]), "calibration.json", encode_table(table()))
    with_file(bundle, "report.json", b'{"schema": 99}')
    report = checked(bundle)
    page = render(report, gather(bundle, report)).decode()
    assert "clip by mse" in page
    assert "How INT8 was planned is not recorded" in page


def test_a_device_without_onnx_gets_the_whole_page_with_its_ranges(tmp_path: Path) -> None:
    bundle = with_file(write(tmp_path / "tiny", [FP32]), "calibration.json", encode_table(table()))
    hide = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnxsim", "safetensors"):
    sys.modules[name] = None
from resnet_export.exporter.cli import main
main()
"""
    page = tmp_path / "page.html"
    command = [sys.executable, "-c", hide, "parity", bundle, "--backend", "onnxruntime", "--html", page]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Measured on" in page.read_text(encoding="utf-8")
