"""What an export says of labeled calibration images: whether the network knows them by these labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.exporter.golden.label_check import check_labels
from resnet_export.exporter.graph.export import simplify, to_onnx
from resnet_export.exporter.graph.stage_check import record_reference
from resnet_export.exporter.models.resnet import build
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.preprocess import normalize
from tests import trained
from tests.digits import CLASSES, PREPROCESSING

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGES = 200


@pytest.fixture(scope="module")
def network(checkpoints: Path) -> onnx.ModelProto:
    """The graph of a network that reads digits."""
    module = build(trained.RESNET18, CLASSES)
    module.load_state_dict(torch.load(trained.checkpoint(checkpoints), weights_only=True))
    reference = record_reference(module.eval(), normalize(trained.splits()[1].images[:4], PREPROCESSING))
    batch = BatchRange(min=1, opt=4, max=8)
    graph, _ = to_onnx(module, batch=batch, reference=reference)
    return simplify(graph).model


def photos(labels: NDArray[np.int64] | None) -> Photos:
    """Return held-out digits under these labels."""
    return Photos.of(trained.splits()[1].images[:IMAGES], PREPROCESSING, labels=labels)


def test_the_share_that_the_network_gets_right_is_said(network: onnx.ModelProto) -> None:
    labels = trained.splits()[1].labels[:IMAGES]
    said = check_labels(network, photos(labels), NAMES)
    assert said is not None
    share = float(said.partition("right on ")[2].partition(" %")[0])
    assert 95 <= share <= 100
    assert f"of the {IMAGES} labeled calibration images" in said
    assert "--labels" not in said


def test_labels_of_other_classes_are_found_out(network: onnx.ModelProto) -> None:
    labels = (trained.splits()[1].labels[:IMAGES] + 1) % CLASSES
    with pytest.raises(RequestError, match=r"contradict the images: .*zero → nine → eight") as caught:
        check_labels(network, photos(labels), NAMES)
    assert "--labels-as-given" in str(caught.value)
    said = check_labels(network, photos(labels), NAMES, as_given=True)
    assert said is not None
    assert "were kept as given: images of one class are predicted as the next (zero → nine → eight" in said


def test_labels_without_an_order_are_said_to_be_no_better_than_chance(network: onnx.ModelProto) -> None:
    labels = np.random.default_rng(0).integers(0, CLASSES, IMAGES)
    said = check_labels(network, photos(labels), NAMES)
    assert said is not None
    assert "hardly more than by chance" in said
    assert "compare --labels" in said


def test_two_classes_whose_labels_are_exchanged_are_named(network: onnx.ModelProto) -> None:
    table = np.arange(CLASSES)
    table[[3, 8]] = table[[8, 3]]
    labels = table[trained.splits()[1].labels[:IMAGES]]
    with pytest.raises(RequestError, match=r"\(three → eight → three\)"):
        check_labels(network, photos(labels), NAMES)


def test_images_without_labels_say_nothing(network: onnx.ModelProto) -> None:
    assert check_labels(network, photos(None), NAMES) is None
