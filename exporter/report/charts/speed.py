"""Time per image of each run, as this very check saw it, beside what it gets right."""

from __future__ import annotations

from markupsafe import Markup

from resnet_export.exporter.report.charts.pareto import Point, front, scatter
from resnet_export.exporter.report.charts.section import Chart, Row, Shown, Table
from resnet_export.exporter.report.report_data import Material
from resnet_export.runtime.parity.report.schema import Check, Entry, ParityReport


def time_chart(report: ParityReport, _: Material) -> Shown:
    """Show time against accuracy or top-1 agreement; where all runs tie in that, the times alone."""
    found = points(report)
    if not found:
        return Shown(
            missing="No run has both a time and a figure to compare it with: none got through the images."
        )
    what, images = quantity(report)
    best = {found[i] for i in front(found)}
    least, most = min(point.percent for point in found), max(point.percent for point in found)
    charts: tuple[Chart, ...] = ()
    tie = ""
    if least < most:
        charts = (Chart(f"Time against {what} {images}", scatter(found, f"{what} {images}", "pareto")),)
    else:
        runs = "All runs have" if len(found) > 1 else "The one run has"
        tie = f" {runs} the same {what} {images}, {least:.2f} %, so that nothing but time tells them apart."
    return Shown(
        lede=Markup(
            "Time is what each backend spent running in this very check, divided by the images it ran, first calls and "
            "small batches included. It ranks runs on this host and is no benchmark: <code>resnet-export bench "
            "BUNDLE</code> is. Pareto-optimal are the runs that passed and that no other passed run equals or beats in "
            "both{}.{}"
        ).format(", which the steps join" if charts else "", tie),
        charts=charts,
        tables=(
            Table(
                headers=("run", "ms/image", what, "Pareto-optimal"),
                rows=tuple(
                    Row(
                        (
                            point.title,
                            f"{point.milliseconds:.3g}",
                            f"{point.percent:.2f} %",
                            "●" if point in best else "",
                        ),
                        not point.passed,
                    )
                    for point in sorted(found, key=lambda point: point.milliseconds)
                ),
                numbers=frozenset({"ms/image", what}),
            ),
        ),
    )


def milliseconds(report: ParityReport) -> dict[str, float]:
    """Return, by entry key, the seconds that a backend spent running in this check divided by the images it ran.

    The images are the golden ones, each as often as it ran, and the data. Runs that broke down are left out.
    """
    running = report.times.get("running", {})
    found = {}
    for entry in report.entries:
        images = _images(entry, report)
        seconds = running.get(entry.key)
        if images and seconds and entry.error is None:
            found[entry.key] = 1000 * seconds / images
    return found


def quantity(report: ParityReport) -> tuple[str, str]:
    """Return what time is compared with, accuracy where there are labels and agreement otherwise, and on what."""
    checks = [check for entry in report.entries for check in entry.checks if check.images == "data"]
    if any(check.comparison.labeled for check in checks):
        return "accuracy", "on the data"
    return "top-1 agreement", "on the data" if checks else "on the golden images"


def points(report: ParityReport) -> tuple[Point, ...]:
    """Return the runs that have both figures, in the report's order."""
    wanted = "data" if _data_images(report) else "golden"
    times = milliseconds(report)
    found = []
    for entry in report.entries:
        check = entry.check("data" if wanted == "data" else "golden")
        percent = _percent(check) if check else 100.0 if _is_reference(entry, report) else None
        if entry.key in times and percent is not None:
            found.append(Point(entry.title, times[entry.key], percent, entry.ran, entry.passed))
    return tuple(found)


def _percent(check: Check) -> float:
    labeled = check.comparison.labeled
    return 100 * (labeled.candidate_accuracy if labeled else check.comparison.figures.top1_agreement)


def _images(entry: Entry, report: ParityReport) -> int:
    golden, data = entry.check("golden"), entry.check("data")
    count = golden.comparison.figures.images + sum(golden.batches) if golden else 0
    if data is not None:
        return count + data.comparison.figures.images
    return count + (_data_images(report) if _is_reference(entry, report) else 0)


def _is_reference(entry: Entry, report: ParityReport) -> bool:
    """Whether the run was what others were compared with on unlabeled data: it ran it, and has no check of it."""
    return bool(_data_images(report)) and entry.error is None and entry.check("data") is None


def _data_images(report: ParityReport) -> int:
    checks = (entry.check("data") for entry in report.entries)
    return next((check.comparison.figures.images for check in checks if check is not None), 0)
