"""From a report and its material to the bytes of one HTML file.

The page has no script and its security policy allows none, nor any request: file names, labels and module paths
come from outside. What a section needs and does not have is said in a sentence in its place.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import jinja2

from resnet_export.exporter.report.charts.intervals import proportion_charts
from resnet_export.exporter.report.charts.layers import layer_charts
from resnet_export.exporter.report.charts.ranges import range_charts
from resnet_export.exporter.report.charts.section import Section
from resnet_export.exporter.report.charts.speed import time_chart
from resnet_export.exporter.report.charts.svg import drawing
from resnet_export.exporter.report.charts.waterfall import stage_charts
from resnet_export.exporter.report.flipped_images import flips_in_all, tiles
from resnet_export.exporter.report.report_data import SHOWN, Material
from resnet_export.exporter.report.verdict_table import COLUMNS, columns, criteria_by_run, run_rows
from resnet_export.runtime.parity.measure.comparison import KEPT_FLIPS
from resnet_export.runtime.parity.report.answer import answers, caveats, headers, recommendations, table
from resnet_export.runtime.parity.report.schema import ParityReport
from resnet_export.runtime.parity.report.text import details, weights
from resnet_export.runtime.precision import PRECISIONS

CHARTS = (
    Section("stages", "Stages", "Error attribution", stage_charts),
    Section("layers", "Layers", "Signal-to-noise ratio by layer", layer_charts),
    Section("accuracy", "Accuracy", "Top-1 agreement and accuracy", proportion_charts),
    Section("time", "Time", "Time against accuracy", time_chart),
    Section("ranges", "Ranges", "Ranges for INT8", range_charts),
)
"""The charts of the page, in its order; each says itself when it has nothing to show."""


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
    with drawing():
        page = environment.get_template("page.html.j2").render(
            report=report,
            precisions=PRECISIONS.values(),
            material=known,
            weights=weights(report),
            answer_headers=headers(report),
            answer=[(one.status, cells) for one, cells in zip(answers(report), table(report), strict=True)],
            advice=[*recommendations(report), *caveats(report)],
            names=COLUMNS,
            columns=columns(rows),
            rows=rows,
            criteria_by_run=criteria_by_run(report),
            details={
                title: items
                for title, items in details(report)
                if title in {"Outputs", "INT8", "Notes", "Skipped"}
            },
            sections=[(section, section.show(report, known)) for section in CHARTS],
            tiles=tiles(report, known),
            flip_count=flips_in_all(report),
            shown=SHOWN,
            kept_flips=KEPT_FLIPS,
            command=command(report),
        )
    return page.encode("utf-8", "backslashreplace")


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
