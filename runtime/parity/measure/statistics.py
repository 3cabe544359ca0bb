"""What a count of images can and cannot tell: intervals, the paired test, the sample size, calibration error.

Short closed formulas, so that a device needs no statistics package; `docs/parity.md` says how the gate uses
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.manifest import Struct
from resnet_export.runtime.errors import RequestError

CONFIDENCE = 0.95
POWER = 0.80
ECE_BINS = 15


class Interval(Struct, frozen=True):
    """A two-sided confidence interval; `low` ≤ `high`."""

    low: float
    high: float


@dataclass(frozen=True)
class Paired:
    """Images counted by who is right: `both`, only the `reference`, only the `candidate`, or `neither`."""

    both: int = 0
    reference: int = 0
    candidate: int = 0
    neither: int = 0

    @property
    def images(self) -> int:
        """The number of images counted."""
        return self.both + self.reference + self.candidate + self.neither

    @property
    def drop(self) -> float:
        """Reference accuracy less candidate accuracy, a fraction; positive when accuracy was lost."""
        return (self.reference - self.candidate) / self.images

    def __add__(self, other: Paired) -> Paired:
        return Paired(
            both=self.both + other.both,
            reference=self.reference + other.reference,
            candidate=self.candidate + other.candidate,
            neither=self.neither + other.neither,
        )


def wilson(successes: int, images: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the score interval of a proportion `successes` / `images`, in [0, 1].

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    Raises RequestError unless 0 ≤ successes ≤ images and images ≥ 1.
    """
    if images < 1 or not 0 <= successes <= images:
        raise RequestError(
            f"{successes} of {images} is no proportion; expected 0 ≤ successes ≤ images, images ≥ 1"
        )
    z = _z(1 - (1 - confidence) / 2)
    p = successes / images
    scale = 1 + z * z / images
    centre = (p + z * z / (2 * images)) / scale
    half = z / scale * math.sqrt(p * (1 - p) / images + z * z / (4 * images * images))
    # At the ends one bound is exactly p; rounding must not move it past.
    return Interval(
        low=0.0 if successes == 0 else max(0.0, centre - half),
        high=1.0 if successes == images else min(1.0, centre + half),
    )


def mcnemar(reference_only: int, candidate_only: int) -> float:
    """Return the exact two-sided p-value of McNemar's test: are both sides equally often right alone?

    Twice the binomial tail at 1/2 over the discordant images, at most 1 (Q. McNemar, Psychometrika 12,
    1947; the exact form follows the sign test). 1.0 when no image is discordant.
    """
    fewer, discordant = min(reference_only, candidate_only), reference_only + candidate_only
    if 2 * fewer >= discordant:
        return 1.0
    # P(X = fewer) through logarithms, then downwards: P(X = k − 1) = P(X = k) · k / (n − k + 1).
    log_term = (
        math.lgamma(discordant + 1)
        - math.lgamma(fewer + 1)
        - math.lgamma(discordant - fewer + 1)
        - discordant * math.log(2)
    )
    term = math.exp(log_term)
    terms = [term]
    for k in range(fewer, 0, -1):
        term *= k / (discordant - k + 1)
        if term < 1e-20 * terms[0]:
            break
        terms.append(term)
    return min(1.0, 2 * math.fsum(terms))


def drop_interval(paired: Paired, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the accuracy drop `paired.drop` between two classifiers on the same images.

    Method 10 (square-and-add of Wilson bounds with a continuity-corrected correlation) of R. G. Newcombe,
    "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17 (1998). It keeps its coverage when no or few images are discordant, where the
    usual Wald interval has no width. Fractions in [−1, 1]. Raises RequestError without images.
    """
    a, b, c, d = paired.both, paired.reference, paired.candidate, paired.neither
    n = paired.images
    first, second = wilson(a + b, n, confidence), wilson(a + c, n, confidence)
    p1, p2 = (a + b) / n, (a + c) / n
    below1, above1 = p1 - first.low, first.high - p1
    below2, above2 = p2 - second.low, second.high - p2

    covariance = float(a * d - b * c)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    phi = covariance / math.sqrt(margins) if margins else 0.0

    down = math.sqrt(max(0.0, below1**2 - 2 * phi * below1 * above2 + above2**2))
    up = math.sqrt(max(0.0, below2**2 - 2 * phi * below2 * above1 + above1**2))
    return Interval(low=max(-1.0, paired.drop - down), high=min(1.0, paired.drop + up))


def images_needed(paired: Paired, drop: float, confidence: float = CONFIDENCE, power: float = POWER) -> int:
    """Return how many images would resolve a drop of `drop` (a fraction > 0) at this rate of discordance.

    With that many, McNemar's test at 1 − `confidence` finds a true drop of this size with probability
    `power` (R. J. Connor, "Sample size for testing differences in proportions for the paired-sample
    design", Biometrics 43, 1987). The rate of discordant images is the centre of its Wilson interval,
    because a small sample may show none; it cannot be below the drop itself. Raises RequestError unless 0 <
    drop ≤ 1.
    """
    if not 0 < drop <= 1:
        raise RequestError(
            f"a drop of {100 * drop:g} points cannot be resolved; give one above 0 and at most 100"
        )
    z = _z(1 - (1 - confidence) / 2)
    n = paired.images
    rate = (paired.reference + paired.candidate + z * z / 2) / (n + z * z)
    return connor(max(rate, drop), drop, confidence, power)


def connor(discordant: float, difference: float, confidence: float = CONFIDENCE, power: float = POWER) -> int:
    """Return the sample size of McNemar's test for a rate of discordant pairs and a difference.

    N = (z_{1−α/2} √ψ + z_{power} √(ψ − δ²))² / δ² with ψ the rate and δ the difference (Connor 1987, page
    209).
    """
    alpha, beta = _z(1 - (1 - confidence) / 2), _z(power)
    root = alpha * math.sqrt(discordant) + beta * math.sqrt(discordant - difference**2)
    return math.ceil((root / difference) ** 2)


def kappa(agreement: float, chance: float) -> float:
    """Return (agreement − chance) / (1 − chance): agreement beyond what unrelated raters would have.

    `chance` < 1 is Σ_c of the product of both raters' shares of class c (J. Cohen, "A coefficient of
    agreement for nominal scales", Educational and Psychological Measurement 20, 1960).
    """
    return (agreement - chance) / (1 - chance)


@dataclass(frozen=True)
class Reliability:
    """Predictions binned by confidence; add sets of images with `+`.

    `count` int64, `confidence` float64 (sum) and `hits` int64, all [bins]. Bin m holds confidences in
    ((m − 1) / bins, m / bins].
    """

    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    hits: NDArray[np.int64]

    @classmethod
    def of(
        cls, confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = ECE_BINS
    ) -> Reliability:
        """Bin float confidences [N] in [0, 1] of the predicted classes by whether bool `right` [N] holds."""
        index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
        return cls(
            count=np.bincount(index, minlength=bins).astype(np.int64),
            confidence=np.asarray(np.bincount(index, weights=confidence, minlength=bins), np.float64),
            hits=np.bincount(index[right], minlength=bins).astype(np.int64),
        )

    def __add__(self, other: Reliability) -> Reliability:
        return Reliability(
            count=self.count + other.count,
            confidence=self.confidence + other.confidence,
            hits=self.hits + other.hits,
        )

    def ece(self) -> float | None:
        """Return the expected calibration error Σ (n_m/n)·|accuracy_m − confidence_m|; None without images.

        C. Guo et al., "On calibration of modern neural networks" (ICML 2017), equation 3.
        """
        total = int(self.count.sum())
        return float(np.abs(self.hits - self.confidence).sum()) / total if total else None


def _z(probability: float) -> float:
    from statistics import NormalDist  # 10 ms of imports that a session which checks nothing should not pay

    return NormalDist().inv_cdf(probability)
