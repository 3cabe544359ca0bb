"""Files of an old bundle that live on in the new one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, Manifest
from resnet_export.runtime.bundle.signature import SIGNATURE_NAME


def foreign_entries(bundle: Path, manifest: Manifest) -> Iterator[str]:
    """Yield what stands in the folder `bundle` and not in its manifest: the user's, not ours to delete.

    The relative paths of files, links and whole folders, sorted; of a folder that is foreign, nothing inside. A
    signature is not among them: it holds for the old bundle alone.
    """
    ours = {MANIFEST_NAME, SIGNATURE_NAME, *(file.file for file in manifest.contents())}
    folders = {parent.as_posix() for file in ours for parent in Path(file).parents}

    def walk(folder: Path) -> Iterator[str]:
        for entry in sorted(folder.iterdir()):
            name = entry.relative_to(bundle).as_posix()
            is_folder = entry.is_dir() and not entry.is_symlink()
            if is_folder and name in folders:
                yield from walk(entry)
            elif is_folder or name not in ours:
                yield name

    return walk(bundle)


def carry(source: Path, target: Path) -> None:
    """Give `source` (a file, a link, or a folder with all that is in it) the second name `target`.

    Hard links where the file system has them, so nothing is copied and nothing can be half-copied; else
    flushed copies. Links are kept as links. Raises OSError.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=_link)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # No hard links on this file system, too many of this file, or it is somebody else's.
        shutil.copy2(source, target)
        with Path(target).open("rb+") as file:
            os.fsync(file.fileno())
