"""What a request names, decided before anything is read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_export.exporter.models.weight_source import Source, locate, sha256_of
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.errors import CheckpointError, RequestError

RESNET18, RESNET50 = ZOO["resnet18"], ZOO["resnet50"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (ModelSpec(depth=18), Source(RESNET18)),
        (ModelSpec(arch="resnet50"), Source(RESNET50)),
        (ModelSpec(depth=18, weights="imagenet"), Source(RESNET18, published=RESNET18.weights[0])),
        (ModelSpec(depth=50, weights="imagenet"), Source(RESNET50, published=RESNET50.weights[1])),
        (ModelSpec(depth=50, weights="ImageNet"), Source(RESNET50, published=RESNET50.weights[1])),
        (ModelSpec(depth=50, weights="IMAGENET1K_V1"), Source(RESNET50, published=RESNET50.weights[0])),
        (
            ModelSpec(weights="ResNet50_Weights.IMAGENET1K_V1"),
            Source(RESNET50, published=RESNET50.weights[0]),
        ),
        (ModelSpec(weights="ResNet50_Weights.DEFAULT"), Source(RESNET50, published=RESNET50.weights[1])),
        (
            ModelSpec(depth=50, num_classes=1000, weights="ResNet50_Weights.IMAGENET1K_V2"),
            Source(RESNET50, published=RESNET50.weights[1]),
        ),
    ],
)
def test_published_names_are_torchvisions(spec: ModelSpec, expected: Source) -> None:
    assert locate(spec) == expected


def test_a_file_may_leave_the_architecture_open(tmp_path: Path) -> None:
    path = tmp_path / "imagenet"
    path.write_bytes(b"x")
    assert locate(ModelSpec(weights=str(path))) == Source(None, file=path)
    assert locate(ModelSpec(depth=18, weights=str(path))) == Source(RESNET18, file=path)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ModelSpec(), ("no architecture",)),
        (ModelSpec(weights="imagenet"), ("no architecture",)),
        (ModelSpec(depth=18, arch="resnet50"), ("18", "resnet50")),
        (ModelSpec(depth=18, weights="IMAGENET1K_V2"), ("IMAGENET1K_V2", "resnet18", "IMAGENET1K_V1")),
        (ModelSpec(depth=18, weights="ResNet50_Weights.IMAGENET1K_V2"), ("resnet50", "resnet18")),
        (ModelSpec(weights="VGG16_Weights.IMAGENET1K_V1"), ("VGG16", "ResNet18_Weights")),
        (ModelSpec(depth=18, weights="imagenet", num_classes=10), ("1000", "10")),
        (ModelSpec(depth=18, num_classes=0), ("0", "at least 1")),
        (ModelSpec(depth=18, image_size=31), ("31", "32")),
    ],
)
def test_a_request_that_contradicts_itself_is_refused(spec: ModelSpec, words: tuple[str, ...]) -> None:
    with pytest.raises(RequestError) as caught:
        locate(spec)
    for word in words:
        assert word in str(caught.value)


def test_a_file_that_cannot_be_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    for name, words in (
        ("none.pth", "No such file"),
        ("empty.pth", r"empty \(0 bytes\)"),
        ("", "is a folder"),
    ):
        with pytest.raises(CheckpointError, match=words):
            locate(ModelSpec(weights=str(tmp_path / name)))
    with pytest.raises(CheckpointError, match="null byte"):
        locate(ModelSpec(weights="a\0b"))


def test_a_checkpoint_that_may_never_end_is_refused_without_reading_it(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", Path("/dev/zero"), tmp_path):
        with pytest.raises(CheckpointError, match="is not a regular file"):
            sha256_of(path)


def test_a_request_is_checked_without_loading_torch() -> None:
    code = (
        "import sys; from resnet_export.exporter.spec import ModelSpec; "
        "from resnet_export.exporter.models import labels, photographs, weight_source as source; "
        "source.locate(ModelSpec(depth=18, weights='imagenet')); "
        "print(sorted({'torch', 'onnx', 'PIL', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
