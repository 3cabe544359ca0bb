"""What a folder, a list file or an .npz archive of images holds, and how its images are read.

Nothing is decoded here. A source is listed once, completely, with its labels checked; its images are then
read in ascending order, one at a time, as often as wanted.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.errors import DatasetError

__all__ = ["EXTENSIONS", "Classes", "Kind", "Listing", "list_images"]

Kind: TypeAlias = Literal["folder", "list", "npz"]

EXTENSIONS = frozenset(
    {
        ".avif",
        ".bmp",
        ".dib",
        ".gif",
        ".heic",
        ".heif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
)
"""The names' endings, in lower case, by which files of a folder count as images."""


@dataclass(frozen=True)
class Classes:
    """What is known of the network's classes: `labels` (may be empty) and `count` (None: unknown)."""

    labels: tuple[str, ...] = ()
    count: int | None = None

    def index(self, label: str) -> int | None:
        """Return the class called `label`, None if there is none; raise DatasetError if there are several."""
        found = [index for index, name in enumerate(self.labels) if name == label]
        if len(found) > 1:
            raise DatasetError(
                f"the label {label!r} names classes {found[0]} and {found[1]}; use the class index instead"
            )
        return found[0] if found else None


@dataclass(frozen=True)
class Listing:
    """Everything in a source, before any of it is decoded.

    `names` are for messages; `labels` is int64 [N] or None; `read` yields the images at ascending indices,
    each as a path or as uint8 [H, W, 3].
    """

    kind: Kind
    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    read: Callable[[Sequence[int]], Iterator[Path | NDArray[np.uint8]]]


def list_images(source: Path, classes: Classes) -> Listing:
    """List a folder of images, a list file (.txt) or an archive (.npz). Raises DatasetError.

    Folder: either images only, without labels, or one subfolder a class, searched to any depth. The names of
    the subfolders are the network's labels; or else class indices; or else, in sorted order, the classes from
    0 (as in torchvision's ImageFolder), and then there must be as many as the network has. Hidden files, and
    files whose names do not end like an image's, are passed over.

    List file: a path a line, relative to the list's own folder, on every line or on none followed by a label:
    after a space a class index, after a tab a class index or one of the network's labels. This is the form of
    MLPerf's calibration lists and of its `val_map.txt`.

    Archive: `images` uint8 [N, H, W, 3], RGB, and if wanted `labels`, integers [N].
    """
    try:
        if source.is_dir():
            listing = _list_folder(source, classes)
        elif not source.exists():
            raise DatasetError(
                f"{str(source)!r} does not exist; give a folder of images, a .txt list or an .npz file"
            )
        elif source.suffix.lower() == ".npz":
            listing = _list_archive(source)
        elif source.suffix.lower() == ".txt":
            listing = _list_file(source, classes)
        else:
            raise DatasetError(
                f"{str(source)!r} is not a data set; give a folder of images, a .txt list or an .npz file"
            )
    except OSError as error:
        raise DatasetError(
            f"{str(source)!r} cannot be read ({error.strerror or error}); give a readable data set"
        ) from error
    if listing.labels is not None:
        _check_labels(source, listing.names, listing.labels, classes.count)
    return listing


def _check_labels(source: Path, names: tuple[str, ...], labels: NDArray[np.int64], count: int | None) -> None:
    wrong = labels < 0 if count is None else (labels < 0) | (labels >= count)
    if wrong.any():
        first = int(wrong.argmax())
        expected = "at least 0" if count is None else f"0 to {count - 1}"
        raise DatasetError(
            f"{str(source)!r} gives {names[first]!r} the label {labels[first]}, expected {expected}; "
            "correct it, or use the network's own number of classes"
        )


def _read_paths(paths: Sequence[Path], indices: Sequence[int]) -> Iterator[Path]:
    return (paths[index] for index in indices)


# Folders


def _list_folder(source: Path, classes: Classes) -> Listing:
    entries = sorted(entry for entry in source.iterdir() if not entry.name.startswith("."))
    loose = [entry for entry in entries if _is_image(entry.name) and not entry.is_dir()]
    nested = {entry.name: _walk(entry) for entry in entries if entry.is_dir()}
    in_folders = sum(map(len, nested.values()))
    if loose and in_folders:
        raise DatasetError(
            f"{str(source)!r} has images beside subfolders with images; keep either images only, "
            "or one subfolder a class"
        )
    if not loose and not in_folders:
        raise DatasetError(f"{str(source)!r} has no images; give a folder with files such as .jpg or .png")
    if loose:
        paths, labels = loose, None
    else:
        index_of = _classes_of_folders(source, sorted(nested), classes)
        pairs = [(path, index_of[name]) for name in sorted(nested) for path in nested[name]]
        paths, labels = [path for path, _ in pairs], np.array([label for _, label in pairs], np.int64)
    names = tuple(path.relative_to(source).as_posix() for path in paths)
    return Listing("folder", names, labels, lambda indices: _read_paths(paths, indices))


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def _walk(folder: Path) -> list[Path]:
    def fail(error: OSError) -> NoReturn:
        raise error

    found = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if _is_image(name)]
    return sorted(found)


def _classes_of_folders(source: Path, names: list[str], classes: Classes) -> dict[str, int]:
    by_label = {name: index for name in names if (index := classes.index(name)) is not None}
    if len(by_label) == len(names):
        return by_label
    if all(name.isdecimal() for name in names):
        by_index = {name: int(name) for name in names}
        if len(set(by_index.values())) < len(names):
            raise DatasetError(f"{str(source)!r} has two folders for one class index; merge them")
        return by_index
    if by_label:
        stranger = next(name for name in names if name not in by_label)
        raise DatasetError(
            f"{str(source)!r} has a folder {stranger!r}, which is none of the network's labels, though "
            "others are; rename it to its label"
        )
    if classes.count not in {None, len(names)}:
        raise DatasetError(
            f"{str(source)!r} has {len(names)} class folders, the network has {classes.count} classes, and "
            f"names such as {names[0]!r} are neither its labels nor class indices; name each folder after "
            "its label or class index, or put the images into one folder without labels"
        )
    return {name: index for index, name in enumerate(names)}


# List files


def _list_file(source: Path, classes: Classes) -> Listing:
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{str(source)!r} is not UTF-8 text ({error}); write a path a line") from error
    names, labels = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, label = _parse_line(line, f"line {number} of {str(source)!r}", classes)
            names.append(name)
            labels.append(label)
    if not names:
        raise DatasetError(f"{str(source)!r} lists no images; write a path a line")
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        stranger = names[labels.index(None)]
        raise DatasetError(
            f"{str(source)!r} gives some images a label, but none to {stranger!r}; label all of them or none"
        )
    paths = [source.parent / name for name in names]
    return Listing(
        "list",
        tuple(names),
        np.array(known, np.int64) if known else None,
        lambda indices: _read_paths(paths, indices),
    )


def _parse_line(line: str, where: str, classes: Classes) -> tuple[str, int | None]:
    if "\t" in line:
        name, _, label = (part.strip() for part in line.rpartition("\t"))
        index = int(label) if _is_integer(label) else classes.index(label)
        if not name or index is None:
            raise DatasetError(
                f"{where} has {label!r} after its tab, expected a class index or one of the network's "
                "labels; correct the line"
            )
        return name, index
    name, _, label = line.strip().rpartition(" ")
    if name and _is_integer(label):
        return name.rstrip(), int(label)
    return line.strip(), None


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


# Archives


def _list_archive(source: Path) -> Listing:
    try:
        with zipfile.ZipFile(source) as archive:
            shape = _image_shape(source, archive)
            labels = _archive_labels(source, archive, shape[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise _damaged(source, error) from error
    names = tuple(f"images[{index}]" for index in range(shape[0]))
    return Listing("npz", names, labels, lambda indices: _read_archive(source, shape, indices))


def _image_shape(source: Path, archive: zipfile.ZipFile) -> tuple[int, ...]:
    if "images.npy" not in archive.namelist():
        names = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
        raise DatasetError(
            f"{str(source)!r} holds {names}, expected `images`; save it with np.savez(file, images=…)"
        )
    with archive.open("images.npy") as member:
        shape, fortran, dtype = _read_header(member)
        start = member.tell()
    expected = "expected uint8 [N, H, W, 3]"
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[1] or not shape[2]:
        raise DatasetError(f"{str(source)!r} holds images of {dtype} {list(shape)}, {expected}; convert them")
    if not shape[0]:
        raise DatasetError(f"{str(source)!r} has no images; save at least one")
    if fortran:
        raise DatasetError(
            f"{str(source)!r} holds its images in Fortran order, which cannot be streamed; "
            "save np.ascontiguousarray(images)"
        )
    stored = archive.getinfo("images.npy").file_size - start
    if stored != int(np.prod(shape, dtype=object)):
        raise DatasetError(
            f"{str(source)!r} announces images {list(shape)} but stores {stored} bytes; save it again"
        )
    return shape


def _archive_labels(source: Path, archive: zipfile.ZipFile, count: int) -> NDArray[np.int64] | None:
    if "labels.npy" not in archive.namelist():
        return None
    with archive.open("labels.npy") as member:
        shape, _, dtype = _read_header(member)
        if dtype.kind not in "iu" or shape != (count,):
            raise DatasetError(
                f"{str(source)!r} holds labels of {dtype} {list(shape)}, expected integers [{count}]; "
                "convert them"
            )
        labels = np.frombuffer(member.read(count * dtype.itemsize), dtype)
    if len(labels) != count:
        raise DatasetError(
            f"{str(source)!r} announces {count} labels but stores {len(labels)}; save it again"
        )
    # Unsigned 64-bit labels beyond int64 turn negative, and are refused as out of range.
    return labels.astype(np.int64)


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """Read the header of the NPY format (numpy.lib.format), version 1 or 2; the data follows in `member`."""
    version = np.lib.format.read_magic(member)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(member)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(member)
    raise ValueError(f"NPY format {version[0]}.{version[1]} is not known")


def _read_archive(
    source: Path, shape: tuple[int, ...], indices: Sequence[int]
) -> Iterator[NDArray[np.uint8]]:
    size = shape[1] * shape[2] * shape[3]
    try:
        with zipfile.ZipFile(source) as archive, archive.open("images.npy") as member:
            _read_header(member)
            position = 0
            for index in indices:
                member.seek((index - position) * size, os.SEEK_CUR)
                data = member.read(size)
                yield np.frombuffer(data, np.uint8).reshape(shape[1:])
                position = index + 1
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError, OSError) as error:
        raise _damaged(source, error) from error


def _damaged(source: Path, error: Exception) -> DatasetError:
    return DatasetError(f"{str(source)!r} is not a sound .npz file ({error}); save it again with np.savez")
