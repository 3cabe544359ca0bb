"""Depth × precision × backend × kind of input, from one table: does every artifact compute what eager computes?

An export checks each artifact on each backend of the host and writes the report into the bundle; each test reads one
run of it. The networks are untrained and the images small, so that the table fits into a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.runtime.parity import ParityReport
from resnet_export.runtime.parity.report.schema import Entry, failure
from resnet_export.runtime.precision import Precision
from tests.natural_crops import natural_crops

BACKENDS = ("onnxruntime", "openvino")
SIZE = 40
CLASSES = 10


@dataclass(frozen=True)
class Line:
    """One export, and the artifacts that it is to have."""

    depth: int
    input: Literal["float32", "uint8"]
    artifacts: tuple[str, ...]


TABLE = (
    Line(18, "float32", ("fp32", "fp16", "int8.tensorrt", "int8.cpu")),
    Line(18, "uint8", ("fp32", "fp16", "int8.tensorrt", "int8.cpu")),
    Line(34, "float32", ("fp32", "fp16")),
    Line(50, "uint8", ("fp32", "fp16")),
    Line(101, "float32", ("fp32", "fp16")),
    Line(152, "float32", ("fp32", "fp16")),
)
PRECISIONS = {
    "fp32": Precision.FP32,
    "fp16": Precision.FP16,
    "int8.tensorrt": Precision.INT8,
    "int8.cpu": Precision.INT8,
}

CASES = [
    pytest.param(line, artifact, backend, id=f"resnet{line.depth}-{artifact}-{backend}-{line.input}")
    for line in TABLE
    for artifact in line.artifacts
    for backend in BACKENDS
]

Export = Callable[[Line], ParityReport]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Export]:
    """Return a function that exports a line of the table, once, and returns the report in its bundle."""
    folder = tmp_path_factory.mktemp("table")

    @cache
    def made(line: Line) -> ParityReport:
        calib = None
        if "int8.tensorrt" in line.artifacts:
            calib = folder / "calibration.npz"
            np.savez(calib, images=natural_crops(32, SIZE, seed=0))
        spec = ExportSpec(
            fp16="fp16" in line.artifacts,
            int8="int8.tensorrt" in line.artifacts,
            calib=calib,
            input=line.input,
            # The improvements of INT8 have tests of their own, and take longer than all else here.
            calib_method="mse",
            equalize=False,
            correct_bias=False,
            round_weights=False,
            engine="none",
        )
        out = Path(folder / f"resnet{line.depth}-{line.input}")
        model = ModelSpec(depth=line.depth, num_classes=CLASSES, image_size=SIZE)
        return export(model, spec, out).report

    yield made
    made.cache_clear()


@pytest.mark.parametrize(("line", "artifact", "backend"), CASES)
def test_an_exported_network_computes_what_eager_computes(
    exported: Export, line: Line, artifact: str, backend: str
) -> None:
    entry = find(exported(line), artifact, backend)
    assert entry.passed, f"ResNet-{line.depth} with {line.input} input, {entry.title}: {failure(entry)}"
    # It passed by what was measured, on every image, and not for want of a limit.
    check = entry.check("golden")
    assert check is not None
    assert (entry.ran, entry.held_to) == (PRECISIONS[artifact],) * 2
    assert {"finite", "relative_error", "centered_cosine"} <= {criterion.name for criterion in check.criteria}
    assert check.comparison.figures.reference_classes > 2


@pytest.mark.parametrize("line", TABLE, ids=lambda line: f"resnet{line.depth}-{line.input}")
def test_an_export_has_the_artifacts_of_the_table_and_its_preprocessing_repeats(
    exported: Export, line: Line
) -> None:
    report = exported(line)
    assert {entry.artifact for entry in report.entries} == set(line.artifacts)
    assert [criterion.name for criterion in report.preprocessing] == ["crop", "normalize"]
    assert all(criterion.passed for criterion in report.preprocessing)
    assert (report.verdict.status, report.verdict.stage) == ("passed", None)


@pytest.mark.parametrize("line", TABLE, ids=lambda line: f"resnet{line.depth}-{line.input}")
def test_stage_errors_add_up_to_the_error_that_is_seen_at_the_end(exported: Export, line: Line) -> None:
    for entry in exported(line).entries:
        found = entry.attribution
        assert found is not None
        assert found.residual is not None
        assert found.bound is not None
        # The report is rounded to nine significant digits: each share by at most 5e-9 of itself.
        shares = [stage.share or 0.0 for stage in found.stages]
        assert abs(sum(shares) - 1) <= found.bound + 5e-9 * sum(map(abs, shares)), entry.title
        assert found.residual <= found.bound < 1e-7, entry.title
        figures = entry.checks[0].comparison.figures
        assert found.total == pytest.approx(figures.relative_error, rel=1e-8), entry.title
        squares = sum((stage.separate or 0.0) ** 2 for stage in found.stages)
        assert squares + (found.cross or 0.0) * (found.total or 0.0) ** 2 == pytest.approx(
            (found.total or 0.0) ** 2, rel=1e-6
        ), entry.title


def find(report: ParityReport, artifact: str, backend: str) -> Entry:
    found = [entry for entry in report.entries if (entry.artifact, entry.backend) == (artifact, backend)]
    assert len(found) == 1, f"{artifact} ran {len(found)} times on {backend}: {report.skipped}"
    return found[0]
