"""The table of architectures, held against torchvision's own."""

from __future__ import annotations

from types import ModuleType

import pytest

from resnet_export.exporter.models.zoo import ZOO, Architecture, architecture
from resnet_export.runtime.errors import RequestError


@pytest.fixture(params=ZOO.values(), ids=ZOO)
def one(request: pytest.FixtureRequest) -> Architecture:
    chosen: Architecture = request.param
    return chosen


def test_published_weights_are_torchvisions(torchvision: ModuleType, one: Architecture) -> None:
    theirs = torchvision.models.get_model_weights(one.name)
    assert [weights.name for weights in one.weights] == [weights.name for weights in theirs]
    assert one.weights[-1].name == theirs.DEFAULT.name
    assert theirs.__name__ == f"{one.title}_Weights"
    for ours, reference in zip(one.weights, theirs, strict=True):
        assert ours.url == reference.url
        assert reference.url.endswith(f"-{ours.sha256_prefix}.pth")
        assert len(ours.sha256_prefix) == 8
        metrics = reference.meta["_metrics"]["ImageNet-1K"]
        assert (ours.top1, ours.top5) == (metrics["acc@1"], metrics["acc@5"])
        preset = reference.transforms()
        assert ([ours.resize], [ours.crop]) == (preset.resize_size, preset.crop_size)
        assert one.parameters == reference.meta["num_params"]
        assert one.gmacs == reference.meta["_ops"]


def test_depth_counts_the_weighted_layers(one: Architecture) -> None:
    per_block = 2 if one.block == "basic" else 3
    assert per_block * one.blocks + 2 == one.depth


def test_an_architecture_is_found_by_depth_by_name_and_by_both(one: Architecture) -> None:
    assert architecture(depth=one.depth) is one
    assert architecture(arch=one.name) is one
    assert architecture(depth=one.depth, arch=one.name) is one


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        ZOO["resnet18"] = ZOO["resnet34"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("depth", "arch", "words"),
    [
        (None, None, ("no architecture",)),
        (20, None, ("20", "18, 34, 50, 101, 152")),
        (None, "vgg16", ("'vgg16'", "resnet18, resnet34")),
        (18, "resnet50", ("'resnet50'", "50", "18")),
    ],
)
def test_a_wrong_request_is_refused_with_what_there_is(
    depth: int | None, arch: str | None, words: tuple[str, ...]
) -> None:
    with pytest.raises(RequestError) as caught:
        architecture(depth=depth, arch=arch)
    for word in words:
        assert word in str(caught.value)
