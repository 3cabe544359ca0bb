"""The first thing on the page: a row a run with what decides, and every criterion with its limit."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_export.exporter.report.charts.svg import scientific
from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.criteria.table import bound, question, title, value
from resnet_export.runtime.parity.report.schema import Check, Entry, ParityReport

COLUMNS = (
    "artifact",
    "backend",
    "compute precision",
    "relative error",
    "centered cosine similarity",
    "top-1 agreement, golden",
    "top-1 agreement, data",
    "accuracy",
    "drop, points",
)


@dataclass(frozen=True)
class RunRow:
    """One artifact on one backend; `cells` are in the order of `COLUMNS`, `status` is passed, failed or unverified."""

    status: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class CriterionRow:
    """One limit: what it asks, on which images, what was found, what was expected."""

    images: str
    name: str
    question: str
    value: str
    limit: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class RunCriteria:
    """A run, or what is checked besides the runs, with all its criteria."""

    title: str
    passed: bool
    error: str | None
    criteria: tuple[CriterionRow, ...]

    @property
    def broken(self) -> int:
        """How many criteria do not hold."""
        return sum(not row.passed for row in self.criteria)


def run_rows(report: ParityReport) -> tuple[RunRow, ...]:
    """Return a row for each run, and one for each artifact that nothing ran: nothing is known of those."""
    nothing = ("",) * (len(COLUMNS) - 3)
    return (
        *(RunRow("passed" if entry.passed else "failed", _cells(entry)) for entry in report.entries),
        *(RunRow("unverified", (name, "none on this host", "", *nothing)) for name in report.unverified),
    )


def columns(rows: tuple[RunRow, ...]) -> tuple[int, ...]:
    """Return which columns say anything in any row."""
    return tuple(i for i in range(len(COLUMNS)) if any(row.cells[i] for row in rows))


def criteria_by_run(report: ParityReport) -> tuple[RunCriteria, ...]:
    """Return every criterion, by run; those of the preprocessing first."""
    runs = [
        RunCriteria(
            entry.title,
            entry.passed,
            entry.error,
            (
                *(_row(criterion, check.images) for check in entry.checks for criterion in check.criteria),
                *(_row(criterion, output.name) for output in entry.outputs for criterion in output.criteria),
            ),
        )
        for entry in report.entries
    ]
    shared = tuple(_row(criterion, "golden") for criterion in report.preprocessing)
    if not shared:
        return tuple(runs)
    return (RunCriteria("preprocessing on this host", all(row.passed for row in shared), None, shared), *runs)


def agreement(check: Check) -> str:
    """Return the top-1 agreement with its interval: "31 of 32, 96.9 % (84.3 to 99.4)"."""
    figures, interval = check.comparison.figures, check.comparison.top1_interval
    return (
        f"{figures.top1} of {figures.decided}, {100 * figures.top1_agreement:.1f} % "
        f"({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    )


def _cells(entry: Entry) -> tuple[str, ...]:
    golden, data = entry.check("golden"), entry.check("data")
    figures = golden.comparison.figures if golden else None
    labeled = data.comparison.labeled if data else None
    error, cosine = (figures.relative_error, figures.centered_cosine) if figures else (None, None)
    drop = labeled.drop_interval_points if labeled else None
    return (
        entry.artifact,
        entry.backend if entry.device == "cpu" else f"{entry.backend} {entry.device}",
        f"{entry.ran}{', simulated' if entry.simulated else ''}",
        "–" if error is None else scientific(error),
        "–" if cosine is None else f"{cosine:.6f}",
        agreement(golden) if golden else "",
        agreement(data) if data else "",
        f"{100 * labeled.candidate_accuracy:.2f} %" if labeled else "",
        f"{labeled.drop_points:.2f} ({drop.low:.2f} to {drop.high:.2f})".replace("-", "−")
        if labeled and drop
        else "",
    )


def _row(criterion: Criterion, images: str) -> CriterionRow:
    return CriterionRow(
        images=images,
        name=title(criterion),
        question=question(criterion),
        value=value(criterion),
        limit=bound(criterion),
        passed=criterion.passed,
        detail=criterion.detail,
    )
