"""Files that a command will write, looked at before the work and not after it."""

from __future__ import annotations

import os
from pathlib import Path

from resnet_export.runtime.errors import RequestError


def check_writable(path: Path) -> None:
    """Raise RequestError for a file that could not be written."""
    folder = path.parent
    if not folder.is_dir():
        raise RequestError(f"{path} cannot be written: the folder {folder} is missing; create it")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise RequestError(f"{path} cannot be written; give a file that this user may write")
