"""Lets calls in until it is closed, and waits for those inside."""

from __future__ import annotations

import threading

from resnet_export.runtime.errors import SessionClosedError


class Gate:
    """A context manager for the calls that need a resource; `close` returns once nobody uses it any more."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __enter__(self) -> None:
        with self._condition:
            if self._closed:
                raise SessionClosedError("the session is closed; open another with open_session()")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._condition:
            self._inside -= 1
            if self._closed and not self._inside:
                self._condition.notify_all()

    def close(self) -> bool:
        """Let nobody in, wait until everybody has left, and tell whether this was the first call."""
        with self._condition:
            first = not self._closed
            self._closed = True
            self._condition.wait_for(lambda: not self._inside)
            return first
