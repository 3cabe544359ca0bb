"""The options by which `infer` and `inspect` steer what runs; they mirror `open_session`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from resnet_export.runtime.precision import Precision

Command = TypeVar("Command", bound=Callable[..., Any])


def _index(_: click.Context, __: click.Parameter, value: str | None) -> int | str | None:
    return int(value) if value is not None and value.isdecimal() else value


def session_options(command: Command) -> Command:
    """Add `--backend`, `--precision`, `--artifact` and `--device`."""
    options = [
        click.option("--backend", metavar="NAME", help="Use this backend or fail."),
        click.option(
            "--precision",
            type=click.Choice([str(p) for p in Precision]),
            help="Run in this precision or fail.",
        ),
        click.option("--artifact", metavar="NAME", help="Run this artifact or fail."),
        click.option(
            "--device",
            metavar="cpu|gpu|INDEX",
            callback=_index,
            help="Run on the CPU, on a GPU, or on the GPU of this index.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
