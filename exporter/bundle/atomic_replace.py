"""Put a finished folder where another one stands, or nothing does, in one step that a crash cannot halve.

Three ways, tried in this order: a plain rename where nothing (or an empty folder) stands; an atomic exchange
(`renameat2` with RENAME_EXCHANGE, Linux 3.15, on file systems that have it); and two renames under a journal,
which whoever opens the bundle next completes when the process dies between them (`runtime/bundle/recovery.py`).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path
from typing import Final

import msgspec

from resnet_export.runtime.bundle.recovery import JOURNAL_NAME, Journal

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
# No such call; a file system without the flag; a sandbox that answers what it does not know with EPERM. If
# that EPERM was meant, the plain renames fail with it too, before anything has moved.
_NO_EXCHANGE: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM})


def place(new: Path, home: Path) -> None:
    """Rename the folder `new` to `home`, where nothing or an empty folder stands. Raises OSError."""
    flush_folder(new.parent)
    if os.name == "nt":  # Windows renames onto nothing, not even onto an empty folder
        with contextlib.suppress(FileNotFoundError):
            home.rmdir()
    new.rename(home)
    flush_folder(home.parent)


def replace(new: Path, home: Path, old: Path) -> None:
    """Put the folder `new` where the folder `home` stands. Raises OSError.

    What stood there is then at `new` (exchanged) or `old` (renamed), for the caller to delete. All three lie
    on one file system; `new` and `old` in one folder, the staging folder. When this fails, `home` is what it was.
    """
    flush_folder(new.parent)
    if exchange(new, home):
        flush_folder(home.parent)
    else:
        _replace_in_two_steps(new, home, old)


def exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically; return False, with nothing done, where that cannot be. Raises OSError."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), os.fspath(other))


def flush_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system lets a folder be flushed."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def _replace_in_two_steps(new: Path, home: Path, old: Path) -> None:
    journal = new.parent / JOURNAL_NAME
    made = new.stat()
    with journal.open("xb") as file:
        file.write(msgspec.json.encode(Journal(new=new.name)))
        file.flush()
        os.fsync(file.fileno())
    flush_folder(journal.parent)
    try:
        home.rename(old)
    except OSError:
        journal.unlink()
        raise
    # From here a reader may be the one who completes it.
    try:
        new.rename(home)
    except OSError:
        if not _is_same(home, made):
            if not os.path.lexists(home):
                old.rename(home)
            journal.unlink()
            raise
    flush_folder(home.parent)
    journal.unlink()


def _is_same(path: Path, made: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), made)
    except FileNotFoundError:
        return False
