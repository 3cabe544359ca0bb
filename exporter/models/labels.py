"""Class names: ImageNet's, a user's file in any of the forms that people have, or numbers.

`data/imagenet_labels.txt` holds the names of torchvision 0.28; `data/photos/PROVENANCE.md` has its licence.
"""

from __future__ import annotations

import ast
import codecs
import csv
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from resnet_export.runtime.bundle.schema import label_count
from resnet_export.runtime.errors import RequestError

__all__ = ["default_labels", "imagenet_labels", "read_labels"]

_MAX_LENGTH = 1000  # characters; the manifest takes no longer ones
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")  # as the manifest has it: all but the tab
_NUMBERED = re.compile(
    r"""\s*["']?(?P<number>\d{1,9})["']?\s*(?P<separator>[:,;=\t]|\s)\s*(?P<name>.*?)\s*,?\s*"""
)
# Keys under which configuration files keep the names.
_KEYS = ("id2label", "names", "labels", "label_names", "classes", "class_names", "class_to_idx", "label2id")
_FORMS = "give one label a line, in the order of the classes"


def imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 class names of ImageNet-1K, in class order."""
    text = (files("resnet_export.exporter") / "data" / "imagenet_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def default_labels(num_classes: int) -> tuple[str, ...]:
    """Return ImageNet's names for 1000 classes, and "class 0", "class 1", … for any other number.

    A binary classifier, with one class, has two names.
    """
    if num_classes == 1000:
        return imagenet_labels()
    return tuple(f"class {index}" for index in range(label_count(num_classes)))


def read_labels(path: Path, num_classes: int | None = None) -> tuple[str, ...]:
    """Read the labels of a file, in class order.

    The file is text, UTF-8 with or without a byte-order mark (or UTF-16 with one), with any line ends, in one of these
    forms:

    - a label a line; white space around it and empty lines at the end are dropped;
    - a number and a label a line ("4 elk", "4: elk", "4,elk"), in any order, counted from 0 or from 1;
    - JSON or a Python literal: a list of labels, a dictionary of number → label or label → number, also below a key
      such as `id2label`; of several names of a class the last is taken (`imagenet_class_index.json`);
    - .csv or .tsv, with or without a header: one column of labels, or one of numbers beside it.

    `num_classes` None leaves the number unchecked. Raises RequestError, with file and line, when the file cannot be
    read, has an empty line between labels, a control character or a label of over 1000 characters, numbers that do not
    count the classes, or another number of labels than `num_classes`.
    """
    text = _read_text(path)
    numbered: list[tuple[int, str]]  # the line, and the label on it
    value = _literal(text)
    if value is not None:
        numbered = [(0, label) for label in _of_value(path, value)]
    else:
        lines = [line.strip() for line in text.strip().split("\n")] if text.strip() else []
        if "" in lines:
            raise RequestError(
                f"line {lines.index('') + 1} of the labels file {path} is empty; name every class"
            )
        # Before white space is taken from both ends, at which a first line may have stood empty.
        first = text[: len(text) - len(text.lstrip())].count("\n") + 1
        numbered = [(first + at, line) for at, line in enumerate(lines)]
        if path.suffix.lower() in {".csv", ".tsv"}:
            numbered = _of_table(path, numbered)
        numbered = _in_order(path, numbered)
    for line, label in numbered:
        _check(path, line, label)
    labels = tuple(label for _, label in numbered)
    if num_classes is not None and len(labels) != label_count(num_classes):
        binary = (
            "one output, whose logit decides between two classes"
            if num_classes == 1
            else f"{num_classes} classes"
        )
        raise RequestError(
            f"the labels file {path} has {len(labels)} labels, but the network has {binary}; "
            "give one label for each class"
        )
    return labels


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise RequestError(
            f"the labels file {path} cannot be read ({error.strerror}); give a text file, one label a line"
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the labels file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8, one label a line"
        ) from error
    # Not splitlines(): it also splits at characters that may stand inside a name, such as U+2028.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check(path: Path, line: int, label: str) -> None:
    where = f"line {line} of the labels file {path}" if line else f"a label of the labels file {path}"
    if not label:
        raise RequestError(f"{where} is empty; name every class")
    if found := _CONTROL.search(label):
        raise RequestError(
            f"{where} has the control character U+{ord(found[0]):04X}, which a label cannot have; is the file UTF-8 "
            f"text? {_FORMS}"
        )
    if len(label) > _MAX_LENGTH:
        raise RequestError(f"{where} has {len(label)} characters, expected at most {_MAX_LENGTH}; {_FORMS}")


def _in_order(path: Path, lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return the lines in the order of their numbers, without these, where every line has one."""
    found = [_NUMBERED.fullmatch(label) for _, label in lines]
    matches = [match for match in found if match is not None and match["name"]]
    if not lines or len(matches) < len(lines):
        return lines
    numbers = [int(match["number"]) for match in matches]
    start = min(numbers)
    if start > 1 or sorted(numbers) != list(range(start, start + len(numbers))):
        if all(match["separator"].isspace() for match in matches):
            return lines  # names that begin with a number: "5 cents"
        raise RequestError(
            f"the labels file {path} numbers its {len(lines)} labels {_some(numbers)}, expected each of 0 to "
            f"{len(lines) - 1} once; correct the numbers, or {_FORMS}"
        )
    placed = sorted(zip(numbers, lines, matches, strict=True), key=lambda one: one[0])
    return [(line, match["name"].strip("\"'")) for _, (line, _), match in placed]


def _of_table(path: Path, lines: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """Return a table's lines as "label" or "number: label", without its header."""
    separator = max(",;\t", key=lines[0][1].count) if lines else ","
    rows = [
        (
            number,
            [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True))],
        )
        for number, line in lines
    ]
    width = max((len(row) for _, row in rows), default=1)
    if width == 1:
        header = {"label", "labels", "class", "classes", "name", "names", "class_name", "class_names"}
        return [(number, row[0]) for number, row in rows[len(rows) > 1 and rows[0][1][0].lower() in header :]]
    body = rows[1:] if not any(cell.isdecimal() for cell in rows[0][1]) else rows
    for at in range(width):
        if body and all(len(row) == width == 2 and row[at].isdecimal() for _, row in body):
            return [(number, f"{row[at]}: {row[1 - at]}") for number, row in body]
    raise RequestError(
        f"the labels file {path} is a table of {width} columns, expected one of labels, or numbers and labels; {_FORMS}"
    )


def _literal(text: str) -> Any:
    """Return what JSON or a Python literal says; None where the text is neither, or no collection."""
    start = text.lstrip()[:1]
    if start not in ("{", "["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    return value if isinstance(value, dict | list | tuple) else None


def _of_value(path: Path, value: Any) -> list[str]:
    if isinstance(value, dict):
        value = next((value[key] for key in _KEYS if isinstance(value.get(key), dict | list)), value)
    if isinstance(value, dict):
        entries = {_number(key): name for key, name in value.items()}
        if None in entries:  # label → number
            entries = {_number(index): name for name, index in value.items()}
        numbers = [number for number in entries if number is not None]
        if len(numbers) != len(value) or sorted(numbers) != list(range(len(value))):
            raise RequestError(
                f"the labels file {path} does not number its {len(value)} classes from 0 to {len(value) - 1}, each "
                f"once; correct it, or {_FORMS}"
            )
        value = [entries[number] for number in range(len(value))]
    names = [one[-1] if isinstance(one, list | tuple) and one else one for one in value]
    if not all(isinstance(one, str) for one in names):
        stranger = next(one for one in names if not isinstance(one, str))
        raise RequestError(
            f"the labels file {path} holds a {type(stranger).__name__} where a label is expected; {_FORMS}"
        )
    return [name.strip() for name in names]


def _number(key: Any) -> int | None:
    if isinstance(key, int) and not isinstance(key, bool):
        return key
    return int(key) if isinstance(key, str) and key.strip().isdecimal() else None


def _some(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:4])) + (", …" if len(numbers) > 4 else "")
