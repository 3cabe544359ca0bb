"""The report as Markdown for a pull-request comment: verdict, tables, and the rest folded away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from resnet_export.runtime.parity.criteria.table import bound, value
from resnet_export.runtime.parity.criteria.table import title as title_of
from resnet_export.runtime.parity.report.answer import caveats, headers, recommendations, table
from resnet_export.runtime.parity.report.schema import ParityReport
from resnet_export.runtime.parity.report.text import HEADERS, details, named, row, sections, weights

# GitHub refuses comments of more than 65,536 characters; GitLab takes a million.
LIMIT = 60_000

_SHOWN = 5  # images per check whose prediction changed
_MARKS = {"passed": "✅", "failed": "❌", "unverified": "⚠️"}
_LEFT_OUT = "\nMore details did not fit here; the JSON report has them all.\n"
_CRITERIA = ("", "artifact", "backend", "images", "criterion", "value", "limit")


def render(report: ParityReport, limit: int = LIMIT) -> str:
    """Return GitHub-varianted Markdown of at most `limit` characters; it says when something did not fit."""
    verdict = report.verdict
    arch = escape(report.bundle.arch)
    parts = [
        f"### {_MARKS['unverified' if report.amber else verdict.status]} Parity of {arch}\n\n"
        f"{escape(verdict.sentence)}\n\n{report.bundle.num_classes} classes, {escape(weights(report))}\n",
        f"{_table(headers(report), table(report))}\n",
        f"{_list([*recommendations(report), *caveats(report)])}\n",
    ]
    for title, checked in sections(report):
        rows = [row(entry, check) for entry, check in checked]
        parts.append(f"**{escape(title)}**\n\n{_table(HEADERS, rows)}\n")
    found = dict(details(report))
    outside = found.pop("Outside tolerance", [])
    if outside:
        parts.append(_fold("Outside tolerance", _list(outside), shown=True))
    parts.append(_fold("Every criterion", _table(_CRITERIA, list(_criteria(report)))))
    flips = list(_flips(report))
    if flips:
        parts.append(_fold("Images whose prediction changed", _list(flips)))
    parts += [_fold(title, _list(items)) for title, items in found.items()]
    return _fitting(parts, limit)


def escape(text: str) -> str:
    """Return `text` so that Markdown and the HTML in it show it as it is, file names and labels included."""
    for character in "\\`*_[]|#~":
        text = text.replace(character, "\\" + character)
    # An @ would notify whoever has that name, a line break would end a table row.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("@", "@\u200b").replace("\n", " ")


def _fitting(parts: Sequence[str], limit: int) -> str:
    excluded: list[str] = []
    length = len(_LEFT_OUT)
    for part in parts:
        if length + len(part) + 1 > limit:
            return ("\n".join(excluded) or parts[0][: limit - len(_LEFT_OUT)]) + _LEFT_OUT
        excluded.append(part)
        length += len(part) + 1
    return "\n".join(excluded)


def _criteria(report: ParityReport) -> Iterator[tuple[str, ...]]:
    for criterion in report.preprocessing:
        mark = "✅" if criterion.passed else "❌"
        yield (mark, "preprocessing", "", "", title_of(criterion), value(criterion), bound(criterion))
    for entry in report.entries:
        if entry.error is not None:
            yield ("❌", entry.artifact, entry.backend, "", "runs", entry.error, "")
        for check in entry.checks:
            for criterion in check.criteria:
                yield (
                    "✅" if criterion.passed else "❌",
                    entry.artifact,
                    entry.backend,
                    check.images,
                    title_of(criterion),
                    value(criterion),
                    bound(criterion),
                )
        for output in entry.outputs:
            for criterion in output.criteria:
                yield (
                    "✅" if criterion.passed else "❌",
                    entry.artifact,
                    entry.backend,
                    "golden",
                    f"{output.name}: {title_of(criterion)}",
                    value(criterion),
                    bound(criterion),
                )


def _flips(report: ParityReport) -> Iterator[str]:
    for entry in report.entries:
        for check in entry.checks:
            comparison = check.comparison
            for flip in comparison.flips[:_SHOWN]:
                tie = ", a near tie" if flip.near_tie else ""
                label = "" if flip.label is None else f", labeled {named(report, flip.label)}"
                classes = f"{named(report, flip.reference)} → {named(report, flip.candidate)}"
                yield f"{entry.title}, {check.images}: {flip.name}: {classes}{label}{tie}"
            more = comparison.flip_count - len(comparison.flips[:_SHOWN])
            if more > 0:
                yield f"{entry.title}, {check.images}: {more} more"


def _table(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    excluded = [i for i in range(len(headers)) if any(cells[i] for cells in rows)]
    lines = [
        [headers[i] for i in excluded],
        ["---"] * len(excluded),
        *([escape(cells[i]) for i in excluded] for cells in rows),
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _list(items: list[str]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


def _fold(title: str, body: str, *, shown: bool = False) -> str:
    return f"<details{' open' if shown else ''}><summary>{title}</summary>\n\n{body}\n\n</details>\n"
