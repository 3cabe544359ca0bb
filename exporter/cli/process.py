"""What a process that lives for one command can afford, and a library must not do to its caller."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from typing import NoReturn

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


def leave(status: int) -> NoReturn:
    """End the process without taking its modules and networks apart first, which takes over a second."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
