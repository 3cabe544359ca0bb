"""What a folder, a list file or an .npz archive of images holds, and how its images are read.

Nothing is decoded here. A source is listed once, completely, with its labels checked; its images are then
read in ascending order, one at a time, as often as wanted.
"""

from __future__ import annotations

import codecs
import csv
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Literal, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.schema import CHANNELS
from resnet_export.runtime.errors import DatasetError

__all__ = [
    "EXTENSIONS",
    "IMAGENET_CLASSES",
    "LIST_SUFFIXES",
    "Classes",
    "Kind",
    "Listing",
    "class_folders",
    "files_of",
    "images_below",
    "list_images",
]

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

# What labels are called elsewhere, in lower case. Passed over, they would leave a labeled archive without labels.
_OTHER_NAMES_OF_LABELS = frozenset(
    {"class", "classes", "gt", "ground_truth", "label", "labels", "target", "targets", "y", "y_true"}
)
# What operating systems, archivers and network drives leave beside images, in lower case; hidden names go, too.
_DROPPINGS = frozenset(
    {
        "__macosx",
        "@eadir",
        "#recycle",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "__pycache__",
    }
)
# What the parts of a data set are called, in lower case: not its classes.
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"})
LIST_SUFFIXES = frozenset({".txt", ".csv", ".tsv", ".lst", ".list"})
_LABEL_COLUMNS = frozenset(
    {"label", "labels", "class", "class_id", "classid", "category", "target", "y", "class_index"}
)
_SEPARATORS = ",;\t"
IMAGENET_CLASSES = 1000
_MAX_DIGITS = 18  # int64 holds them all
_NAMED = 3


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
        if not found and self.count == IMAGENET_CLASSES:
            return _imagenet_wnids().get(label)
        return found[0] if found else None


@cache
def _imagenet_wnids() -> dict[str, int]:
    """Return the WordNet ids of ImageNet-1K's classes (ILSVRC 2012), by which its folders are called."""
    text = files("resnet_export.calibration.data").joinpath("imagenet_wnids.txt").read_text(encoding="ascii")
    return {wnid: index for index, wnid in enumerate(text.split())}


@dataclass(frozen=True)
class Listing:
    """Everything in a source, before any of it is decoded.

    `names` are for messages; `labels` is int64 [N] or None; `read` yields the images at ascending indices,
    each as a path or as uint8 [H, W] or [H, W, C]. `notes` say what was taken otherwise than its owner may think.
    """

    kind: Kind
    names: tuple[str, ...]
    labels: NDArray[np.int64] | None
    read: Callable[[Sequence[int]], Iterator[Path | NDArray[np.uint8]]]
    notes: tuple[str, ...] = ()


def list_images(source: Path, classes: Classes) -> Listing:
    """List a folder of images, a list file (.txt, .csv, .tsv, .lst) or an archive (.npz). Raises DatasetError.

    Folder: either images only, without labels, or one subfolder a class, searched to any depth. Each subfolder
    is called by one of the network's labels, by a class index or, for a network of 1000 classes, by the WordNet id of
    an ImageNet class; where none is called by a label, and not all by an index, they are, in sorted order, the classes
    from 0 (as in torchvision's ImageFolder), there must be as many as the network has, and a note says so. Hidden
    files, what operating systems leave behind, and files whose names do not end like an image's, are skipped. A folder
    that holds nothing but the folder of the data set stands for it; one that holds `train` and `val` is refused.

    List file: a path a line, relative to the list's own folder, on every line or on none followed by a label:
    after a space a word of digits, after a tab, a comma, a semicolon or a quoted path any word. It is one of the
    network's labels, or else a class index. This covers the form of MLPerf's calibration lists and of its
    `val_map.txt`. A .csv file may have a header and further columns; the label is the other of two columns, or the one
    that the header calls so. Backslashes separate folders where no file has them in its name.

    A word of digits that is one of the network's labels means that label, whatever class has that index.

    Archive: `images` uint8 [N, H, W, 3], RGB, [N, H, W] or [N, H, W, 1], grayscale, or [N, H, W, 4], RGBA, and if
    wanted `labels`, integers [N], or 0 and 1 for each class of a multi-label head, [N, classes]. Other arrays are not
    read, which a note says; one that seems to hold the labels under another name is refused.
    """
    try:
        if source.is_dir():
            listing = _list_folder(source, classes)
        elif not source.exists():
            raise DatasetError(
                f"{str(source)!r} does not exist; give a folder of images, a .txt or .csv list, or an .npz file"
            )
        elif not source.is_file():  # a pipe blocks whoever opens it, a device may never end
            raise DatasetError(
                f"{str(source)!r} is not a regular file; give a folder of images, a .txt or .csv list, or an .npz file"
            )
        elif source.suffix.lower() == ".npz":
            listing = _list_archive(source)
        elif source.suffix.lower() in LIST_SUFFIXES:
            listing = _list_file(source, classes)
        else:
            raise DatasetError(
                f"{str(source)!r} is not a data set; give a folder of images, a .txt or .csv list, or an .npz file"
            )
    except OSError as error:
        raise DatasetError(
            f"{str(source)!r} cannot be read ({error.strerror or error}); give a readable data set"
        ) from error
    if listing.labels is not None:
        _check_labels(source, listing.names, listing.labels, classes.count)
    return listing


def _check_labels(source: Path, names: tuple[str, ...], labels: NDArray[np.int64], count: int | None) -> None:
    if labels.ndim == 2:
        if labels.shape[1] != (count or labels.shape[1]) or not np.isin(labels, (0, 1)).all():
            raise DatasetError(
                f"{str(source)!r} holds labels {list(labels.shape)} from {labels.min()} to {labels.max()}, expected 0 "
                f"or 1 for each of the network's {count} classes"
            )
        return
    wrong = labels < 0 if count is None else (labels < 0) | (labels >= count)
    if wrong.any():
        first = int(wrong.argmax())
        raise DatasetError(
            f"{str(source)!r} gives {names[first]!r} the label {labels[first]}, expected {_expected(count)}; "
            "correct it, or use the network's own number of classes"
        )


def _expected(count: int | None) -> str:
    return "at least 0" if count is None else f"0 to {count - 1}"


def _to_index(word: str, where: str, classes: Classes) -> int:
    """Return the class index that `word`, of digits, says. One that no int64 holds is refused already here."""
    digits = word.removeprefix("-").lstrip("0")
    if len(digits) > _MAX_DIGITS:
        shown = word if len(word) <= 2 * _MAX_DIGITS else f"{word[:_MAX_DIGITS]}…"
        raise DatasetError(
            f"{where} has the class index {shown}, expected {_expected(classes.count)}; correct it"
        )
    return int(digits or "0") * (-1 if word.startswith("-") else 1)


def files_of(source: Path) -> Iterator[Path]:
    """Yield the files that a folder holds or a list file names, whether they are there or not.

    Nothing for another source, and for one that cannot be read, about which `list_images` complains.
    """
    if source.is_dir():
        for parent, _, files in os.walk(source):
            yield from (Path(parent, name) for name in files)
    elif source.is_file() and source.suffix.lower() in LIST_SUFFIXES:
        with suppress(OSError, DatasetError):
            yield from (_listed_path(source.parent, row.name) for row in _read_rows(source))


def _read_paths(paths: Sequence[Path], indices: Sequence[int]) -> Iterator[Path]:
    return (paths[index] for index in indices)


# Folders


def _list_folder(source: Path, classes: Classes) -> Listing:
    root, notes = _data_root(source, classes)
    entries = _entries(root)
    loose = [entry for entry in entries if _is_image(entry.name) and not entry.is_dir()]
    nested = {entry.name: images_below(entry) for entry in entries if entry.is_dir()}
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
        index_of, more = _classes_of_folders(root, sorted(nested), classes)
        notes += more
        pairs = [(path, index_of[name]) for name in sorted(nested) for path in nested[name]]
        paths, labels = [path for path, _ in pairs], np.array([label for _, label in pairs], np.int64)
    names = tuple(path.relative_to(source).as_posix() for path in paths)
    return Listing("folder", names, labels, lambda indices: _read_paths(paths, indices), notes)


def class_folders(source: Path) -> tuple[str, ...]:
    """Return the names of the class folders of a data set in sorted order; none where it is not such a folder.

    Raises DatasetError for a folder that `list_images` refuses whatever the network's classes are.
    """
    if not source.is_dir():
        return ()
    try:
        root, _ = _data_root(source, Classes())
        return tuple(entry.name for entry in _entries(root) if entry.is_dir())
    except OSError:  # `list_images` says it
        return ()


def _data_root(source: Path, classes: Classes) -> tuple[Path, tuple[str, ...]]:
    """Return the folder that holds the images or class folders, and a note where it is not `source` itself.

    An archive of a data set is often unpacked into a folder of its own, which is no class.
    """
    root = source
    while True:
        entries = _entries(root)
        folders = [entry for entry in entries if entry.is_dir()]
        loose = any(_is_image(entry.name) for entry in entries if not entry.is_dir())
        unknown = [entry for entry in folders if not _is_class(entry.name, classes)]
        if loose or not unknown or len(unknown) < len(folders):
            break
        splits = [entry for entry in folders if entry.name.lower() in _SPLITS]
        if len(splits) > 1:
            parts = " and ".join(repr(entry.name) for entry in splits[:_NAMED])
            raise DatasetError(
                f"{str(root)!r} holds {parts}, which are parts of a data set and not classes; give one of them, such "
                f"as {str(splits[0])!r}"
            )
        within = [entry for entry in _entries(folders[0]) if entry.is_dir()] if len(folders) == 1 else []
        if not within:
            break
        root = folders[0]
    if root == source:
        return root, ()
    return root, (f"the images of {str(source)!r} are those of {str(root)!r}, the only folder in it",)


def _is_class(name: str, classes: Classes) -> bool:
    return name.isdecimal() or classes.index(name) is not None


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not _is_dropping(entry.name))


def _is_dropping(name: str) -> bool:
    return name.startswith(".") or name.lower() in _DROPPINGS


def _is_image(name: str) -> bool:
    return not name.startswith(".") and Path(name).suffix.lower() in EXTENSIONS


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and all folders in it, as `list_images` tells images; sorted. Raises OSError."""

    def fail(error: OSError) -> NoReturn:
        raise error

    found = []
    for parent, folders, files_here in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not _is_dropping(name)]
        found += [Path(parent, name) for name in files_here if _is_image(name)]
    return sorted(found)


def _classes_of_folders(
    source: Path, names: list[str], classes: Classes
) -> tuple[dict[str, int], tuple[str, ...]]:
    by_label = {name: index for name in names if (index := classes.index(name)) is not None}
    others = [name for name in names if name not in by_label]
    if all(name.isdecimal() for name in others):
        found = by_label | {name: _to_index(name, f"a folder of {str(source)!r}", classes) for name in others}
        if len(set(found.values())) < len(names):
            raise DatasetError(f"{str(source)!r} has two folders for one class index; merge them")
        return found, ()
    if by_label:
        stranger = next(name for name in others if not name.isdecimal())
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
    first = ", ".join(f"{name!r} = {index}" for index, name in enumerate(names[:_NAMED]))
    note = (
        f"the class folders of {str(source)!r} were taken in alphabetical order, since they are not all called "
        f"by the network's labels or class indices: {first}{', …' if len(names) > _NAMED else ''}"
    )
    # Where nothing is known of the network's classes, the folders are groups to draw from and no more.
    return {name: index for index, name in enumerate(names)}, () if classes.count is None else (note,)


# List files


@dataclass(frozen=True)
class _Row:
    """A line of a list: its number, the path as it is written, and the word that is its label, if there is one."""

    number: int
    name: str
    word: str | None


def _list_file(source: Path, classes: Classes) -> Listing:
    names, labels = [], []
    index_of = cache(classes.index)
    for row in _read_rows(source):
        where = f"line {row.number} of {str(source)!r}"
        if not row.name:
            raise DatasetError(f"{where} has a label and no path; correct the line")
        label = None if row.word is None else index_of(row.word)
        if row.word is not None and label is None:
            label = _label_index(row.word, where, classes)
        names.append(row.name)
        labels.append(label)
    if not names:
        raise DatasetError(f"{str(source)!r} lists no images; write a path a line")
    known = [label for label in labels if label is not None]
    if known and len(known) < len(labels):
        stranger = names[labels.index(None)]
        raise DatasetError(
            f"{str(source)!r} gives some images a label, but none to {stranger!r}; label all of them or none"
        )
    paths = [_listed_path(source.parent, name) for name in names]
    return Listing(
        "list",
        tuple(names),
        np.array(known, np.int64) if known else None,
        lambda indices: _read_paths(paths, indices),
    )


def _listed_path(folder: Path, name: str) -> Path:
    """Return where a listed image is. Windows writes backslashes, which other systems allow in a name."""
    path = folder / name
    if "\\" in name and not path.exists():
        return folder / name.replace("\\", "/")
    return path


def _read_rows(source: Path) -> list[_Row]:
    data = source.read_bytes()
    try:
        # Names of files need not be UTF-8, and are then kept as they are.
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16") if wide else data.decode("utf-8-sig", "surrogateescape")
        if "\0" in text:
            raise ValueError("it has null bytes")
    except ValueError as error:
        raise DatasetError(f"{str(source)!r} is not UTF-8 text ({error}); write a path a line") from error
    if source.suffix.lower() == ".csv":
        return _read_csv(source, text)
    lines = re.split("\r\n|\r|\n", text)
    return [_Row(number, *_split_line(line)) for number, line in enumerate(lines, 1) if line.strip()]


def _read_csv(source: Path, text: str) -> list[_Row]:
    """Return the rows of a table: one column has the images, and one of the others, if there are any, the labels."""
    first = text.partition("\n")[0]
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=separator, skipinitialspace=True)
    try:
        lines = [
            (reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))
        ]
    except csv.Error as error:
        raise DatasetError(
            f"{str(source)!r} is not a sound .csv file ({error}); write a path and a label a line"
        ) from error
    if not lines:
        return []
    header = (
        [] if any(map(_is_image, lines[0][1])) or len(lines) == 1 else [cell.lower() for cell in lines[0][1]]
    )
    rows = lines[1:] if header else lines
    width = len(rows[0][1])
    for number, row in rows:
        if len(row) != width:
            raise DatasetError(
                f"line {number} of {str(source)!r} has {len(row)} columns, the first {width}; quote a path that has a "
                f"{separator!r} in it"
            )
    path = next((at for at in range(width) if all(_is_image(row[at]) for _, row in rows)), 0)
    others = [at for at in range(width) if at != path]
    called = [at for at in others if header and header[at] in _LABEL_COLUMNS]
    if len(others) > 1 and len(called) != 1:
        raise DatasetError(
            f"{str(source)!r} has {width} columns, and which holds the labels is not clear; call it `label` in a "
            "header, or write a .txt list with a path, a tab and a label a line"
        )
    label = called[0] if len(called) == 1 else others[0] if others else None
    return [_Row(number, row[path], None if label is None else row[label]) for number, row in rows]


def _split_line(line: str) -> tuple[str, str | None]:
    """Return the path of a line, and the word that is its label, None where there is none."""
    line = line.strip(" \r\n")
    quoted = re.fullmatch(r"""(["'])(?P<path>.*?[^\s].*?)\1\s*[,;\t ]?\s*(?P<word>.*)""", line)
    if quoted:
        return quoted["path"], quoted["word"].strip().strip("\"'") or None
    if "\t" in line:
        name, _, word = (part.strip() for part in line.rpartition("\t"))
        return name, word
    for separator in ",;":
        name, _, word = (part.strip() for part in line.rpartition(separator))
        # A comma may stand in a name: what ends like an image before it, and does not behind it, is a path.
        if _is_image(Path(name).name) and not _is_image(word):
            return name, word
    name, _, word = line.strip().rpartition(" ")
    if name and _is_integer(word):
        return name.rstrip(), word
    return line.strip(), None


def _label_index(word: str, where: str, classes: Classes) -> int:
    if not _is_integer(word):
        raise DatasetError(
            f"{where} has the label {word!r}, expected a class index or one of the network's "
            "labels; correct the line"
        )
    return _to_index(word, where, classes)


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


# Archives


def _list_archive(source: Path) -> Listing:
    try:
        with zipfile.ZipFile(source) as archive:
            shape = _image_shape(source, archive)
            labels = _archive_labels(source, archive, shape[0])
            unread = _unread(source, archive)
    except (DatasetError, OSError):
        raise
    except Exception as error:  # A parser that meets a damaged file raises whatever it stumbles over.
        raise _damaged(source, error) from error
    names = tuple(f"images[{index}]" for index in range(shape[0]))
    return Listing("npz", names, labels, lambda indices: _read_archive(source, shape, indices), unread)


def _unread(source: Path, archive: zipfile.ZipFile) -> tuple[str, ...]:
    """Return a note on the arrays that are not read. Raises DatasetError where the labels are among them."""
    found = [name.removesuffix(".npy") for name in archive.namelist()]
    others = [name for name in found if name not in ("images", "labels")]
    for name in others:
        if "labels" not in found and name.lower() in _OTHER_NAMES_OF_LABELS:
            raise DatasetError(
                f"{str(source)!r} holds {name!r} and no `labels`, by which name labels are read; save it as "
                "`labels`, or leave it out"
            )
    if not others:
        return ()
    shown = ", ".join(map(repr, others[:_NAMED])) + (", …" if len(others) > _NAMED else "")
    return (f"of {str(source)!r} only `images` and `labels` are read, not {shown}",)


def _image_shape(source: Path, archive: zipfile.ZipFile) -> tuple[int, ...]:
    if "images.npy" not in archive.namelist():
        names = ", ".join(name.removesuffix(".npy") for name in archive.namelist()) or "nothing"
        raise DatasetError(
            f"{str(source)!r} holds {names}, expected `images`; save it with np.savez(file, images=…)"
        )
    with archive.open("images.npy") as member:
        shape, fortran, dtype = _read_header(member)
        start = member.tell()
    expected = "expected uint8 [N, H, W, 3] (RGB), [N, H, W] (grayscale) or [N, H, W, 4] (RGBA)"
    # Three axes of which the last has 3 or 4 are one color image, rather than very narrow gray ones.
    images = (len(shape) == 4 and shape[3] in CHANNELS) or (len(shape) == 3 and shape[2] not in CHANNELS)
    if dtype != np.uint8 or not images or min(shape[1:]) < 1:
        raise DatasetError(f"{str(source)!r} holds images of {dtype} {list(shape)}, {expected}; convert them")
    if shape[0] < 1:
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
        if dtype.kind not in "iub" or shape[:1] != (count,) or len(shape) > 2 or shape[1:] == (0,):
            raise DatasetError(
                f"{str(source)!r} holds labels of {dtype} {list(shape)}, expected integers [{count}], or 0 and 1 for "
                f"each class, [{count}, classes]; convert them"
            )
        labels = np.frombuffer(member.read(math.prod(shape) * dtype.itemsize), dtype)
    if len(labels) != math.prod(shape):
        raise DatasetError(
            f"{str(source)!r} announces {math.prod(shape)} labels but stores {len(labels)}; save it again"
        )
    # Unsigned 64-bit labels beyond int64 turn negative, and are refused as out of range.
    return labels.reshape(shape).astype(np.int64)


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
    size = math.prod(shape[1:])
    try:
        with zipfile.ZipFile(source) as archive, archive.open("images.npy") as member:
            _read_header(member)
            position = 0
            for index in indices:
                member.seek((index - position) * size, os.SEEK_CUR)
                data = member.read(size)
                yield np.frombuffer(data, np.uint8).reshape(shape[1:])
                position = index + 1
    except Exception as error:
        raise _damaged(source, error) from error


def _damaged(source: Path, error: Exception) -> DatasetError:
    # Python's parser and tokenizer, which read the header of an array, keep a place beside the words.
    placed = len(error.args) == 2 and isinstance(error.args[1], tuple)
    lines = str(error.args[0] if placed else error).splitlines() or [type(error).__name__]
    return DatasetError(f"{str(source)!r} is not a sound .npz file ({lines[0]}); save it again with np.savez")
