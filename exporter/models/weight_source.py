"""Where the parameters come from, decided from the request alone, before anything heavy is imported or read."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from resnet_export.exporter.models.zoo import ZOO, Architecture, PublishedWeights, architecture
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.errors import CheckpointError, RequestError

__all__ = ["Source", "held_still", "locate", "printable", "sha256_of"]

# torchvision's names, with or without the class that holds them: "ResNet50_Weights.IMAGENET1K_V2".
_PUBLISHED = re.compile(
    r"(?:(?P<holder>\w+)_weights\.)?(?P<name>imagenet|default|imagenet1k_v\d+)", re.IGNORECASE
)
_STRIDE = 32


@dataclass(frozen=True)
class Source:
    """What a ModelSpec asks for. Neither `file` nor `published` means an untrained network.

    `architecture` is None only where the file has to tell it.
    """

    architecture: Architecture | None
    file: Path | None = None
    published: PublishedWeights | None = None


def locate(spec: ModelSpec) -> Source:
    """Check `spec` for consistency and return where its parameters come from. Nothing is read or downloaded.

    A published name wins over a file of the same name: write "./imagenet" for the file. Raises RequestError,
    or CheckpointError when the file is missing, a folder or empty.
    """
    if spec.num_classes is not None and spec.num_classes < 1:
        raise RequestError(f"the number of classes is {spec.num_classes}, expected at least 1")
    size = _STRIDE if spec.image_size is None else spec.image_size
    if min(size if isinstance(size, tuple) else (size,)) < _STRIDE:
        raise RequestError(
            f"the image size is {spec.image_size}, expected at least {_STRIDE}, the network's total stride"
        )
    if spec.weights is None:
        return Source(architecture(spec.depth, spec.arch))
    match = _PUBLISHED.fullmatch(spec.weights)
    if match is not None:
        return _published(spec, match["holder"], match["name"])
    named = None if spec.depth is None and spec.arch is None else architecture(spec.depth, spec.arch)
    return Source(named, file=_checked(Path(spec.weights)))


def _published(spec: ModelSpec, holder: str | None, name: str) -> Source:
    if holder is None:
        chosen = architecture(spec.depth, spec.arch)
    else:
        if holder.lower() not in ZOO:
            known = ", ".join(f"{one.title}_Weights" for one in ZOO.values() if one.title)
            raise RequestError(f"there are no weights {spec.weights!r}; choose one of {known}")
        chosen = ZOO[holder.lower()]
        if (spec.depth, spec.arch) != (None, None) and architecture(spec.depth, spec.arch) != chosen:
            asked = architecture(spec.depth, spec.arch).name
            raise RequestError(
                f"{spec.weights} are weights of {chosen.name}, but {asked} was asked for; name the same in both"
            )
    if spec.num_classes not in (None, 1000):
        raise RequestError(
            f"{spec.weights} have 1000 classes, but {spec.num_classes} were asked for; leave the number out"
        )
    if not chosen.weights:
        have = ", ".join(row.name for row in ZOO.values() if row.weights)
        raise RequestError(
            f"there are no published weights of {chosen.name} that could be fetched, only of {have}; give a checkpoint"
        )
    if name.lower() in ("imagenet", "default"):
        return Source(chosen, published=chosen.weights[-1])
    for published in chosen.weights:
        if published.name == name.upper():
            return Source(chosen, published=published)
    names = ", ".join(published.name for published in chosen.weights)
    raise RequestError(f"there are no weights {name.upper()} for {chosen.name}; choose one of {names}")


def _checked(path: Path) -> Path:
    wanted = "give a .pth, .pt or .safetensors file, or 'imagenet'"
    if not path.exists():
        _refuse_address(str(path))
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder, expected a checkpoint; {wanted}")
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"the checkpoint {path} cannot be read ({reason}); {wanted}") from error
    if size == 0 and path.is_file():
        raise CheckpointError(f"the checkpoint {path} is empty (0 bytes); copy or save it again")
    return path


def _refuse_address(text: str) -> None:
    """Raise RequestError for what is an address or a name in a hub, and no path."""
    if re.match(r"[a-z][a-z0-9+.-]*:/", text, re.IGNORECASE):
        raise RequestError(
            f"{text} is a URL, and nothing is downloaded from one; fetch the file and give its path"
        )
    if re.match(r"hf([-_]hub)?:", text):
        name = text.partition(":")[2]
        if "/" not in name:
            raise RequestError(f"{text} names no repository of the Hugging Face hub; give hf:OWNER/NAME")
        raise RequestError(f"{text} is a name in the Hugging Face hub; give it as hf:{name} to fetch it")
    if re.fullmatch(r"[\w-]+/[\w.-]+", text) and Path(text).suffix not in (
        ".pth",
        ".pt",
        ".safetensors",
        ".ckpt",
    ):
        raise RequestError(
            f"there is no file {text}; give hf:{text} for the repository of that name in the Hugging Face hub"
        )


def printable(text: str) -> str:
    """Return a file's name as text that can be written: bytes that are not UTF-8 become escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@contextmanager
def held_still(path: Path) -> Iterator[None]:
    """Raise CheckpointError in the end if a file was replaced or written to meanwhile, or cannot be looked at."""
    before = _state(path)
    yield
    if _state(path) != before:
        raise CheckpointError(f"{path} was changed while it was read; give it again when it is written whole")


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a checkpoint as 64 hex digits. Raises CheckpointError when it is no file to be read."""
    try:
        # A pipe blocks whoever opens it, and a device may never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(
                f"the checkpoint {path} is not a regular file; give a .pth, .pt or .safetensors file"
            )
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {path} cannot be read ({error.strerror}); check the path and its permissions"
    )
