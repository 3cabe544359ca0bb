"""How far a command is, on standard error: bars in a terminal, in a log one line for each step."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from resnet_export.runtime.progress import STEPS, Progress, silent

__all__ = ["show_progress"]

T = TypeVar("T")


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[Progress]:
    """Yield what wraps a long loop; after the `with`, the screen is as it was.

    In a terminal one line stays alive (the step, a bar, the time that passed and the time that is left) until the end.
    """
    if quiet or sys.stderr is None:
        yield silent
    elif not sys.stderr.isatty():
        yield _log
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,  # the command's result, which goes elsewhere
        )
        with bars:
            yield _Live(bars)


class _Live:
    """Loops as bars of one live display; the loop of steps is the first, and counts them."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        total = len(items) if total is None and isinstance(items, Sized) else total
        task = self._bars.add_task(description, total=total)
        try:
            for done, item in enumerate(items):
                if description == STEPS:
                    title = f"step {done + 1}/{total}: {item}"
                    self._bars.update(task, completed=done, description=title)
                yield item
                self._bars.update(task, completed=done + 1)
        finally:
            self._bars.remove_task(task)


def _log(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    if description != STEPS:
        yield from items
        return
    for number, item in enumerate(items, 1):
        # What is wrong with a request shows in the first step at the latest, and stands alone then.
        if number > 1:
            click.echo(f"step {number}/{total}: {item}", err=True)
        yield item
        if number == 1:
            click.echo(f"step {number}/{total}: {item}", err=True)
