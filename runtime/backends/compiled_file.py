"""What an engine compiled for this host, kept for the next session.

It is executable code like an engine itself, so a file starts with the SHA-256 of the rest and is used only if that is
right. Its folder is named by all that the code depends on (`runtime/kernel_cache.py`).
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from resnet_export.runtime.bundle.atomic_write import write_file

_DIGEST_BYTES = 32


def read_compiled(path: Path) -> bytes | None:
    """Return the code, or None when there is none or the file is damaged. What is read counts as used now."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):
        os.utime(path)
    digest, code = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def write_compiled(path: Path, code: bytes) -> None:
    """Replace the file in one step. Does nothing when it holds just that. Raises OSError."""
    if not code or read_compiled(path) == code:
        return
    write_file(path, hashlib.sha256(code).digest() + code)
