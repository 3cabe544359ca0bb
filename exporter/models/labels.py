"""Class names: ImageNet's, a user's file, or numbers.

`data/imagenet_labels.txt` holds the names of torchvision 0.28; `data/photos/PROVENANCE.md` has its licence.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from resnet_export.runtime.errors import RequestError

__all__ = ["default_labels", "imagenet_labels", "read_labels"]


def imagenet_labels() -> tuple[str, ...]:
    """Return the 1000 class names of ImageNet-1K, in class order."""
    text = (files("resnet_export.exporter") / "data" / "imagenet_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def default_labels(num_classes: int) -> tuple[str, ...]:
    """Return ImageNet's names for 1000 classes, and "class 0", "class 1", … for any other number."""
    if num_classes == 1000:
        return imagenet_labels()
    return tuple(f"class {index}" for index in range(num_classes))


def read_labels(path: Path, num_classes: int | None = None) -> tuple[str, ...]:
    """Read one label a line from a UTF-8 text file, with or without a byte order mark.

    White space around a label and empty lines at the end are dropped. `num_classes` None leaves the number
    unchecked. Raises RequestError when the file cannot be read, is not UTF-8, has an empty line between
    labels, or holds another number of labels than `num_classes`.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise RequestError(
            f"the labels file {path} cannot be read ({error.strerror}); give a text file, one label a line"
        ) from error
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the labels file {path} is not UTF-8 text (byte {error.start}); save it as UTF-8, one label a line"
        ) from error
    # Not splitlines(): it also splits at characters that may stand inside a name, such as U+2028.
    labels = tuple(line.strip() for line in text.strip().split("\n")) if text.strip() else ()
    if "" in labels:
        raise RequestError(
            f"line {labels.index('') + 1} of the labels file {path} is empty; name every class"
        )
    if num_classes is not None and len(labels) != num_classes:
        raise RequestError(
            f"the labels file {path} has {len(labels)} labels, but the network has {num_classes} classes; "
            "give one label for each class"
        )
    return labels
