"""Lets calls in until it is closed, and waits for those inside."""

from __future__ import annotations

import os
import threading

from resnet_export.runtime.errors import SessionClosedError


class Gate:
    """A context manager for the calls that need a resource; `close` returns once nobody uses it any more."""

    def __init__(self) -> None:
        self._condition = threading.Condition(threading.Lock())
        self._inside = 0
        self._closed = False
        self._process = os.getpid()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def is_forked(self) -> bool:
        """Tell whether this process is a fork of the one that made the gate."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raise SessionClosedError in a fork of the process that made the gate.

        A fork copies locks as they happen to be, and neither the threads of an engine nor its GPU, so a call would wait
        for ever; nothing of the session may be touched there.
        """
        if self.is_forked():
            raise SessionClosedError(
                f"the session was opened in process {self._process} and this is a fork of it, which has none of its "
                "threads; call open_session() in each worker process"
            )

    def __enter__(self) -> None:
        self.check_process()
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
        """Let nobody in, wait until everybody has left, and tell whether this was the first call.

        False at once in a fork, where nobody is inside and nothing may be freed.
        """
        if self.is_forked():
            return False
        with self._condition:
            first = not self._closed
            self._closed = True
            self._condition.wait_for(lambda: not self._inside)
            return first
