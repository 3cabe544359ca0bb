"""What a checkpoint says of itself beside its tensors: its architecture and its classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from resnet_export.exporter.models.labels import default_labels, read_labels
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.schema import label_count

__all__ = ["architecture_name", "choose_labels", "named_values"]

_ARCHITECTURE = (
    "arch",
    "architecture",
    "model_name",
    "backbone",
    "backbone_name",
    "net",
    "encoder_name",
    "model",
)
_CLASSES = (
    "class_to_idx",
    "idx_to_class",
    "classes",
    "class_names",
    "CLASSES",
    "id2label",
    "label2id",
    "label_names",
    "labels",
    "names",
)


def named_values(values: Mapping[str, Any], names: Sequence[str]) -> Iterator[Any]:
    """Values whose own name is one of `names`, in that order, those that stand highest first."""
    for name in names:
        for place in sorted(values, key=lambda place: place.count(".")):
            value = values[place]
            if place.rpartition(".")[2] == name:
                yield value
            elif hasattr(value, "__dict__") and name in vars(value):  # an argparse.Namespace
                yield vars(value)[name]


def architecture_name(values: Mapping[str, Any]) -> str | None:
    """Return the architecture that the file names, if it names one."""
    for value in named_values(values, _ARCHITECTURE):
        if isinstance(value, str) and value.strip():
            return value
    for value in values.values():
        # The configuration of an mmpretrain network is saved as its source text.
        if isinstance(value, str) and re.search(r"style\s*=\s*['\"]caffe['\"]", value):
            depth = re.search(r"depth\s*=\s*(\d+)", value)
            return f"resnet{depth[1] if depth else ''}_caffe"
    return None


def choose_labels(
    spec: ModelSpec, values: Mapping[str, Any], num_classes: int, *, ask: bool = True
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the classes, and notices of where they are from.

    Those of the request come first, then those of the source, then ImageNet's for 1000 classes, or numbers.

    Args:
        values: what stands beside the weights, by place.
        ask: whether to say that ImageNet's were assumed.

    Raises RequestError when the request's do not fit.
    """
    if spec.labels is not None:
        return read_labels(spec.labels, num_classes), ()
    found = [names for value in named_values(values, _CLASSES) if (names := _in_order(value)) is not None]
    # transformers writes LABEL_0, LABEL_1, … where nobody named the classes.
    found = [names for names in found if not all(re.fullmatch(r"LABEL_\d+", name) for name in names)]
    fitting = [names for names in found if len(names) == label_count(num_classes)]
    if fitting:
        labels = _described(fitting[0], values)
        return labels, (f"the labels are those in the checkpoint: {labels[0]}, …, {labels[-1]}",)
    notices = tuple(
        f"the names of {len(names)} classes in the checkpoint ({names[0]}, …) were not used: the network has "
        f"{num_classes} classes"
        for names in found[:1]
    )
    if num_classes == 1000 and ask:
        notices += ("no labels were given: ImageNet's are used, because the network has 1000 classes",)
    return default_labels(num_classes), notices


def _described(names: tuple[str, ...], values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return timm's descriptions of the names, where it has one of each: names alone may be WordNet's numbers."""
    for value in named_values(values, ("label_descriptions",)):
        if isinstance(value, Mapping) and all(isinstance(value.get(name), str) for name in names):
            return _lines(value[name] for name in names) or names
    return names


def _in_order(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, Mapping) and value:
        pairs = dict(value)
        if all(isinstance(index, int | np.integer) for index in pairs.values()):
            pairs = {index: name for name, index in pairs.items()}
        try:
            ordered = {int(index): str(name) for index, name in pairs.items()}
        except (TypeError, ValueError):
            return None
        if sorted(ordered) != list(range(len(ordered))):
            return None
        return _lines(ordered[index] for index in sorted(ordered))
    if (
        isinstance(value, list | tuple | np.ndarray)
        and len(value)
        and all(isinstance(one, str) for one in value)
    ):
        return _lines(str(one) for one in value)
    return None


def _lines(names: Iterator[str]) -> tuple[str, ...] | None:
    found = tuple(" ".join(name.split()) for name in names)
    return found if all(found) else None
