"""What one streaming pass remembers of a tensor: a histogram that needs no range beforehand.

A float32's upper 16 bits are its sign, its exponent and the first 7 bits of its mantissa. Counting those gives
65,536 fixed bins, 128 to the octave on either side of zero, whatever the tensor's range. Fixed bins add up: the
result depends neither on the order of the images nor on how they were cut into batches, two halves of a data
set merge into the whole, and memory does not grow with the number of images. Infinities and NaN have bins of
their own, so a bad activation cannot hide.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

BINS = 1 << 16
NEGATIVE = 1 << 15  # bin of -0.0; the bins above hold negative values
FINITE = 0x7F80  # finite magnitudes of one sign: the bins above have all exponent bits set (infinity, NaN)
_UPPER_HALF = 1 if sys.byteorder == "little" else 0


@dataclass(frozen=True, eq=False)
class TensorStats:
    """The values of one tensor over all images seen.

    `counts` is int64 [65536], indexed by the upper 16 bits of the value; `low` and `high` are the exact least
    and greatest value. Where nothing was seen, low is +inf and high -inf; where a NaN was seen, both are NaN.
    `lows` and `highs` count, by bin, the least and the greatest value of every image that was counted as one.
    """

    counts: Counts
    low: float
    high: float
    lows: Counter[int] = field(default_factory=Counter)
    highs: Counter[int] = field(default_factory=Counter)

    @property
    def count(self) -> int:
        """How many values were seen."""
        return int(self.counts.sum())

    @property
    def nonfinite(self) -> int:
        """How many of them were infinite or NaN."""
        return int(self.counts[FINITE:NEGATIVE].sum() + self.counts[NEGATIVE + FINITE :].sum())

    def merge(self, other: TensorStats) -> TensorStats:
        """Return the statistics of both sets of values together. Commutative and associative, exactly."""
        return TensorStats(
            self.counts + other.counts,
            # np.minimum hands NaN on, min() would hand on whichever operand comes first.
            float(np.minimum(self.low, other.low)),
            float(np.maximum(self.high, other.high)),
            self.lows + other.lows,
            self.highs + other.highs,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorStats):
            return NotImplemented
        same = np.array_equal([self.low, self.high], [other.low, other.high], equal_nan=True)
        counted = (self.lows, self.highs) == (other.lows, other.highs)
        return same and counted and np.array_equal(self.counts, other.counts)

    __hash__ = None  # type: ignore[assignment]  # arrays inside: equal by value, never a key


class Observer:
    """Counts one tensor, image after image, into half a megabyte that is allocated once.

    `np.bincount` over a strided view of the upper halves took 1.3 ns per value (1.9 ns where half of the values
    are the zeros of a ReLU) and releases the interpreter lock; shifting the bits first, or leaving the zeros
    out beforehand, took as long or longer.
    """

    def __init__(self) -> None:
        self._counts: Counts = np.zeros(BINS, np.int64)
        self._low, self._high = np.float32(np.inf), np.float32(-np.inf)
        self._lows: Counter[int] = Counter()
        self._highs: Counter[int] = Counter()

    def update(self, values: NDArray[np.float32], *, image: bool = False) -> None:
        """Count `values` in: any shape, float32, because the bins are defined on its bits (else TypeError).

        `image` says that they are all that the tensor holds for one image, whose extremes are counted as well.
        """
        if values.dtype != np.float32:
            raise TypeError(f"values are {values.dtype}, and the histogram is defined on float32")
        if values.size == 0:
            return
        flat = np.ascontiguousarray(values).reshape(-1)
        # bincount stops at the greatest index, which a ReLU's output keeps below the sign bit: less to add.
        seen = np.bincount(flat.view(np.uint16)[_UPPER_HALF::2])
        self._counts[: len(seen)] += seen
        low, high = flat.min(), flat.max()
        self._low = np.minimum(self._low, low)
        self._high = np.maximum(self._high, high)
        if image:
            self._lows[_bin_of(low)] += 1
            self._highs[_bin_of(high)] += 1

    def stats(self) -> TensorStats:
        """Return what was seen so far, as a value that later updates do not change."""
        return TensorStats(
            self._counts.copy(), float(self._low), float(self._high), self._lows.copy(), self._highs.copy()
        )


def observe(values: NDArray[np.float32]) -> TensorStats:
    """Return the statistics of one array (float32, any shape)."""
    observer = Observer()
    observer.update(values)
    return observer.stats()


def bin_values(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the middle of each bin, float64, negative for the bins of negative values; 0 for those of zeros.

    It is within 0.4 % of every value in the bin.
    """
    edges = bin_edges()
    magnitudes = bins % NEGATIVE
    middles = np.where(
        magnitudes > 0, (edges[magnitudes] + edges[np.minimum(magnitudes + 1, FINITE)]) / 2, 0.0
    )
    return np.where(bins >= NEGATIVE, -middles, middles)


def _bin_of(value: np.float32) -> int:
    found = int(np.float32(value).view(np.uint32)) >> 16
    return 0 if found == NEGATIVE else found  # negative zero is zero


def bin_edges() -> NDArray[np.float64]:
    """Return the edges of the finite magnitude bins, float64 [32641]: bin i holds [edges[i], edges[i + 1]).

    Bin 0 holds zero, and denormals below 2**-133 with it.
    """
    bits = np.arange(FINITE + 1, dtype=np.uint32) << np.uint32(16)
    edges = bits.view(np.float32).astype(np.float64)
    edges[-1] = 2.0**128
    return edges


def by_sign(stats: TensorStats) -> tuple[Counts, Counts]:
    """Return the counts of non-negative and of negative finite values by magnitude bin, each int64 [32640].

    Negative zero counts as zero, not as negative.
    """
    positive = stats.counts[:FINITE].copy()
    negative = stats.counts[NEGATIVE : NEGATIVE + FINITE].copy()
    positive[0] += negative[0]
    negative[0] = 0
    return positive, negative
