"""From a report and its material to the bytes of one HTML file.

The page has no script and its security policy allows none, nor any request: file names, labels and module paths
come from outside. What a section needs and does not have is said in a sentence in its place.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from resnet_export.exporter.report.charts.clipping import Clipping, affine_differs, clippings, worst
from resnet_export.exporter.report.charts.intervals import Row, intervals
from resnet_export.exporter.report.charts.layers import layer_chart
from resnet_export.exporter.report.charts.pareto import front, scatter
from resnet_export.exporter.report.charts.ranges import clip_histogram, overview
from resnet_export.exporter.report.charts.speed import points, quantity
from resnet_export.exporter.report.charts.svg import drawing
from resnet_export.exporter.report.charts.waterfall import waterfall
from resnet_export.exporter.report.flipped_images import flips_in_all, tiles
from resnet_export.exporter.report.report_data import SHOWN, Material
from resnet_export.exporter.report.verdict_table import COLUMNS, columns, criteria_by_run, run_rows
from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.measure.comparison import KEPT_FLIPS
from resnet_export.runtime.parity.report.schema import Check, Entry, ParityReport
from resnet_export.runtime.parity.report.text import details, weights
from resnet_export.runtime.precision import PRECISIONS

HISTOGRAMS = 6
"""Tensors whose histogram is shown: those that 8 bits fit worst."""


@dataclass(frozen=True)
class Chart:
    """A picture with a heading and a sentence below it; `bad` when it shows something outside its limits."""

    title: str
    svg: Markup
    note: str = ""
    bad: bool = False


def render(report: ParityReport, material: Material | None = None) -> bytes:
    """Return the page as UTF-8. The same report and material give the same bytes.

    Without `material`, classes are numbers, and there are neither histograms nor pictures. Needs jinja2 and
    matplotlib (`require`).
    """
    known = material or Material()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = run_rows(report)
    head, rest = _headline(report)
    with drawing():
        page = environment.get_template("page.html.j2").render(
            report=report,
            precisions=PRECISIONS.values(),
            material=known,
            head=head,
            parts=[part for part in rest.split("; ") if part],
            weights=weights(report),
            names=COLUMNS,
            columns=columns(rows),
            rows=rows,
            criteria_by_run=criteria_by_run(report),
            details={
                title: items for title, items in details(report) if title in {"INT8", "Notes", "Skipped"}
            },
            stages=stage_charts(report),
            layers=layer_charts(report),
            proportions=proportion_charts(report),
            pareto=pareto_chart(report),
            best=tuple(points(report)[i] for i in front(points(report))),
            points=sorted(points(report), key=lambda point: point.milliseconds),
            quantity=quantity(report),
            ranges=range_charts(known),
            tiles=tiles(report, known),
            flip_count=flips_in_all(report),
            shown=SHOWN,
            kept_flips=KEPT_FLIPS,
            command=command(report),
        )
    return page.encode("utf-8", "backslashreplace")


def _headline(report: ParityReport) -> tuple[str, str]:
    """Cut the verdict's sentence: what happened, and where."""
    word, _, rest = report.verdict.sentence.partition(": ")
    rest, _, stage = rest.partition(". First stage to look at: ")
    what, _, where = rest.partition(": ")
    look = f"first stage to look at: {stage}" if stage else ""
    return f"{word.capitalize()}: {what}", "; ".join(part for part in (where, look) if part)


def stage_charts(report: ParityReport) -> tuple[Chart, ...]:
    """Return a waterfall for each run that was attributed; those with a stage outside its limits first."""
    found = [
        Chart(
            title=entry.title,
            svg=waterfall(entry.attribution, f"stages{i}"),
            note=entry.attribution.sentence.removeprefix(f"{entry.title}: "),
            bad=entry.attribution.diverges is not None,
        )
        for i, entry in enumerate(report.entries)
        if entry.attribution is not None
    ]
    return tuple(sorted(found, key=lambda chart: not chart.bad))


def layer_charts(report: ParityReport) -> tuple[Chart, ...]:
    """Return a chart for each artifact whose layers were measured."""
    return tuple(
        Chart(
            title=f"{found.artifact} on {found.backend}",
            svg=layer_chart(found, f"layers{i}"),
            note=found.sentence,
            bad=found.first is not None,
        )
        for i, found in enumerate(report.layerwise)
    )


def proportion_charts(report: ParityReport) -> tuple[Chart, ...]:
    """Return top-1 agreement on each set of images, and with labels accuracy and its drop."""
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
        charts += _labelled_charts(checked)
    return tuple(charts)


def _labelled_charts(checked: list[tuple[Entry, Check]]) -> list[Chart]:
    with_labels = [(e, c, c.comparison.labeled) for e, c in checked if c.comparison.labeled is not None]
    if not with_labels:
        return []
    first = with_labels[0][2]
    accuracy = [
        Row(
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
        Row(
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


def _agreement_row(entry: Entry, check: Check) -> Row:
    figures, interval = check.comparison.figures, check.comparison.top1_interval
    limit = next((c.limit for c in check.criteria if c.name == "top1_agreement"), None)
    return Row(
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


def pareto_chart(report: ParityReport) -> Chart | None:
    """Return time against accuracy or agreement; None when no run has both."""
    found = points(report)
    if not found:
        return None
    what = quantity(report)
    return Chart(f"Time against {what}", scatter(found, what, "pareto"))


def range_charts(material: Material) -> tuple[Chart, ...]:
    """Return the picture of all ranges, and the histograms of the tensors that 8 bits fit worst."""
    table = material.table
    if table is None:
        return ()
    found = clippings(table, material.choice)
    method = table.method if material.choice is None else material.choice.method
    charts = [
        Chart(
            f"All {len(found)} tensors, clip by {method}",
            overview(found, "ranges"),
            f"Measured on {table.images} images. Where the clip runs below the greatest value, it cuts outliers off in "
            "favour of finer steps for the rest."
            + (
                ""
                if material.choice
                else " How INT8 was planned is not recorded: these are the table’s own ranges."
            ),
        )
    ]
    charts += [
        Chart(
            one.tensor, clip_histogram(one, table.tensors[one.tensor].stats(), f"range{i}"), _clip_note(one)
        )
        for i, one in enumerate(worst(found, HISTOGRAMS))
    ]
    return tuple(charts)


def _clip_note(one: Clipping) -> str:
    ratio = "" if one.snr_db is None else f", SNR of this tensor alone {one.snr_db:.1f} dB"
    affine = (
        f"; affine grid {one.range.low:.4g} to {one.range.high:.4g}, dashed".replace("-", "−")
        if affine_differs(one.range)
        else ""
    )
    return (
        f"Clip ±{one.range.amax:.4g}{affine}; {_share(one.beyond)} of the values lie beyond ±{one.range.amax:.4g}"
        f"{ratio}."
    )


def _share(share: float) -> str:
    return "none" if share <= 0 else f"{100 * share:.2g} %"


def command(report: ParityReport) -> str:
    """Return the command that makes this check again.

    `BUNDLE` stands for the bundle's folder, `CHECKPOINT` and `LIMITS` for files that the report does not name.
    """
    words = ["resnet-export", "parity", "BUNDLE", *report.asked.arguments()]
    # Weights that are fetched or drawn are given as no file; a report of a Python caller's network may not say.
    if (
        report.asked.reference != "onnx"
        and report.asked.weights is None
        and report.bundle.weights.source == "file"
    ):
        words += ["--weights", "CHECKPOINT"]
    return shlex.join([*words, "--html", "parity.html"])
