"""Following a folder: a thread that looks at its files from time to time and says when they are others."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

__all__ = ["FolderWatcher"]

_LONGEST_PAUSE = 60.0  # seconds between two attempts on the same files

Signature = tuple[tuple[str, int, int, int], ...]


class FolderWatcher:
    """Calls `changed` in a thread of its own when the files in `folder` are others than before, and once at first.

    Where `changed` raises, it is called again: at once when the files change again, as those of a folder that is being
    copied do, else after pauses that double up to a minute. The watcher ends with the object that `changed` is a method
    of, with `stop`, and with the interpreter.

    Args:
        folder: the folder; it may be missing for a while.
        changed: a bound method, which is held weakly.
        interval: seconds between two looks.
    """

    def __init__(
        self, folder: str | os.PathLike[str], changed: Callable[[], object], *, interval: float
    ) -> None:
        self._folder = folder
        self._changed = weakref.WeakMethod(changed)
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="resnet-export-watching", daemon=True)
        atexit.register(self.stop)
        self._thread.start()

    def stop(self) -> None:
        """End, and return when no call is under way any more; at once from within a call."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        done: Signature | None = None
        tried: Signature | None = None
        failures, again = 0, 0.0
        while True:
            found = _signature(self._folder)
            if found is not None and found != done and (found != tried or time.monotonic() >= again):
                changed = self._changed()
                if changed is None:
                    break
                try:
                    changed()
                except Exception:  # noqa: BLE001 — who is called has told its user
                    failures = failures + 1 if found == tried else 1
                    again = time.monotonic() + min(self._interval * 2**failures, _LONGEST_PAUSE)
                else:
                    done = found
                tried = found
                del changed  # or this thread would keep its object alive
            if self._stopped.wait(self._interval) or self._changed() is None:
                break
        atexit.unregister(self.stop)


def _signature(folder: str | os.PathLike[str]) -> Signature | None:
    """Return name, inode, size and time of every file in `folder`; None where there is no folder to read."""
    home = Path(os.path.realpath(folder))
    found = []
    try:
        for parent, _, files in os.walk(home, onerror=_raise):
            for name in files:
                path = Path(parent, name)
                status = path.stat()
                found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
    except OSError:
        return None
    return tuple(sorted(found))


def _raise(error: OSError) -> None:
    raise error
