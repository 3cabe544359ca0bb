"""Where a bundle really stands, even if the process that was replacing it died half-way.

An export that cannot exchange two folders in one step (`exporter/bundle/atomic_replace.py`) renames twice: the old
bundle out of the way, the new one into place. Before the first of the two it writes a journal, so that whoever comes
upon the gap between them can do the second. All of it lives in one hidden folder beside the bundle,

    .NAME.staging/resnet-export.lock   held (flock) by the live export
    .NAME.staging/new-TOKEN            the bundle under construction
    .NAME.staging/old-TOKEN            the one it replaced, about to be deleted
    .NAME.staging/journal.json         {"new": "new-TOKEN"}: complete, anybody may put it into place

The second rename needs no lock: it can succeed only once, and never onto a bundle that is there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Final

import msgspec

from resnet_export.runtime.bundle.files import read_regular
from resnet_export.runtime.errors import BundleError

JOURNAL_NAME: Final = "journal.json"
_MAX_JOURNAL_BYTES = 4096


class Journal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The folder, in the staging folder, that is to stand where the bundle was."""

    new: Annotated[str, msgspec.Meta(pattern=r"^new-[0-9a-f]{16}$(?!\n)")]


def staging_folder(home: Path) -> Path:
    """Return the folder in which the bundle that shall stand at `home` (no link) is made."""
    return home.with_name(f".{home.name}.staging")


def locate(bundle: str | os.PathLike[str]) -> Path:
    """Return the folder that holds the bundle at `bundle`; links are resolved.

    A replacement that was cut off is completed first. Where this process may not rename, the folder that
    waits to be put into place is returned instead: it is whole. When there is no bundle at all, the path
    where it was expected is. Raises BundleError for what no path can be.
    """
    try:
        home = Path(os.path.realpath(bundle))
    except ValueError as error:  # a NUL in the name
        raise BundleError(f"{os.fspath(bundle)!r} is no path of a bundle ({error})") from error
    # The name of a root is empty: nothing can stand beside it.
    if os.path.lexists(home) or not home.name:
        return home
    pending = _pending(home)
    if pending is None:
        return home
    try:
        pending.rename(home)
    except OSError:
        # Somebody else was faster, or only the owner may write here.
        return home if os.path.lexists(home) else pending
    return home


def _pending(home: Path) -> Path | None:
    folder = staging_folder(home)
    try:
        journal = msgspec.json.decode(
            read_regular(folder / JOURNAL_NAME, limit=_MAX_JOURNAL_BYTES), type=Journal
        )
    except (OSError, ValueError, RecursionError):
        # None, or cut off while it was written: then the old bundle was not moved either. (msgspec's errors
        # are ValueErrors.)
        return None
    pending = folder / journal.new
    return pending if pending.is_dir() and not pending.is_symlink() else None
