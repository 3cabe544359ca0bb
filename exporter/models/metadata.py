"""What a checkpoint says of itself beside its tensors: its architecture and its classes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["architecture_name", "class_names"]

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
)


def _named(values: Mapping[str, Any], names: Sequence[str]) -> Iterator[Any]:
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
    for value in _named(values, _ARCHITECTURE):
        if isinstance(value, str) and value.strip():
            return value
    for value in values.values():
        # The configuration of an mmpretrain network is saved as its source text.
        if isinstance(value, str) and re.search(r"style\s*=\s*['\"]caffe['\"]", value):
            depth = re.search(r"depth\s*=\s*(\d+)", value)
            return f"resnet{depth[1] if depth else ''}_caffe"
    return None


def class_names(values: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """Return the names of the classes in order, if the file has as many as there are classes."""
    for value in _named(values, _CLASSES):
        names = _in_order(value)
        if names is not None and len(names) == num_classes:
            return names
    return None


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
