"""The eager network against torchvision's, and the numerical sanity of untrained ones."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from resnet_export.exporter.models.photographs import photographs
from resnet_export.exporter.models.resnet import Block, ResNet, build, initialize
from resnet_export.exporter.models.zoo import ZOO, Architecture
from resnet_export.exporter.models.zoo_facts import read_facts
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import normalize
from tests.natural_crops import natural_crops

FACTS = read_facts()


def _normalized(images: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    return torch.from_numpy(normalize(images, Preprocessing()))


def _untrained(architecture: Architecture, size: int, num_classes: int = 1000, seed: int = 0) -> ResNet:
    return initialize(build(architecture, num_classes), seed, _normalized(photographs(size)))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _randomize(state: dict[str, Tensor]) -> None:
    """Random statistics and biases: those of a fresh network are zero or one, and would hide a swap."""
    generator = torch.Generator().manual_seed(1)
    for key, value in state.items():
        if key.endswith(("running_mean", "bias")):
            value.normal_(std=0.1, generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 1:
            value.uniform_(0.2, 0.4, generator=generator)
        elif value.ndim > 1:
            value.normal_(std=(2 / value[0].numel()) ** 0.5, generator=generator)


def _assert_same(theirs: nn.Module, name: str, size: int) -> None:
    state = theirs.eval().state_dict()
    _randomize(state)
    ours = build(ZOO[name])
    ours.load_state_dict(state, strict=True)
    assert set(ours.state_dict()) == set(state)
    parameters = sum(parameter.numel() for parameter in theirs.parameters())
    assert parameters == FACTS[name].parameters == sum(p.numel() for p in ours.parameters())
    images = _normalized(natural_crops(2, size, seed=5))
    with torch.inference_mode():
        assert _relative_error(ours(images), theirs(images)) <= 1e-5


def _torchvisions(torchvision: ModuleType, name: str) -> nn.Module:
    with torch.device("meta"):  # spares the random numbers of its constructor
        network: nn.Module = torchvision.models.get_model(name, weights=None)
    return network.to_empty(device="cpu")


SAMPLE = ["resnet18", "resnet50", "resnext50_32x4d"]
TIMM_SAMPLE = ["resnetv2_18", "seresnet18", "resnet50d"]
OF_TORCHVISION = [row.name for row in ZOO.values() if row.weights]
OF_TIMM = [
    row.name
    for row in ZOO.values()
    if row.image_size == 224 and not row.stride_in_1x1 and row.shortcut != "none"
]


@pytest.mark.parametrize("name", SAMPLE)
def test_the_network_is_torchvisions(torchvision: ModuleType, name: str) -> None:
    theirs = _torchvisions(torchvision, name)
    _assert_same(theirs, name, size=96)
    assert {key for key, _ in build(ZOO[name]).named_modules()} == {key for key, _ in theirs.named_modules()}


@pytest.mark.parametrize("name", TIMM_SAMPLE)
def test_the_network_is_timms(timm: ModuleType, name: str) -> None:
    _assert_same(timm.create_model(name), name, size=96)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_every_network_that_torchvision_has_is_the_same(torchvision: ModuleType, name: str) -> None:
    _assert_same(_torchvisions(torchvision, name), name, size=192)


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TIMM)
def test_every_network_that_timm_has_is_the_same(timm: ModuleType, name: str) -> None:
    _assert_same(timm.create_model(name), name, size=192)


def test_the_stride_in_the_first_1x1_gives_other_logits_from_the_same_weights() -> None:
    assert ZOO["resnet50_v1"] == replace(
        ZOO["resnet50"], name="resnet50_v1", stride_in_1x1=True, title="", weights=()
    )
    small = Architecture("small", "bottleneck", (1, 1))
    state = _untrained(small, size=32).state_dict()
    published_2015 = build(replace(small, stride_in_1x1=True))
    published_2015.load_state_dict(state, strict=True)
    ours = build(small)
    ours.load_state_dict(state, strict=True)
    images = _normalized(natural_crops(2, 64, seed=5))
    assert published_2015.layer2[0].conv1.stride == (2, 2)
    with torch.inference_mode():
        assert _relative_error(published_2015(images), ours(images)) > 0.01


ROUNDING_SAMPLE = ["resnet18", "resnet152", "plain34", "resnetv2_18", "seresnet18", "resnet18d", "resnet110"]


@pytest.mark.parametrize("name", ROUNDING_SAMPLE)
def test_an_untrained_network_loses_little_to_rounding(name: str) -> None:
    _assert_rounds_well(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_every_untrained_network_loses_little_to_rounding(name: str) -> None:
    _assert_rounds_well(name)


def _assert_rounds_well(name: str) -> None:
    size = min(64, ZOO[name].image_size)
    network = _untrained(ZOO[name], size=size)
    images = _normalized(natural_crops(4, size, seed=1))
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
        if isinstance(module, Block):
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
