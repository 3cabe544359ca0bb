"""Graphs of an earlier bundle serve again exactly where everything that they are made of is the same."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from resnet_export.calibration.data.photos import Photos
from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.bundle.manifest import maker_versions
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.graph_artifact import GraphArtifact, Lowering
from resnet_export.exporter.graph.reuse import open_earlier, stage_key
from resnet_export.exporter.graph.stage_check import Reference
from resnet_export.runtime.bundle.manifest import BatchRange, read_manifest
from resnet_export.runtime.errors import BundleError
from resnet_export.runtime.precision import Precision
from tests.resnet_onnx import resnet

SPEC = ExportSpec(fp16=True, engine="none", batch=BatchRange(min=1, opt=2, max=3))
MODEL = ModelSpec(arch="resnet20", num_classes=10)
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def task(**changed: Any) -> Lowering:
    fp32 = GraphArtifact(
        "fp32", Precision.FP32, "any", ExportedGraph(onnx.load_from_string(resnet(18)), {}, "dynamo"), {}
    )
    photos = Photos.of(IMAGES, None, labels=np.arange(6))
    empty = Reference(IMAGES, {"logits": np.zeros((6, 10), np.float32)})
    return replace(Lowering(fp32, photos, empty, ExportSpec(int8=True), untrained=False), **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"untrained": True},
        {"photos": Photos.of(IMAGES[:5], None, labels=np.arange(5))},
        {"photos": Photos.of(IMAGES, None, labels=np.arange(6)[::-1])},
        {"photos": Photos.of(IMAGES, None)},
        {"spec": ExportSpec(int8=True, calib_method="minmax")},
        {"spec": ExportSpec(int8=True, max_drop=1.0)},
        {"spec": ExportSpec(int8=True, exclude=("fc",))},
        {"spec": ExportSpec(int8=True, equalize=False)},
        {"spec": ExportSpec(int8=True, correct_bias=False)},
        {"spec": ExportSpec(int8=True, round_weights=False)},
        {"fp32": replace(task().fp32, graph=ExportedGraph(onnx.load_from_string(resnet(50)), {}, "dynamo"))},
    ],
    ids=str,
)
def test_anything_that_int8_is_made_of_changes_the_key(changed: dict[str, Any]) -> None:
    assert stage_key(Precision.INT8, task(**changed)) != stage_key(Precision.INT8, task())


@pytest.mark.parametrize(
    "spec",
    [
        ExportSpec(int8=True, batch=BatchRange(min=1, opt=1, max=64)),
        ExportSpec(int8=True, engine="none", fp16=True),
    ],
    ids=["batch", "engine and fp16"],
)
def test_what_it_is_not_made_of_does_not(spec: ExportSpec) -> None:
    assert stage_key(Precision.INT8, task(spec=spec)) == stage_key(Precision.INT8, task())


def test_precisions_do_not_share_a_key() -> None:
    assert stage_key(Precision.FP16, task()) != stage_key(Precision.BF16, task())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(MODEL, SPEC, tmp_path_factory.mktemp("reuse") / "bundle").bundle.path


def test_a_bundle_that_is_replaced_gives_its_graphs_to_the_next_of_the_same(
    bundle: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    before = read_manifest(out).artifact("fp16").sha256
    again = export(MODEL, replace(SPEC, force=True, batch=BatchRange(min=1, opt=1, max=5)), out)
    assert again.bundle.manifest.artifact("fp16").sha256 == before
    assert "fp16" in again.bundle.manifest.provenance.notices[-1]
    other = export(replace(MODEL, seed=1), replace(SPEC, reuse=bundle), tmp_path / "other")
    assert not any("taken over" in notice for notice in other.bundle.manifest.provenance.notices)
    assert other.bundle.manifest.artifact("fp16").sha256 != before


def test_a_damaged_file_of_the_earlier_bundle_is_made_anew(bundle: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    before = (out / "model.fp16.onnx").read_bytes()
    (out / "model.fp16.onnx").write_bytes(before[:-1] + b"x")
    again = export(MODEL, replace(SPEC, force=True), out)
    assert (out / "model.fp16.onnx").read_bytes() == before
    assert not any("taken over" in notice for notice in again.bundle.manifest.provenance.notices)


def test_a_bundle_of_other_versions_does_not_serve(bundle: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    spec = replace(SPEC, reuse=out)
    assert open_earlier(spec, tmp_path / "new", maker_versions()) is not None
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["provenance"]["versions"]["torch"] = "1.0"
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert open_earlier(spec, tmp_path / "new", maker_versions()) is None


def test_a_bundle_that_was_named_and_is_none_is_refused_and_one_in_the_way_is_replaced(
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError):
        open_earlier(replace(SPEC, reuse=tmp_path / "empty"), tmp_path / "new", {})
    assert open_earlier(replace(SPEC, force=True), tmp_path / "empty", {}) is None
