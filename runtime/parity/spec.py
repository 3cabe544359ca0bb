"""`ParitySpec`: everything that a parity check is asked for, in one frozen value that checks itself once.

The command line, the pytest fixture and Python callers make one; it is passed whole to the check, and the report holds
it. A further option is its field here with the check of its value, its flag in `exporter/cli/parity.py`, and the place
that uses it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Literal

import msgspec
import numpy as np

from resnet_export.runtime.bundle.manifest import Struct
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.criteria.tolerances import Override, checked_overrides
from resnet_export.runtime.parity.measure.comparison import printable
from resnet_export.runtime.precision import Precision

BATCHES = "validation images"
"""What reports call batches that were given without a name."""


class ParitySpec(Struct, frozen=True):
    """What is asked of a check. None: not asked for.

    Attributes:
        artifacts, backends, precisions: restrict the runs; None means all, each artifact in its own precision.
        data: validation images: the path of a folder, an .npz file or a list file, or what reports call the batches
            that are given beside the spec.
        reference: what validation images are compared with: the fp32 graph ("onnx") or the "eager" model.
        weights: the checkpoint that the bundle was exported from, for the eager reference.
        limit: use at most that many validation images.
        seed: of the draw that `limit` makes from a path.
        max_drop: the accuracy drop in percentage points that is allowed; needs labeled `data`.
        strict: fail where the images are too few to tell whether `max_drop` holds.
        min_agreement: the top-1 agreement in percent that is demanded on `data`, or on the golden images without.
        min_accuracy: the top-1 accuracy in percent that is demanded of every run, the reference included; needs
            labeled `data`.
        tolerances: limits that replace the bundle's: {"fp16": {"centered_cosine": 0.9995}}, or the path of a JSON file
            that holds such.
        layers: whose layers are compared with the fp32 graph's: those of the artifacts that "failed" where they are
            the cause, of these artifacts or "all", or "none".
        threads: CPU threads of each backend; None: the backend decides.
        triton: check what this Triton server runs, and nothing here: http://HOST:PORT or grpc://HOST:PORT, with /MODEL
            that model alone. A server that speaks the Open Inference Protocol with Triton's configurations does too.

    Raises RequestError when a value is of the wrong kind, out of range, or without the data that it is about. Names in
    any collection, paths and numpy's numbers are taken, and are plain tuples, texts and numbers afterwards.
    """

    artifacts: tuple[str, ...] | None = None
    backends: tuple[str, ...] | None = None
    precisions: tuple[Precision, ...] | None = None
    data: str | None = None
    reference: Literal["onnx", "eager"] = "onnx"
    weights: str | None = None
    limit: int | None = None
    seed: int = 0
    max_drop: float | None = None
    strict: bool = False
    min_agreement: float | None = None
    min_accuracy: float | None = None
    tolerances: str | dict[Precision, Override] | None = None
    layers: str | tuple[str, ...] = "failed"
    threads: int | None = None
    triton: str | None = None

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            msgspec.structs.force_setattr(self, name, _CHECKS[name](name, getattr(self, name)))
        if self.data is None:
            for name, why in _ABOUT_DATA.items():
                if getattr(self, name) != _DEFAULTS[name]:
                    raise RequestError(f"{name} was given without data; {why}")
        if self.strict and self.max_drop is None:
            raise RequestError("strict was given without max_drop, which it is about; give both")
        if self.weights is not None and self.reference != "eager":
            raise RequestError(
                "weights were given without the eager reference, which alone needs them; add --reference eager"
            )

    def printable(self) -> ParitySpec:
        """Return the spec with texts fit for every report: paths may hold control characters and broken UTF-8."""
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        texts = {name: printable(value) for name, value in given.items() if isinstance(value, str)}
        return msgspec.structs.replace(self, **texts)

    def arguments(self) -> Iterator[str]:
        """Yield the arguments of `resnet-export parity` that ask for the same; "LIMITS" stands for limits in place."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
            if value == _DEFAULTS[name] or flag is None:
                continue
            if name == "layers" and value == "none":
                yield "--no-layers"
            elif value is True:
                yield flag
            else:
                for one in value if isinstance(value, tuple) else (value,):
                    text = f"{one:.12g}" if isinstance(one, float) else str(one)
                    yield from (flag, "LIMITS" if isinstance(one, dict) else text)


def as_spec(spec: ParitySpec | None, options: Mapping[str, Any]) -> ParitySpec:
    """Return `spec` with `options`, values of its fields by name, in place of its own. Raises RequestError."""
    if spec is not None and not isinstance(spec, ParitySpec):
        raise RequestError(f"the spec is {quoted(spec)}, expected a ParitySpec")
    for name in options:
        if name not in ParitySpec.__struct_fields__:
            known = ", ".join(ParitySpec.__struct_fields__)
            raise RequestError(f"there is no option {name!r} of a parity check; expected {known}")
    return ParitySpec(**options) if spec is None else msgspec.structs.replace(spec, **options)


def check_path(name: str, value: object, what: str) -> str:
    """Return a path as text. Raises RequestError unless `value` is a str, or an os.PathLike of one."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise RequestError(f"{name} is {quoted(value)}, expected the path of {what}")
    return os.fspath(value)


def quoted(value: object) -> str:
    """Return a value as a sentence may quote it: what it is, in few characters."""
    text = repr(value)
    return printable(text) if len(text) <= 60 else f"a {type(value).__name__}"


def _path_of(what: str) -> Callable[[str, object], str | None]:
    return lambda name, value: None if value is None else check_path(name, value, what)


def _count_of(what: str) -> Callable[[str, object], int | None]:
    def check(name: str, value: object) -> int | None:
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise RequestError(f"{name} is {quoted(value)}, expected at least one {what}")
        return int(value)

    return check


def _seed(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise RequestError(f"{name} is {quoted(value)}, expected a whole number")
    return int(value)


def _names(name: str, given: object) -> tuple[str, ...] | None:
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Collection):
        raise RequestError(f"{name} is {quoted(given)}, expected names in a list")
    for one in given:
        if not isinstance(one, str):
            raise RequestError(f"{name} hold {quoted(one)}, expected names in a list")
    if not given:
        raise RequestError(f"{name} is empty; name at least one, or leave it out for all")
    return tuple(dict.fromkeys(map(str, given)))


def _precisions(name: str, given: object) -> tuple[Precision, ...] | None:
    found = _names(name, given)
    known = [str(precision) for precision in Precision]
    for one in found or ():
        if one not in known:
            raise RequestError(f"there is no precision {one!r}; expected {', '.join(known)}")
    return None if found is None else tuple(map(Precision, found))


def _number_of(what: str) -> Callable[[str, object], float | None]:
    def check(name: str, value: object) -> float | None:
        if value is None:
            return None
        number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
        if not number or not math.isfinite(float(value)) or not 0 <= float(value) <= 100:  # type: ignore[arg-type]
            raise RequestError(f"{name} is {quoted(value)}, expected {what} from 0 to 100")
        return float(value)  # type: ignore[arg-type]

    return check


def _switch(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {quoted(value)}, expected True or False")
    return value


def _reference(name: str, value: object) -> str:
    if value not in ("onnx", "eager"):
        raise RequestError(f"the {name} is {quoted(value)}, expected 'onnx' or 'eager'")
    return str(value)


def _tolerances(name: str, value: Any) -> object:
    if value is None or isinstance(value, str):
        return value
    return os.fspath(value) if isinstance(value, os.PathLike) else checked_overrides(value, name)


def _layers(name: str, value: object) -> object:
    if not isinstance(value, str):
        return _names(name, value)
    if value not in ("failed", "none", "all"):
        raise RequestError(f"{name} is {value!r}, expected 'failed', 'none', 'all' or names of artifacts")
    return value


_CHECKS: Mapping[str, Callable[[str, Any], object]] = {
    "artifacts": _names,
    "backends": _names,
    "precisions": _precisions,
    "data": _path_of("images; batches are given beside"),
    "reference": _reference,
    "weights": _path_of("a checkpoint"),
    "limit": _count_of("image"),
    "seed": _seed,
    "max_drop": _number_of("percentage points"),
    "strict": _switch,
    "min_agreement": _number_of("percent"),
    "min_accuracy": _number_of("percent"),
    "tolerances": _tolerances,
    "layers": _layers,
    "threads": _count_of("thread"),
    "triton": _path_of("a server: grpc://HOST:PORT"),
}
"""What makes a field's value plain, or refuses it."""

_ABOUT_DATA: Mapping[str, str] = {
    "max_drop": "accuracy needs labeled images: name them in data",
    "min_accuracy": "accuracy needs labeled images: name them in data",
    "limit": "it is a number of validation images: name them in data",
    "seed": "it is that of the draw that limit makes: name the images in data",
    "reference": (
        "the eager reference is for validation images (the golden images are compared with recorded eager logits "
        "in any case): give --data, or leave --reference out"
    ),
}
"""Why a field needs data."""

_FLAGS: Mapping[str, str | None] = {
    "artifacts": "--artifact",
    "backends": "--backend",
    "tolerances": "--tolerance",
    "precisions": None,
    "threads": None,
}
"""The flags that are not called as their field, None for a field that the command line does not have."""

_DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in msgspec.structs.fields(ParitySpec)}
