"""The clip whose quantized distribution has the least Kullback-Leibler divergence from the original.

Migacz, "8-bit Inference with TensorRT", GTC 2017: magnitudes in 2048 even bins; for every candidate clip, what
lies beyond is moved into the last bin that is kept (P), and the bins are merged into the grid's levels and
spread again over those that were occupied (Q). The spike of exact zeros is left out: no grid can miss it, and
beside it every candidate looks alike (NVIDIA's pytorch-quantization lets the first bin take the second's count).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.observe.histogram import Counts, bin_edges

BINS = 2048

Floats = NDArray[np.float64]


def least_divergence(counts: Counts, peak: float, levels: int) -> float:
    """Return the clip in (0, `peak`] to keep of a magnitude histogram (bins of `bin_edges`) on `levels` levels.

    `peak` is the greatest magnitude seen; 0 when that is 0.

    An outlier can stretch the even bins until all that matters lies in the first few, where no candidate looks
    worse than another. So the bins are laid over half the range as long as the lowest level would swallow half
    of the values (unless those are all alike, and no range parts them), and again over the range of the
    narrowest candidate where that is the best.
    """
    if not counts[1:].any():
        return peak
    bins, beyond = even_bins(counts, peak)
    if not bins.any():
        return peak
    half = counts[1:].sum() / 2
    if bins[: BINS // levels].sum() > half > counts[1:].max():
        return least_divergence(counts, peak / 2, levels)
    divergence = divergences(bins, beyond, levels)
    best = int(np.argmin(divergence))
    clip = peak * (levels + best) / BINS
    return least_divergence(counts, clip, levels) if best == 0 else clip


def even_bins(counts: Counts, peak: float) -> tuple[Floats, float]:
    """Cut 2048 even bins over [0, `peak`] from a magnitude histogram, and count what lies beyond.

    Values within a bin of the histogram are taken as spread evenly. Its bin of exact zeros is left out.
    """
    inside = counts.astype(np.float64)
    inside[0] = 0
    edges = bin_edges()
    top = int(np.searchsorted(edges, peak, side="right")) - 1
    if not counts[top + 1 :].any():
        # The peak is the greatest value: spread its bin up to there and no further.
        edges[top], edges[top + 1] = min(edges[top], np.nextafter(peak, 0)), peak
    cumulative = np.concatenate(([0.0], np.cumsum(inside)))
    bins = np.diff(np.interp(np.linspace(0, peak, BINS + 1), edges, cumulative))
    return bins, max(cumulative[-1] - float(np.interp(peak, edges, cumulative)), 0.0)


def divergences(bins: Floats, beyond: float, levels: int) -> Floats:
    """Return KL(P‖Q) in nats for the candidates that keep `levels`, `levels` + 1, …, all of `bins`.

    All candidates at once: with prefix sums C of the counts and Z of the occupied bins, a level that covers the
    bins [a, b) spreads C[b] - C[a] over Z[b] - Z[a] bins, so that the divergence is a sum over levels.
    Infinite where P has something in a bin where Q has nothing.
    """
    kept = np.arange(levels, len(bins) + 1)  # [candidates]
    mass, occupied = _prefix(bins), _prefix(bins > 0)
    starts = -(-kept[:, None] * np.arange(levels + 1) // levels)  # [candidates, levels + 1], rounded up
    level_mass = np.diff(mass[starts], axis=1)
    # What Q has in each occupied bin of a level, before it is normalized.
    log_height = _log(level_mass / np.maximum(np.diff(occupied[starts], axis=1), 1))
    outside = beyond + mass[-1] - mass[kept]
    last = bins[kept - 1]
    p_log_p = _prefix(bins * _log(bins))[kept] - last * _log(last) + (last + outside) * _log(last + outside)
    p_log_q = (level_mass * log_height).sum(axis=1) + outside * log_height[:, -1]
    total = beyond + mass[-1]
    impossible = (mass[kept] == 0) | ((last == 0) & (outside > 0))
    return np.where(impossible, np.inf, (p_log_p - p_log_q) / total - np.log(total) + _log(mass[kept]))


def _prefix(values: NDArray[np.float64] | NDArray[np.bool_]) -> Floats:
    return np.concatenate(([0.0], np.cumsum(values)))


def _log(values: Floats) -> Floats:
    """The natural logarithm, and 0 where x log x is meant to vanish."""
    return np.log(values, where=values > 0, out=np.zeros_like(values))
