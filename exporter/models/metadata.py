"""What a checkpoint says of itself beside its tensors: architecture, classes, preprocessing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Said", "architecture_name", "class_names", "preprocessing_words"]

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
_FILTERS = {"bilinear": "bilinear", "bicubic": "bicubic", "2": "bilinear", "3": "bicubic"}


@dataclass(frozen=True)
class Said:
    """Preprocessing as the file has it; None is not said. `image_size` is (height, width)."""

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    image_size: tuple[int, int] | None = None


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


def preprocessing_words(values: Mapping[str, Any]) -> Said:
    """Return what the file says of preprocessing, in its training arguments or a configuration."""
    size = _first(values, ("input_size", "img_size", "image_size", "crop_size"), _size)
    return Said(
        mean=_first(values, ("mean", "image_mean"), _numbers),
        std=_first(values, ("std", "image_std"), _numbers),
        interpolation=_first(values, ("interpolation",), lambda value: _FILTERS.get(str(value).lower())),
        crop_pct=_first(values, ("crop_pct",), _share),
        image_size=size,
    )


def _first(values: Mapping[str, Any], names: Sequence[str], read: Any) -> Any:
    return next((found for found in map(read, _named(values, names)) if found is not None), None)


def _numbers(value: Any) -> tuple[float, ...] | None:
    if isinstance(value, list | tuple | np.ndarray) and 1 <= len(value) <= 4:
        try:
            return tuple(float(one) for one in value)
        except (TypeError, ValueError):
            return None
    return None


def _share(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 < value <= 1 else None


def _size(value: Any) -> tuple[int, int] | None:
    sizes = [value, value] if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(sizes, Mapping):
        sizes = [
            sizes.get("height", sizes.get("shortest_edge")),
            sizes.get("width", sizes.get("shortest_edge")),
        ]
    if (
        isinstance(sizes, list | tuple)
        and len(sizes) in (2, 3)
        and all(isinstance(one, int) for one in sizes)
    ):
        return int(sizes[-2]), int(sizes[-1])
    return None
