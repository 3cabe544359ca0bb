"""Files that a command writes: looked at before the work and not after it, and then written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import TextIO

from resnet_export.calibration.data.image_sources import files_of
from resnet_export.runtime.bundle.atomic_write import write_file
from resnet_export.runtime.errors import RequestError

# What a folder answers that takes no new files, or a file that something is mounted on.
_NO_SIBLING = frozenset({errno.EACCES, errno.EBUSY, errno.EPERM, errno.EROFS})


def check_outputs(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """Refuse files that could not be written, are named twice, or would damage what the command reads.

    Args:
        outputs: option → the file to write, None where the option was not given.
        inputs: option or argument → the file or folder to read, likewise. A folder is an input with everything
            in it, a list file with the images that it names.

    Raises RequestError.
    """
    named = {option: path for option, path in outputs.items() if path is not None}
    for option, path in named.items():
        _check_writable(option, path)
    for (option, path), (other, second) in combinations(named.items(), 2):
        if _is_one(path, second):
            raise RequestError(f"{option} and {other} both write {path}; give each a file of its own")
    for option, path in named.items():
        for source, given in inputs.items():
            if given is not None:
                _check_apart(option, path, source, given)


def check_outside(option: str, path: Path, source: str, folder: Path) -> None:
    """Raise RequestError for an output that is the input `folder`, or lies in it."""
    # Both where the path stands and where it leads, which a link makes two places.
    places = (Path(os.path.realpath(path)), Path(os.path.realpath(path.parent), path.name))
    home = Path(os.path.realpath(folder))
    if any(place.is_relative_to(home) for place in places):
        if folder.is_dir():
            raise RequestError(
                f"{option} {path} lies in the folder that {source} names, where no other files belong; "
                "name a place elsewhere"
            )
        raise RequestError(f"{option} {path} is the file that {source} names; name another file")


def write_output(path: Path, data: bytes) -> None:
    """Write `data` to the file `path`. Raises RequestError, with the path in it.

    A regular file, at the end of all links, is replaced in one step: whatever happens, the old one or the new
    one stands there whole. Where its folder allows that for no file, it is written in place. Devices, pipes and
    standard output by any of its names take the bytes as they come.
    """
    try:
        stream = _standard(path)
        if stream is not None:
            stream.flush()
            stream.buffer.write(data)
            stream.buffer.flush()
        elif path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            _replace(Path(os.path.realpath(path)), data)
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written ({error.strerror or error}); make room or name another file, and run again"
        ) from error


def _check_writable(option: str, path: Path) -> None:
    if str(path) == "-":
        raise RequestError(
            f"{option} - does not mean standard output; name a file, or /dev/stdout where there is one"
        )
    try:
        status = _status(path)
    except OSError as error:
        raise RequestError(f"{path} cannot be written ({error.strerror}); name another file") from error
    if status is None:
        folder = Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent
        if not folder.is_dir():
            raise RequestError(f"{path} cannot be written: the folder {folder} is missing; create it")
        writable = os.access(folder, os.W_OK | os.X_OK)
    else:
        writable = _takes_bytes(status.st_mode) and os.access(path, os.W_OK)
    if not writable:
        raise RequestError(f"{path} cannot be written; give a file that this user may write")


def _takes_bytes(mode: int) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _status(path: Path) -> os.stat_result | None:
    """Return what stands at the end of all links, None where nothing does. Raises OSError, also for a loop."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _is_one(path: Path, other: Path) -> bool:
    """Whether what is written last would be all that is left, or would stand among the first."""
    status, second = _status(path), _status(other)
    if status is None or second is None or stat.S_ISREG(status.st_mode):
        return os.path.realpath(path) == os.path.realpath(other)
    return os.path.samestat(status, second) and not path.samefile(os.devnull)


def _check_apart(option: str, path: Path, source: str, given: Path) -> None:
    status = _status(path)
    if status is not None and not stat.S_ISREG(status.st_mode):
        return  # Devices and pipes hold nothing that could be lost; a terminal may well be on both sides.
    check_outside(option, path, source, given)
    if status is None:
        return
    with suppress(OSError):
        if os.path.samestat(status, given.stat()):
            raise RequestError(f"{option} {path} is the file that {source} names; name another file")
    for file in files_of(given):  # behind links, and anywhere for a list
        with suppress(OSError, ValueError):
            if os.path.samestat(status, file.stat()):
                raise RequestError(f"{option} {path} is {file}, which {source} names; name another file")


def _standard(path: Path) -> TextIO | None:
    """Return the standard stream that `path` leads to, if any: opened once more, it would be written over."""
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(OSError):
            if stream is not None and os.path.samestat(path.stat(), os.fstat(descriptor)):
                return stream
    return None


def _replace(home: Path, data: bytes) -> None:
    try:
        write_file(home, data)
    except OSError as error:
        if error.errno not in _NO_SIBLING or not home.exists():
            raise
        home.write_bytes(data)
