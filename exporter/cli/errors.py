"""One sentence on standard error and exit status 2, whatever went wrong; a traceback only on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from resnet_export.runtime.errors import ResnetExportError

Command = TypeVar("Command", bound=Callable[..., Any])

_DEBUG = "resnet_export.debug"


class Failure(click.ClickException):
    """A wrong request or environment, said in one sentence."""

    exit_code = 2


def _remember_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().meta[_DEBUG] = True


def debug_option(command: Command) -> Command:
    """Add `--debug` to a command: errors keep their traceback."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_debug,
        help="Show the traceback of an error.",
    )(command)


@contextmanager
def one_sentence(context: click.Context) -> Iterator[None]:
    """Turn whatever a command raises into one sentence, unless `--debug` was given."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort):
        raise
    except Exception as error:
        if context.find_root().meta.get(_DEBUG):
            raise
        raise Failure(_sentence(error)) from error


def _sentence(error: Exception) -> str:
    if isinstance(error, ResnetExportError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    return (
        f"unexpected {type(error).__name__} ({error}); this is a defect of resnet-export: "
        "run again with --debug and report what it prints"
    )
