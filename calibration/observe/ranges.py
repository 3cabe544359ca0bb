"""From a tensor's histogram to the range that quantization keeps: min-max, percentile, entropy, MSE, and the mean
and a quantile over images of their extremes.

A range is found for two grids, because the best place to clip depends on how many levels share it: the
symmetric one (int8, 127 steps on either side of zero) and the affine one (uint8, 255 steps from `low` to
`high`, all of them above zero after a ReLU). Which grid an artifact uses is its emitter's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.observe.entropy import least_divergence
from resnet_export.calibration.observe.histogram import Counts, TensorStats, bin_edges, bin_values, by_sign
from resnet_export.calibration.observe.methods import Method
from resnet_export.calibration.observe.mse import Side, affine_clips, symmetric_clip
from resnet_export.runtime.errors import RequestError

SYMMETRIC_STEPS = 127
AFFINE_STEPS = 255
PERCENTILE = 99.999
IMAGE_QUANTILE = 0.9


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a tensor is clipped: to ±`amax` on the symmetric grid, to [`low`, `high`] on the affine one.

    `low` ≤ 0 ≤ `high` always: padding and ReLU write zeros, so zero is on every grid. All three are 0 for a
    tensor that was 0 throughout.
    """

    amax: float
    low: float
    high: float


def find_range(stats: TensorStats, method: Method) -> Range:
    """Return the range that `method` keeps of a tensor.

    Raises RequestError when no value was seen, or one that is infinite or NaN.
    """
    if stats.count == 0:
        raise RequestError("no value was seen; calibrate with at least one image")
    if bad := stats.nonfinite:
        raise RequestError(
            f"{bad} of {stats.count} values are infinite or NaN, and a range must be finite; "
            "check the weights and the images"
        )
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    found = FIND_RANGE[method](stats)
    # Searches work on bins; none may reach beyond what was seen.
    return Range(
        amax=_shortest(min(found.amax, max(-low, high))),
        low=_shortest(max(found.low, low)),
        high=_shortest(min(found.high, high)),
    )


def minmax(stats: TensorStats) -> Range:
    """Keep everything, from the exact least to the exact greatest value.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", 2018, section 3.
    """
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    return Range(amax=max(-low, high), low=low, high=high)


def percentile(stats: TensorStats, percent: float = PERCENTILE) -> Range:
    """Clip what lies beyond a percentile: of |x| for `amax`, of x at either end for `low` and `high`.

    Wu et al., "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", 2020,
    section 4.2. Values within a bin are taken as spread evenly, so a range is off by less than 0.8 %.
    """
    positive, negative = by_sign(stats)
    beyond = (1 - percent / 100) * stats.count
    return Range(
        amax=_quantile(positive + negative, beyond),
        low=-_quantile(negative, beyond),
        high=_quantile(positive, beyond),
    )


def _quantile(counts: Counts, beyond: float) -> float:
    """The magnitude above which `beyond` of the counted values lie; 0 when there are not so many."""
    cumulative = np.concatenate(([0], np.cumsum(counts)))
    if cumulative[-1] <= beyond + counts[0]:
        return 0.0
    return float(np.interp(cumulative[-1] - beyond, cumulative, bin_edges()))


def entropy(stats: TensorStats) -> Range:
    """Keep the range with the least Kullback-Leibler divergence (Migacz 2017; see `calibration.entropy`).

    The method is defined on magnitudes. A tensor with values on both sides of zero keeps the same clip on the
    affine grid, on each side no more than was seen there.
    """
    positive, negative = by_sign(stats)
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    magnitudes = positive + negative
    amax = least_divergence(magnitudes, max(-low, high), SYMMETRIC_STEPS + 1)
    if low == 0:
        return Range(amax=amax, low=0.0, high=least_divergence(positive, high, AFFINE_STEPS + 1))
    return Range(amax=amax, low=max(low, -amax), high=min(high, amax))


def mse(stats: TensorStats) -> Range:
    """Keep the range with the least mean squared error (Banner et al. 2019; see `calibration.mse`)."""
    positive, negative = by_sign(stats)
    low, high = min(stats.low, 0.0), max(stats.high, 0.0)
    amax = symmetric_clip(Side.of(positive + negative, max(-low, high)), SYMMETRIC_STEPS)
    above = Side.of(positive, high)
    if low == 0:
        return Range(amax=amax, low=0.0, high=symmetric_clip(above, AFFINE_STEPS))
    kept_low, kept_high = affine_clips(Side.of(negative, -low), above, AFFINE_STEPS)
    return Range(amax=amax, low=-kept_low, high=kept_high)


def mean(stats: TensorStats) -> Range:
    """Keep the mean over images of each image's least and greatest value, as NNCF's default statistics do.

    Statistics that were not counted by image are taken as one image's. A few images with extreme activations then
    widen the range of all the others little, and are clipped. Extremes are known by bin, so a range is off by less
    than 0.4 %.
    """
    return _over_images(stats, lambda sizes, counts: float(np.average(sizes, weights=counts)))


def quantile(stats: TensorStats) -> Range:
    """Keep the extremes that 90 % of the images stay within, on either side; otherwise as `mean`."""

    def within(sizes: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
        needed = np.ceil(IMAGE_QUANTILE * counts.sum())
        return float(sizes[np.searchsorted(np.cumsum(counts), needed)])

    return _over_images(stats, within)


def _over_images(
    stats: TensorStats, chosen: Callable[[NDArray[np.float64], NDArray[np.int64]], float]
) -> Range:
    """Apply `chosen` to the sizes of the images' extremes on either side of zero, in ascending order."""
    if not stats.highs:
        return minmax(stats)

    def side(extremes: Counter[int], sign: int) -> float:
        bins, counts = (np.array(one, np.int64) for one in zip(*extremes.items(), strict=True))
        sizes = np.maximum(sign * bin_values(bins), 0.0)
        # Of the values, not of the images: sums come out the same in any order.
        order = np.lexsort((bins, sizes))
        return chosen(sizes[order], counts[order])

    # The middle of a bin may lie beyond what was seen on its side, and `amax` is the greater of what both sides keep.
    low = max(-side(stats.lows, -1), min(stats.low, 0.0))
    high = min(side(stats.highs, 1), max(stats.high, 0.0))
    return Range(amax=max(-low, high), low=low, high=high)


FIND_RANGE: Mapping[Method, Callable[[TensorStats], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
    "mean": mean,
    "quantile": quantile,
}
"""The function of each method."""


def _shortest(value: float) -> float:
    """The shortest decimal that reads back as the same float32: for tables that people read and compare."""
    return float(str(np.float32(value))) + 0.0  # never -0.0
