"""From the bytes of a checkpoint to named tensors, without running what the file says.

The format is told by content: a zip archive or an old-style pickle of `torch.save`, or safetensors. A pickle
is only ever read by PyTorch's restricted unpickler (`weights_only=True`), which builds tensors and plain
containers and refuses everything else.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from resnet_export.runtime.errors import CheckpointError

__all__ = ["StateDict", "read_state_dict"]

# In order of preference where a checkpoint has several.
_CONTAINERS = ("state_dict", "model", "model_state_dict", "model_ema")
_WRAPPERS = frozenset({"module", "model", "backbone"})
_COMPILED = "_orig_mod"
# How many models an averaged one (torch.optim.swa_utils.AveragedModel) is the average of: not a parameter.
_BOOKKEEPING = frozenset({"n_averaged"})

_GLOBAL = re.compile(r"GLOBAL (\S+)")
_DEEPEST = 8


@dataclass(frozen=True)
class StateDict:
    """Dense tensors by the name that torchvision gives them, in the file's order, shapes and dtypes.

    `notices` says what of the file was not used.
    """

    tensors: Mapping[str, Tensor]
    notices: tuple[str, ...] = ()


def read_state_dict(path: Path) -> StateDict:
    """Read the checkpoint at `path`.

    The state dict may stand at top level or under `state_dict`, `model`, `model_state_dict` or `model_ema`, and
    its names may carry the prefixes that DataParallel (`module.`), torch.compile (`_orig_mod.`) and common
    wrappers (`model.`, `backbone.`) leave, in any nesting.

    Raises CheckpointError when the file cannot be read, is neither format, is damaged, wants to run code, or
    holds no state dict of dense tensors.
    """
    loaded = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    found, notices = _unwrap(loaded, path)
    return StateDict(_rename(found, path), notices)


def _is_safetensors(path: Path) -> bool:
    """Look at the first bytes; raise CheckpointError when they belong to no checkpoint."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {path} cannot be read ({error.strerror}); check the path and its permissions"
        ) from error
    if head.startswith((b"PK\x03\x04", b"\x80")):  # a zip archive; a pickle of protocol 2 or later
        return False
    if head[8:9] == b"{" or path.suffix == ".safetensors":  # eight bytes of header size, then JSON
        return True
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the checkpoint itself; run 'git lfs pull'")
    raise CheckpointError(
        f"{path} is not a checkpoint: it begins with {head[:8]!r}, which is neither torch.save's format nor "
        "safetensors; give a .pth, .pt or .safetensors file"
    )


def _read_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # A parser that meets a damaged file raises whatever it stumbles over.
        raise CheckpointError(
            f"{path} is no whole safetensors file ({_first_line(error)}); copy or save it again"
        ) from error


def _read_torch(path: Path) -> object:
    try:
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            # Training scripts save their arguments beside the weights; a Namespace holds data only.
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            # The restricted unpickler raises on an instruction that it does not know; no need to warn before.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            # Mapped, an archive costs no memory for what is not used of it, such as the optimizer's state. Only
            # archives can be mapped, and by path; there torch.load looks at the suffix before the content.
            mapped = file.read(2) == b"PK" and path.suffix != ".safetensors"
            file.seek(0)
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # A parser that meets a damaged file raises whatever it stumbles over.
        raise CheckpointError(f"{path} {_refusal(str(error))}") from error


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


def _unwrap(loaded: object, path: Path) -> tuple[Mapping[object, object], tuple[str, ...]]:
    """Return the mapping that holds the tensors, and a notice for each other one that could have been meant."""
    notices: tuple[str, ...] = ()
    for _ in range(_DEEPEST):
        if not isinstance(loaded, Mapping):
            break
        holders = [name for name in _CONTAINERS if _holds_tensors(loaded.get(name), _DEEPEST)]
        if not holders:
            if _holds_tensors(loaded, 0):
                return loaded, notices
            break
        notices += tuple(
            f"{path.name} also holds {other!r}, which was not used; the weights are those under {holders[0]!r}"
            for other in holders[1:]
        )
        loaded = loaded[holders[0]]
    places = ", ".join(_CONTAINERS)
    raise CheckpointError(
        f"{path} holds {_describe(loaded)}, expected a state dict of tensors at top level or under {places}; "
        "save model.state_dict()"
    )


def _holds_tensors(value: object, depth: int) -> bool:
    """Whether `value` is a mapping with a tensor in it, or in a container at most `depth` levels below."""
    if not isinstance(value, Mapping):
        return False
    if any(isinstance(item, Tensor) for item in value.values()):
        return True
    return depth > 0 and any(_holds_tensors(value.get(name), depth - 1) for name in _CONTAINERS)


def _rename(found: Mapping[object, object], path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"the state dict in {path} has a {type(value).__name__} under {key!r}, expected only tensors by "
                "name; save model.state_dict()"
            )
        name = _plain_name(key)
        if name in _BOOKKEEPING:
            continue
        if name in tensors:
            raise CheckpointError(
                f"{path} has both {origin[name]!r} and {key!r}, which are the same parameter without their "
                "prefixes; save one model alone"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            kind = "quantized" if value.is_quantized else "without data" if value.is_meta else "sparse"
            raise CheckpointError(
                f"{key!r} in {path} is {kind}, expected a dense tensor; save the float model"
            )
        tensors[name], origin[name] = value, key
    return tensors


def _plain_name(key: str) -> str:
    """Drop `_orig_mod` wherever it stands (parts can be compiled alone) and wrappers from the front."""
    parts = [part for part in key.split(".") if part != _COMPILED]
    start = next((index for index, part in enumerate(parts) if part not in _WRAPPERS), len(parts))
    return ".".join(parts[start:])


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        keys = ", ".join(repr(key) for key in list(value)[:5])
        return f"a dict with {keys}{', …' if len(value) > 5 else ''}" if value else "an empty dict"
    return f"a {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
