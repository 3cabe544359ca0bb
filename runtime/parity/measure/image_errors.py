"""What INT8 costs image by image: the one criterion of the search, its limits, the gate and the benchmarks.

Errors that are pooled over all logits weigh an image by its energy. Where a handful of images has logits far beyond
everyone else's, they own the pooled figure: ranges that keep them whole look best, and every other image pays for it.
Here each image weighs the same, and what is kept is what most of them stay within. The few beyond are not lost
sight of: they are counted (`far`) and the ten worst are named. `docs/int8.md` says what this was derived from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.manifest import Struct

FAR = 0.5
"""The error from which on an image's logits have little to do with the reference's."""

EVEN = 0.25
"""The spread below which a handful of images owns the energy: its variance is above three times its squared mean."""

BEYOND = 4.0
"""How many times the median an image's error counts at most. Those of healthy networks stay within."""

USUAL = 4.0
"""How many times the median energy an image may have where a handful owns the energy: logits twice as large."""

WORST = 10
"""Images that are named."""

_INFINITE = 0x7F80  # its bin
_BITS = 16  # of a float32 that a bin leaves away: sign, exponent and 7 bits of the mantissa remain


class ImageErrors(Struct, frozen=True):
    """What single images lose.

    An image's error is ‖a−b‖/‖b‖ over its own logits, 0 where they are equal, infinite where it has none; its
    divergence is KL(softmax b ‖ softmax a) in nats. Half of the images stay within `median_error`, 90 % within
    `p90_error` and `p90_divergence`: known to 0.4 %, None where infinite. `typical_error` is the root mean square,
    errors beyond `BEYOND` times the median being counted at that (bounded influence; Huber 1964): on few images as
    steady as a mean, and moved no more than so far by a handful that is lost. `far` counts the images with an error
    above `FAR`, those that are not finite included.

    `spread` is (Σe)² / (N·Σe²) over the energies e = ‖b‖² of the reference's N images: 1 when all have the same, 1/N
    when one has it all; None when there is none.
    """

    typical_error: float | None
    median_error: float | None
    p90_error: float | None
    p90_divergence: float | None
    far: int
    spread: float | None

    @property
    def even(self) -> bool:
        """Whether errors pooled over all logits mean anything: no handful of images owns the energy."""
        return self.spread is None or self.spread >= EVEN

    @property
    def noise(self) -> float:
        """The figure that graphs are compared by: the square of the typical error, infinite where that is."""
        return math.inf if self.typical_error is None else self.typical_error**2


def spread(total: float, squares: float, images: int) -> float | None:
    """Return (Σe)² / (N·Σe²) from the sum of the energies, that of their squares, and the number of images."""
    return total / images * (total / squares) if squares > 0 else None


def usual(reference: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which images have logits [N, C] of the usual size, bool [N]: all, unless a handful owns the energy."""
    energies = np.square(reference.astype(np.float64)).sum(axis=1)
    found = spread(float(energies.sum()), float(np.square(energies).sum()), len(energies))
    if found is None or found >= EVEN:
        return np.ones(len(energies), bool)
    return np.asarray(energies <= USUAL * np.median(energies))


@dataclass(frozen=True)
class Sketch:
    """How often each size of a non-negative figure occurs, by bins of 0.8 %; add disjoint sets of images with `+`.

    `bins` int64, ascending, are the upper 16 bits of the float32; `counts` int64 of the same length.
    """

    bins: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Sketch:
        """Count float64 values ≥ 0, infinity included; NaN counts as infinite."""
        with np.errstate(over="ignore", under="ignore"):
            single = np.where(np.isnan(values), np.inf, values).astype(np.float32)
        bins, counts = np.unique(single.view(np.uint32) >> _BITS, return_counts=True)
        return cls(bins.astype(np.int64), counts.astype(np.int64))

    def __add__(self, other: Sketch) -> Sketch:
        bins, place = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, place, np.concatenate([self.counts, other.counts]))
        return Sketch(bins, counts)

    def within(self, share: float) -> float | None:
        """Return the least size that this share of the values stays within, None where that is infinite."""
        total = int(self.counts.sum())
        size = float(self._sizes()[np.searchsorted(np.cumsum(self.counts), math.ceil(share * total - 1e-9))])
        return size if math.isfinite(size) else None

    def typical(self) -> float | None:
        """Return the root mean square, sizes beyond `BEYOND` medians counted at that (where it is 0, beyond 1 at 1).

        None where the median is infinite.
        """
        median = self.within(0.5)
        if median is None:
            return None
        sizes = np.minimum(self._sizes(), BEYOND * median or 1.0)
        return math.sqrt(float((self.counts * np.square(sizes)).sum()) / int(self.counts.sum()))

    def _sizes(self) -> NDArray[np.float64]:
        """The middle of each bin; 0 and infinity have bins of their own."""
        middle = np.where((self.bins == 0) | (self.bins == _INFINITE), 0, (1 << _BITS) // 2)
        return ((self.bins << _BITS) + middle).astype(np.uint32).view(np.float32).astype(np.float64)


def image_errors(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ‖a−b‖/‖b‖ of each image's logits, float64 [N], for a `reference` b that is finite, both [N, C]."""
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        distance = np.sqrt(np.square(candidate - reference).sum(axis=1))
        size = np.sqrt(np.square(reference).sum(axis=1))
        errors = np.where(distance == 0, 0.0, distance / size)
    return np.where(np.isfinite(errors), errors, np.inf)
