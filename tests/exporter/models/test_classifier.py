"""What a request becomes: the eager network, and what a bundle says about it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from resnet_export.exporter.models import zoo_network as subject
from resnet_export.exporter.models.checkpoint import Checkpoint
from resnet_export.exporter.models.labels import imagenet_labels
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.models.resnet import build
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.exporter.models.zoo_facts import read_facts
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import Preprocessing, WeightsInfo
from resnet_export.runtime.errors import RequestError


def test_without_weights_the_network_is_seeded_and_says_so() -> None:
    network = load_classifier(ModelSpec(depth=18, image_size=32, seed=5))
    assert network.info.weights == WeightsInfo(source="untrained", name="untrained", seed=5)
    assert (network.info.arch, network.info.num_classes) == ("resnet18", 1000)
    assert network.info.parameters == read_facts()["resnet18"].parameters
    assert network.labels == imagenet_labels()
    (notice,) = network.notices
    assert "untrained" in notice
    assert "seed 5" in notice
    assert not network.module.training
    assert all(parameter.dtype == torch.float32 for parameter in network.module.parameters())


def test_a_checkpoint_is_in_the_network_and_in_its_description(tmp_path: Path) -> None:
    state = build(ZOO["resnet18"], 4).state_dict()
    state["fc.bias"] = torch.arange(4.0)
    torch.save({"model": state, "model_ema": state}, tmp_path / "mine.pth")
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    network = load_classifier(ModelSpec(weights=str(tmp_path / "mine.pth"), labels=tmp_path / "labels.txt"))
    assert torch.equal(network.module.fc.bias, torch.arange(4.0))
    assert network.info.weights.source == "file"
    assert network.info.weights.seed is None
    assert network.info.parameters == read_facts()["resnet18"].parameters - 996 * 513
    assert network.labels == ("a", "b", "c", "d")
    notice, _ = network.notices
    assert "'model_ema'" in notice


def test_imagenets_names_on_a_users_checkpoint_are_a_guess_and_said_so(tmp_path: Path) -> None:
    torch.save(build(ZOO["resnet18"]).state_dict(), tmp_path / "mine.pth")
    network = load_classifier(ModelSpec(weights=str(tmp_path / "mine.pth")))
    assert network.labels == imagenet_labels()
    notice, _ = network.notices
    assert "ImageNet's are used" in notice


@pytest.mark.parametrize(
    ("image_size", "resize"), [(224, 256), (288, 329), (64, 73)], ids=["usual", "larger", "smaller"]
)
def test_the_resize_keeps_its_ratio_to_the_crop(image_size: int, resize: int) -> None:
    network = load_classifier(ModelSpec(depth=18, num_classes=2, image_size=image_size))
    assert network.preprocessing == Preprocessing(resize=resize, crop=image_size)


def test_published_weights_bring_their_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ZOO["resnet50"]
    info = WeightsInfo(source="torchvision", name="ResNet50_Weights.IMAGENET1K_V2", sha256="0" * 64)
    checkpoint = Checkpoint(build(chosen).state_dict(), chosen, 1000, info, chosen.weights[1])
    monkeypatch.setattr(subject, "load_weights", lambda *_: checkpoint)
    network = load_classifier(ModelSpec(depth=50, weights="imagenet"))
    assert network.preprocessing == Preprocessing(resize=232, crop=224)
    assert network.info.weights == info
    assert network.notices == ()


def test_wrong_labels_are_refused_before_any_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\n")
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(RequestError, match=r"2 labels.*3 classes"):
        load_classifier(
            ModelSpec(weights=str(tmp_path / "broken.pth"), num_classes=3, labels=tmp_path / "labels.txt")
        )


def test_labels_are_counted_against_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a\nb\n")
    torch.save(build(ZOO["resnet18"], 4).state_dict(), tmp_path / "mine.pth")
    with pytest.raises(RequestError, match=r"2 labels.*4 classes"):
        load_classifier(ModelSpec(weights=str(tmp_path / "mine.pth"), labels=tmp_path / "labels.txt"))


def test_a_checkpoints_preprocessing_is_what_the_request_says(tmp_path: Path) -> None:
    torch.save(build(ZOO["resnet18"], 2).state_dict(), tmp_path / "mine.pth")
    asked = ModelSpec(
        weights=str(tmp_path / "mine.pth"),
        image_size=64,
        resize=64,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
    )
    network = load_classifier(asked)
    assert network.preprocessing == Preprocessing(
        resize=64, crop=64, interpolation="bicubic", mean=(0.5,) * 3, std=(0.25,) * 3
    )
    assert network.notices == ()


def test_preprocessing_that_nobody_named_is_said_to_be_assumed(tmp_path: Path) -> None:
    torch.save(build(ZOO["resnet18"], 2).state_dict(), tmp_path / "mine.pth")
    (notice,) = load_classifier(ModelSpec(weights=str(tmp_path / "mine.pth"), image_size=64)).notices
    assert "ImageNet's preprocessing is assumed: shorter side to 73 (bilinear), central 64 × 64" in notice
    assert "--resize" in notice


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, Preprocessing(resize=73, crop=64)),
        ({"image_size": (64, 64)}, Preprocessing(resize=73, crop=64)),
        ({"image_size": (64, 96)}, Preprocessing(resize=(64, 96), crop=(64, 96))),
        ({"image_size": (64, 96), "resize": 100}, Preprocessing(resize=100, crop=(64, 96))),
        ({"resize": (64, 64)}, Preprocessing(resize=(64, 64), crop=64)),
        (
            {"mean": (0.25,), "std": (0.5,)},
            Preprocessing(resize=73, crop=64, mean=(0.25,) * 3, std=(0.5,) * 3),
        ),
        ({"input_channels": 1}, Preprocessing(resize=73, crop=64, mean=(0.5,), std=(0.5,))),
        (
            {"input_channels": 4, "mean": (0.1, 0.2, 0.3, 0.4)},
            Preprocessing(resize=73, crop=64, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,) * 4),
        ),
        (
            {"mean": (0.1, 0.2, 0.3, 0.4)},
            Preprocessing(resize=73, crop=64, mean=(0.1, 0.2, 0.3, 0.4), std=(0.5,) * 4),
        ),
    ],
)
def test_an_untrained_network_takes_the_input_that_is_asked_for(
    asked: dict[str, Any], expected: Preprocessing
) -> None:
    network = load_classifier(ModelSpec(**{"depth": 18, "num_classes": 2, "image_size": 64} | asked))
    assert network.preprocessing == expected
    with torch.no_grad():
        assert network.module(torch.zeros(1, expected.channels, *expected.size)).shape == (1, 2)


def test_a_seed_means_the_same_network_whatever_the_mean() -> None:
    one, other = (
        load_classifier(ModelSpec(depth=18, num_classes=2, image_size=64, mean=mean)).module.state_dict()
        for mean in (None, (0.1, 0.2, 0.3))
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (
            {"image_size": (64, 96), "resize": 80},
            "resized to 80 pixels and cropped to 64 × 96, which it does not have",
        ),
        ({"image_size": (64, 96), "resize": (64, 64)}, "squashed to 64 × 64 pixels and cropped to 64 × 96"),
        (
            {"input_channels": 1, "mean": (0.5, 0.5, 0.5)},
            "the network has 1 input channel (grayscale); give one",
        ),
        (
            {"input_channels": 2},
            "the network has 2 input channels, and images are decoded to 1 (grayscale), 3 (RGB)",
        ),
        ({"resize": 48}, "resized to 48 pixels and cropped to 64"),
        (
            {"mean": (123.7, 116.3, 103.5)},
            "the mean is 123.7,116.3,103.5, expected numbers from 0 to 1",
        ),
        ({"std": (0.2, 0.0, 0.2)}, "expected numbers above 0"),
        ({"std": (float("nan"), 0.2, 0.2)}, "expected numbers above 0"),
        (
            {"mean": (0.5, 0.5)},
            "the mean is 0.5,0.5, and the network has 3 input channels (RGB); give one number for each",
        ),
    ],
)
def test_preprocessing_that_cannot_be_is_refused_before_any_weights_are_read(
    asked: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    with pytest.raises(RequestError, match=re.escape(expected)):
        load_classifier(ModelSpec(**{"weights": str(tmp_path / "broken.pth"), "image_size": 64} | asked))
