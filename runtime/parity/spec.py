"""What is asked of a check, found to be of the right kind and in range before any work is done."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from resnet_export.runtime.bundle.golden import EAGER
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.measure.comparison import ImageBatch, Runner, printable
from resnet_export.runtime.parity.report.schema import Asked
from resnet_export.runtime.precision import Precision

IN_PLACE = "limits in place of a file"
"""What `Asked.tolerances` says of limits that came from no file."""


def ask(
    *,
    data: Iterable[ImageBatch] | None,
    data_name: str,
    artifacts: Collection[str] | None,
    backends: Collection[str] | None,
    precisions: Collection[Precision] | None,
    eager: Runner | None,
    max_drop: float | None,
    min_agreement: float | None,
    min_accuracy: float | None,
    tolerances: object | None,
    limit: int | None,
    threads: int | None,
) -> Asked:
    """Return what is asked for as a report says it; the arguments are those of `run_parity`.

    Raises RequestError for an argument of the wrong kind, out of range, or without the data that it is about.
    """
    if data is not None:
        _check_data(data)
    if eager is not None and not callable(eager):
        raise RequestError(
            f"eager is {_said(eager)}, expected a function that takes a batch and returns logits"
        )
    if not isinstance(data_name, str):
        raise RequestError(f"data_name is {_said(data_name)}, expected a text")
    drop = _number("max_drop", max_drop, "percentage points from 0 to 100")
    agreement = _number("min_agreement", min_agreement, "percent from 0 to 100")
    accuracy = _number("min_accuracy", min_accuracy, "percent from 0 to 100")
    for name, given in (("max_drop", drop), ("min_accuracy", accuracy)):
        if given is not None and data is None:
            raise RequestError(f"{name} was given without data; accuracy needs labeled images: give some")
    images = count("limit", limit, "image")
    if images is not None and data is None:
        raise RequestError("limit was given without data; it is a number of validation images: give some")
    count("threads", threads, "thread")
    return Asked(
        artifacts=names("artifacts", artifacts),
        backends=names("backends", backends),
        precisions=_precisions(precisions),
        data=None if data is None else printable(data_name),
        reference="onnx" if eager is None else EAGER,
        limit=images,
        max_drop=drop,
        min_agreement=agreement,
        min_accuracy=accuracy,
        tolerances=None if tolerances is None else IN_PLACE,
    )


def check_path(name: str, value: object, what: str) -> None:
    """Raise RequestError unless `value` is a path: a str, or an os.PathLike of one."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise RequestError(f"{name} is {_said(value)}, expected the path of {what}")


def count(name: str, value: object, what: str) -> int | None:
    """Return a number of things, at least one, or None for none given. Raises RequestError."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise RequestError(f"{name} is {_said(value)}, expected at least one {what}")
    return int(value)


def names(name: str, given: object) -> tuple[str, ...] | None:
    """Return names, each once, or None for none given. Raises RequestError."""
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Collection):
        raise RequestError(f"{name} is {_said(given)}, expected names in a list")
    for one in given:
        if not isinstance(one, str):
            raise RequestError(f"{name} hold {_said(one)}, expected names in a list")
    if not given:
        raise RequestError(f"{name} is empty; name at least one, or leave it out for all")
    return tuple(dict.fromkeys(map(str, given)))


def _precisions(given: Collection[Precision] | None) -> tuple[Precision, ...] | None:
    found = names("precisions", given)
    known = [str(precision) for precision in Precision]
    for one in found or ():
        if one not in known:
            raise RequestError(f"there is no precision {one!r}; expected {', '.join(known)}")
    return None if found is None else tuple(map(Precision, found))


def _number(name: str, value: object, range_of: str) -> float | None:
    if value is None:
        return None
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not number or not math.isfinite(float(value)) or not 0 <= float(value) <= 100:  # type: ignore[arg-type]
        raise RequestError(f"{name} is {_said(value)}, expected {range_of}")
    return float(value)  # type: ignore[arg-type]


def _check_data(data: object) -> None:
    if isinstance(data, str | bytes | os.PathLike):
        raise RequestError(
            f"data is the path {os.fspath(data)!r}, expected batches of crops; "
            "resnet_export.exporter.parity.check.check_parity takes paths"
        )
    if not isinstance(data, Iterable):
        raise RequestError(f"data is {_said(data)}, expected batches of crops")


def check_batch(batch: Any, side: int) -> None:
    """Raise RequestError unless `batch` is an `ImageBatch` of crops, uint8 [n, side, side, 3]."""
    if not all(hasattr(batch, name) for name in ("images", "labels", "names")):
        raise RequestError(
            f"data hold {_said(batch)}, expected batches with images, labels and names, such as "
            "resnet_export.runtime.parity.Batch"
        )
    images = batch.images
    if not isinstance(images, np.ndarray):
        raise RequestError(
            f"the images of a batch are {_said(images)}, expected uint8 [n, {side}, {side}, 3]"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
        raise RequestError(
            f"the images of a batch are {images.dtype} {list(images.shape)}, expected crops, uint8 "
            f"[n, {side}, {side}, 3]; resnet_export.runtime.preprocess.load makes them"
        )


def _said(value: object) -> str:
    """Return a value as a sentence may quote it: what it is, in few characters."""
    text = repr(value)
    return printable(text) if len(text) <= 60 else f"a {type(value).__name__}"
