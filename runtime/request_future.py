"""The future of one queued request, which ends at its deadline. Loaded on use: concurrent.futures brings logging."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from resnet_export.runtime.errors import RequestTimeoutError

__all__ = ["RequestFuture"]

R = TypeVar("R")
W = TypeVar("W")


class RequestFuture(Future[R]):
    """A future whose `result` raises RequestTimeoutError `timeout` seconds after it was made, if it has none by then.

    A request that is still queued at that time never runs. One that runs cannot be interrupted: who waits is
    released, and its result is there if it is asked for again later.
    """

    def __init__(self, timeout: float | None = None) -> None:
        super().__init__()
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._claiming = threading.Lock()
        self._claimed = False

    @property
    def remaining(self) -> float | None:
        """Seconds to the deadline, at least 0; None without one."""
        return None if self._deadline is None else max(self._deadline - time.monotonic(), 0.0)

    def claim(self) -> bool:
        """Take the request, to run it or to fail it: True once, and never after it was canceled."""
        with self._claiming:
            if self._claimed:
                return False
            self._claimed = True
        return self.set_running_or_notify_cancel()

    def expire(self) -> None:
        """Fail the request if nobody has taken it."""
        if self.claim():
            self.set_exception(self.timed_out())

    def result(self, timeout: float | None = None) -> R:
        """Return the result. Raises RequestTimeoutError at the deadline, TimeoutError after `timeout` seconds."""
        return self._wait(super().result, timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, None for nothing. Raises as `result` does."""
        return self._wait(super().exception, timeout)

    def _wait(self, wait: Callable[[float | None], W], timeout: float | None) -> W:
        remaining = self.remaining
        if remaining is None or (timeout is not None and timeout < remaining):
            return wait(timeout)
        try:
            return wait(remaining)
        except TimeoutError:
            self.expire()
            if self.done():  # by now, or with a TimeoutError of its own
                return wait(0)
            raise self.timed_out() from None

    def timed_out(self) -> RequestTimeoutError:
        """Return the error of a request that has reached its deadline."""
        return RequestTimeoutError(
            f"the request had no result after its timeout of {self._timeout:g} s; allow more time or send fewer at once"
        )
