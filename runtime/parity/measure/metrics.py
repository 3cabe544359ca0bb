"""How far a candidate's logits are from the reference's: one number per question, in one streaming pass.

`Metrics` is a value that knows a set of images. `Metrics.of` makes it from a batch, `+` joins two disjoint
sets, and `result` reads the figures, so memory does not grow with the number of images and the result does
not depend on how they were batched, up to float64 rounding. `docs/parity.md` gives every formula.

The centered cosine needs the mean over all images before the first one can be centered. The pairwise update
of Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances"
(1979), keeps centered second moments instead, which loses nothing to cancellation when the mean is far
larger than the spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_export.runtime.bundle.manifest import Struct
from resnet_export.runtime.bundle.schema import Activation
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.measure.image_errors import FAR, ImageErrors, Sketch, image_errors, spread
from resnet_export.runtime.prediction import decides_each, decisions, two_class

# Below this share of their squared norm, the centered logits are float64 rounding and not variation: float32
# logits that differ anywhere among a billion leave more than 1e-24, rounding of the mean less than 1e-30.
_NO_VARIATION = 1e-27


SAME = 1e-5
"""A spread below it is rounding: the logits of one image differ by up to 3e-6 between batches and backends."""


class Figures(Struct, frozen=True):
    """The figures of one comparison. Counts are over all images, errors over those with finite logits.

    A binary classifier's one logit z stands as the two logits 0 and z: the same decisions, probabilities and errors.
    `max_abs` and `mean_abs` are absolute logit differences; `relative_error` is ‖a−b‖/‖b‖ over all logits;
    `cosine` is over all logits, `centered_cosine` after the mean reference logits were subtracted from both;
    `snr_db` is −20·log10(relative_error); `mean_kl` is the mean of KL(softmax b ‖ softmax a) in nats. A
    figure is None where it is undefined: `snr_db` without any error, a cosine without any signal, all of
    them without finite logits.

    `top1` and `top5` count the images whose reference winner is the candidate's first, or among its first
    five. Ties: of the reference's equal winners the one that the candidate ranks best counts; the
    candidate's own ties fall to the lower class index, as argmax has it. `near_tie_flips` counts the images
    that are not in `top1` only because the reference itself puts the two classes within the near-tie width
    of the comparison.

    A multi-label head decides on each class of each image by itself, at a probability of 0.5: then `decisions`, images
    times classes, is what `top1`, `top5` and `near_tie_flips` are counted among, and `mean_kl` adds up over classes.

    `by_image` is what single images lose, each of which weighs the same.

    `reference_spread` is ‖b−m‖/‖b‖, m being the mean of b over the images: zero when the reference gives every
    image the same logits, None when they are all zero.
    """

    images: int
    classes: int
    non_finite: int
    max_abs: float | None
    mean_abs: float | None
    relative_error: float | None
    cosine: float | None
    centered_cosine: float | None
    snr_db: float | None
    mean_kl: float | None
    top1: int
    top5: int
    near_tie_flips: int
    reference_classes: int
    candidate_classes: int
    by_image: ImageErrors
    decisions: int = 0
    reference_spread: float | None = None

    @property
    def top1_agreement(self) -> float:
        """The fraction of images on which the candidate's first class is the reference's, in [0, 1]."""
        return self.top1 / self.decided

    @property
    def decided(self) -> int:
        """How many decisions `top1` is counted among."""
        return self.decisions or self.images

    @property
    def counted(self) -> str:
        """What `top1` counts: "19 of 20 images", or "157 of 160 decisions" of a multi-label head."""
        return f"{self.top1} of {self.decided} {'images' if self.decided == self.images else 'decisions'}"

    @property
    def top5_agreement(self) -> float:
        """The fraction of images whose reference winner is among the candidate's first five, in [0, 1]."""
        return self.top5 / self.decided


@dataclass(frozen=True)
class Predictions:
    """What both sides say about each image of a batch.

    `reference` and `candidate` int64 [N] are the winning classes (−1 where the candidate has non-finite
    logits). `rank` int64 [N] is the place of the reference's winner in the candidate's order, 0 for the
    first, and behind all classes where there is no order. `margin` float64 [N] is how much higher the
    reference puts its own winner than the candidate's.
    """

    reference: NDArray[np.int64]
    candidate: NDArray[np.int64]
    rank: NDArray[np.int64]
    margin: NDArray[np.float64]

    @property
    def flipped(self) -> NDArray[np.bool_]:
        """Bool [N]: the candidate's first class is none of the reference's winners."""
        return self.rank > 0


def predictions(
    reference: ArrayLike, candidate: ArrayLike, activation: Activation = "softmax"
) -> Predictions:
    """Return what float logits [N, C] of both sides predict; of a multi-label head the N·C decisions, 0 or 1 each.

    Raises RequestError as `Metrics.of` does.
    """
    b, a = _checked(reference, candidate)
    finite = _finite(a)
    if decides_each(np.asarray(reference), activation):
        return _predictions(decisions(b), decisions(a), finite.repeat(b.shape[1]))
    return _predictions(b, a, finite)


@dataclass(frozen=True)
class Metrics:
    """The sums from which `Figures` are read, for one set of images.

    Values are float64; add sets with `+`.
    """

    classes: int
    images: int
    finite: int
    max_abs: float
    sum_abs: float
    sum_dd: float  # Σ (a − b)²
    sum_bb: float
    sum_aa: float
    sum_ab: float
    mean_b: NDArray[np.float64]  # [C]
    mean_a: NDArray[np.float64]  # [C]
    centered_bb: float  # Σ (b − mean b)²
    centered_aa: float
    centered_ab: float
    sum_kl: float
    decisions: int
    top1: int
    top5: int
    near_tie_flips: int
    seen_b: NDArray[np.bool_]  # [C]
    seen_a: NDArray[np.bool_]  # [C]
    errors: Sketch  # of the images' ‖a−b‖/‖b‖
    divergences: Sketch
    far: int
    sum_energy: float  # Σ e over all images, e = ‖b‖² of each
    sum_energy_squared: float

    @classmethod
    def of(
        cls,
        reference: ArrayLike,
        candidate: ArrayLike,
        near_tie: float = 0.0,
        activation: Activation = "softmax",
    ) -> Metrics:
        """Compare float logits [N, C] of the same N ≥ 1 images; `activation` makes probabilities of them.

        `near_tie` is in units of logits: a prediction that changed between two classes which the reference
        puts at most this far apart is counted as a near-tie flip. Raises RequestError when the shapes
        differ or are not [N, C], and when the reference has non-finite logits.
        """
        b, a = _checked(reference, candidate)
        finite = _finite(a)
        found = predictions(reference, candidate, activation)
        classes = b.shape[1]
        each = decides_each(np.asarray(reference), activation)
        if each:
            seen_b, seen_a = (np.asarray((one > 0).any(axis=0)) for one in (b, a[finite]))
        else:
            seen_b, seen_a = np.zeros(classes, bool), np.zeros(classes, bool)
            seen_b[found.reference] = True
            seen_a[found.candidate[finite]] = True

        images = len(b)
        errors = image_errors(b, a)
        energies = np.square(b).sum(axis=1)
        b, a = b[finite], a[finite]
        count = len(b)
        difference = a - b
        size = np.abs(difference)
        mean_b = b.mean(axis=0) if count else np.zeros(classes)
        mean_a = a.mean(axis=0) if count else np.zeros(classes)
        centered_b, centered_a = b - mean_b, a - mean_a
        kl = _kl(decisions(b), decisions(a)).reshape(count, classes).sum(axis=1) if each else _kl(b, a)
        divergences = np.full(images, np.inf)
        divergences[finite] = kl
        return cls(
            classes=classes,
            images=images,
            finite=count,
            max_abs=float(size.max(initial=0.0)),
            sum_abs=float(size.sum()),
            sum_dd=inner(difference, difference),
            sum_bb=inner(b, b),
            sum_aa=inner(a, a),
            sum_ab=inner(a, b),
            mean_b=mean_b,
            mean_a=mean_a,
            centered_bb=inner(centered_b, centered_b),
            centered_aa=inner(centered_a, centered_a),
            centered_ab=inner(centered_a, centered_b),
            sum_kl=float(kl.sum()),
            decisions=len(found.rank),
            top1=int((found.rank < 1).sum()),
            top5=int((found.rank < 5).sum()),
            near_tie_flips=int((found.flipped & (found.margin <= near_tie)).sum()),
            seen_b=seen_b,
            seen_a=seen_a,
            errors=Sketch.of(errors),
            divergences=Sketch.of(divergences),
            far=int((errors > FAR).sum()),
            sum_energy=float(energies.sum()),
            sum_energy_squared=inner(energies, energies),
        )

    def __add__(self, other: Metrics) -> Metrics:
        """Return the metrics of both sets together. Raises RequestError when the class counts differ."""
        if self.classes != other.classes:
            raise RequestError(
                f"metrics over {self.classes} and over {other.classes} classes cannot be joined; "
                "compare logits of one model"
            )
        count = self.finite + other.finite
        share = other.finite / count if count else 0.0
        step_b, step_a = other.mean_b - self.mean_b, other.mean_a - self.mean_a
        weight = self.finite * share
        return Metrics(
            classes=self.classes,
            images=self.images + other.images,
            finite=count,
            max_abs=max(self.max_abs, other.max_abs),
            sum_abs=self.sum_abs + other.sum_abs,
            sum_dd=self.sum_dd + other.sum_dd,
            sum_bb=self.sum_bb + other.sum_bb,
            sum_aa=self.sum_aa + other.sum_aa,
            sum_ab=self.sum_ab + other.sum_ab,
            mean_b=self.mean_b + share * step_b,
            mean_a=self.mean_a + share * step_a,
            centered_bb=self.centered_bb + other.centered_bb + weight * inner(step_b, step_b),
            centered_aa=self.centered_aa + other.centered_aa + weight * inner(step_a, step_a),
            centered_ab=self.centered_ab + other.centered_ab + weight * inner(step_a, step_b),
            sum_kl=self.sum_kl + other.sum_kl,
            decisions=self.decisions + other.decisions,
            top1=self.top1 + other.top1,
            top5=self.top5 + other.top5,
            near_tie_flips=self.near_tie_flips + other.near_tie_flips,
            seen_b=self.seen_b | other.seen_b,
            seen_a=self.seen_a | other.seen_a,
            errors=self.errors + other.errors,
            divergences=self.divergences + other.divergences,
            far=self.far + other.far,
            sum_energy=self.sum_energy + other.sum_energy,
            sum_energy_squared=self.sum_energy_squared + other.sum_energy_squared,
        )

    def result(self) -> Figures:
        """Return the figures of these images."""
        some = self.finite > 0
        relative = math.sqrt(self.sum_dd / self.sum_bb) if self.sum_bb > 0 else None
        varied_b = self.centered_bb > _NO_VARIATION * self.sum_bb
        # Both sides are centered on the reference's mean, so the candidate keeps its distance from that mean.
        gap = self.mean_a - self.mean_b
        around_b = self.centered_aa + self.finite * inner(gap, gap)
        return Figures(
            images=self.images,
            classes=self.classes,
            non_finite=self.images - self.finite,
            max_abs=self.max_abs if some else None,
            mean_abs=self.sum_abs / (self.finite * self.classes) if some else None,
            relative_error=relative,
            cosine=cosine(self.sum_ab, self.sum_aa, self.sum_bb),
            centered_cosine=cosine(self.centered_ab, around_b, self.centered_bb) if varied_b else None,
            snr_db=-20 * math.log10(relative) if relative else None,
            mean_kl=self.sum_kl / self.finite if some else None,
            decisions=self.decisions,
            top1=self.top1,
            top5=self.top5,
            near_tie_flips=self.near_tie_flips,
            reference_classes=int(self.seen_b.sum()),
            candidate_classes=int(self.seen_a.sum()),
            by_image=ImageErrors(
                typical_error=self.errors.typical(),
                median_error=self.errors.within(0.5),
                p90_error=self.errors.within(0.9),
                p90_divergence=self.divergences.within(0.9),
                far=self.far,
                spread=spread(self.sum_energy, self.sum_energy_squared, self.images),
            ),
            reference_spread=math.sqrt(self.centered_bb / self.sum_bb) if self.sum_bb > 0 else None,
        )


def _checked(reference: ArrayLike, candidate: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    b = np.asarray(reference, np.float64)
    a = np.asarray(candidate, np.float64)
    if b.ndim != 2 or b.size == 0:
        raise RequestError(f"reference logits have shape {b.shape}; expected [images, classes], not empty")
    if a.shape != b.shape:
        raise RequestError(
            f"candidate logits have shape {a.shape}, reference logits {b.shape}; "
            "compare logits of the same images over the same classes"
        )
    if not np.isfinite(b).all():
        raise RequestError(
            "reference logits hold NaN or infinity; a reference must be finite: record it again"
        )
    return two_class(b), two_class(a)


def _finite(a: NDArray[np.float64]) -> NDArray[np.bool_]:
    return np.asarray(np.isfinite(a).all(axis=1))


def _predictions(b: NDArray[np.float64], a: NDArray[np.float64], finite: NDArray[np.bool_]) -> Predictions:
    classes = b.shape[1]
    row = np.arange(len(b))
    a = np.where(finite[:, None], a, 0.0)
    winner_b, winner_a = b.argmax(axis=1), a.argmax(axis=1)
    top = b[row, winner_b]
    # Among the reference's equal winners, the one that the candidate likes best; the lower index among
    # equals.
    best = np.where(b == top[:, None], a, -np.inf).argmax(axis=1)
    score = a[row, best][:, None]
    ahead = (a > score) | ((a == score) & (np.arange(classes) < best[:, None]))
    return Predictions(
        reference=np.asarray(winner_b, np.int64),
        candidate=np.where(finite, winner_a, -1),
        rank=np.where(finite, ahead.sum(axis=1), max(classes, 5)),
        margin=np.where(finite, top - b[row, winner_a], np.inf),
    )


def inner(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Return Σ x·y over all elements of two arrays of one shape, summed pairwise.

    Not BLAS's product: its threads contend with those of the backends, and its sum is the less exact one.
    """
    return float((x * y).sum())


def cosine(xy: float, xx: float, yy: float) -> float | None:
    """Return the cosine similarity from Σ xy, Σ x² and Σ y², in [-1, 1]; None where one side is zero."""
    if xx <= 0 or yy <= 0:
        return None
    return max(-1.0, min(1.0, xy / (math.sqrt(xx) * math.sqrt(yy))))


def relative_error(candidate: ArrayLike, reference: ArrayLike) -> float | None:
    """Return ‖a−b‖/‖b‖ of float arrays of one shape: 0 for equal ones, whatever they are.

    None where one is not finite, or another than a `reference` of zeros.
    """
    return distance(candidate, reference, reference)


def distance(one: ArrayLike, other: ArrayLike, scale: ArrayLike) -> float | None:
    """Return ‖a−c‖/‖b‖ of float arrays of one shape: 0 where a equals c.

    None where one is not finite, or a differs from c and `scale` is zero.
    """
    a, c, b = (np.asarray(logits, np.float64) for logits in (one, other, scale))
    if not all(np.isfinite(logits).all() for logits in (a, b, c)):
        return None
    error, norm = inner(a - c, a - c), inner(b, b)
    if not error:
        return 0.0
    return math.sqrt(error / norm) if norm else None


def varies(logits: ArrayLike) -> bool:
    """Whether finite logits [N, C] differ between the images by more than rounding does."""
    x = np.asarray(logits, np.float64)
    centered = x - x.mean(axis=0)
    return inner(centered, centered) > SAME**2 * inner(x, x)


def log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of softmax over the classes of finite logits float64 [N, C]."""
    shifted = x - x.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _kl(b: NDArray[np.float64], a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return KL(softmax b ‖ softmax a) in nats, float64 [N], at least zero whatever rounding makes of it."""
    if len(b) == 0:
        return np.zeros(0)
    log_b, log_a = log_softmax(b), log_softmax(a)
    result: NDArray[np.float64] = np.maximum((np.exp(log_b) * (log_b - log_a)).sum(axis=1), 0.0)
    return result
