"""Write a file whole or not at all: what stood there before, or what was written, and never a part of it.

Whole bundles are put into place by `exporter/bundle/atomic_replace.py`, which exchanges folders.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

__all__ = ["write_file"]


def write_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, flushed, in one step; a file that stood there leaves its permissions. Raises OSError.

    The bytes go to a hidden sibling first, so the folder has to take new files.
    """
    staged = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with staged.open("xb") as file:
            if path.exists():
                staged.chmod(stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    finally:
        with suppress(OSError):
            staged.unlink()
