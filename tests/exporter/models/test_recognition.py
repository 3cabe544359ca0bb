"""Which network tensors are of, told from names and shapes alone, however they are called."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest

from resnet_export.exporter.models.key_report import recognize
from resnet_export.exporter.models.resnet import construct
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.runtime.errors import CheckpointError

Shapes = dict[str, tuple[int, ...]]
CLASSES = 7


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


def test_a_file_that_names_another_network_is_not_taken_for_one_of_the_same_shapes() -> None:
    shapes = _shapes("resnet50")
    assert recognize(shapes, path="w.pth", named="resnet50_caffe").row.name == "resnet50_v1"
    assert recognize(shapes, path="w.pth", named="timm/resnet50.a1_in1k").row.name == "resnet50"
    with pytest.raises(CheckpointError, match="says that it is resnetblur50"):
        recognize(shapes, path="w.pth", named="resnetblur50")
