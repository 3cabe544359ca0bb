"""`resnet-export compare`: what changed from one bundle to another."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.exporter.cli.output import check_outputs, write_output
from resnet_export.exporter.cli.progress import show_progress
from resnet_export.exporter.parity.compare import ArtifactChange, BundleChange, compare_bundles
from resnet_export.runtime.parity.report.markdown import escape
from resnet_export.runtime.text_table import text_table, wrapped

_HEADERS = ("artifact", "top-1 agreement", "accuracy, %", "drop (95 %)", "changed", "MB", "ms/image", "on")


@click.command(name="compare")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Images to compare on.  [default: BEFORE's golden images]",
)
@click.option(
    "--artifact", "artifacts", multiple=True, metavar="NAME", help="Compare this artifact (repeatable)."
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N images of --data.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="PP",
    help="Accuracy (without labels, agreement) that an artifact may lose.",
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write Markdown for a pull request.",
)
@json_option
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@debug_option
def command(
    before: Path,
    after: Path,
    data: Path | None,
    artifacts: tuple[str, ...],
    limit: int | None,
    max_drop: float | None,
    markdown_file: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Compare bundle AFTER with bundle BEFORE, artifact by artifact, on the same images.

    Exit status: 0, or 1 where an artifact lost more than --max-drop.
    """  # fmt: skip
    check_outputs({"--markdown": markdown_file}, {"BEFORE": before, "AFTER": after, "--data": data})
    with show_progress(quiet=quiet) as progress:
        found = compare_bundles(
            before, after, data=data, artifacts=artifacts, limit=limit, max_drop=max_drop, progress=progress
        )
    if markdown_file is not None:
        write_output(markdown_file, _markdown(found).encode())
    if as_json:
        print_json(found)
    elif not quiet:
        click.echo(_text(found))
    else:
        for failure in found.failures:
            click.echo(failure, err=True)
    sys.exit(found.exit_code)


def _text(found: BundleChange) -> str:
    return "\n".join(
        [
            wrapped(f"{found.after} against {found.before}, on {found.images}"),
            *(wrapped(f"  {fact}", "    ") for fact in found.facts),
            "",
            text_table(*_table(found)),
            "",
            *map(wrapped, _remarks(found)),
        ]
    )


def _markdown(found: BundleChange) -> str:
    headers, rows = _table(found)
    lines = [
        f"### {'❌' if found.failures else '✅'} {escape(found.after)} against {escape(found.before)}",
        "",
        *(escape(remark) for remark in _remarks(found)),
        "",
        f"On {escape(found.images)}:",
        "",
        f"| {' | '.join(headers)} |",
        f"|{'---|' * len(headers)}",
        *(f"| {' | '.join(map(escape, row))} |" for row in rows),
        "",
        *(f"- {escape(fact)}" for fact in found.facts),
    ]
    return "\n".join(lines) + "\n"


def _remarks(found: BundleChange) -> list[str]:
    errors = [f"{one.name} was not compared: {one.error}" for one in found.artifacts if one.error]
    if found.failures:
        return [*errors, f"FAILED: {'; '.join(found.failures)}."]
    budget = "" if found.max_drop is None else f", none lost more than {found.max_drop:g} points"
    compared = sum(one.comparison is not None for one in found.artifacts)
    return [*errors, f"{compared} artifact{'' if compared == 1 else 's'} compared{budget}."]


def _table(found: BundleChange) -> tuple[list[str], list[list[str]]]:
    rows = [_cells(one) for one in found.artifacts]
    shown = [index for index in range(len(_HEADERS)) if any(row[index] for row in rows)]
    return [_HEADERS[index] for index in shown], [[row[index] for index in shown] for row in rows]


def _cells(change: ArtifactChange) -> tuple[str, ...]:
    megabytes = " → ".join("–" if size is None else f"{size:.1f}" for size in change.megabytes)
    if change.comparison is None:
        return (change.name, "", "", "", "", megabytes, "", "")
    figures, labeled = change.comparison.figures, change.comparison.labeled
    drop = None if labeled is None else labeled.drop_interval_points
    return (
        change.name,
        f"{100 * figures.top1_agreement:.1f} %",
        ""
        if labeled is None
        else f"{100 * labeled.reference_accuracy:.2f} → {100 * labeled.candidate_accuracy:.2f}",
        ""
        if labeled is None or drop is None
        else f"{labeled.drop_points:.2f} ({drop.low:.2f} to {drop.high:.2f})",
        f"{change.comparison.flip_count} of {figures.images}",
        megabytes,
        " → ".join(f"{one:.1f}" for one in change.milliseconds),
        change.backend or "",
    )
