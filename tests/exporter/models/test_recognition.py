"""Which network tensors are of, told from names and shapes alone, however they are called."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import pytest
import torch

from resnet_export.exporter.models.key_report import recognize
from resnet_export.exporter.models.resnet import construct
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.runtime.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]
CLASSES = 7


@cache
def _shapes(name: str) -> Shapes:
    return {key: tuple(value.shape) for key, value in construct(ZOO[name], CLASSES).state_dict().items()}


def _shuffled(shapes: Shapes) -> Shapes:
    keys = list(shapes)
    random.Random(0).shuffle(keys)
    return {key: shapes[key] for key in keys}


def _prefixed(prefix: str) -> Callable[[Shapes], Shapes]:
    return lambda shapes: {prefix + key: shape for key, shape in shapes.items()}


VARIANTS: dict[str, Callable[[Shapes], Shapes]] = {
    "shuffled": _shuffled,
    "wrapped by anybody": _prefixed("anybody.s_wrapper."),
    "compiled": _prefixed("_orig_mod."),
    "averaged": lambda shapes: {**_prefixed("module.")(shapes), "n_averaged": ()},
    "without step counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "with a loss beside it": lambda s: {
        **_prefixed("net.")(s),
        "criterion.weight": (CLASSES,),
        "mean": (3, 1, 1),
    },
}


def _assert_recognized(name: str, variant: str) -> None:
    match = recognize(VARIANTS[variant](_shapes(name)), path="w.pth")
    # The stride of a bottleneck is in no state dict: those two share one, and the first is assumed.
    assert match.row.name == name.removesuffix("_v1")
    assert (match.num_classes, match.in_channels) == (CLASSES, 3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "resnetv2_18", "seresnet18", "cifar_resnet20"])
def test_a_row_is_recognized_in_every_variant(name: str, variant: str) -> None:
    _assert_recognized(name, variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ZOO)
def test_every_row_is_recognized_in_every_variant(name: str, variant: str) -> None:
    _assert_recognized(name, variant)


@pytest.mark.parametrize(
    "head", ["fc.1.", "fc.0.", "classifier.", "head.", "head.fc.", "last_linear.", "linear."]
)
def test_the_classifier_may_have_any_usual_name(head: str) -> None:
    shapes = {key.replace("fc.", head): shape for key, shape in _shapes("resnet18").items()}
    assert recognize(shapes, path="w.pth").num_classes == CLASSES


def _without(key: str) -> Callable[[Shapes], Shapes]:
    return lambda shapes: {name: shape for name, shape in shapes.items() if name != key}


def _with(key: str, shape: tuple[int, ...]) -> Callable[[Shapes], Shapes]:
    return lambda shapes: {**shapes, key: shape}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("layer3.0.bn2.running_var"), "1 missing (layer3.0.bn2.running_var)"),
        (_without("layer1.0.conv1.weight"), "1 missing (layer1.0.conv1.weight)"),
        (_without("fc.bias"), "1 missing (fc.bias"),
        (_without("fc.weight"), "no classifier layer of 512 features"),
        (_with("layer2.0.conv2.weight", (128, 64, 3, 3)), "layer2.0.conv2.weight is [128, 64, 3, 3]"),
        (_with("fc.weight", (7, 500)), "fc.weight is [7, 500], expected [classes, 512]"),
        (_with("layer1.0.se.fc1.weight", (8, 64, 1, 1)), "layer1.0.se.fc1.weight"),
        (_with("maxpool.1.filt", (64, 1, 3, 3)), "maxpool.1.filt"),
        (_with("attention.weight", (1, 512, 7, 7)), "attention.weight"),
        (_with("neck.running_var", (512,)), "neck.running_var"),
        (_with("layer1.0.activation_post_process.min_val", ()), "quantization-aware"),
        (_with("fc.lora_A.weight", (8, 512)), "adapter"),
        (lambda s: {f"{p}.{k}": v for p in ("student", "other") for k, v in s.items()}, "several networks"),
        (lambda s: {k: v for k, v in s.items() if k.startswith("fc")}, "no known architecture"),
    ],
)
def test_a_near_miss_is_refused_with_what_is_wrong(change: Callable[[Shapes], Shapes], words: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(words)):
        recognize(change(_shapes("resnet18")), path="w.pth")


NEAR_ROWS = (
    "resnet18",
    "resnet50",
    "resnet152",
    "plain18",
    "resnetv2_50",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "seresnet50",
    "resnet50d",
    "resnet56",
    "cifar_resnet56",
    "wide_resnet28_10",
)


@dataclass(frozen=True)
class Damage:
    """What was done to a row's tensors, and the words that name it."""

    shapes: Shapes
    words: tuple[str, ...]


def _middle(shapes: Shapes, ending: str, rank: int) -> str:
    found = [key for key, shape in shapes.items() if key.endswith(ending) and len(shape) == rank]
    return found[len(found) // 2]


def _head(shapes: Shapes) -> str:
    return next(key for key in reversed(shapes) if key.endswith("fc.weight"))


def _lost(shapes: Shapes, key: str) -> Damage:
    return Damage(_without(key)(shapes), ("1 missing", key))


def _resized(shapes: Shapes, key: str, shape: tuple[int, ...]) -> Damage:
    return Damage({**shapes, key: shape}, (f"{key} is {list(shape)}, expected",))


def _wider(shapes: Shapes) -> Damage:
    key = _middle(shapes, ".weight", 4)
    return _resized(shapes, key, (2 * shapes[key][0], *shapes[key][1:]))


def _other_features(shapes: Shapes) -> Damage:
    classes, features, *kernel = shapes[_head(shapes)]
    return _resized(shapes, _head(shapes), (classes, features + 1, *kernel))


def _torn_classes(shapes: Shapes) -> Damage:
    bias = _head(shapes).replace("weight", "bias")
    return Damage({**shapes, bias: (CLASSES + 2,)}, (bias, str(CLASSES), str(CLASSES + 2)))


def _extra(shapes: Shapes) -> Damage:
    key = _middle(shapes, ".weight", 4).removesuffix("weight") + "attention.weight"
    return Damage({**shapes, key: (1, 8, 7, 7)}, (key,))


def _renamed(shapes: Shapes) -> Damage:
    key = _middle(shapes, "running_mean", 1)
    return Damage(
        {name.replace(key, f"{key}_of_batch"): shape for name, shape in shapes.items()},
        (f"the nearest in the file: {key}_of_batch for {key}",),
    )


DAMAGES: dict[str, Callable[[Shapes], Damage]] = {
    "a convolution missing": lambda shapes: _lost(shapes, _middle(shapes, ".weight", 4)),
    "a statistic missing": lambda shapes: _lost(shapes, _middle(shapes, "running_var", 1)),
    "the bias of the classifier missing": lambda s: _lost(s, _head(s).replace("weight", "bias")),
    "a wider convolution": _wider,
    "a classifier of other features": _other_features,
    "a bias for other classes": _torn_classes,
    "a layer too many": _extra,
    "a statistic under another name": _renamed,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NEAR_ROWS)
def test_a_damaged_row_is_refused_with_the_row_that_it_nearly_is_and_the_damage(
    name: str, damage: str
) -> None:
    made = DAMAGES[damage](_shapes(name))
    with pytest.raises(CheckpointError) as caught:
        recognize(made.shapes, path="w.pth")
    for words in (name, *made.words):
        assert words in str(caught.value)


@pytest.mark.parametrize("name", NEAR_ROWS)
def test_another_row_than_was_asked_for_is_refused_with_both_names(name: str) -> None:
    other = NEAR_ROWS[NEAR_ROWS.index(name) - 1]
    with pytest.raises(CheckpointError, match=rf"w.pth holds {name}.*, but {other} was asked for"):
        recognize(_shapes(name), path="w.pth", asked=ZOO[other])


FAMILIES = (
    "vgg19",
    "densenet121",
    "mobilenet_v2",
    "efficientnet_b0",
    "convnext_tiny",
    "vit_b_16",
    "googlenet",
)


@pytest.mark.parametrize("name", FAMILIES)
def test_another_family_is_refused_as_no_known_architecture(torchvision: ModuleType, name: str) -> None:
    options = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, **options)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"w.pth is of no known architecture.*--model MODULE:FACTORY"):
        recognize(shapes, path="w.pth")


def test_a_file_that_names_another_network_is_not_taken_for_one_of_the_same_shapes() -> None:
    shapes = _shapes("resnet50")
    assert recognize(shapes, path="w.pth", named="resnet50_caffe").row.name == "resnet50_v1"
    assert recognize(shapes, path="w.pth", named="timm/resnet50.a1_in1k").row.name == "resnet50"
    with pytest.raises(CheckpointError, match="says that it is resnetblur50"):
        recognize(shapes, path="w.pth", named="resnetblur50")
