"""Two exports side by side: what changed, on the same images, and whether too much was lost."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from PIL import Image

from resnet_export.exporter.cli import cli
from resnet_export.exporter.parity.compare import compare_bundles
from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, encode_manifest, read_manifest
from resnet_export.runtime.errors import RequestError
from tests import parity_bundle
from tests.tiny_bundle import FP32


def worse(data: bytes) -> bytes:
    """The network with its classes in another order."""
    model = onnx.load_from_string(data)
    for tensor in model.graph.initializer:
        if tensor.name == "bias":
            tensor.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(tensor), 1) * 3, "bias"))
    changed: bytes = model.SerializeToString()
    return changed


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(tmp_path_factory.mktemp("compare") / "before", trained=True)


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(
        tmp_path_factory.mktemp("compare") / "after",
        [FP32],
        graphs={"fp32": worse(parity_bundle.graph())},
        trained=True,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = parity_bundle.crops(40, seed=3)
    path = tmp_path_factory.mktemp("data") / "val.npz"
    np.savez(path, images=images, labels=parity_bundle.logits(images).argmax(axis=1))
    return path


def test_a_bundle_beside_itself_has_changed_in_nothing(before: Path) -> None:
    found = compare_bundles(before, before, max_drop=0)
    assert [one.name for one in found.artifacts] == ["fp32", "fp16", "int8", "int8.cpu"]
    for one in found.artifacts:
        assert one.comparison is not None
        assert one.comparison.figures.max_abs == 0
        assert one.comparison.flip_count == 0
    assert all("the same file" in fact for fact in found.facts)
    assert found.exit_code == 0


def test_what_was_lost_is_that_of_onnx_runtime_by_itself(before: Path, after: Path, data: Path) -> None:
    found = compare_bundles(before, after, data=data, max_drop=1)
    fp32 = found.artifacts[0]
    images = parity_bundle.crops(40, seed=3)
    one, other = (
        parity_bundle.logits(images, (bundle / read_manifest(bundle).artifact("fp32").file).read_bytes())
        for bundle in (before, after)
    )
    flips = int((one.argmax(1) != other.argmax(1)).sum())
    assert flips > 0
    assert fp32.comparison is not None
    assert fp32.comparison.flip_count == flips
    assert fp32.comparison.labeled is not None
    assert fp32.comparison.labeled.drop_points == pytest.approx(100 * flips / 40)
    assert found.exit_code == 1
    assert found.failures[0].startswith("fp32 lost")


def test_an_artifact_that_one_side_lacks_is_said_and_not_compared(before: Path, after: Path) -> None:
    fp16 = next(one for one in compare_bundles(before, after).artifacts if one.name == "fp16")
    assert fp16.comparison is None
    assert fp16.error == f"{after} has none"
    assert fp16.megabytes[1] is None


def test_bundles_of_other_classes_are_refused(before: Path, tmp_path: Path) -> None:
    other = parity_bundle.write(tmp_path / "other", [FP32], trained=True)
    manifest = read_manifest(other)
    model = msgspec.structs.replace(manifest.model, num_classes=manifest.model.num_classes + 1)
    labels = (*manifest.labels, "one more")
    outputs = tuple(
        msgspec.structs.replace(output, shape=("N", manifest.model.num_classes + 1))
        if output.name == "logits"
        else output
        for output in manifest.outputs
    )
    (other / MANIFEST_NAME).write_bytes(
        encode_manifest(msgspec.structs.replace(manifest, model=model, labels=labels, outputs=outputs))
    )
    with pytest.raises(RequestError, match="compare bundles of one task"):
        compare_bundles(before, other)


def test_another_crop_needs_images(before: Path, tmp_path: Path) -> None:
    other = parity_bundle.write(tmp_path / "other", [FP32], trained=True)
    manifest = read_manifest(other)
    assert isinstance(manifest.preprocessing.resize, int)
    changed = msgspec.structs.replace(manifest.preprocessing, resize=manifest.preprocessing.resize + 8)
    (other / MANIFEST_NAME).write_bytes(
        encode_manifest(msgspec.structs.replace(manifest, preprocessing=changed))
    )
    with pytest.raises(RequestError, match="give --data"):
        compare_bundles(before, other)


def test_the_command_prints_a_table_writes_markdown_and_exits_with_the_verdict(
    before: Path, after: Path, data: Path, tmp_path: Path
) -> None:
    comment = tmp_path / "comment.md"
    arguments = ["compare", str(before), str(after), "--data", str(data), "--max-drop", "1"]
    result = CliRunner().invoke(cli, [*arguments, "--markdown", str(comment)])
    assert result.exit_code == 1
    assert "FAILED: fp32 lost" in result.stdout
    assert comment.read_text().startswith("### ❌")
    result = CliRunner().invoke(cli, [*arguments, "--json"])
    assert msgspec.json.decode(result.stdout)["failures"]
    result = CliRunner().invoke(cli, [*arguments, "--quiet"])
    assert result.stdout == ""
    assert "fp32 lost" in result.stderr


def test_labels_that_mean_other_classes_in_the_other_bundle_are_refused(before: Path, tmp_path: Path) -> None:
    other = parity_bundle.write(tmp_path / "other", [FP32], trained=True)
    manifest = read_manifest(other)
    swapped = msgspec.structs.replace(manifest, labels=tuple(reversed(manifest.labels)))
    (other / MANIFEST_NAME).write_bytes(encode_manifest(swapped))
    for index, crop in enumerate(parity_bundle.crops(len(manifest.labels))):
        folder = tmp_path / "val" / manifest.labels[index]
        folder.mkdir(parents=True)
        Image.fromarray(crop).save(folder / "a.png")
    with pytest.raises(RequestError, match="name their classes otherwise"):
        compare_bundles(before, other, data=tmp_path / "val", max_drop=0.5)


def test_an_artifact_that_is_gone_does_not_pass_a_budget(before: Path, after: Path) -> None:
    assert "fp16 is gone" in compare_bundles(before, after, max_drop=100).failures
