"""Work ahead: what comes next is worked on in threads, while what came before is used, and comes out in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain, islice
from typing import TypeVar

__all__ = ["chunks", "map_ahead"]

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(function: Callable[[T], R], items: Iterable[T], *, ahead: int, workers: int) -> Generator[R]:
    """Yield `function(item)` for each item, in order, from up to `workers` threads.

    At most `ahead` + 1 items have been taken from `items`, in the thread that iterates, before the first of them has
    been yielded. A single item is mapped in place. What `function` or `items` raises is raised in its turn. No thread
    is left when the iterator ends or is closed.
    """
    iterator = iter(items)
    head = list(islice(iterator, 2))
    if len(head) < 2:
        yield from map(function, head)
        return
    from concurrent.futures import Future, ThreadPoolExecutor

    pool = ThreadPoolExecutor(workers, thread_name_prefix="resnet-export-ahead")
    try:
        pending: deque[Future[R]] = deque()
        for item in chain(head, iterator):
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
