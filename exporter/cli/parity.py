"""`resnet-export parity`: the gate that a CI job runs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.output import check_writable
from resnet_export.exporter.cli.progress import progress_bar
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.manifest import read_manifest
from resnet_export.runtime.parity import junit, markdown, text
from resnet_export.runtime.parity.compare import Batch
from resnet_export.runtime.parity.gate import run_parity
from resnet_export.runtime.parity.report import ParityReport, encode_report
from resnet_export.runtime.parity.tolerances import Overrides, parse_overrides

_RENDER: dict[str, Callable[[ParityReport], bytes]] = {
    "json": encode_report,
    "junit": junit.render,
    "markdown": lambda report: markdown.render(report).encode(),
}
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command(name="parity")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE",
    help="Further images: folder, .npz or list.",
)
@click.option(
    "--artifact", "artifacts", multiple=True, metavar="NAME", help="Check this artifact (repeatable)."
)
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="Check on this backend (repeatable)."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 100),
    metavar="PP",
    help="Accuracy drop allowed on labelled --data.",
)
@click.option(
    "--min-agreement", type=click.FloatRange(0, 100), metavar="PCT", help="Top-1 agreement demanded."
)
@click.option(
    "--tolerance",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="JSON with limits that replace the bundle's.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use at most N images of --data.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the draw that --limit makes.")
@click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write the report as JSON.")
@click.option(
    "--junit", "junit_file", type=_FILE, metavar="FILE", help="Write JUnit XML: a case per criterion."
)
@click.option("--markdown", "markdown_file", type=_FILE, metavar="FILE", help="Write Markdown for a comment.")
@click.option("--quiet", is_flag=True, help="No progress and no table.")
@debug_option
def command(
    bundle: Path,
    data: Path | None,
    artifacts: tuple[str, ...],
    backends: tuple[str, ...],
    max_drop: float | None,
    min_agreement: float | None,
    tolerance: Path | None,
    limit: int | None,
    seed: int,
    json_file: Path | None,
    junit_file: Path | None,
    markdown_file: Path | None,
    quiet: bool,
) -> None:
    """Compare BUNDLE's artifacts with the reference, on every backend of this host.

    Exit status: 0 within tolerance, 1 outside, 2 when the check could not be made.
    """  # fmt: skip
    asked = {"json": json_file, "junit": junit_file, "markdown": markdown_file}
    reports = {kind: path for kind, path in asked.items() if path is not None}
    for path in reports.values():
        check_writable(path)
    report = run_parity(
        bundle,
        data=None if data is None else _batches(bundle, data, limit, seed),
        data_name="" if data is None else str(data),
        artifacts=artifacts or None,
        backends=backends or None,
        max_drop=max_drop,
        min_agreement=min_agreement,
        tolerances=None if tolerance is None else _overrides(tolerance),
        limit=limit,
        progress=progress_bar(quiet=quiet),
    )
    for kind, path in reports.items():
        path.write_bytes(_RENDER[kind](report))
    if not quiet:
        click.echo(text.render(report), nl=False)
    sys.exit(report.exit_code)


def _batches(bundle: Path, data: Path, limit: int | None, seed: int) -> Iterator[Batch]:
    from resnet_export.calibration.dataset import open_dataset

    manifest = read_manifest(bundle)
    dataset = open_dataset(
        data,
        preprocessing=manifest.preprocessing,
        limit=limit,
        seed=seed,
        labels=manifest.labels,
        num_classes=manifest.model.num_classes,
    )
    return (
        Batch(images=batch.images, labels=batch.labels, names=batch.names)
        for batch in dataset.batches(manifest.batch.opt)
    )


def _overrides(path: Path) -> Overrides:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RequestError(f"the tolerance file {path} cannot be read: {error.strerror}") from error
    return parse_overrides(data, str(path))
