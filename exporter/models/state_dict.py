"""From the bytes of a checkpoint to named tensors and what stands beside them, without running what the file says.

The format is told by content: a zip archive or an old-style pickle of `torch.save`, or safetensors. A pickle
is only ever read by PyTorch's restricted unpickler (`weights_only=True`), which builds tensors and plain values:
numbers, text, containers, NumPy arrays, paths and dates. It refuses everything else.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import re
import types
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from resnet_export.exporter.models.file_kind import name_kind
from resnet_export.runtime.errors import CheckpointError

__all__ = ["CheckpointFile", "TensorSet", "choose_set", "read_checkpoint", "require_dense"]

# Where a state dict usually is, most usual first; "" is the top level.
_USUAL = ("state_dict", "model", "model_state_dict", "", "module", "net", "network", "weights", "params")
# Averaged weights: taken when there are no others, and named when there are.
_AVERAGED = re.compile(r"ema|averag|swa|shadow", re.IGNORECASE)
# What training keeps of each parameter, and no network has.
_TRAINING = re.compile(r"optim|sched|scaler|callback|loops|rng|momentum|exp_avg", re.IGNORECASE)

_GLOBAL = re.compile(r"GLOBAL (\S+)")
_DEEPEST = 6
_HEAD = 512


@dataclass(frozen=True, eq=False)
class TensorSet:
    """A mapping in a checkpoint that holds tensors.

    `place` is where it stands ("state_dict", "model.net"; "" is the top level); `tensors` have the names, shapes and
    dtypes of the file.
    """

    place: str
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class CheckpointFile:
    """What a checkpoint holds: sets of tensors, and other values by where they stand ("args", "meta.CLASSES")."""

    sets: tuple[TensorSet, ...]
    values: Mapping[str, Any]


def read_checkpoint(path: Path) -> CheckpointFile:
    """Read the checkpoint at `path`.

    Raises CheckpointError when the file cannot be read, is of another kind, is damaged, wants to run code, or
    holds no named tensors.
    """
    loaded = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    sets: list[TensorSet] = []
    values: dict[str, Any] = {}
    if isinstance(loaded, Mapping):
        for place, mapping in _mappings(loaded):
            tensors = {key: value for key, value in mapping.items() if isinstance(value, Tensor)}
            if tensors:
                sets.append(TensorSet(place, {str(key): value for key, value in tensors.items()}))
            values |= {
                f"{place}.{key}" if place else str(key): value
                for key, value in mapping.items()
                if not isinstance(value, Tensor)
            }
    if not sets:
        raise CheckpointError(
            f"{path} holds {_describe(loaded)}, expected a state dict of tensors by name, at top level or in a "
            "container such as state_dict or model; save model.state_dict()"
        )
    return CheckpointFile(tuple(sets), values)


def choose_set(file: CheckpointFile, path: Path, key: str | None) -> tuple[TensorSet, tuple[str, ...], str]:
    """Return the set of tensors to take, notices of the others, and the prefix that `key` asks for within it.

    `key` names a place in the file, or the prefix of one of several networks in one set. Without it the most usual
    place is taken, plain weights before averaged ones. Raises CheckpointError when `key` is not there, or nothing
    tells which of several sets is meant.
    """
    sets = [one for one in file.sets if not _TRAINING.search(one.place)] or list(file.sets)
    # A network has many tensors; what is saved beside it (a loss weight, a mean) has few.
    most = max(len(one.tensors) for one in sets)
    large = [one for one in sets if 2 * len(one.tensors) >= most]
    if key is not None:
        wanted = key.rstrip(".")
        for one in file.sets:
            if one.place == wanted:
                return one, (), ""
        for one in sorted(large, key=_rank):
            if any(name.startswith(f"{wanted}.") for name in one.tensors):
                return one, (), f"{wanted}."
        raise CheckpointError(
            f"{path} has nothing under {key!r}; there is {_places(sets)}: give one of these with --checkpoint-key"
        )
    ranked = sorted(large, key=_rank)
    chosen, others = ranked[0], ranked[1:]
    if others and _rank(chosen)[1] == len(_USUAL) and any(_rank(one) == _rank(chosen) for one in others):
        raise CheckpointError(
            f"{path} holds several sets of weights, {_places(ranked)}, and nothing tells which is meant; "
            "choose one with --checkpoint-key"
        )
    notices = tuple(
        f"{path.name} also holds {one.place or 'tensors at top level'!r}, which was not used; the weights are those "
        f"under {chosen.place or 'the top level'!r}, --checkpoint-key {one.place} takes the others"
        for one in others
    )
    return chosen, notices, ""


def _rank(one: TensorSet) -> tuple[bool, int]:
    last = one.place.rpartition(".")[2]
    usual = _USUAL.index(last) if last in _USUAL else len(_USUAL)
    return _AVERAGED.search(one.place) is not None, usual


def _places(sets: list[TensorSet]) -> str:
    return ", ".join(f"{one.place!r} ({len(one.tensors)} tensors)" for one in sets[:8])


def _mappings(
    loaded: Mapping[Any, Any], place: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    yield place, loaded
    if depth < _DEEPEST:
        for key, value in loaded.items():
            if isinstance(value, argparse.Namespace | types.SimpleNamespace):
                value = vars(value)
            if isinstance(value, Mapping) and isinstance(key, str):
                yield from _mappings(value, f"{place}.{key}" if place else key, depth + 1)


def _is_safetensors(path: Path) -> bool:
    """Look at the first bytes; raise CheckpointError when they belong to no checkpoint."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    kind = name_kind(path, head)
    if kind is not None:
        raise CheckpointError(f"{path} {kind}")
    if head.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive; a pickle of protocol 2 or later
        return False
    if head[8:9] == b"{" or path.suffix == ".safetensors":  # eight bytes of header size, then JSON
        return True
    raise CheckpointError(
        f"{path} is not a checkpoint: it begins with {head[:8]!r}, which is neither torch.save's format nor "
        "safetensors; give a .pth, .pt or .safetensors file"
    )


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load(path.read_bytes())  # by content: its own opening takes only UTF-8 paths
    except Exception as error:  # A parser that meets a damaged file raises whatever it stumbles over.
        raise CheckpointError(
            f"{path} is no whole safetensors file ({_first_line(error)}); copy or save it again"
        ) from error


def _plain_types() -> list[Any]:
    """What training scripts save beside the weights: values whose making runs nothing but their own constructors."""
    scalar = np.float64(0).__reduce__()[0]
    array = np.zeros(0).__reduce__()[0]
    pure = [
        (pathlib.PurePosixPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath", "Path", "PurePath")
    ] + [
        (pathlib.PureWindowsPath, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("WindowsPath", "PureWindowsPath")
    ]
    numpy_functions = [
        (function, f"{module}.multiarray.{name}")
        for module in ("numpy.core", "numpy._core")
        for function, name in ((scalar, "scalar"), (array, "_reconstruct"))
    ]
    numpy_types = [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefdgFDSUMm"}]
    containers = [
        collections.defaultdict,
        collections.deque,
        collections.Counter,
        list,
        dict,
        set,
        frozenset,
        tuple,
    ]
    scalars = [int, float, bool, str, bytes, complex, slice, range, bytearray]
    dates = [datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone]
    return [
        argparse.Namespace,
        types.SimpleNamespace,
        *pure,
        *numpy_functions,
        *numpy_types,
        *containers,
        *scalars,
        *dates,
        (_encode, "_codecs.encode"),
    ]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What pickles of Python 2 and protocol 2 call to make bytes, for that encoding alone."""
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding}")
    return text.encode(encoding)


def _read_torch(path: Path) -> object:
    try:
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_plain_types()),
        ):
            # The restricted unpickler raises on an instruction that it does not know; no need to warn before.
            warnings.simplefilter("ignore")
            # Mapped, an archive costs no memory for what is not used of it, such as the optimizer's state. Only
            # archives can be mapped, and by a path in UTF-8; there torch.load looks at the suffix before the content.
            mapped = file.read(2) == b"PK" and path.suffix != ".safetensors" and _is_utf8(path)
            file.seek(0)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # A parser that meets a damaged file raises whatever it stumbles over.
        raise CheckpointError(f"{path} {_refusal(str(error))}") from error


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _refusal(reason: str) -> str:
    """Turn the reason that torch.load gives into the end of a sentence about the file."""
    named = _GLOBAL.search(reason)
    if named is not None:
        return (
            f"was refused: it refers to {named[1]}, and unpickling that may run code; save tensors only "
            "(torch.save(model.state_dict(), path), or safetensors)"
        )
    if "Unsupported operand" in reason:
        return (
            "was refused: its pickle has instructions that torch.save does not write by default, or is damaged; "
            "save the state dict again, with the default pickle_protocol or as safetensors"
        )
    if "TorchScript" in reason:
        return "is a TorchScript archive, expected a state dict; save model.state_dict() instead"
    return "is not a checkpoint of torch.save, or it is truncated or damaged; copy or save it again"


def require_dense(found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the tensors, detached. Raises CheckpointError for one that is quantized, sparse or without data."""
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantized" if value.is_quantized else "without data" if value.is_meta else "sparse"
            raise CheckpointError(
                f"{name!r} in {path} is {kind}, expected a dense tensor; save the float model"
            )
        tensors[name] = value.detach()
    return tensors


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        keys = ", ".join(repr(key) for key in list(value)[:5])
        return f"a dict with {keys}{', …' if len(value) > 5 else ''}" if value else "an empty dict"
    return f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
