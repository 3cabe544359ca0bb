"""Reading a file of a folder that somebody else filled: nothing outside it, nothing but a regular file.

Known traps: a name with ".." or a link that leaves the folder, a FIFO that blocks whoever opens it, a device
that never ends, a file that is larger than promised.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from resnet_export.runtime.errors import IntegrityError

# A protobuf message, hence an ONNX file with its weights inside, ends at 2 GiB; engines stay far below.
MAX_FILE_BYTES: Final = 2**31 - 1

# Windows has neither; there O_BINARY is what keeps bytes as they are.
_OPEN_FLAGS = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_BINARY", 0)
)


def read_regular(path: Path, *, limit: int, size: int | None = None) -> bytes:
    """Return the bytes of the regular file `path`, without ever blocking on something else.

    Raises OSError when it cannot be read, and ValueError when it is no regular file, holds more than `limit`
    bytes, or holds other than `size` bytes. Size and type are looked up on the open file, before it is read.
    """
    # O_NONBLOCK: without it, opening a FIFO waits for a writer.
    descriptor = os.open(path, _OPEN_FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        expected = status.st_size if size is None else size
        if status.st_size != expected:
            raise ValueError(f"it has {status.st_size:,} bytes, expected {expected:,}")
        if expected > limit:
            raise ValueError(f"it has {expected:,} bytes, expected at most {limit:,}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(expected + 1)
    finally:
        os.close(descriptor)
    if len(data) != expected:
        raise ValueError("it changed while it was read")
    return data


def confined_path(folder: Path, file: str) -> Path:
    """Return the real path of `file` in `folder`. Raises IntegrityError when it lies outside, or leads there.

    `file` uses forward slashes on every system. Links are followed as long as they stay inside the folder.
    """
    if "\\" in file or ":" in file or "\0" in file or file.startswith("/") or ".." in file.split("/"):
        raise IntegrityError(
            f"{file!r} is no path inside the bundle {folder} (expected a relative one, in forward slashes); "
            "export the bundle again"
        )
    # A file-by-file link farm (as content-addressed caches make) is outside too: the bundle must be a folder
    # that can be moved or served as it stands.
    root = Path(os.path.realpath(folder))
    path = Path(os.path.realpath(root / file))
    if not path.is_relative_to(root):
        raise IntegrityError(
            f"{file!r} points outside the bundle {folder}, to {path}; export the bundle again, or copy it "
            "with its links resolved"
        )
    return path


def read_confined(folder: Path, file: str, sha256: str, size: int | None = None) -> bytes:
    """Return the bytes of `file` in `folder`, whose SHA-256 is `sha256`.

    The bytes that were hashed are the bytes returned. Raises IntegrityError.
    """
    path = confined_path(folder, file)
    try:
        data = read_regular(path, limit=MAX_FILE_BYTES, size=size)
    except OSError as error:
        reason = "it is a loop of links" if error.errno == errno.ELOOP else error.strerror
        raise IntegrityError(
            f"{file!r} of the bundle {folder} cannot be read ({reason}); export the bundle again"
        ) from error
    except ValueError as error:
        raise IntegrityError(
            f"{file!r} of the bundle {folder} is not what the manifest says: {error}; export the bundle again"
        ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise IntegrityError(
            f"{file!r} has sha256 {found[:12]}…, the manifest says {sha256[:12]}…; the file was changed or "
            "damaged after the export: export the bundle again"
        )
    return data
