"""The command line: flags in, specs out. Each command is a module of its own, loaded when it is used."""

from __future__ import annotations

import traceback
import warnings
from typing import Any

import click

from resnet_export.exporter.cli.group import cli
from resnet_export.exporter.cli.process import leave, open_streams, settle

__all__ = ["cli", "main"]

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it; click's own 1 would mean "outside tolerance"


def main() -> None:
    """Run the command line and exit: 0 done, 1 outside tolerance, 2 wrong request or environment."""
    settle()
    open_streams()
    warnings.showwarning = _show
    try:
        leave(cli.main(prog_name="resnet-export", standalone_mode=False) or 0)
    except SystemExit as stop:  # how commands say that something is outside its tolerance
        leave(stop.code if isinstance(stop.code, int) else 0)
    except click.Abort:
        click.echo("Interrupted: nothing was changed.", err=True)
        leave(_INTERRUPTED)
    except click.ClickException as error:
        error.show()
        leave(error.exit_code)
    except Exception:  # noqa: BLE001 - only with --debug; Python's own status 1 would mean "outside tolerance"
        traceback.print_exc()
        leave(2)


_show_in_python = warnings.showwarning


def _show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print our own warnings as notices: which line of which file they come from helps nobody here."""
    if category.__name__ == "DecompressionBombWarning":
        return  # Pillow's, of an image that is large and used; what is too large is refused.
    if category.__module__.startswith("resnet_export."):
        click.echo(f"Note: {message}", err=True)
    else:
        _show_in_python(message, category, *where, **more)
