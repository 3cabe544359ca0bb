"""How a long step tells its caller how far it is, without knowing about terminals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")

STEPS = "steps"
"""The description of a loop over the titles of a command's steps, in which the loops of each step are."""


class Progress(Protocol):
    """Wraps an iterable and shows, somewhere, how far it has been consumed."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yield `items` unchanged; `total` is their number where `len` does not tell."""
        ...


def silent(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show nothing: what library callers get unless they ask for more."""
    del description, total
    return iter(items)
