"""Progress bars on standard error, which vanish when it is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from resnet_export.runtime.progress import Progress, silent

T = TypeVar("T")


def _bar(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    from tqdm import tqdm

    # disable=None asks tqdm to look whether standard error is a terminal; leave=False keeps the screen clean.
    return iter(tqdm(items, desc=description, total=total, disable=None, leave=False, delay=0.3))


def progress_bar(*, quiet: bool) -> Progress:
    """Return what wraps a long loop: a tqdm bar, or nothing at all when `quiet` or without standard error."""
    return silent if quiet or sys.stderr is None else _bar
