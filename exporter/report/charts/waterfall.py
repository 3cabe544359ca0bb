"""The error of a run, attributed to stages: one bar a stage, each beginning where the one before it ended."""

from __future__ import annotations

import math

from markupsafe import Markup

from resnet_export.exporter.report.charts.section import Chart, Shown
from resnet_export.exporter.report.charts.svg import (
    WIDTH,
    Role,
    blank,
    color,
    fitted,
    picture,
    scientific,
    to_svg,
    write,
)
from resnet_export.exporter.report.report_data import Material
from resnet_export.runtime.parity.attribution.stages import Attribution, StepError
from resnet_export.runtime.parity.report.schema import ParityReport

_ROW, _TOP = 26, 4
_NAME, _FIGURES = 78, 124  # left of the bars, and right of them


def stage_charts(report: ParityReport, _: Material) -> Shown:
    """Show a waterfall for each run that was attributed; those with a stage outside its limits first."""
    found = [
        Chart(
            title=entry.title,
            svg=waterfall(entry.attribution, f"stages{i}"),
            note=f"{entry.attribution.finding[:1].upper()}{entry.attribution.finding[1:]}",
            bad=entry.attribution.diverges is not None,
        )
        for i, entry in enumerate(report.entries)
        if entry.attribution is not None
    ]
    if not found:
        return Shown(
            missing="No run got through the golden images, so there is no error to take apart; the reasons stand above."
        )
    return Shown(
        lede=(
            "From the eager network’s logits to the backend’s, step by step, on the golden images. Each bar is the "
            "part of the total error that its step adds, and begins where the one before it ended; a step that takes "
            "error back runs to the left. Beside it: its share, and its relative error by itself."
        ),
        charts=tuple(sorted(found, key=lambda chart: not chart.bad)),
    )


def waterfall(found: Attribution, name: str) -> Markup:
    """Draw the shares of the stages, which add up to the whole error.

    A stage outside its own limits is marked. A run without any error has no shares and no bars.
    """
    rows = len(found.stages) + 1
    figure = picture(_TOP + rows * _ROW)
    axes = blank(figure)
    shares = [stage.share or 0.0 for stage in found.stages]
    reached = [math.fsum(shares[:count]) for count in range(len(shares) + 1)]
    low, high = min(0.0, *reached), max(1.0, *reached)
    scale = (WIDTH - _NAME - _FIGURES - 8) / (high - low)

    def place(share: float) -> float:
        return _NAME + (share - low) * scale

    axes.plot([place(0)] * 2, [_TOP, _TOP + rows * _ROW - 2], color=color("line"), linewidth=1)
    for i, stage in enumerate(found.stages):
        y = _TOP + (i + 0.5) * _ROW
        role: Role = "ink" if stage.passed else "bad"
        write(axes, _NAME - 8, y, fitted(stage.stage, _NAME - 8), role, ha="right")
        start, end = place(reached[i]), place(reached[i + 1])
        if stage.separate:
            axes.barh(
                y,
                max(abs(end - start), 1.5),
                left=min(start, end),
                height=0.6 * _ROW,
                color=color(stage.precision) if stage.passed else color("bad"),
            )
        axes.plot([end, end], [y, y + _ROW], color=color("muted"), linewidth=0.7)
        write(axes, WIDTH, y, _figures(stage), role, ha="right")
    y = _TOP + (rows - 0.5) * _ROW
    write(axes, _NAME - 8, y, "total", ha="right", weight="bold")
    total = found.total or 0.0
    if total:
        axes.barh(y, place(1) - place(0), left=place(0), height=0.6 * _ROW, color=color("ink"))
    write(axes, WIDTH, y, scientific(total), ha="right", weight="bold")
    return to_svg(figure, name, found.sentence)


def _figures(stage: StepError) -> str:
    mark = "" if stage.passed else "✕ "
    if stage.non_finite:
        return f"{mark}{stage.non_finite} not finite"
    if not stage.separate:
        return f"{mark}0" if stage.separate == 0 else f"{mark}–"
    share = "" if stage.share is None else f"{percent(stage.share)} · "
    return f"{mark}{share}{scientific(stage.separate)}"


def percent(share: float) -> str:
    """Return a share as a percentage in few digits, in as much as the eye can tell."""
    points = 100 * share
    if abs(points) < 0.05:
        return "≈0 %"
    return f"{points:.0f} %".replace("-", "−") if abs(points) >= 9.5 else f"{points:.1f} %".replace("-", "−")
