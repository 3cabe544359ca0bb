"""The INT8 artifacts of a bundle, and the table that they were made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from resnet_export.calibration.data.dataset import DatasetWarning
from resnet_export.calibration.observe.table import read_table
from resnet_export.exporter.cli import cli
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.layer_report import read_reports
from resnet_export.runtime.bundle.manifest import read_manifest, verify_bundle
from resnet_export.runtime.precision import Precision
from tests.natural_crops import natural_crops

SIZE = 64
EXPORT = ("--depth", "18", "--image-size", str(SIZE), "--batch", "1,2,4")


def run(*arguments: object) -> Result:
    """Run the command line."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two natural crops as an archive."""
    path = tmp_path_factory.mktemp("photos") / "crops.npz"
    np.savez(path, images=natural_crops(32, SIZE, seed=5))
    return path


@pytest.fixture(scope="module")
def bundle(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18 with every layer in INT8, and engines where there is a builder."""
    out = tmp_path_factory.mktemp("int8") / "bundle"
    gpu = ("--engine", "tensorrt-rtx", "--gpu", "sm86,sm89")
    result = run(*EXPORT, "--fp16", "--int8", "--calib", photos, "--exclude", "none", *gpu, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_int8_adds_a_graph_for_each_target_and_the_table_behind_both(bundle: Path) -> None:
    manifest = verify_bundle(bundle)
    targets = {artifact.name: artifact.target for artifact in manifest.artifacts if artifact.kind == "onnx"}
    assert targets == {"fp32": "any", "fp16": "any", "int8.tensorrt": "tensorrt", "int8.cpu": "cpu"}
    assert read_table(bundle / "calibration.json").images == 24  # a quarter was held out to compare on
    assert {"int8.tensorrt", "int8.cpu"} <= set(manifest.golden.stages)


def test_int8_files_are_about_a_quarter_of_fp32(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    whole = manifest.artifact("fp32").bytes
    for name in ("int8.tensorrt", "int8.cpu"):
        assert manifest.artifact(name).bytes <= 0.27 * whole


def test_every_weight_of_the_int8_graphs_is_stored_as_int8(bundle: Path) -> None:
    for name in ("int8.tensorrt", "int8.cpu"):
        graph = onnx.load(bundle / read_manifest(bundle).artifact(name).file).graph
        weights = [tensor for tensor in graph.initializer if len(tensor.dims) in (2, 4)]
        assert len(weights) == 21
        assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}


def test_each_engine_accounts_for_every_convolution_at_its_precision(bundle: Path) -> None:
    reports = {artifact.precision: report for artifact, report in read_reports(bundle, read_manifest(bundle))}
    assert {precision: dict(report.convolutions()) for precision, report in reports.items()} == {
        Precision.FP16: {Precision.FP16: 20},
        Precision.INT8: {Precision.INT8: 20},
    }


def test_calibrate_writes_the_same_table_for_a_bundle_and_its_graph(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    for source, name in ((bundle, "bundle.json"), (bundle / "model.onnx", "graph.json")):
        result = run("calibrate", source, "--calib", photos, "--out", tmp_path / name)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "bundle.json").read_bytes() == (tmp_path / "graph.json").read_bytes()
    assert read_table(tmp_path / "graph.json").graph == read_table(bundle / "calibration.json").graph


def test_a_bundles_own_table_and_images_give_the_same_graphs_again(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    given = ("--calib-table", bundle / "calibration.json", "--calib", photos)
    out = tmp_path / "again"
    result = run(*EXPORT, "--int8", *given, "--exclude", "none", "--engine", "none", "--out", out)
    assert result.exit_code == 0, result.output
    again, first = read_manifest(out), read_manifest(bundle)
    for name in ("int8.tensorrt", "int8.cpu"):
        assert again.artifact(name).sha256 == first.artifact(name).sha256


def test_a_table_alone_makes_both_graphs_and_says_what_was_not_tried(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "alone"
    table = ("--calib-table", bundle / "calibration.json", "--engine", "none")
    result = run(*EXPORT, "--int8", *table, "--out", out)
    assert result.exit_code == 0, result.output
    assert {"int8.tensorrt", "int8.cpu"} <= {artifact.name for artifact in read_manifest(out).artifacts}
    assert "from a table alone" in result.output


def test_a_table_of_another_graph_is_refused_and_both_hashes_are_named(bundle: Path, tmp_path: Path) -> None:
    table = bundle / "calibration.json"
    other = ("--seed", "1", "--engine", "none", "--out", tmp_path / "bundle")
    result = run(*EXPORT, *other, "--int8", "--calib-table", table)
    assert result.exit_code == 2
    assert json.loads(table.read_text())["graph"] in result.stderr
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (np.zeros((0, SIZE, SIZE, 3), np.uint8), "no image"),
        (natural_crops(1, SIZE, seed=0), "single image"),
        (np.full((4, SIZE, SIZE, 3), 90, np.uint8), "single color"),
        (np.zeros((4, SIZE, SIZE, 3), np.float32), "float32"),
        (np.zeros((4, SIZE), np.uint8), "[4, 64]"),
        (np.zeros((4, SIZE, SIZE, 5), np.uint8), "[4, 64, 64, 5]"),
    ],
    ids=["no images", "one image", "constant images", "wrong dtype", "no pixels", "five channels"],
)
def test_images_that_cannot_be_calibrated_on_are_refused(
    images: np.ndarray, expected: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "images.npz", images=images)
    result = run(*EXPORT, "--int8", "--calib", tmp_path / "images.npz", "--out", tmp_path / "bundle")
    assert result.exit_code == 2
    assert expected in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("parameter", "change", "expected"),
    [
        ("layer1.0.conv1.weight", lambda values: values.index_fill_(0, torch.tensor([1]), torch.nan), "NaN"),
        ("layer4.1.bn1.weight", lambda values: values.mul_(1e38), "leaves float32's range"),
    ],
    ids=["a weight that is NaN", "an activation that overflows on real images"],
)
def test_a_network_that_is_not_finite_is_refused(
    parameter: str,
    change: Callable[[torch.Tensor], torch.Tensor],
    expected: str,
    photos: Path,
    tmp_path: Path,
) -> None:
    state = load_classifier(ModelSpec(depth=18, image_size=SIZE)).module.state_dict()
    change(state[parameter])
    torch.save(state, tmp_path / "weights.pth")
    given = ("--weights", tmp_path / "weights.pth", "--image-size", SIZE, "--int8", "--calib", photos)
    result = run(*given, "--out", tmp_path / "bundle")
    assert result.exit_code == 2
    assert expected in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "bundle").exists()


def test_labels_that_the_network_does_not_have_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=natural_crops(4, SIZE, seed=0), labels=[1, 2, 3, 1000])
    result = run(*EXPORT, "--int8", "--calib", tmp_path / "images.npz", "--out", tmp_path / "bundle")
    assert result.exit_code == 2
    assert "label 1000, expected 0 to 999" in result.stderr


def test_int8_without_images_or_table_is_refused(tmp_path: Path) -> None:
    result = run(*EXPORT, "--int8", "--out", tmp_path / "bundle")
    assert result.exit_code == 2
    assert "--calib" in result.stderr


@pytest.mark.parametrize(
    ("given", "expected"),
    [(("--fp16",), "give --int8"), (("--int8", "--calib-table", "table.json"), "give --calib")],
)
def test_a_budget_that_could_not_be_held_is_refused(
    given: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    result = run(*EXPORT, *given, "--max-drop", "0.5", "--out", tmp_path / "bundle")
    assert result.exit_code == 2
    assert expected in result.stderr


@pytest.fixture(scope="module")
def chosen(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18 with layers to keep, a method and a budget."""
    out = tmp_path_factory.mktemp("chosen") / "bundle"
    how = ("--calib-method", "mse", "--max-drop", "100", "--exclude", "conv1,layer4.1.conv2")
    result = run(*EXPORT, "--int8", "--calib", photos, *how, "--engine", "none", "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_layers_that_are_kept_are_listed_with_the_reason(chosen: Path) -> None:
    excluded = read_manifest(chosen).artifact("int8.tensorrt").excluded
    assert {layer.node: (layer.precision, layer.reason) for layer in excluded} == {
        "conv1": (Precision.FP16, "excluded by request"),
        "layer4.1.conv2": (Precision.FP16, "excluded by request"),
    }


def test_a_budget_is_held_on_the_calibration_images_and_reported_layer_by_layer(chosen: Path) -> None:
    found = json.loads((chosen / "report.json").read_text())["int8"]
    assert found["method"] == "mse"
    for verdict in found["verdicts"]:
        assert "disagreement ≤ 100" in verdict["limit"]
        assert verdict["validation"]["images"] == 32
    assert {layer["layer"] for layer in found["layers"]} >= {"conv1", "layer4.1.conv2", "fc"}


def test_an_unknown_layer_in_keep_fp16_is_refused_with_the_layers_there_are(
    photos: Path, tmp_path: Path
) -> None:
    keep = ("--exclude", "layer9.conv1", "--engine", "none", "--out", tmp_path / "bundle")
    result = run(*EXPORT, "--int8", "--calib", photos, *keep)
    assert result.exit_code == 2
    assert "layer9.conv1" in result.stderr
    assert "layer4.1.conv2" in result.stderr


def test_nothing_is_said_of_held_out_images_where_unreadable_ones_leave_too_few(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number, crop in enumerate(natural_crops(8, SIZE, seed=2)):
        Image.fromarray(crop).save(tmp_path / "photos" / f"{number}.png")
    (tmp_path / "photos" / "3.png").write_bytes(b"no image")  # eight would be enough, seven are not
    out = tmp_path / "bundle"
    given = ("--exclude", "none", "--engine", "none", "--out", out)
    with pytest.warns(DatasetWarning, match=r"1 of 8 images of .* cannot be read"):
        result = run(*EXPORT, "--int8", "--calib", tmp_path / "photos", *given)
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert (report["int8"]["images"], report["int8"]["held_out"]) == (7, 0)
    assert any("7 images are too few" in note for note in report["int8"]["notices"])
    assert read_table(out / "calibration.json").images == 7
