"""`resnet-export bench`: latency and throughput, side by side."""

from __future__ import annotations

from pathlib import Path

import click

from resnet_export.exporter.cli.errors import debug_option
from resnet_export.exporter.cli.json_output import json_option, print_json
from resnet_export.exporter.cli.progress import show_progress
from resnet_export.runtime.bench import Bench, bench
from resnet_export.runtime.text_table import text_table


@click.command(name="bench")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(min=1),
    multiple=True,
    default=(1, 8),
    show_default=True,
    help="Batch size (repeatable).",
)
@click.option(
    "--rounds", type=click.IntRange(min=1), default=20, show_default=True, help="Counted calls of each."
)
@click.option(
    "--artifact", "artifacts", multiple=True, metavar="NAME", help="Time this artifact (repeatable)."
)
@click.option(
    "--backend", "backends", multiple=True, metavar="NAME", help="Time on this backend (repeatable)."
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of each backend.")
@click.option(
    "--save",
    is_flag=True,
    help="Keep the result: sessions on this kind of host then open what was fastest.",
)
@json_option
@click.option("--quiet", is_flag=True, help="No progress.")
@debug_option
def command(
    bundle: Path,
    batches: tuple[int, ...],
    rounds: int,
    artifacts: tuple[str, ...],
    backends: tuple[str, ...],
    threads: int | None,
    save: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Time BUNDLE's artifacts on every backend of this host, in turns within one run."""
    with show_progress(quiet=quiet) as progress:
        found = bench(
            bundle,
            batches=batches,
            rounds=rounds,
            artifacts=artifacts or None,
            backends=backends or None,
            threads=threads,
            save=save,
            progress=progress,
        )
    if as_json:
        print_json(found)
    else:
        click.echo(_text(found))
    if found.profile is not None:
        click.echo(f"saved the profile of this host: {found.profile}", err=True)


def _text(found: Bench) -> str:
    rows = [
        [
            timing.artifact,
            f"{timing.backend} ({timing.provider}, {timing.device})",
            f"{timing.precision}{', simulated' if timing.simulated else ''}",
            str(timing.batch),
            f"{timing.milliseconds:.1f} ({timing.low:.1f}–{timing.high:.1f})",
            f"{timing.images_per_second:.1f}",
            "" if timing.speedup is None else f"{timing.speedup:.2f}×",
        ]
        for timing in found.timings
    ]
    headers = ["artifact", "backend", "ran in", "batch", "ms (quartiles)", "images/s", "against fp32"]
    skipped = dict.fromkeys(
        f"not run: {item.artifact} on {item.backend}: {item.reason}" for item in found.skipped
    )
    return "\n".join(
        [text_table(headers, rows), "", f"medians of {found.rounds} calls, taken in turns", *skipped]
    )
