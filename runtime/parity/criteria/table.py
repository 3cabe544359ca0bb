"""The one table of criteria: a row each, from figures to a verdict. Every check and every report reads it.

A further criterion is a row of `CRITERIA` and its function; a limit that depends on the precision is a field of
`Tolerance`, one that a user sets a field of `ParitySpec`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.parity.criteria.criterion import Criterion, Relation, hold, number
from resnet_export.runtime.parity.measure.comparison import printable
from resnet_export.runtime.parity.measure.image_errors import FAR, ImageErrors
from resnet_export.runtime.parity.measure.labels import Labeled
from resnet_export.runtime.parity.measure.metrics import Figures
from resnet_export.runtime.parity.measure.statistics import images_needed, wilson
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Tolerance

# "Slight agreement" ends at 0.20 (J. R. Landis and G. G. Koch, Biometrics 33, 1977); a classifier worth
# shipping lies far above, one that is measured by labels of other classes at or below zero.
LABELS_KAPPA = 0.1

# MLPerf Inference accepts an implementation that keeps 99 % of the reference's accuracy; for accuracies
# near 100 %, the strictest reading, that is one percentage point.
DROP_POINTS = 1.0

# Exchanged labels that a sentence spells out, and classes of each.
_CYCLES = 5
_CLASSES = 12

NO_LIMITS = Tolerance()

Cause = Literal["artifact", "backend", "labels", "checkpoint or labels"]


class Reproduction(NamedTuple):
    """How far a run is from the recorded logits of its artifact, those from eager's, and what is allowed.

    All are over the norm of eager's logits.
    """

    error: float
    own: float
    limit: float


class Repeated(NamedTuple):
    """A step of the preprocessing made again: what this host made, what the export recorded, and what to compare.

    `found` is None where the step could not be made, and `detail` says why.
    """

    found: NDArray[np.generic] | None
    expected: NDArray[np.generic]
    what: str
    detail: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What criteria are decided on, for one run on one set of images. What is left out decides nothing.

    Attributes:
        images: on which images; demands of the user apply to validation images, where there are any.
        spec: what was asked for.
        figures: of the logits against the reference's.
        tolerance: the limits of the precision.
        labeled: what labels add.
        is_reference: the run itself is the reference, so that nothing but its accuracy is decided on.
        untrained: the predictions mean nothing. Classes lie so close together that permitted error swaps them, so
            near ties count as agreement; labels are not checked.
        class_names: of the network.
        full_batches: ‖a−b‖/‖b‖ to the run's own logits of the same images in other batches, by the size of the full
            batch; None where undefined.
        recorded_non_finite: images with NaN or infinity in a recorded stage.
        reproduction: how near an int8 run is to the recorded logits of its artifact.
        crop, normalized: the preprocessing made again on the bundle's sample.
    """

    images: Literal["golden", "data"] = "golden"
    spec: ParitySpec = field(default_factory=ParitySpec)
    figures: Figures | None = None
    tolerance: Tolerance = NO_LIMITS
    labeled: Labeled | None = None
    is_reference: bool = False
    untrained: bool = False
    class_names: Sequence[str] = ()
    full_batches: Mapping[int, float | None] = field(default_factory=dict)
    recorded_non_finite: int | None = None
    reproduction: Reproduction | None = None
    crop: Repeated | None = None
    normalized: Repeated | None = None

    @property
    def compared(self) -> Figures | None:
        """The figures, where something was compared."""
        return None if self.is_reference else self.figures


class Found(NamedTuple):
    """What a row's function finds: value and limit, and what `Criterion` has besides.

    `passed` is None where value and limit decide.
    """

    value: float | None
    limit: float
    detail: str = ""
    words: str = ""
    passed: bool | None = None


class Unit(NamedTuple):
    """How a value is shown: times `scale`, with `suffix`, and never rounded to `one`: nothing is lost there."""

    scale: float = 1.0
    suffix: str = ""
    one: float = 1.0


PLAIN, FRACTION, PERCENT, POINTS = (
    Unit(),
    Unit(100.0, " %", 100.0),
    Unit(1.0, " %", 100.0),
    Unit(suffix=" points"),
)


@dataclass(frozen=True, kw_only=True)
class CriterionSpec:
    """One criterion.

    Attributes:
        name: in reports' JSON and JUnit's test cases.
        title: in sentences and tables: "`title` 0.93, expected ≥ 0.9999".
        question: what it answers.
        relation: between the value and the limit where it holds.
        find: from the evidence to value and limit; None where the criterion does not apply.
        cause: what is at fault where it alone does not hold; an accuracy that every run lacks is the checkpoint's or
            the labels'.
        unit: how the value is shown.
        unresolved: from labels and limit to how many images would tell (0: no number would) and a clause that says so;
            None where the images do tell.
    """

    name: str
    title: str
    question: str
    relation: Relation
    find: Callable[[Evidence], Found | None]
    cause: Cause = "artifact"
    unit: Unit = PLAIN
    unresolved: Callable[[Labeled, float], tuple[int, str] | None] | None = None

    def __call__(self, evidence: Evidence) -> Criterion | None:
        """Decide on the evidence; None where the criterion does not apply."""
        found = self.find(evidence)
        if found is None:
            return None
        value, limit, detail, words, passed = found
        return hold(self.name, value, self.relation, limit, detail, words, passed)


def evaluate(evidence: Evidence) -> tuple[Criterion, ...]:
    """Return the criteria that apply, in the order of the table."""
    found = (row(evidence) for row in CRITERIA.values())
    return tuple(criterion for criterion in found if criterion is not None)


def title(criterion: Criterion) -> str:
    """Return the criterion's name in words."""
    row = CRITERIA.get(criterion.name)
    return criterion.name.replace("_", " ") if row is None else row.title


def question(criterion: Criterion) -> str:
    """Return what the criterion answers, "" for one that has no row."""
    row = CRITERIA.get(criterion.name)
    return "" if row is None else row.question


def value(criterion: Criterion) -> str:
    """Return the value as "0.9312", "93.1 %" or "undefined"."""
    if criterion.value is None:
        return "undefined"
    scale, suffix, one = _unit(criterion)
    return f"{number(scale * criterion.value, scale * criterion.limit, one)}{suffix}"


def bound(criterion: Criterion) -> str:
    """Return the limit of a criterion as "≥ 0.9999"."""
    scale, suffix, _ = _unit(criterion)
    return f"{criterion.relation} {scale * criterion.limit:.12g}{suffix}"


def describe(criterion: Criterion) -> str:
    """Return a criterion as "centered cosine similarity 0.9312, expected ≥ 0.9999", or in its own words."""
    return criterion.words or f"{title(criterion)} {value(criterion)}, expected {bound(criterion)}"


def cause(criterion: Criterion) -> Cause:
    """Return what is at fault where the criterion alone does not hold."""
    row = CRITERIA.get(criterion.name)
    return "artifact" if row is None else row.cause


def _unit(criterion: Criterion) -> Unit:
    row = CRITERIA.get(criterion.name)
    return PLAIN if row is None else row.unit


def _finite(evidence: Evidence) -> Found | None:
    figures = evidence.compared
    return None if figures is None else Found(figures.non_finite, 0)


def _by_image(evidence: Evidence) -> ImageErrors | None:
    """Return what single images lose where that decides: where a handful of images owns the energy of the logits.

    What is pooled over all logits says nothing there, and is not asked for, provided that single images are held to
    limits.
    """
    figures, tolerance = evidence.compared, evidence.tolerance
    if figures is None or figures.by_image.even or None in (tolerance.median_error, tolerance.p90_error):
        return None
    return figures.by_image


def _relative_error(evidence: Evidence) -> Found | None:
    figures, limit = evidence.compared, evidence.tolerance.relative_error
    if figures is None or limit is None or _by_image(evidence):
        return None
    return Found(figures.relative_error, limit, "‖a−b‖/‖b‖")


def _centered_cosine(evidence: Evidence) -> Found | None:
    figures, limit = evidence.compared, evidence.tolerance.centered_cosine
    if figures is None or limit is None or _by_image(evidence):
        return None
    varied = figures.centered_cosine is not None or figures.non_finite == figures.images
    detail = "" if varied else "undefined, since the reference gives every image the same logits"
    return Found(figures.centered_cosine, limit, detail)


def _median_error(evidence: Evidence) -> Found | None:
    found, limit = _by_image(evidence), evidence.tolerance.median_error
    if found is None or limit is None:
        return None
    detail = (
        "‖a−b‖/‖b‖ of one image's logits, which half of the images stay within; a handful of images owns the energy "
        "of all logits, so errors pooled over them are not asked for"
    )
    return Found(found.median_error, limit, detail)


def _p90_error(evidence: Evidence) -> Found | None:
    found, limit = _by_image(evidence), evidence.tolerance.p90_error
    if found is None or limit is None:
        return None
    return Found(
        found.p90_error, limit, "‖a−b‖/‖b‖ of one image's logits, which 90 % of the images stay within"
    )


def _p90_divergence(evidence: Evidence) -> Found | None:
    found, limit = _by_image(evidence), evidence.tolerance.p90_divergence
    if found is None or limit is None:
        return None
    detail = "KL divergence of one image's softmax in nats, which 90 % of the images stay within"
    return Found(found.p90_divergence, limit, detail)


def _far_images(evidence: Evidence) -> Found | None:
    """Fail only when the 95 % Wilson interval lies above the limit as a whole, as for the agreement."""
    found, figures, limit = _by_image(evidence), evidence.figures, evidence.tolerance.far_images
    if found is None or figures is None or limit is None:
        return None
    interval = wilson(found.far, figures.images)
    detail = (
        f"{found.far} of {figures.images} images have an error ‖a−b‖/‖b‖ above {FAR:g}, 95 % interval "
        f"{100 * interval.low:.2f} to {100 * interval.high:.2f} %"
    )
    return Found(found.far / figures.images, limit, detail, passed=interval.low <= limit)


def _top1_agreement(evidence: Evidence) -> Found | None:
    """Fail only when the 95 % Wilson interval lies below the limit as a whole: 20 images cannot tell 99 % from 97 %."""
    figures, limit = evidence.compared, evidence.tolerance.top1_agreement
    if figures is None or limit is None:
        return None
    agreed = figures.top1 + (figures.near_tie_flips if evidence.untrained else 0)
    interval = wilson(agreed, figures.decided)
    detail = figures.counted
    if figures.near_tie_flips:
        detail += f", {figures.near_tie_flips} of the others near ties"
    detail += f", 95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} %"
    return Found(agreed / figures.decided, limit, detail, passed=interval.high >= limit)


def _full_batches(evidence: Evidence) -> Found | None:
    errors, limit = evidence.full_batches, evidence.tolerance.relative_error
    if not errors or limit is None:
        return None
    worst = max(errors, key=lambda size: math.inf if (error := errors[size]) is None else error)
    detail = "‖a−b‖/‖b‖ to the run's own logits of the same images in other batches"
    if len(errors) > 1:
        detail += f"; full batches of {' and '.join(map(str, errors))}, the greatest at {worst}"
    else:
        detail += f"; a full batch of {worst}"
    return Found(errors[worst], limit, detail)


def _recorded_finite(evidence: Evidence) -> Found | None:
    return None if evidence.recorded_non_finite is None else Found(evidence.recorded_non_finite, 0)


def _matches_recorded(evidence: Evidence) -> Found | None:
    if evidence.reproduction is None:
        return None
    error, own, limit = evidence.reproduction
    detail = f"‖a−r‖/‖b‖ from the recorded logits r of the artifact, whose relative error is {own:.2g}"
    return Found(error, limit, detail)


def _min_agreement(evidence: Evidence) -> Found | None:
    figures, percent = evidence.compared, evidence.spec.min_agreement
    elsewhere = evidence.images == "golden" and evidence.spec.data is not None
    if figures is None or percent is None or elsewhere:
        return None
    interval = wilson(figures.top1, figures.decided)
    detail = f"{figures.counted}, 95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} %"
    return Found(100 * figures.top1_agreement, percent, detail)


def _accuracy_drop(evidence: Evidence) -> Found | None:
    """For labeled images when the user sets no limit: fail a drop whose whole interval lies above `DROP_POINTS`."""
    labeled = evidence.labeled
    if labeled is None or evidence.is_reference or evidence.spec.max_drop is not None:
        return None
    passed = labeled.drop_interval_points.low <= DROP_POINTS
    return Found(labeled.drop_points, DROP_POINTS, _drop_detail(labeled), passed=passed)


def _max_drop(evidence: Evidence) -> Found | None:
    """The observed drop, held to the letter; the detail says when the images cannot decide, and `strict` fails then."""
    labeled, points = evidence.labeled, evidence.spec.max_drop
    if labeled is None or evidence.is_reference or points is None:
        return None
    doubt = unresolved(labeled, points)
    if doubt is not None and evidence.spec.strict and labeled.drop_points <= points:
        return Found(labeled.drop_points, points, _drop_detail(labeled), words=doubt[1], passed=False)
    return Found(labeled.drop_points, points, _drop_detail(labeled) + (f"; {doubt[1]}" if doubt else ""))


def _min_accuracy(evidence: Evidence) -> Found | None:
    labeled, percent = evidence.labeled, evidence.spec.min_accuracy
    if labeled is None or percent is None:
        return None
    interval = labeled.candidate_interval
    detail = (
        f"of {labeled.images} images, 95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} %"
    )
    return Found(100 * labeled.candidate_accuracy, percent, detail)


def _labels_fit(evidence: Evidence) -> Found | None:
    """Labels off by one class look like a harmless drop of zero.

    Fails when even the upper end of the interval of Cohen's kappa between the reference's predictions and
    the labels lies below `LABELS_KAPPA`, where they have hardly anything to do with each other. Does not apply where
    kappa is undefined, because every image has one and the same class.
    """
    labeled = evidence.labeled
    if labeled is None or evidence.untrained:
        return None
    interval = labeled.reference_kappa_interval
    if labeled.reference_kappa is None or interval is None:
        return None
    detail = (
        f"95 % interval {interval.low:.3f} to {interval.high:.3f}; the reference's top-1 accuracy is "
        f"{100 * labeled.reference_accuracy:.2f} % on {labeled.images} images"
    )
    return Found(labeled.reference_kappa, LABELS_KAPPA, detail, passed=interval.high >= LABELS_KAPPA)


def _labels_order(evidence: Evidence) -> Found | None:
    """Both sides of a comparison lose alike by labels that are exchanged for each other's."""
    labeled = evidence.labeled
    if labeled is None or evidence.untrained:
        return None
    classes = sum(map(len, labeled.exchanged))
    if not classes:
        return Found(0, 0)
    cycles = [_cycle(cycle, evidence.class_names) for cycle in labeled.exchanged[:_CYCLES]]
    if len(labeled.exchanged) > _CYCLES:
        cycles.append(f"and {len(labeled.exchanged) - _CYCLES} more")
    detail = (
        "the reference gives each class's images to the next; rename the folders of the data, or fix the labels "
        "file that was exported"
    )
    words = f"the labels of {classes} classes are exchanged ({'; '.join(cycles)}), expected 0"
    return Found(classes, 0, detail, words)


def _repeated(step: Repeated | None) -> Found | None:
    """Count the values of a step of the preprocessing that this host makes otherwise than the export."""
    if step is None:
        return None
    found, expected, what, detail, advice = step
    if found is None:
        return Found(None, 0, detail, f"the {what} cannot be made")
    if found.shape != expected.shape:
        shapes = f"has shape {list(found.shape)}, expected {list(expected.shape)}"
        return Found(None, 0, f"{detail}; {advice}", f"the {what} {shapes}")
    count = int((found != expected).sum())
    if count:
        distance = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
        detail += f", by {distance:.3g} at most; {advice}"
    words = f"{count} of {expected.size} values of the {what} differ, expected 0"
    return Found(count, 0, detail, words)


def _drop_detail(labeled: Labeled) -> str:
    interval = labeled.drop_interval_points
    return (
        f"{100 * labeled.reference_accuracy:.2f} % to {100 * labeled.candidate_accuracy:.2f} % on "
        f"{labeled.images} images, 95 % interval {interval.low:.2f} to {interval.high:.2f} points"
    )


def unresolved(labeled: Labeled, points: float) -> tuple[int, str] | None:
    """Return how many images would resolve a drop of `points`, zero when none would, and the clause that says so.

    None where the interval of the drop lies on one side of `points`: the images do tell.
    """
    interval = labeled.drop_interval_points
    if interval.high <= points or interval.low > points:
        return None
    if points <= 0:
        return 0, f"{labeled.images} images cannot show that nothing at all is lost"
    needed = images_needed(labeled.paired, min(points, 100) / 100)
    if needed > labeled.images:
        return (
            needed,
            f"{labeled.images} images are too few to resolve {points:g} points (about {needed} would do)",
        )
    return needed, f"the drop is too close to {points:g} points for {labeled.images} images to tell"


def _cycle(classes: Sequence[int], names: Sequence[str]) -> str:
    """Return "three → eight → three"."""
    said = [printable(names[one]) if one < len(names) else str(one) for one in classes]
    if len(said) > _CLASSES:
        return " → ".join([*said[:_CLASSES], f"{len(said) - _CLASSES} more", said[0]])
    return " → ".join([*said, said[0]])


_ROWS = (
    CriterionSpec(
        name="finite",
        title="images with NaN or infinite logits",
        question="Are all logits finite?",
        relation="≤",
        find=_finite,
    ),
    CriterionSpec(
        name="relative_error",
        title="relative error",
        question="Are the logits as near to the reference's as the precision allows?",
        relation="≤",
        find=_relative_error,
    ),
    CriterionSpec(
        name="centered_cosine",
        title="centered cosine similarity",
        question="Does what tells one image from another survive?",
        relation="≥",
        find=_centered_cosine,
    ),
    CriterionSpec(
        name="top1_agreement",
        title="top-1 agreement",
        question="Is the prediction the reference's, as far as so many images can tell?",
        relation="≥",
        find=_top1_agreement,
        unit=FRACTION,
    ),
    CriterionSpec(
        name="median_error",
        title="median error of an image",
        question="Are the logits of a usual image as near to the reference's as the precision allows?",
        relation="≤",
        find=_median_error,
    ),
    CriterionSpec(
        name="p90_error",
        title="error of an image, 90 % quantile",
        question="Are those of most images?",
        relation="≤",
        find=_p90_error,
    ),
    CriterionSpec(
        name="p90_divergence",
        title="divergence of an image's softmax, 90 % quantile",
        question="Do the probabilities of most images survive?",
        relation="≤",
        find=_p90_divergence,
    ),
    CriterionSpec(
        name="far_images",
        title="images whose logits are lost",
        question="Are few images far from the reference, as far as so many images can tell?",
        relation="≤",
        find=_far_images,
        unit=FRACTION,
    ),
    CriterionSpec(
        name="full_batches",
        title="relative error in full batches",
        question="Does a full batch give the logits that the same images have in other batches?",
        relation="≤",
        find=_full_batches,
        cause="backend",
    ),
    CriterionSpec(
        name="recorded_finite",
        title="images with NaN or infinity in a recorded stage",
        question="Are the recorded stages finite, as the eager model is?",
        relation="≤",
        find=_recorded_finite,
    ),
    CriterionSpec(
        name="matches_recorded",
        title="relative error from the logits recorded at export",
        question="Does the file still compute what it computed at export, apart from what INT8 costs?",
        relation="≤",
        find=_matches_recorded,
        cause="backend",
    ),
    CriterionSpec(
        name="min_agreement",
        title="demanded top-1 agreement",
        question="Is the observed top-1 agreement what the user demands?",
        relation="≥",
        find=_min_agreement,
        unit=PERCENT,
    ),
    CriterionSpec(
        name="accuracy_drop",
        title="accuracy drop",
        question="Is accuracy lost beyond doubt?",
        relation="≤",
        find=_accuracy_drop,
        unit=POINTS,
    ),
    CriterionSpec(
        name="max_drop",
        title="accuracy drop",
        question="Is the observed accuracy drop within the user's limit?",
        relation="≤",
        find=_max_drop,
        unit=POINTS,
        unresolved=unresolved,
    ),
    CriterionSpec(
        name="min_accuracy",
        title="demanded top-1 accuracy",
        question="Is the observed accuracy what the user demands? The only one that sees what both sides lose alike.",
        relation="≥",
        find=_min_accuracy,
        cause="checkpoint or labels",
        unit=PERCENT,
    ),
    CriterionSpec(
        name="labels_fit",
        title="Cohen's kappa of predictions and labels",
        question="Do the labels belong to this network?",
        relation="≥",
        find=_labels_fit,
        cause="labels",
    ),
    CriterionSpec(
        name="labels_order",
        title="classes with exchanged labels",
        question="Are some classes' labels exchanged for each other's?",
        relation="≤",
        find=_labels_order,
        cause="labels",
    ),
    CriterionSpec(
        name="crop",
        title="values of the crop that differ",
        question="Does this host decode, resize and crop as the export did?",
        relation="≤",
        find=lambda evidence: _repeated(evidence.crop),
    ),
    CriterionSpec(
        name="normalize",
        title="values of the normalized input that differ",
        question="Does this host normalize as the export did?",
        relation="≤",
        find=lambda evidence: _repeated(evidence.normalized),
    ),
)

CRITERIA: Mapping[str, CriterionSpec] = {row.name: row for row in _ROWS}
"""Every criterion by its name, in the order of reports."""
