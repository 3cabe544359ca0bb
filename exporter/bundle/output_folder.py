"""What may become the output folder, decided before minutes of work and again before the last step."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from resnet_export.exporter.bundle.staging_folder import StagingFolder, staging_folder
from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, read_manifest
from resnet_export.runtime.errors import BundleError, RequestError


@contextlib.contextmanager
def opened(out: Path, *, force: bool, bytes_needed: int) -> Iterator[StagingFolder]:
    """Check the output folder `out` and hold its staging folder. Raises RequestError."""
    with _looking_up(out):
        home = Path(os.path.realpath(out))
        _check_surroundings(out, home)
    # First, so that even a run that is refused cleans up after one that was killed.
    with staging_folder(home) as folder:
        with _looking_up(out):
            check_place(out, home, force=force)
        free = shutil.disk_usage(home.parent).free
        if free < bytes_needed:
            raise RequestError(
                f"{home.parent} has {megabytes(free)} free, the bundle needs {megabytes(bytes_needed)}; "
                "free space, or give another output folder"
            )
        yield folder


def check_place(out: Path, home: Path, *, force: bool) -> None:
    """Refuse what a bundle cannot or must not be put in place of. `home` is `out` without links.

    Only an empty folder and, with `force`, a bundle that this version can read are ever replaced. Raises
    RequestError, and OSError when the system does not let this process look.
    """
    if not os.path.lexists(home):
        return
    if not home.is_dir():
        raise RequestError(f"{out} is a file, expected a folder or nothing; give another output folder")
    if home.is_mount() or home.stat().st_dev != home.parent.stat().st_dev:
        raise RequestError(
            f"{out} is a mount point, and no bundle can be put in its place; give a folder inside it"
        )
    if not _may_rename(home):
        raise RequestError(f"this user may not replace {out}; give another output folder")
    if not is_occupied(home):
        return
    try:
        read_manifest(home)
    except BundleError as error:
        if os.path.lexists(home / MANIFEST_NAME):
            reason = f"its {MANIFEST_NAME} is none that this version can read: {error}"
        else:
            reason = f"it has no {MANIFEST_NAME}"
        raise RequestError(
            f"{out} is not empty and no bundle, so not even --force replaces it ({reason}); give another "
            "output folder, or remove this one yourself"
        ) from error
    if not force:
        raise RequestError(
            f"{out} holds a bundle already; add --force to replace it, or give another output folder"
        )


def is_occupied(home: Path) -> bool:
    """Whether something stands at `home` that a plain rename does not replace."""
    return home.is_dir() and any(home.iterdir())


def megabytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e6:,.1f} MB"


def _check_surroundings(out: Path, home: Path) -> None:
    if Path.cwd().is_relative_to(home):
        raise RequestError(
            f"the output folder {out} is the current folder or holds it, and cannot be replaced under it; "
            "give the name of a new folder"
        )
    if not home.parent.is_dir():
        raise RequestError(f"the folder {home.parent}, in which {out} should be made, is missing; create it")


@contextlib.contextmanager
def _looking_up(out: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise RequestError(
            f"the output folder {str(out)!r} cannot be looked up ({error}); give another one"
        ) from error


def _may_rename(home: Path) -> bool:
    # Moving a folder changes its "..", so the folder itself must be writable, and not only its parent.
    if not os.access(home, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        return False
    if os.name != "posix":
        return True
    # The sticky bit, as /tmp has it: only the owner of the folder or of its parent may rename.
    parent = home.parent.stat()
    sticky = bool(parent.st_mode & stat.S_ISVTX)
    return not sticky or os.geteuid() in (0, parent.st_uid, home.stat().st_uid)
