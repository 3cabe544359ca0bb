"""The options by which `infer` and `inspect` steer what runs; they mirror `open_session`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.spec import Preference

Command = TypeVar("Command", bound=Callable[..., Any])


def session_options(command: Command) -> Command:
    """Add `--backend`, `--precision`, `--artifact`, `--device`, `--threads` and `--prefer`."""
    options = [
        click.option("--backend", metavar="NAME", help="Use this backend or fail."),
        click.option(
            "--precision",
            type=click.Choice([str(p) for p in Precision], case_sensitive=False),
            help="Run in this precision or fail.",
        ),
        click.option("--artifact", metavar="NAME", help="Run this artifact or fail."),
        click.option(
            "--device",
            metavar="cpu|gpu|INDEX",
            help="Run on the CPU, on a GPU, or on the GPU of this index (1 or cuda:1).",
        ),
        click.option(
            "--threads", type=click.IntRange(min=1), help="CPU threads; by default the backend decides."
        ),
        click.option(
            "--prefer",
            type=click.Choice(get_args(Preference)),
            default="latency",
            show_default=True,
            help="What the best artifact and backend are chosen by.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
