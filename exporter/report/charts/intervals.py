"""Proportions and differences with their confidence intervals, one below the other on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from resnet_export.exporter.report.charts.section import Chart, Row, Shown, Table
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
from resnet_export.exporter.report.report_data import Material
from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.report.schema import Check, Entry, ParityReport
from resnet_export.runtime.precision import Precision

_ROW, _AXIS, _EDGE, _FIGURES = 36, 22, 8, 70


@dataclass(frozen=True)
class Interval:
    """One run: where its dot and its interval lie, its limit if it has one, and how both read in words."""

    title: str
    figures: str
    value: float
    low: float
    high: float
    limit: float | None
    precision: Precision
    passed: bool


def proportion_charts(report: ParityReport, _: Material) -> Shown:
    """Show top-1 agreement on each set of images, and with labels accuracy and its drop."""
    charts = []
    for images, where in (("golden", "golden images"), ("data", "validation images")):
        checked = [(e, c) for e in report.entries for c in e.checks if c.images == images]
        compared = [(e, c) for e, c in checked if not c.is_reference]
        if compared:
            count, reference = compared[0][1].comparison.figures.images, compared[0][1].reference
            charts.append(
                Chart(
                    f"Top-1 agreement with {reference} on {count} {where}",
                    intervals(
                        [_agreement_row(entry, check) for entry, check in compared],
                        f"agreement-{images}",
                        f"Top-1 agreement on the {where} with 95 % intervals.",
                        unit="%",
                    ),
                    "Dot: observed. Band: 95 % Wilson interval. Tick: the limit, which fails a run only when the whole "
                    "band lies below it.",
                )
            )
        charts += _labeled_charts(checked)
    labeled = _labeled_table(report)
    if labeled is not None:
        missing = ""
    elif report.asked.data:
        missing = Markup(
            "The data have no labels, so there is no accuracy to show: give class folders, a list with labels, or an "
            "<code>.npz</code> with <code>labels</code> to <code>--data</code>."
        )
    else:
        missing = Markup(
            "There is no accuracy here, only top-1 agreement on the golden images: give labeled images with "
            "<code>resnet-export parity BUNDLE --data DIR</code>."
        )
    return Shown(charts=tuple(charts), tables=(labeled,) if labeled else (), missing=missing)


def _labeled_table(report: ParityReport) -> Table | None:
    found = [
        (entry, check.comparison.labeled)
        for entry in report.entries
        for check in entry.checks
        if check.comparison.labeled is not None
    ]
    if not found:
        return None
    rows = (
        Row(
            (
                entry.title,
                f"{100 * one.candidate_accuracy:.2f} % "
                f"({100 * one.candidate_interval.low:.2f} to {100 * one.candidate_interval.high:.2f})",
                str(one.only_reference_right),
                str(one.only_candidate_right),
                f"{one.p_value:.2g}{', a real difference' if one.distinguishable else ''}",
                "–"
                if one.ece_reference is None or one.ece_candidate is None
                else f"{one.ece_reference:.4f} → {one.ece_candidate:.4f}",
            )
        )
        for entry, one in found
    )
    return Table(
        headers=("run", "accuracy, 95 % interval", "images lost", "won", "McNemar’s p", "calibration error"),
        rows=tuple(rows),
        numbers=frozenset({"images lost", "won"}),
        note=(
            "Lost: only the reference is right. Won: only this run is. A p below 0.05 is called a real difference. The "
            "calibration error (ECE, 15 bins) says how far confidence is from accuracy, in the reference and here."
        ),
    )


def _labeled_charts(checked: list[tuple[Entry, Check]]) -> list[Chart]:
    with_labels = [(e, c, c.comparison.labeled) for e, c in checked if c.comparison.labeled is not None]
    if not with_labels:
        return []
    first = with_labels[0][2]
    accuracy = [
        Interval(
            title=entry.title,
            figures=f"{100 * found.candidate_accuracy:.2f} %",
            value=100 * found.candidate_accuracy,
            low=100 * found.candidate_interval.low,
            high=100 * found.candidate_interval.high,
            limit=next((c.limit for c in check.criteria if c.name == "min_accuracy"), None),
            precision=entry.ran,
            passed=_holds(check, "max_drop", "accuracy_drop", "min_accuracy"),
        )
        for entry, check, found in with_labels
    ]
    drops = [
        Interval(
            title=entry.title,
            figures=f"{found.drop_points:+.2f}".replace("-", "−"),
            value=found.drop_points,
            low=found.drop_interval_points.low,
            high=found.drop_interval_points.high,
            limit=next((c.limit for c in check.criteria if c.name in {"max_drop", "accuracy_drop"}), None),
            precision=entry.ran,
            passed=_holds(check, "max_drop", "accuracy_drop"),
        )
        for entry, check, found in with_labels
        if not check.is_reference
    ]
    charts = [
        Chart(
            f"Accuracy on {first.images} labeled images",
            intervals(
                accuracy,
                "accuracy",
                "Accuracy with 95 % intervals.",
                unit="%",
                mark=100 * first.reference_accuracy,
            ),
            f"Dashed line: the reference, {100 * first.reference_accuracy:.2f} %. Band: 95 % Wilson interval.",
        )
    ]
    if drops:
        charts.append(
            Chart(
                "Accuracy lost against the reference",
                intervals(drops, "drop", "Accuracy drop with 95 % intervals.", unit="points", mark=0.0),
                "In percentage points, to the right is worse. Band: 95 % interval of the paired difference. Tick: the "
                "limit.",
            )
        )
    return charts


def _agreement_row(entry: Entry, check: Check) -> Interval:
    figures, interval = check.comparison.figures, check.comparison.top1_interval
    limit = next((c.limit for c in check.criteria if c.name == "top1_agreement"), None)
    return Interval(
        title=entry.title,
        figures=f"{100 * figures.top1_agreement:.1f} %",
        value=100 * figures.top1_agreement,
        low=100 * interval.low,
        high=100 * interval.high,
        limit=None if limit is None else 100 * limit,
        precision=entry.ran,
        passed=_holds(check, "top1_agreement", "min_agreement"),
    )


def _holds(check: Check, *names: str) -> bool:
    concerned: list[Criterion] = [criterion for criterion in check.criteria if criterion.name in names]
    return all(criterion.passed for criterion in concerned)


def intervals(
    rows: Sequence[Interval], name: str, description: str, *, unit: str, mark: float | None = None
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
