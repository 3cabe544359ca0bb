"""Ranges of activations: all tensors in one picture, and the histogram of a single one with its clips."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from resnet_export.calibration.observe.histogram import TensorStats
from resnet_export.exporter.report.charts.clipping import (
    Clipping,
    affine_differs,
    clippings,
    histogram,
    worst,
)
from resnet_export.exporter.report.charts.section import Chart, Shown
from resnet_export.exporter.report.charts.svg import WIDTH, Role, blank, color, framed, picture, to_svg, write
from resnet_export.exporter.report.report_data import Material
from resnet_export.runtime.parity.report.schema import ParityReport
from resnet_export.runtime.precision import Precision

_BINS = 64
_LEAST = 1e-9
_HISTOGRAMS = 6  # of the tensors that 8 bits fit worst


def range_charts(_: ParityReport, material: Material) -> Shown:
    """Show all ranges in one picture, and the histograms of the tensors that 8 bits fit worst."""
    table = material.table
    if table is None:
        return Shown(
            missing=Markup(
                "There are no ranges to show, because no calibration table came with the report: an export with "
                "<code>--int8 --calib DIR</code> writes <code>calibration.json</code> into the bundle."
            )
        )
    found = clippings(table, material.choice)
    method = table.method if material.choice is None else material.choice.method
    unknown = " How INT8 was planned is not recorded: these are the table’s own ranges."
    histograms = [
        Chart(
            one.tensor, clip_histogram(one, table.tensors[one.tensor].stats(), f"range{i}"), _clip_note(one)
        )
        for i, one in enumerate(worst(found, _HISTOGRAMS))
    ]
    return Shown(
        lede=(
            "What calibration saw of the activations, and where they are clipped. The histograms are of the "
            f"{len(histograms)} tensors that 8 bits fit worst; counts are on a logarithmic scale, the line is the "
            "clip, and what is beyond it is gray."
        ),
        charts=(
            Chart(
                f"All {len(found)} tensors, clip by {method}",
                overview(found, "ranges"),
                f"Measured on {table.images} images. Where the clip runs below the greatest value, it cuts outliers "
                f"off in favor of finer steps for the rest.{unknown if material.choice is None else ''}",
            ),
            *histograms,
        ),
    )


def _clip_note(one: Clipping) -> str:
    ratio = "" if one.snr_db is None else f", SNR of this tensor alone {one.snr_db:.1f} dB"
    ends = f"{one.range.low:.4g} to {one.range.high:.4g}".replace("-", "−")
    affine = f"; affine grid {ends}, dashed" if affine_differs(one.range) else ""
    share = "none" if one.beyond <= 0 else f"{100 * one.beyond:.2g} %"
    clip = f"±{one.range.amax:.4g}"
    return f"Clip {clip}{affine}; {share} of the values lie beyond {clip}{ratio}."


def overview(found: Sequence[Clipping], name: str) -> Markup:
    """Draw the clip of each tensor between the greatest and the usual magnitudes, on a logarithmic scale."""
    figure = picture(240)
    axes = framed(figure, 44, 36, 62, 42)
    order = list(range(1, len(found) + 1))
    lines: list[tuple[str, list[float], Role, float]] = [
        ("greatest", [one.peak for one in found], "muted", 1.2),
        ("clip", [one.range.amax for one in found], Precision.INT8, 2.4),
        ("99 %", [one.quantiles[1] for one in found], "muted", 1.2),
        ("median", [one.quantiles[0] for one in found], "muted", 1.2),
    ]
    axes.set_yscale("log")
    ends: list[tuple[float, str, Role]] = []
    for title, values, role, width in lines:
        shown = [value if value > _LEAST else np.nan for value in values]
        axes.plot(order, shown, color=color(role), linewidth=width)
        known = [value for value in shown if value == value]
        if known:
            ends.append((known[-1], title, role))
    axes.set_xlim(0.5, len(found) + 0.5)
    low, high = axes.get_ylim()
    exponents = range(int(np.ceil(np.log10(low))), int(np.floor(np.log10(high))) + 1)
    step = max(1, (len(exponents) + 4) // 5)
    axes.yaxis.set_major_locator(FixedLocator([10.0**exponent for exponent in exponents][::step]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("tensor, in the order of the graph", color=color("muted"), labelpad=4)
    write(axes, -44 / (WIDTH - 106), 1.14, "magnitude of the values", "muted", transform=axes.transAxes)
    for y, (_, title, role) in zip(_apart(axes.transData, ends), sorted(ends), strict=True):
        bold = "bold" if title == "clip" else "normal"
        write(axes, WIDTH - 58, y, title, role, transform=None, weight=bold)
    return to_svg(
        figure, name, "Clip, greatest magnitude, 99th percentile and median of every calibrated tensor."
    )


def _apart(transform: object, ends: Sequence[tuple[float, str, Role]]) -> list[float]:
    """Return heights in units for labels at these values, in ascending order and at least a line apart."""
    heights: list[float] = []
    for value, _, _ in sorted(ends):
        wished = float(transform.transform((1, value))[1])  # type: ignore[attr-defined]
        heights.append(max(wished, heights[-1] + 14) if heights else wished)
    return heights


def clip_histogram(one: Clipping, stats: TensorStats, name: str) -> Markup:
    """Draw how often values occur, on a logarithmic scale; what lies beyond the clip is marked.

    The solid line is the symmetric grid's clip, the dashed ones are the affine grid's ends where they are elsewhere.
    """
    height, top, bottom = 130, 8, 24
    figure = picture(height)
    axes = blank(figure)
    low, high = min(one.low, 0.0), max(one.high, 0.0)
    if low == high:
        high = low + 1.0
    counts = histogram(stats, low, high, _BINS)
    most = float(np.log10(counts.max() + 1)) or 1.0
    tall = np.log10(counts + 1) / most * (height - top - bottom)
    scale = (WIDTH - 2) / (high - low)

    def place(value: float) -> float:
        return 1 + (value - low) * scale

    base = height - bottom
    edges = np.linspace(1, WIDTH - 1, _BINS + 1)
    middles = low + (np.arange(_BINS) + 0.5) * (high - low) / _BINS
    kept = np.abs(middles) <= one.range.amax
    for chosen, role in ((kept, color(Precision.INT8)), (~kept, color("muted"))):
        axes.stairs(
            base - np.where(chosen, tall, 0), edges, baseline=base, fill=True, color=role, linewidth=0
        )
    axes.plot([0, WIDTH], [base, base], color=color("line"), linewidth=1)
    for clip in (-one.range.amax, one.range.amax):
        if low <= clip <= high:
            axes.plot([place(clip)] * 2, [top - 6, base], color=color("ink"), linewidth=1.5)
    for end in (one.range.low, one.range.high):
        if end:
            axes.plot([place(end)] * 2, [top - 6, base], color=color("muted"), linewidth=1.2, dashes=(3, 2))
    for value, align in ((low, "left"), (high, "right")):
        write(
            axes,
            0 if align == "left" else WIDTH,
            base + 13,
            f"{value:.3g}".replace("-", "−"),
            "muted",
            ha=align,
        )
    if low < 0 < high and 0.15 < place(0) / WIDTH < 0.85:
        write(axes, place(0), base + 13, "0", "muted", ha="center")
    return to_svg(figure, name, f"Histogram of {one.tensor}; clip at {one.range.amax:.4g}.")
