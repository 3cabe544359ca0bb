"""The clip that makes the mean squared error of quantizing a tensor least.

Banner et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment", 2019, section
3.1, and Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference", 2019, section 4.1.
Both weigh rounding noise against clipping; here the density is not fitted but taken from the histogram, and the
error of each candidate is integrated in closed form, with values spread evenly within a bin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.observe.histogram import Counts, bin_edges

Floats = NDArray[np.float64]

_COARSE = 2.0 ** np.arange(-12, 0.125, 0.25)  # shares of the peak: an outlier may be 4096 times the clip
_FINE = 2.0 ** np.linspace(-0.25, 0.25, 25)
_NEGLIGIBLE = 2.0**-20  # of the peak: values below it add nothing to any candidate's error


@dataclass(frozen=True)
class Side:
    """The magnitudes on one side of zero: a density over ascending `edges`, held as its change at each edge."""

    edges: Floats
    change: Floats
    peak: float

    @classmethod
    def of(cls, counts: Counts, peak: float) -> Side:
        """Take the side's histogram (bins of `bin_edges`); `peak` is the greatest magnitude seen."""
        edges = bin_edges()
        first, last = np.searchsorted(edges, [peak * _NEGLIGIBLE, peak], side="right")
        edges = np.append(edges[first:last], peak) if peak > 0 else np.zeros(2)
        widths = np.diff(edges)
        # A peak on the lower edge of its bin leaves the bin no width to spread over.
        widths[widths == 0] = max(peak, 1.0) * _NEGLIGIBLE
        edges = np.concatenate((edges[:1], edges[0] + np.cumsum(widths)))
        density = counts[first : first + len(widths)] / widths if peak > 0 else np.zeros(1)
        return cls(edges, -np.diff(density, prepend=0.0, append=0.0), peak)

    def error(self, step: Floats, levels: Floats) -> Floats:
        """Return the summed squared error for each candidate: `step` [n] apart, `levels` [n] steps to the clip.

        ∫(t - Q(t))² from 0 to x is k·step³/12 + (x - k·step)³/3, where k is x's level; beyond the clip k stays
        at the last level and the same expression holds. Summing by parts needs it at the edges alone.
        """
        level = np.minimum(np.rint(self.edges / step[:, None]), levels[:, None])
        remainder = self.edges - level * step[:, None]
        return (level * (step**3 / 12)[:, None] + remainder * remainder * remainder / 3) @ self.change


def least_error(peak: float, error: Callable[[Floats], Floats]) -> float:
    """Return the clip in (0, `peak`] with the least `error` (candidates [n] → errors [n]), to 1.5 %; 0 for 0."""
    if peak == 0:
        return 0.0
    clips = peak * _COARSE
    clips = np.minimum(clips[np.argmin(error(clips))] * _FINE, peak)
    return float(clips[np.argmin(error(clips))])


def symmetric_clip(side: Side, levels: int) -> float:
    """Return the best clip for `levels` steps from zero to the clip."""
    return least_error(side.peak, lambda clip: side.error(clip / levels, np.full_like(clip, levels)))


def affine_clips(below: Side, above: Side, levels: int) -> tuple[float, float]:
    """Return the best clips (low, high), as magnitudes, for `levels` steps in all between them.

    Both ends share one step, and zero lies on a level. Starting from the whole range, the ends are searched in
    turn, twice: a third round changed nothing that the search could resolve.
    """

    def error(low: Floats, high: Floats) -> Floats:
        step = (low + high) / levels
        levels_below = np.round(low / step)
        return below.error(step, levels_below) + above.error(step, levels - levels_below)

    low, high = below.peak, above.peak
    for _ in range(2):
        kept_high = high
        low = least_error(below.peak, lambda clips: error(clips, np.full_like(clips, kept_high)))  # noqa: B023
        kept_low = low
        high = least_error(above.peak, lambda clips: error(np.full_like(clips, kept_low), clips))  # noqa: B023
    return low, high
