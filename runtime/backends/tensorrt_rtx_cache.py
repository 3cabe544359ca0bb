"""The runtime cache of TensorRT for RTX: kernels that it compiled for this GPU, kept for the next session.

They are executable code like the engine itself, so a cache file starts with the SHA-256 of the rest and is
used only if that is right. Its folder is named by all that the kernels depend on (`runtime/kernel_cache.py`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from resnet_export.runtime.bundle.atomic_write import write_file

FILE = "runtime-cache.kernels"
_DIGEST_BYTES = 32


def read_cache(path: Path) -> bytes | None:
    """Return the kernels, or None when there are none or the file is damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, kernels = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    return kernels if kernels and hashlib.sha256(kernels).digest() == digest else None


def write_cache(path: Path, kernels: bytes) -> None:
    """Replace the file in one step. Does nothing when it holds just that. Raises OSError."""
    if not kernels or read_cache(path) == kernels:
        return
    write_file(path, hashlib.sha256(kernels).digest() + kernels)
