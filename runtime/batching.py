"""Micro-batching: single requests from many threads run together.

A request that finds the network idle runs at once. What arrives while a batch runs is the next batch, up to
`max_batch`. When a batch ends, its clients are likely to come back with their next requests: for `max_delay` from then
on the next batch waits for as many as were there before, and for no more, so that a lone client never waits. The queue
is bounded; while it is full, `submit` blocks, which slows down a producer that is too fast, or rejects.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, Literal, TypeVar, get_args

import msgspec

from resnet_export.runtime.errors import QueueFullError, RequestError, SessionClosedError

if TYPE_CHECKING:
    from resnet_export.runtime.request_future import RequestFuture

__all__ = ["BatchingSpec", "MicroBatcher"]

T = TypeVar("T")
R = TypeVar("R")

WhenFull = Literal["block", "reject"]

QUEUED_BATCHES = 4
"""How many full batches may wait in a queue whose size is not given."""


class BatchingSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How single requests are collected into batches.

    Attributes:
        max_batch: the largest batch; None for the bundle's `batch.opt`.
        max_delay: seconds after a batch in which the next one waits for as many requests as were there before.
        queue_size: how many requests may wait; None for four full batches.
        when_full: whether `submit` then blocks until there is room, or rejects with a QueueFullError.

    Raises RequestError for values out of range.
    """

    max_batch: int | None = None
    max_delay: float = 0.002
    queue_size: int | None = None
    when_full: WhenFull = "block"

    def __post_init__(self) -> None:
        for name in ("max_batch", "queue_size"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise RequestError(f"{name} is {value!r}, expected a number from 1 on")
        if not isinstance(self.max_delay, int | float) or not 0 <= self.max_delay < math.inf:
            raise RequestError(f"max_delay is {self.max_delay!r}, expected seconds from 0 on")
        if self.when_full not in get_args(WhenFull):
            raise RequestError(f"when_full is {self.when_full!r}, expected 'block' or 'reject'")


class MicroBatcher(Generic[T, R]):
    """Collects items and hands them to `run` in batches, from one thread that starts with the first item.

    `run` takes at most `max_batch` items and returns for each a result, or the exception that its future is to raise.
    What `run` itself raises reaches every future of that batch, and the next batch runs as if nothing had happened.

    Args:
        run: what runs a batch.
        max_batch: the largest batch, where `spec` does not say.
        spec: everything else.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R | Exception]],
        *,
        max_batch: int,
        spec: BatchingSpec | None = None,
    ) -> None:
        spec = spec or BatchingSpec()
        self._run = run
        self._max_batch = spec.max_batch or max_batch
        self._max_delay = spec.max_delay
        self._capacity = spec.queue_size or QUEUED_BATCHES * self._max_batch
        self._rejects = spec.when_full == "reject"
        self._waiting: deque[tuple[T, RequestFuture[R]]] = deque()
        self._clients = (
            1  # that the last batch left behind: those that it answered, and those that waited meanwhile
        )
        self._ended = -math.inf  # when the last batch did
        # Reentrant, because garbage may be collected, and `retire` called, in a thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._worker: threading.Thread | None = None
        self._closed = False
        self._process = os.getpid()

    @property
    def started(self) -> bool:
        """Whether anything was ever submitted."""
        return self._worker is not None

    @property
    def waiting(self) -> int:
        """How many requests wait for a batch."""
        return len(self._waiting)

    def is_worker(self) -> bool:
        """Tell whether the calling thread is the one that runs the batches, as in a future's callback."""
        return threading.current_thread() is self._worker

    def submit(self, item: T, future: RequestFuture[R] | None = None) -> RequestFuture[R]:
        """Queue `item` and return the future of its result: `future`, where it has a deadline.

        Raises SessionClosedError after `close`, QueueFullError where the queue is full and rejects.
        """
        if future is None:
            from resnet_export.runtime.request_future import RequestFuture

            future = RequestFuture()
        with self._changed:
            if not self._wait_for_room(future):
                future.expire()
                return future
            self._waiting.append((item, future))
            if self._worker is None:
                self._worker = threading.Thread(
                    target=self._serve, name="resnet-export-batching", daemon=True
                )
                # The thread is a daemon, so that an idle one does not keep the interpreter alive; what was
                # submitted is still completed before it exits.
                atexit.register(self.close)
                self._worker.start()
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Take nothing more, run what was submitted, and return when every future has its result.

        A call from a future's own callback returns when everything else has run. Does nothing in a fork of the process
        that made the batcher: its worker and the futures belong there, and a lock copied while held never opens.
        """
        if os.getpid() != self._process:
            return
        self.retire()
        worker = self._worker
        if worker is threading.current_thread():
            self._work()
        elif worker is not None:
            worker.join()

    def retire(self, *, cancel: bool = False) -> None:
        """Take nothing more and return at once; the worker completes what was submitted, or cancels it, and ends."""
        if os.getpid() != self._process:
            return
        with self._changed:
            self._closed = True
            dropped = [future for _, future in self._waiting] if cancel else []
            self._changed.notify_all()
        for future in dropped:
            if future.cancel():
                future.claim()  # tells those who wait for it

    def _wait_for_room(self, future: RequestFuture[R]) -> bool:
        """Return whether there is room before the deadline of `future`."""
        if len(self._waiting) >= self._capacity:
            self._drop_done()
        # The worker itself submits only from a callback, and nobody else would make room for it.
        room = self.is_worker() or len(self._waiting) < self._capacity
        if not room and not self._closed and self._rejects:
            raise QueueFullError(
                f"{len(self._waiting)} requests are waiting, which is what queue_size allows; try again later"
            )
        if not room:
            room = self._changed.wait_for(
                lambda: self._closed or len(self._waiting) < self._capacity, future.remaining
            )
        if self._closed:
            raise SessionClosedError("the session is closed and takes no more requests; open another")
        return room

    def _drop_done(self) -> None:
        """Give the places of requests that were canceled or have expired to others."""
        kept = deque((item, future) for item, future in self._waiting if not future.done())
        for _, future in self._waiting:
            if future.cancelled():
                future.claim()  # tells those who wait for it
        self._waiting = kept

    def _serve(self) -> None:
        self._work()
        atexit.unregister(self.close)

    def _work(self) -> None:
        while batch := self._collect():
            running = []
            for item, future in batch:
                if future.remaining == 0:
                    future.expire()
                elif future.claim():
                    running.append((item, future))
            if running:
                self._complete(running)

    def _collect(self) -> list[tuple[T, RequestFuture[R]]]:
        """Wait for the next batch; it is empty when the batcher is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            returning = min(self._clients, self._max_batch)
            while not self._closed and len(self._waiting) < returning:
                remaining = self._ended + self._max_delay - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            count = min(len(self._waiting), self._max_batch)
            batch = [self._waiting.popleft() for _ in range(count)]
            self._changed.notify_all()
            return batch

    def _complete(self, running: list[tuple[T, RequestFuture[R]]]) -> None:
        futures = [future for _, future in running]
        results: Sequence[R | Exception]
        try:
            results = self._run([item for item, _ in running])
            if len(results) != len(futures):
                raise ValueError(f"the batch of {len(futures)} gave {len(results)} results")
        except BaseException as error:  # noqa: BLE001 — the futures raise it
            results = [error] * len(futures)  # type: ignore[list-item]
        with self._changed:
            self._clients = len(running) + len(self._waiting)
            self._ended = time.monotonic()
        for future, result in zip(futures, results, strict=True):
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
