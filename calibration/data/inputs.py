"""Batches as a graph takes them, cut for passes that look inside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from numpy.typing import NDArray


def in_fours(batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Cut batches into parts of at most four images: all activations of more would take a gigabyte."""
    for batch in batches:
        for start in range(0, len(batch), 4):
            yield batch[start : start + 4]
