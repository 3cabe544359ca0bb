"""Proportions and differences with their confidence intervals, one below the other on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from resnet_export.exporter.report.charts.svg import (
    WIDTH,
    Role,
    blank,
    color,
    fitted,
    picture,
    to_svg,
    write,
)
from resnet_export.runtime.precision import Precision

_ROW, _AXIS, _EDGE, _FIGURES = 36, 22, 8, 70


@dataclass(frozen=True)
class Row:
    """One run: where its dot and its interval lie, its limit if it has one, and how both read in words."""

    title: str
    figures: str
    value: float
    low: float
    high: float
    limit: float | None
    precision: Precision
    passed: bool


def intervals(
    rows: Sequence[Row], name: str, description: str, *, unit: str, mark: float | None = None
) -> Markup:
    """Draw each row: its words, and below them its interval as a line with a dot, and its limit as a tick.

    `mark` is a vertical line through all rows, such as the reference's accuracy; `unit` follows the axis labels.
    """
    ends = [end for row in rows for end in (row.low, row.high, row.value, row.limit) if end is not None]
    low, high = min(ends), max(ends)
    if mark is not None:
        low, high = min(low, mark), max(high, mark)
    if unit == "%":
        low, high = (math.floor(low) if low < 100 else 99.0), math.ceil(high)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return _EDGE + (value - low) / span * (WIDTH - 2 * _EDGE)

    bottom = len(rows) * _ROW
    figure = picture(bottom + _AXIS)
    axes = blank(figure)
    for i, row in enumerate(rows):
        y = i * _ROW
        role = color(row.precision) if row.passed else color("bad")
        words: Role = "ink" if row.passed else "bad"
        cross = "" if row.passed else "✕ "
        write(axes, 0, y + 10, cross + fitted(row.title, WIDTH - _FIGURES), words)
        write(axes, WIDTH, y + 10, row.figures, words, ha="right", weight="bold")
        track = y + 25
        axes.plot([_EDGE, WIDTH - _EDGE], [track] * 2, color=color("line"), linewidth=1)
        if mark is not None:
            axes.plot(
                [place(mark)] * 2, [track - 8, track + 8], color=color("muted"), linewidth=1.5, dashes=(2, 2)
            )
        axes.plot([place(row.low), place(row.high)], [track] * 2, color=role, linewidth=4, alpha=0.5)
        axes.plot([place(row.value)], [track], marker="o", markersize=8, color=role, linestyle="none")
        if row.limit is not None:
            axes.plot([place(row.limit)] * 2, [track - 7, track + 7], color=color("ink"), linewidth=1.5)
    for value, align in ((low, "left"), (high, "right")):
        x = 0 if align == "left" else WIDTH
        write(axes, x, bottom + 12, f"{value:.3g} {unit}".replace("-", "−"), "muted", ha=align)
    if mark is not None and 0.25 * WIDTH < place(mark) < 0.75 * WIDTH:
        write(axes, place(mark), bottom + 12, f"{mark:.4g} {unit}", "muted", ha="center")
    return to_svg(figure, name, description)
