"""The command line: flags in, specs out. Each command is a module of its own, loaded when it is used."""

from __future__ import annotations

import sys

import click

from resnet_export.exporter.cli.group import cli

__all__ = ["cli", "main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it; click's own 1 would mean "outside tolerance"


def main() -> None:
    """Run the command line and exit: 0 done, 1 outside tolerance, 2 wrong request or environment."""
    try:
        sys.exit(cli.main(prog_name="resnet-export", standalone_mode=False))
    except click.Abort:
        click.echo("Interrupted: nothing was changed.", err=True)
        sys.exit(_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
