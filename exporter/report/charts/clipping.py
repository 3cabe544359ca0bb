"""What a range does to a tensor: how much lies beyond the clip, and how near 8 bits come to the rest.

Figures of one tensor alone, from its histogram in the calibration table; nothing of the network is run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.observe.histogram import Counts, TensorStats, bin_edges, by_sign
from resnet_export.calibration.observe.methods import METHODS
from resnet_export.calibration.observe.mse import Side
from resnet_export.calibration.observe.ranges import SYMMETRIC_STEPS, Range
from resnet_export.runtime.parity.report.search_report import PlanSummary

if TYPE_CHECKING:
    from resnet_export.calibration.observe.table import CalibrationTable

QUANTILES = (0.5, 0.99)


@dataclass(frozen=True)
class Clipping:
    """One tensor and the range that was chosen for it.

    `beyond` is the share of values outside ±`amax`; `snr_db` what 127 steps on either side of zero leave, rounding and
    clipping together (None for a tensor without any error or signal); `quantiles` are those of |x| at `QUANTILES`.
    """

    tensor: str
    range: Range
    low: float
    high: float
    beyond: float
    snr_db: float | None
    quantiles: tuple[float, ...]

    @property
    def peak(self) -> float:
        """The greatest magnitude seen."""
        return max(abs(self.low), abs(self.high))


def clippings(table: CalibrationTable, choice: PlanSummary | None = None) -> tuple[Clipping, ...]:
    """Return the figures of every tensor, in graph order: its range is as chosen, or by the table's own method."""
    return tuple(
        _clipping(name, _chosen(name, table, choice), entry.stats()) for name, entry in table.tensors.items()
    )


def _chosen(tensor: str, table: CalibrationTable, choice: PlanSummary | None) -> Range:
    if choice is None:
        return table.range(tensor)
    named = choice.methods.get(tensor, choice.method)
    return table.range(tensor, next((method for method in METHODS if method == named), None))


def _clipping(tensor: str, chosen: Range, stats: TensorStats) -> Clipping:
    positive, negative = by_sign(stats)
    magnitudes = positive + negative
    edges = bin_edges()
    used = np.flatnonzero(magnitudes)
    last = int(used[-1]) + 1 if len(used) else 1
    counts, edges = magnitudes[:last], edges[: last + 1]
    cumulative = np.cumsum(counts)
    total = int(cumulative[-1])
    peak = max(abs(stats.low), abs(stats.high))
    inside = float(np.interp(chosen.amax, edges[1:], cumulative)) if chosen.amax < peak else total
    return Clipping(
        tensor=tensor,
        range=chosen,
        low=stats.low,
        high=stats.high,
        beyond=1 - inside / total if total else 0.0,
        snr_db=_snr_db(magnitudes, counts, edges, peak, chosen.amax),
        quantiles=tuple(float(np.interp(q * total, cumulative, edges[1:])) for q in QUANTILES),
    )


def _snr_db(
    magnitudes: Counts, counts: Counts, edges: NDArray[np.float64], peak: float, amax: float
) -> float | None:
    if not amax > 0:
        return None
    noise = float(
        Side.of(magnitudes, peak).error(
            np.array([amax / SYMMETRIC_STEPS]), np.array([float(SYMMETRIC_STEPS)])
        )[0]
    )
    middles = (edges[:-1] + np.minimum(edges[1:], peak)) / 2
    signal = float((counts * np.square(middles)).sum())  # not BLAS, whose threads cost more than this
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def worst(found: tuple[Clipping, ...], count: int) -> tuple[Clipping, ...]:
    """Return the `count` tensors that 8 bits fit worst, worst first."""
    judged = [one for one in found if one.snr_db is not None]
    return tuple(sorted(judged, key=lambda one: (one.snr_db or 0.0, one.tensor))[:count])


def histogram(stats: TensorStats, low: float, high: float, bins: int) -> NDArray[np.float64]:
    """Return the counts of the values in `bins` bins of equal width from `low` to `high`, float64 [bins].

    A bin of the table that spans several of these is spread over them evenly.
    """
    positive, negative = by_sign(stats)
    edges = bin_edges()
    # One ascending axis: negative magnitudes backwards, and then the positive ones.
    reach = max(abs(low), abs(high))
    last = int(np.searchsorted(edges, reach, side="left")) + 1
    axis = np.concatenate((-edges[last:0:-1], edges[: last + 1]))
    counts = np.concatenate((negative[:last][::-1], positive[:last]))
    cumulative = np.concatenate(([0], np.cumsum(counts)))
    wanted = np.linspace(low, high, bins + 1)
    at = np.interp(wanted, axis, cumulative)
    at[0], at[-1] = 0, cumulative[-1]
    return np.asarray(np.diff(at), np.float64)


def affine_differs(chosen: Range) -> bool:
    """Whether the affine grid clips at visibly other places than ±amax."""
    tolerance = 0.02 * chosen.amax
    below = abs(chosen.low) > tolerance and abs(-chosen.low - chosen.amax) > tolerance
    return below or abs(chosen.high - chosen.amax) > tolerance
