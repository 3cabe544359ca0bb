"""The folder beside a bundle in which the next one is made: locked while it is, swept after a killed run.

Its layout is drawn in `runtime/bundle/recovery.py`. Only what has one of the names listed there is ever deleted.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from resnet_export.runtime.bundle import recovery
from resnet_export.runtime.errors import RequestError

_LOCK: Final = "resnet-export.lock"
_OURS: Final = re.compile(r"resnet-export\.lock|journal\.json|(new|old)-[0-9a-f]{16}")


@dataclass(frozen=True)
class StagingFolder:
    """A locked, swept staging folder. `home` is where the bundle shall stand; `new` and `old` are free names."""

    home: Path
    new: Path
    old: Path


@contextlib.contextmanager
def staging_folder(home: Path) -> Iterator[StagingFolder]:
    """Lock and sweep the staging folder of the bundle at `home` (no link); remove it at the end.

    What a killed run left behind is completed or deleted first. Raises RequestError when another run holds
    it, when something stands in it that no run makes, or when it cannot be written.
    """
    folder = recovery.staging_folder(home)
    with _system_errors(folder):
        lock = _lock(folder)
    try:
        with _system_errors(folder):
            _sweep(home, folder)
        token = secrets.token_hex(8)
        yield StagingFolder(home=home, new=folder / f"new-{token}", old=folder / f"old-{token}")
    finally:
        # What cannot be deleted now is litter for the next run, which says so.
        with contextlib.suppress(OSError, RequestError):
            _sweep(home, folder)
        _unlock(folder, lock)


def _complete(home: Path) -> None:
    """Complete a replacement of the bundle at `home` that was cut off. Raises RequestError."""
    if recovery.locate(home) != home:
        raise RequestError(
            f"the replacement of {home} was cut off, and this user may not rename the folder that would complete "
            "it; run any command on the bundle as the user who exported it"
        )


def _lock(folder: Path) -> FileLock:
    while True:
        folder.mkdir(exist_ok=True)
        if folder.is_symlink():
            raise RequestError(f"{folder} is a link, and the export needs a folder of that name; remove it")
        lock = FileLock(folder / _LOCK)
        try:
            # Not 0: an owner that is just leaving gets the time to.
            lock.acquire(timeout=0.3)
        except FileNotFoundError:
            continue  # its last owner removed the folder between the lines above
        except Timeout as error:
            raise RequestError(
                f"another process is writing this bundle (it holds {lock.lock_file}); "
                "wait for it to finish, or give another output folder"
            ) from error
        return lock


def _unlock(folder: Path, lock: FileLock) -> None:
    # Unlinked while it is still held: whoever waits for this file then finds it without a name and makes a
    # new one, so two can never hold "the" lock. (Windows refuses; there releasing removes it.)
    with contextlib.suppress(OSError):
        Path(lock.lock_file).unlink()
    lock.release()
    # Fails when the next run has moved in already.
    with contextlib.suppress(OSError):
        folder.rmdir()


def _sweep(home: Path, folder: Path) -> None:
    """Complete a replacement that was cut off, and delete everything but the lock."""
    _complete(home)
    entries = sorted(folder.iterdir())
    for entry in entries:
        if not _OURS.fullmatch(entry.name):
            raise RequestError(f"{entry} is not from an export, and the export needs {folder}; move it away")
    # The journal first: without it, what it named is litter and may be deleted piece by piece.
    (folder / recovery.JOURNAL_NAME).unlink(missing_ok=True)
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != _LOCK:
            entry.unlink(missing_ok=True)


@contextlib.contextmanager
def _system_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RequestError(
            f"{error.filename or folder} cannot be written ({error.strerror}); free space, change its "
            "permissions, or give another output folder"
        ) from error
