"""What a process that lives for one command can afford, and a library must not do to its caller."""

from __future__ import annotations

import ctypes
import gc
import io
import os
import sys
from typing import Any, NoReturn, TextIO

# malloc.h of glibc.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP = 1 << 29

_GENERATIONS = (100_000, 50, 100)


def settle() -> None:
    """Trade a little memory for time: with `leave`, the export of ResNet-50 takes 16 seconds instead of 21.

    - What torch imports lives as long as the process; the garbage collector looks at it less often.
    - Activations of many megabytes come and go. glibc returns each to the kernel and asks for it anew, zeroed;
      here it keeps up to half a gigabyte. Where there is no `mallopt`, nothing changes.
    """
    gc.set_threshold(*_GENERATIONS)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_TRIM_THRESHOLD, _KEEP)
    mallopt(_M_MMAP_THRESHOLD, _KEEP)


class _Standard(io.FileIO):
    """Standard output or error. What nobody reads any more is dropped: the exit status is still to be had."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)
        except OSError as error:
            name = "standard output" if self.fileno() == 1 else "standard error"
            raise OSError(error.errno, error.strerror, name) from error


def open_streams() -> None:
    """Make standard output and error take whatever a command prints.

    - Characters that a terminal cannot show are replaced.
    - A reader that goes away (`| head`) ends nothing.
    - Where they were closed (`2>&-`), what is printed is lost, and no file that is opened later takes their place.
    """
    if os.name != "posix":
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        return
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
    sys.stdout, sys.stderr = _open(1, sys.stdout), _open(2, sys.stderr)


def _open(descriptor: int, stream: TextIO | None) -> TextIO:
    encoding = "utf-8" if stream is None else stream.encoding
    raw = _Standard(descriptor, "w", closefd=False)
    lines = descriptor == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors="replace", line_buffering=lines)


def leave(status: int) -> NoReturn:
    """End the process without taking its modules and networks apart first, which takes over a second."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
