"""From figures to verdicts: each criterion is one limit, what was found, and whether it holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from resnet_export.runtime.bundle.manifest import Struct
from resnet_export.runtime.parity.measure.comparison import Comparison, printable
from resnet_export.runtime.parity.measure.labels import Labeled
from resnet_export.runtime.parity.measure.metrics import Figures
from resnet_export.runtime.parity.measure.statistics import images_needed, wilson
from resnet_export.runtime.precision import Tolerance

# "Slight agreement" ends at 0.20 (J. R. Landis and G. G. Koch, Biometrics 33, 1977); a classifier worth
# shipping lies far above, one that is judged by labels of other classes at or below zero.
LABELS_KAPPA = 0.1

# MLPerf Inference accepts an implementation that keeps 99 % of the reference's accuracy; for accuracies
# near 100 %, the strictest reading, that is one percentage point.
DROP_POINTS = 1.0

# Exchanged labels that a sentence spells out, and classes of each.
_CYCLES = 5
_CLASSES = 12

MIN_ACCURACY = "min_accuracy"

LABEL_CRITERIA = frozenset({"labels_fit", "labels_order"})
"""The criteria that judge the labels of validation images, and no artifact."""


class Criterion(Struct, frozen=True):
    """One limit. `value` is None where the figure is undefined, and then the criterion does not pass.

    `relation` reads "value `relation` limit". `detail` is a clause that says what stands behind the value. `words`
    say value and limit where the plain form would not be understood.
    """

    name: str
    value: float | None
    relation: Literal["≤", "≥"]
    limit: float
    passed: bool
    detail: str = ""
    words: str = ""


def judge(figures: Figures, tolerance: Tolerance, *, near_ties_agree: bool = False) -> tuple[Criterion, ...]:
    """Hold the figures to the limits that `tolerance` sets.

    Agreement fails only when its 95 % Wilson interval lies below the limit as a whole: 20 images cannot
    tell 99 % from 97 %. `near_ties_agree` counts near-tie flips as agreement. That is for untrained
    networks, whose classes mean nothing and lie so close together that permitted error swaps them.
    """
    found = [at_most("finite", figures.non_finite, 0, "images with NaN or infinite logits")]
    if tolerance.relative_error is not None:
        found.append(at_most("relative_error", figures.relative_error, tolerance.relative_error, "‖a−b‖/‖b‖"))
    if tolerance.centered_cosine is not None:
        varied = figures.centered_cosine is not None or figures.non_finite == figures.images
        detail = "" if varied else "undefined, since the reference gives every image the same logits"
        found.append(at_least("centered_cosine", figures.centered_cosine, tolerance.centered_cosine, detail))
    if tolerance.top1_agreement is not None:
        found.append(_agreement(figures, tolerance.top1_agreement, near_ties_agree))
    return tuple(found)


def min_agreement(comparison: Comparison, percent: float) -> Criterion:
    """Hold the observed top-1 agreement, in percent and without allowances, to the limit that a user set."""
    figures = comparison.figures
    interval = comparison.top1_interval
    return at_least(
        "min_agreement",
        100 * figures.top1_agreement,
        percent,
        f"{figures.top1} of {figures.images} images, 95 % interval "
        f"{100 * interval.low:.2f} to {100 * interval.high:.2f} %",
    )


def min_accuracy(labeled: Labeled, percent: float) -> Criterion:
    """Hold the observed top-1 accuracy, in percent, to the limit that a user set.

    The only criterion that sees what both sides of a comparison lose alike.
    """
    interval = labeled.candidate_interval
    return at_least(
        MIN_ACCURACY,
        100 * labeled.candidate_accuracy,
        percent,
        f"of {labeled.images} images, 95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} %",
    )


def max_drop(labeled: Labeled, points: float) -> Criterion:
    """Hold the observed accuracy drop, in percentage points, to the limit that a user set.

    Where the interval of the drop holds the limit, the detail says that the data cannot decide and how many
    images could.
    """
    detail = _drop_detail(labeled)
    if not resolves(labeled, points):
        detail += "; " + unresolved(labeled, points)
    return at_most("max_drop", labeled.drop_points, points, detail)


def accuracy_drop(labeled: Labeled) -> Criterion:
    """Fail an accuracy drop that is beyond doubt: the whole interval lies above `DROP_POINTS`.

    For labeled images when the user sets no limit, which `max_drop` would hold to the letter.
    """
    interval = labeled.drop_interval_points
    return Criterion(
        name="accuracy_drop",
        value=labeled.drop_points,
        relation="≤",
        limit=DROP_POINTS,
        passed=interval.low <= DROP_POINTS,
        detail=_drop_detail(labeled),
    )


def labels_fit(labeled: Labeled) -> Criterion | None:
    """Check that the labels belong to this model: labels off by one class look like a harmless drop of zero.

    Fails when even the upper end of the interval of Cohen's kappa between the reference's predictions and
    the labels lies below `LABELS_KAPPA`, where they have hardly anything to do with each other. None where
    kappa is undefined, because every image has one and the same class.
    """
    interval = labeled.reference_kappa_interval
    if labeled.reference_kappa is None or interval is None:
        return None
    return Criterion(
        name="labels_fit",
        value=labeled.reference_kappa,
        relation="≥",
        limit=LABELS_KAPPA,
        passed=interval.high >= LABELS_KAPPA,
        detail=f"Cohen's kappa of the reference's predictions and the labels, 95 % interval "
        f"{interval.low:.3f} to {interval.high:.3f}; the reference is right on "
        f"{100 * labeled.reference_accuracy:.2f} % of {labeled.images} images",
    )


def labels_order(labeled: Labeled, names: Sequence[str] = ()) -> Criterion:
    """Check that no classes' labels are exchanged for each other's: both sides of a comparison lose alike by it.

    `names` are those of the classes; without, numbers stand for them.
    """
    classes = sum(map(len, labeled.exchanged))
    if not classes:
        return at_most("labels_order", 0, 0, "classes whose images the reference gives to each other")
    cycles = [_cycle(cycle, names) for cycle in labeled.exchanged[:_CYCLES]]
    if len(labeled.exchanged) > _CYCLES:
        cycles.append(f"and {len(labeled.exchanged) - _CYCLES} more")
    found = at_most(
        "labels_order",
        classes,
        0,
        "the reference gives each class's images to the next; rename the folders of the data, or fix the labels "
        "file that was exported",
    )
    words = f"the labels of {classes} classes are exchanged ({'; '.join(cycles)}), expected 0"
    return msgspec.structs.replace(found, words=words)


def images_short(labeled: Labeled, points: float) -> int:
    """Return about how many images would resolve `points`, zero when no number of them would."""
    return images_needed(labeled.paired, min(points, 100) / 100) if points > 0 else 0


def resolves(labeled: Labeled, points: float) -> bool:
    """Whether the interval of the drop lies on one side of `points`."""
    interval = labeled.drop_interval_points
    return interval.high <= points or interval.low > points


def unresolved(labeled: Labeled, points: float) -> str:
    """Return the clause that says that the data are too few for `points`, and how many would do."""
    if points <= 0:
        return f"{labeled.images} images cannot show that nothing at all is lost"
    needed = images_short(labeled, points)
    if needed > labeled.images:
        return f"{labeled.images} images are too few to resolve {points:g} points (about {needed} would do)"
    return f"the drop is too close to {points:g} points for {labeled.images} images to tell"


def batches(errors: Mapping[int, float | None], limit: float) -> Criterion:
    """Hold full batches to the same run's logits of the same images in batches of other sizes.

    `errors` are ‖a−b‖/‖b‖ by the size of the batch, at least one, None where undefined. The greatest decides.
    """
    worst = max(errors, key=lambda size: math.inf if (error := errors[size]) is None else error)
    detail = "‖a−b‖/‖b‖ to the run's own logits of the same images in other batches"
    if len(errors) > 1:
        detail += f"; full batches of {' and '.join(map(str, errors))}, the greatest at {worst}"
    else:
        detail += f"; a full batch of {worst}"
    return at_most("batches", errors[worst], limit, detail)


def recorded(non_finite: int) -> Criterion:
    """Check that the recorded stages are finite, as the eager ones are; `non_finite` counts the images that are not."""
    return at_most("recorded", non_finite, 0, "images with NaN or infinite logits in a recorded stage")


def reproduced(error: float, limit: float, own: float) -> Criterion:
    """Hold a backend to the recorded logits of an int8 artifact; `error` and `own` are relative to eager's norm.

    It tells a file that was changed, or a backend that miscomputes it, from what quantization costs.
    """
    detail = f"‖a−r‖/‖b‖ from the recorded logits r of the artifact, whose own error is {own:.2g}"
    return at_most("reproduced", error, limit, detail)


def at_most(name: str, value: float | None, limit: float, detail: str = "") -> Criterion:
    """Return the criterion "value ≤ limit"; an undefined or non-finite value fails it."""
    passed = value is not None and math.isfinite(value) and value <= limit
    return Criterion(
        name=name, value=_float(value), relation="≤", limit=float(limit), passed=passed, detail=detail
    )


def at_least(name: str, value: float | None, limit: float, detail: str = "") -> Criterion:
    """Return the criterion "value ≥ limit"; an undefined or non-finite value fails it."""
    passed = value is not None and math.isfinite(value) and value >= limit
    return Criterion(
        name=name, value=_float(value), relation="≥", limit=float(limit), passed=passed, detail=detail
    )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)  # a count is given as an int


def _cycle(classes: Sequence[int], names: Sequence[str]) -> str:
    """Return "three → eight → three"."""
    said = [printable(names[one]) if one < len(names) else str(one) for one in classes]
    if len(said) > _CLASSES:
        return " → ".join([*said[:_CLASSES], f"{len(said) - _CLASSES} more", said[0]])
    return " → ".join([*said, said[0]])


def _drop_detail(labeled: Labeled) -> str:
    interval = labeled.drop_interval_points
    return (
        f"{100 * labeled.reference_accuracy:.2f} % to {100 * labeled.candidate_accuracy:.2f} % on "
        f"{labeled.images} images, 95 % interval {interval.low:.2f} to {interval.high:.2f} points"
    )


def _agreement(figures: Figures, limit: float, near_ties_agree: bool) -> Criterion:
    agreed = figures.top1 + (figures.near_tie_flips if near_ties_agree else 0)
    interval = wilson(agreed, figures.images)
    detail = f"{figures.top1} of {figures.images} images"
    if figures.near_tie_flips:
        detail += f", {figures.near_tie_flips} of the others near ties"
    detail += f", 95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} %"
    return Criterion(
        name="top1_agreement",
        value=agreed / figures.images,
        relation="≥",
        limit=limit,
        passed=interval.high >= limit,
        detail=detail,
    )
