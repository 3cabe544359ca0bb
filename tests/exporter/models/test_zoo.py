"""The table of architectures, held against torchvision's own."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from resnet_export.exporter.models.zoo import ZOO, Architecture, architecture
from resnet_export.exporter.models.zoo_facts import OTHER_NETWORKS, count_row, read_facts, to_markdown
from resnet_export.runtime.errors import RequestError

FACTS = read_facts()


@pytest.mark.parametrize("one", [row for row in ZOO.values() if row.weights], ids=lambda row: row.name)
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
        assert FACTS[one.name].parameters == reference.meta["num_params"]
        assert FACTS[one.name].multiply_adds / 1e9 == pytest.approx(reference.meta["_ops"], abs=6e-4)


@pytest.mark.parametrize("name", ["resnet18", "cifar_resnet20", "wide_resnet28_10"])
def test_the_facts_are_those_of_the_exported_graph(name: str) -> None:
    assert count_row(ZOO[name]) == FACTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", ZOO)
def test_the_facts_of_every_row_are_those_of_its_exported_graph(name: str) -> None:
    assert count_row(ZOO[name]) == FACTS[name]


@pytest.mark.parametrize(
    ("name", "billions"),
    [("resnet34", 3.6), ("resnet50_v1", 3.8), ("resnet50", 4.1), ("resnet152_v1", 11.3)],
)
def test_multiply_adds_are_the_papers(name: str, billions: float) -> None:
    # The papers give one decimal, cut off in table 1 of arXiv:1512.03385 (3.664 is its 3.6) and rounded elsewhere.
    assert FACTS[name].multiply_adds / 1e9 == pytest.approx(billions, abs=0.1)


def test_the_zoos_page_is_the_table() -> None:
    page = Path(__file__).parents[3] / "docs" / "zoo.md"
    assert list(FACTS) == list(ZOO)
    generated, heading, _ = page.read_text(encoding="utf-8").partition(OTHER_NETWORKS)
    assert heading
    assert generated == to_markdown(FACTS)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_an_architecture_is_found_by_depth_by_name_and_by_both(depth: int) -> None:
    row = ZOO[f"resnet{depth}"]
    assert architecture(depth=depth) is row
    assert architecture(arch=row.name) is row
    assert architecture(depth=depth, arch=row.name) is row
    assert architecture(depth=depth, arch=f"seresnet{depth}") is ZOO[f"seresnet{depth}"]


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
