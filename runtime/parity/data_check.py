"""The runs on validation images, in one pass: each image is decoded once and goes through the reference once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain as joined
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from resnet_export.runtime.errors import BackendError, DatasetError, RequestError
from resnet_export.runtime.parity.criteria.evaluate import (
    Criterion,
    accuracy_drop,
    judge,
    labels_fit,
    labels_order,
    max_drop,
    min_accuracy,
    min_agreement,
)
from resnet_export.runtime.parity.golden_check import Limits, Subject, error_text
from resnet_export.runtime.parity.measure.comparison import Batch, Comparison, ImageBatch, Runner, compare_all
from resnet_export.runtime.parity.measure.metrics import SAME
from resnet_export.runtime.parity.plan import is_reference
from resnet_export.runtime.parity.report.schema import Check
from resnet_export.runtime.parity.spec import quoted
from resnet_export.runtime.preprocess import to_input

ADD_EAGER = "--reference eager (with --weights, if the bundle is of a checkpoint)"
"""What gives the fp32 graph itself something to be compared with."""


class Remembered:
    """A runner that keeps its last result, so that the reference stands among the candidates for free."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._last: ArrayLike = ()

    def __call__(self, images: Any) -> ArrayLike:
        self._last = self._run(images)
        return self._last

    def again(self, images: Any) -> ArrayLike:
        """Return the result for the images that came last, which `images` are."""
        del images
        return self._last


def inputs(data: Iterable[ImageBatch], limits: Limits) -> Iterator[ImageBatch]:
    """Return the batches with network inputs in place of crops; looks at the first before any work is done."""
    batches = _limited(data, limits.asked.limit, limits.manifest.preprocessing.crop)
    first = next(batches, None)
    if first is None:
        raise DatasetError(f"there is no image in {limits.asked.data}; give at least one")
    if first.labels is None:
        for name in ("max_drop", "min_accuracy"):
            if getattr(limits.asked, name) is not None:
                raise DatasetError(
                    f"{name} was given, and the images of {limits.asked.data} have no labels; give labeled images"
                )
    preprocessing = limits.manifest.preprocessing
    return (
        Batch(to_input(batch.images, preprocessing), batch.labels, batch.names)
        for batch in joined([first], batches)
    )


def _limited(data: Iterable[ImageBatch], limit: int | None, side: int) -> Iterator[ImageBatch]:
    left = math.inf if limit is None else limit
    for batch in data:
        _check_batch(batch, side)
        count = len(batch.images)
        if count > left:
            keep = int(left)
            labels = None if batch.labels is None else np.asarray(batch.labels)[:keep]
            yield Batch(batch.images[:keep], labels, batch.names[:keep])
            return
        if count:
            yield batch
        left -= count
        if not left:
            return


def _check_batch(batch: Any, side: int) -> None:
    """Raise RequestError unless `batch` is an `ImageBatch` of crops, uint8 [n, side, side, 3]."""
    if not all(hasattr(batch, name) for name in ("images", "labels", "names")):
        raise RequestError(
            f"the batches hold {quoted(batch)}, expected batches with images, labels and names, such as "
            "resnet_export.runtime.parity.Batch"
        )
    images = batch.images
    if not isinstance(images, np.ndarray):
        raise RequestError(
            f"the images of a batch are {quoted(images)}, expected uint8 [n, {side}, {side}, 3]"
        )
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (side, side, 3):
        raise RequestError(
            f"the images of a batch are {images.dtype} {list(images.shape)}, expected crops, uint8 "
            f"[n, {side}, {side}, 3]; resnet_export.runtime.preprocess.load makes them"
        )


def check_data(
    subjects: tuple[Subject, ...], batches: Iterable[ImageBatch], limits: Limits, eager: Runner | None
) -> tuple[tuple[Subject, ...], tuple[str, ...]]:
    """Compare all open runs with the reference on `batches` of network inputs.

    Returns the subjects with what was found, and remarks for the report. The reference is `eager`, or else
    the first fp32 run that has passed against golden; without one, nothing is compared and a remark says
    why. Raises DatasetError for labels that are wrong, and BackendError when the reference fails.
    """
    chosen = None if eager is not None else next(filter(_can_refer, subjects), None)
    source = chosen.runner if chosen is not None else eager
    if source is None:
        return subjects, (
            f"the images of {limits.asked.data} were not used: the fp32 graph, their reference, failed against golden",
        )
    reference = Remembered(source)
    runners: dict[str, Runner] = {}
    widths: dict[str, float] = {}
    for subject in subjects:
        if subject.runner is not None and subject.entry.error is None:
            key = subject.entry.key
            runners[key] = reference.again if subject is chosen else subject.runner
            widths[key] = limits.near_tie(subject.entry.tolerance)
    found = compare_all(reference, runners, batches, near_tie=widths)
    golden = None if chosen is None else chosen.entry.check("golden")
    error = None if golden is None else golden.comparison.figures.relative_error
    checked = tuple(
        _with_data(subject, found.get(subject.entry.key), error, limits, itself=subject is chosen)
        for subject in subjects
    )
    return checked, tuple(_remarks(checked, chosen, limits))


def _remarks(subjects: tuple[Subject, ...], chosen: Subject | None, limits: Limits) -> Iterator[str]:
    """Yield what the data could not tell."""
    if chosen is not None and len(subjects) == 1:
        yield (
            f"the images of {limits.asked.data} were compared with nothing: {chosen.entry.title}, their reference, is "
            f"all that ran; add {ADD_EAGER}, or another artifact or backend"
        )
    checks = (subject.entry.check("data") for subject in subjects)
    if any(check is not None and not _varied(check.comparison) for check in checks):
        yield (
            f"the images of {limits.asked.data} leave the centered cosine out, since the reference gives all of them "
            "the same logits; give several different images"
        )


def _varied(found: Comparison) -> bool:
    """Whether the reference's logits vary; where the candidate has none to compare, nothing is known."""
    spread, figures = found.figures.reference_spread, found.figures
    return figures.non_finite == figures.images or (spread is not None and spread > SAME)


def _can_refer(subject: Subject) -> bool:
    return is_reference(subject.run) and subject.entry.passed and subject.runner is not None


def _with_data(
    subject: Subject,
    found: Comparison | BackendError | None,
    reference_error: float | None,
    limits: Limits,
    *,
    itself: bool,
) -> Subject:
    if found is None:
        return subject
    if isinstance(found, BackendError):
        text = error_text("failed on validation images", found)
        return replace(subject, entry=msgspec.structs.replace(subject.entry, error=text))
    if itself and found.labeled is None:
        return subject
    check = Check(
        images="data",
        reference=limits.asked.reference,
        reference_error=reference_error,
        comparison=found,
        criteria=tuple(_criteria(subject, found, limits, itself=itself)),
    )
    entry = msgspec.structs.replace(subject.entry, checks=(*subject.entry.checks, check))
    return replace(subject, entry=entry)


def _criteria(subject: Subject, found: Comparison, limits: Limits, *, itself: bool) -> Iterator[Criterion]:
    labeled, asked = found.labeled, limits.asked
    if not itself:
        tolerance = subject.entry.tolerance
        if not _varied(found):
            tolerance = msgspec.structs.replace(tolerance, centered_cosine=None)
        yield from judge(found.figures, tolerance, near_ties_agree=limits.untrained)
        if asked.min_agreement is not None:
            yield min_agreement(found, asked.min_agreement)
        if labeled is not None:
            yield accuracy_drop(labeled) if asked.max_drop is None else max_drop(labeled, asked.max_drop)
    if labeled is not None and asked.min_accuracy is not None:
        yield min_accuracy(labeled, asked.min_accuracy)
    # An untrained network is right as often as chance has it.
    if labeled is not None and not limits.untrained:
        fit = labels_fit(labeled)
        if fit is not None:
            yield fit
        yield labels_order(labeled, limits.manifest.labels)
