"""Micro-batching: single requests from many threads run together.

The first waiting request opens a window of `max_delay`; what arrives within it, up to `max_batch`, runs as
one batch. A batch that filled up while the previous one ran does not wait at all. The queue is bounded:
`submit` blocks while it is full, so a producer that is too fast is slowed down and does not fill the memory.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

from resnet_export.runtime.errors import SessionClosedError

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

MAX_DELAY = 0.002
"""Seconds that a request waits for company."""

QUEUED_BATCHES = 4
"""How many full batches may wait before `submit` blocks."""


class MicroBatcher(Generic[T, R]):
    """Collects items and hands them to `run` in batches, from one thread that starts with the first item.

    `run` takes at most `max_batch` items and returns one result for each. What it raises reaches every future
    of that batch, and the next batch runs as if nothing had happened.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        *,
        max_batch: int,
        max_delay: float = MAX_DELAY,
        capacity: int | None = None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_delay = max_delay
        self._capacity = capacity or QUEUED_BATCHES * max_batch
        self._waiting: deque[tuple[T, Future[R]]] = deque()
        # Reentrant, because garbage may be collected, and `retire` called, in a thread that holds it.
        self._changed = threading.Condition(threading.RLock())
        self._worker: threading.Thread | None = None
        self._closed = False
        self._process = os.getpid()

    def submit(self, item: T) -> Future[R]:
        """Queue `item` and return the future of its result. Raises SessionClosedError after `close`."""
        from concurrent.futures import Future  # brings logging: half the cost of importing this package

        future: Future[R] = Future()
        with self._changed:
            # The worker itself submits only from a callback, and nobody else would make room for it.
            if threading.current_thread() is not self._worker:
                self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._capacity)
            if self._closed:
                raise SessionClosedError("the session is closed and takes no more requests; open another")
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

    def retire(self) -> None:
        """Take nothing more and return at once; the worker completes what was submitted and ends."""
        if os.getpid() != self._process:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _serve(self) -> None:
        self._work()
        atexit.unregister(self.close)

    def _work(self) -> None:
        while batch := self._collect():
            running = [(item, future) for item, future in batch if future.set_running_or_notify_cancel()]
            if running:
                self._complete(running)

    def _collect(self) -> list[tuple[T, Future[R]]]:
        """Wait for the next batch; it is empty when the batcher is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            deadline = time.monotonic() + self._max_delay
            while not self._closed and len(self._waiting) < self._max_batch:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    break
                self._changed.wait(remaining)
            count = min(len(self._waiting), self._max_batch)
            batch = [self._waiting.popleft() for _ in range(count)]
            self._changed.notify_all()
            return batch

    def _complete(self, running: list[tuple[T, Future[R]]]) -> None:
        futures = [future for _, future in running]
        try:
            results = list(zip(futures, self._run([item for item, _ in running]), strict=True))
        except BaseException as error:  # noqa: BLE001 — the futures raise it
            for future in futures:
                future.set_exception(error)
            return
        for future, result in results:
            future.set_result(result)
