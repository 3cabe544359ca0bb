"""Every row of the zoo in every precision, and in engines: what is exported is within tolerance on every backend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.runtime.bundle.manifest import BatchRange, Manifest, read_manifest
from resnet_export.runtime.parity.report.schema import ParityReport, failure
from resnet_export.runtime.precision import Precision
from tests.natural_crops import natural_crops

BATCH = BatchRange(min=1, opt=2, max=4)
SAMPLE = ("resnet20", "resnetv2_18", "seresnet18")
RUNS = {
    "fp32": {"onnxruntime", "openvino"},
    "fp16": {"onnxruntime", "openvino"},
    "bf16": {"openvino"},  # ONNX Runtime's CPU provider has no bf16
    "int8.tensorrt": {"onnxruntime", "openvino"},
    "int8.cpu": {"onnxruntime", "openvino"},
}


def _exported(name: str, spec: ExportSpec, folder: Path, *, images: int) -> tuple[Manifest, ParityReport]:
    # Not below 64 pixels for an ImageNet network: its last maps would be of one pixel.
    size = min(64, ZOO[name].image_size)
    np.savez(folder / "calib.npz", images=natural_crops(images, size, seed=2))
    out = folder / "bundle"
    report = export(
        ModelSpec(arch=name, image_size=size), replace(spec, calib=folder / "calib.npz"), out
    ).report
    return read_manifest(out), report


def _assert_within_tolerance(manifest: Manifest, report: ParityReport) -> None:
    assert {entry.artifact for entry in report.entries} == set(RUNS)
    for artifact, backends in RUNS.items():
        assert {entry.backend for entry in report.entries if entry.artifact == artifact} == backends
    for entry in report.entries:
        assert entry.passed, f"{entry.title}: {failure(entry)}"
        assert entry.checks[0].comparison.figures.reference_classes > 2
    assert report.verdict.status == "passed"
    assert [one.refusal for one in manifest.artifacts if one.refusal] == []


@pytest.mark.parametrize("name", SAMPLE)
def test_a_row_is_within_tolerance_in_every_precision(name: str, tmp_path: Path) -> None:
    # The fewest choices: each improvement of INT8 would only bring it closer.
    spec = ExportSpec(
        fp16=True,
        bf16=True,
        int8=True,
        calib_method="mse",
        equalize=False,
        correct_bias=False,
        round_weights=False,
        engine="none",
        batch=BATCH,
    )
    _assert_within_tolerance(*_exported(name, spec, tmp_path, images=16))


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_row_is_within_tolerance_in_every_precision_and_builds_engines(
    name: str, tmp_path: Path
) -> None:
    spec = ExportSpec(fp16=True, bf16=True, int8=True, engine="tensorrt-rtx", gpu=("sm86",), batch=BATCH)
    manifest, report = _exported(name, spec, tmp_path, images=32)
    _assert_within_tolerance(manifest, report)
    engines = {one.precision for one in manifest.artifacts if one.kind == "engine"}
    assert engines == {Precision.FP16, Precision.BF16, Precision.INT8}
