"""The eager network against torchvision's, and the numerical sanity of untrained ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resnet_export.exporter.models.photographs import photographs
from resnet_export.exporter.models.resnet import BasicBlock, Bottleneck, ResNet, build, initialize
from resnet_export.exporter.models.zoo import ZOO, Architecture
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import normalize
from tests.natural_crops import natural_crops


def _normalized(images: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(normalize(images, Preprocessing()))


def _untrained(architecture: Architecture, size: int, num_classes: int = 1000, seed: int = 0) -> ResNet:
    return initialize(build(architecture, num_classes), seed, _normalized(photographs(size)))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ZOO)
def test_the_network_is_torchvisions(torchvision: ModuleType, name: str) -> None:
    ours = _untrained(ZOO[name], size=32)
    generator = torch.Generator().manual_seed(1)
    for module in ours.modules():
        if isinstance(module, nn.BatchNorm2d):  # untrained biases are zero, and would hide a swap
            nn.init.normal_(module.bias, std=0.1, generator=generator)
    with torch.device("meta"):  # spares the random numbers of its constructor
        theirs = torchvision.models.get_model(name, weights=None).eval()
    theirs.to_empty(device="cpu").load_state_dict(ours.state_dict(), strict=True)
    back = build(ZOO[name])
    back.load_state_dict(theirs.state_dict(), strict=True)

    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert {key for key, _ in ours.named_modules()} == {key for key, _ in theirs.named_modules()}
    assert sum(parameter.numel() for parameter in ours.parameters()) == ZOO[name].parameters
    images = _normalized(natural_crops(2, 192, seed=5))
    with torch.inference_mode():
        expected = theirs(images)
        assert _relative_error(ours(images), expected) <= 1e-5
        assert _relative_error(back(images), expected) <= 1e-5


@pytest.mark.parametrize("name", ["resnet18", "resnet152"])
def test_an_untrained_network_loses_little_to_rounding(name: str) -> None:
    network = _untrained(ZOO[name], size=64)
    images = _normalized(natural_crops(4, 64, seed=1))
    with torch.inference_mode():
        single = network(images)
        double = network.double()(images.double())
    assert _relative_error(single.double(), double) <= 2e-5


def test_predictions_of_an_untrained_network_survive_half_precision() -> None:
    network = _untrained(ZOO["resnet18"], size=64)
    half = copy.deepcopy(network)
    for parameter in half.parameters():
        parameter.data = parameter.data.half().float()
    for module in half.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda _module, _inputs, output: output.half().float())
    images = _normalized(natural_crops(300, 64, seed=2))
    with torch.inference_mode():
        expected, found = network(images), half(images)
    centre = expected.mean(0)
    cosine = torch.cosine_similarity((found - centre).flatten(), (expected - centre).flatten(), dim=0)
    assert float(cosine) >= 0.9999
    agreement = (found.argmax(1) == expected.argmax(1)).double().mean()
    assert float(agreement) >= 0.99
    # Agreement proves nothing about a network that predicts one class for everything.
    predicted = expected.argmax(1).bincount()
    assert int((predicted > 0).sum()) >= 24
    assert int(predicted.max()) <= 75


def test_untrained_parameters_follow_he_and_the_block_gain() -> None:
    network = _untrained(ZOO["resnet50"], size=32)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert float(module.weight.detach().std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        if isinstance(module, BasicBlock | Bottleneck):
            assert torch.equal(module.last_norm.weight, torch.full_like(module.last_norm.weight, 16**-0.5))
    assert torch.equal(network.bn1.weight, torch.ones(64))


def test_batch_statistics_are_those_of_the_images() -> None:
    network = _untrained(ZOO["resnet18"], size=64)
    with torch.inference_mode():
        normalized = network.bn1(network.conv1(_normalized(photographs(64))))
    torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(64), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalized.std((0, 2, 3)), torch.ones(64), atol=1e-3, rtol=0)


def test_the_seed_decides_everything_and_global_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = _untrained(ZOO["resnet18"], size=32, num_classes=10, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    same = _untrained(ZOO["resnet18"], size=32, num_classes=10, seed=3).state_dict()
    other = _untrained(ZOO["resnet18"], size=32, num_classes=10, seed=4).state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, same[key]), key
    assert not torch.equal(one.conv1.weight, other["conv1.weight"])
    assert not torch.equal(one.fc.weight, other["fc.weight"])


@pytest.mark.parametrize("num_classes", [1, 2, 50])
def test_any_number_of_classes_works(num_classes: int) -> None:
    network = _untrained(ZOO["resnet18"], size=32, num_classes=num_classes)
    assert not network.training
    with torch.inference_mode():
        logits = network(_normalized(photographs(32)))
    assert logits.shape == (len(photographs(32)), num_classes)
    assert torch.isfinite(logits).all()
    assert len(logits.argmax(1).unique()) >= min(num_classes, 20)


def test_progress_counts_the_blocks() -> None:
    seen: list[object] = []

    def record(items: Iterable[Any], description: str, total: int | None = None) -> Iterator[Any]:
        for item in items:
            seen.append(item)
            yield item

    network = build(ZOO["resnet18"], 4)
    initialize(network, 0, _normalized(photographs(32)), record)
    assert seen == network.steps()


def test_a_built_network_is_zero_and_in_eval_mode() -> None:
    network = build(ZOO["resnet18"], 4)
    assert not network.training
    with torch.inference_mode():
        assert torch.equal(network(torch.ones(2, 3, 32, 32)), torch.zeros(2, 4))
