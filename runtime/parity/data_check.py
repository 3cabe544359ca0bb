"""The runs on validation images, in one pass: each image is decoded once and goes through the reference once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain as joined
from typing import Any

import msgspec
import numpy as np

from resnet_export.runtime.errors import BackendError, DatasetError, RequestError
from resnet_export.runtime.parity.criteria.table import Evidence, evaluate
from resnet_export.runtime.parity.golden_check import CheckContext, CheckedRun, error_text
from resnet_export.runtime.parity.measure.comparison import Batch, Comparison, ImageBatch, Runner, compare_all
from resnet_export.runtime.parity.measure.metrics import SAME
from resnet_export.runtime.parity.plan import is_reference
from resnet_export.runtime.parity.report.schema import Check
from resnet_export.runtime.parity.spec import quoted
from resnet_export.runtime.precision import Tolerance
from resnet_export.runtime.preprocess import to_input

ADD_EAGER = "--reference eager (with --weights, if the bundle is of a checkpoint)"
"""What gives the fp32 graph itself something to be compared with."""


def inputs(data: Iterable[ImageBatch], context: CheckContext) -> Iterator[ImageBatch]:
    """Return the batches with network inputs in place of crops; looks at the first before any work is done."""
    batches = _limited(data, context.spec.limit, context.manifest.preprocessing.crop_shape)
    first = next(batches, None)
    if first is None:
        raise DatasetError(f"there is no image in {context.spec.data}; give at least one")
    if first.labels is None:
        for name in ("max_drop", "min_accuracy"):
            if getattr(context.spec, name) is not None:
                raise DatasetError(
                    f"{name} was given, and the images of {context.spec.data} have no labels; give labeled images"
                )
    preprocessing = context.manifest.preprocessing
    return (
        Batch(to_input(batch.images, preprocessing), batch.labels, batch.names)
        for batch in joined([first], batches)
    )


def _limited(
    data: Iterable[ImageBatch], limit: int | None, crop: tuple[int, int, int]
) -> Iterator[ImageBatch]:
    left = math.inf if limit is None else limit
    for batch in data:
        _check_batch(batch, crop)
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


def _check_batch(batch: Any, crop: tuple[int, int, int]) -> None:
    """Raise RequestError unless `batch` is an `ImageBatch` of crops, uint8 [n, H, W, C]."""
    if not all(hasattr(batch, name) for name in ("images", "labels", "names")):
        raise RequestError(
            f"the batches hold {quoted(batch)}, expected batches with images, labels and names, such as "
            "resnet_export.runtime.parity.Batch"
        )
    images, expected = batch.images, f"uint8 [n, {', '.join(map(str, crop))}]"
    if not isinstance(images, np.ndarray):
        raise RequestError(f"the images of a batch are {quoted(images)}, expected {expected}")
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != crop:
        raise RequestError(
            f"the images of a batch are {images.dtype} {list(images.shape)}, expected crops, {expected}; "
            "resnet_export.runtime.preprocess.load makes them"
        )


def check_data(
    runs: tuple[CheckedRun, ...], batches: Iterable[ImageBatch], context: CheckContext, eager: Runner | None
) -> tuple[tuple[CheckedRun, ...], tuple[str, ...]]:
    """Compare all open runs with the reference on `batches` of network inputs.

    Returns the runs with what was found, and remarks for the report. The reference is `eager`, or else
    the first fp32 run that has passed against golden; without one, nothing is compared and a remark says
    why. Raises DatasetError for labels that are wrong, and BackendError when the reference fails.
    """
    chosen = None if eager is not None else next(filter(_can_refer, runs), None)
    source = chosen.runner if chosen is not None else eager
    if source is None:
        return runs, (
            f"the images of {context.spec.data} were not used: the fp32 graph, their reference, failed against golden",
        )
    runners: dict[str, Runner] = {}
    widths: dict[str, float] = {}
    for run in runs:
        if run.runner is not None and run.entry.error is None:
            key = run.entry.key
            runners[key] = run.runner
            widths[key] = context.near_tie(run.entry.tolerance)
    found = compare_all(
        source, runners, batches, near_tie=widths, activation=context.manifest.model.activation
    )
    golden = None if chosen is None else chosen.entry.check("golden")
    error = None if golden is None else golden.comparison.figures.relative_error
    checked = tuple(
        _with_data(run, found.get(run.entry.key), error, context, itself=run is chosen) for run in runs
    )
    return checked, tuple(_remarks(checked, chosen, context))


def _remarks(runs: tuple[CheckedRun, ...], chosen: CheckedRun | None, context: CheckContext) -> Iterator[str]:
    """Yield what the data could not tell."""
    if chosen is not None and len(runs) == 1:
        yield (
            f"the images of {context.spec.data} were compared with nothing: {chosen.entry.title}, their reference, is "
            f"all that ran; add {ADD_EAGER}, or another artifact or backend"
        )
    checks = (run.entry.check("data") for run in runs)
    if any(check is not None and not _varied(check.comparison) for check in checks):
        yield (
            f"the images of {context.spec.data} leave the centered cosine similarity out, since the reference gives "
            "all of them the same logits; give several different images"
        )


def _varied(found: Comparison) -> bool:
    """Whether the reference's logits vary; where the candidate has none to compare, nothing is known."""
    spread, figures = found.figures.reference_spread, found.figures
    return figures.non_finite == figures.images or (spread is not None and spread > SAME)


def _can_refer(run: CheckedRun) -> bool:
    return is_reference(run.run) and run.entry.passed and run.runner is not None


def _with_data(
    run: CheckedRun,
    found: Comparison | BackendError | None,
    reference_error: float | None,
    context: CheckContext,
    *,
    itself: bool,
) -> CheckedRun:
    if found is None:
        return run
    if isinstance(found, BackendError):
        text = error_text("failed on validation images", found)
        return replace(run, entry=msgspec.structs.replace(run.entry, error=text))
    if itself and found.labeled is None:
        return run
    evidence = Evidence(
        images="data",
        spec=context.spec,
        figures=found.figures,
        tolerance=_tolerance(run, found),
        labeled=found.labeled,
        is_reference=itself,
        untrained=context.tolerances.untrained,
        class_names=context.manifest.labels,
    )
    check = Check(
        images="data",
        reference=context.spec.reference,
        reference_error=reference_error,
        comparison=found,
        criteria=evaluate(evidence),
        is_reference=itself,
    )
    entry = msgspec.structs.replace(run.entry, checks=(*run.entry.checks, check))
    return replace(run, entry=entry)


def _tolerance(run: CheckedRun, found: Comparison) -> Tolerance:
    """Return the limits of a run, without the one that the images leave undefined."""
    tolerance = run.entry.tolerance
    return tolerance if _varied(found) else msgspec.structs.replace(tolerance, centered_cosine=None)
