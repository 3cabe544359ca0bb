"""The report of a bundle, in every form for which the packages are there."""

from __future__ import annotations

from pathlib import Path

from resnet_export.exporter import report as page
from resnet_export.exporter.bundle.staging import Staging
from resnet_export.runtime.bundle.manifest import REPORT_NAME
from resnet_export.runtime.parity.report import markdown
from resnet_export.runtime.parity.report.schema import ParityReport, encode_report

__all__ = ["write_reports"]


def write_reports(stage: Staging, staged: Path, report: ParityReport) -> None:
    """Write `report.json` and `report.md`, and `report.html` where jinja2 and matplotlib are there."""
    stage.write(REPORT_NAME, encode_report(report))
    stage.write("report.md", markdown.render(report).encode())
    if page.installed():
        stage.write("report.html", page.render(report, page.gather(staged, report)))
