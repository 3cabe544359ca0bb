"""The user's cache folder: the only place where the runtime writes, and only what it can make again."""

from __future__ import annotations

import os
import stat
from pathlib import Path

__all__ = ["private_folder", "trim"]


def private_folder(name: str) -> Path:
    """Return the folder `name` in this project's part of the user's cache, made if need be.

    Raises OSError where it cannot be made, or where another user could write to it; RuntimeError for a user without a
    home folder; ImportError.
    """
    home = _user_cache()
    folder = home / name
    home.parent.mkdir(parents=True, exist_ok=True)
    for private in (home, folder):
        private.mkdir(mode=0o700, exist_ok=True)
        _check_private(private)
    return folder


def trim(pattern: str, limit: int) -> None:
    """Delete the files that match `pattern` in the cache, those used longest ago first, until they take `limit` bytes.

    Raises OSError where one cannot be deleted, RuntimeError and ImportError as `private_folder`.
    """
    found = [(path.stat().st_mtime_ns, path.stat().st_size, path) for path in _user_cache().glob(pattern)]
    total = 0
    for _, size, path in sorted(found, reverse=True):
        total += size
        if total > limit:
            path.unlink(missing_ok=True)


def _user_cache() -> Path:
    import platformdirs

    folder = platformdirs.user_cache_path("resnet-export", appauthor=False)
    if not folder.is_absolute():  # "~" stays as it is for a user without HOME and without an entry
        raise RuntimeError("this user has no home folder")
    return folder


def _check_private(folder: Path) -> None:
    """Raise OSError where another user could put code into `folder`, or this one cannot write to it."""
    found = folder.stat()
    if os.name == "posix" and (found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022):
        raise PermissionError(None, "other users can write to it", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(None, "it cannot be written", str(folder))
