"""What a session is asked for: one value, checked once, passed whole to everything that reads it."""

from __future__ import annotations

import operator
import re
from typing import Literal, TypeAlias, get_args

import msgspec

from resnet_export.runtime.backends.routes import ROUTES, Route
from resnet_export.runtime.bundle.manifest import Manifest
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.precision import Precision

__all__ = ["Preference", "SessionSpec", "parse_request"]

Preference: TypeAlias = Literal["latency", "throughput", "accuracy"]

_GPU_INDEX = re.compile(r"(?:(?:cuda|gpu):)?([0-9]{1,9})")


class SessionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The request of a session; what is None is left to the resolver or to the engine.

    `device` is a GPU's index, "gpu" for the GPU that fits best, or "cpu". `threads` is the number of CPU threads.
    `prefer` orders what is left: the shortest time of a small batch, the most images a second, or the most exact
    precision. With `cache` the engine keeps what it compiles for the next session. The text names what restricts the
    selection, which the last three do not.
    """

    backend: str | None = None
    precision: Precision | None = None
    artifact: str | None = None
    device: int | Literal["cpu", "gpu"] | None = None
    threads: int | None = None
    prefer: Preference = "latency"
    cache: bool = True

    def __str__(self) -> str:
        given = {name: getattr(self, name) for name in ("backend", "precision", "artifact", "device")}
        return ", ".join(
            f"{name}={value if isinstance(value, int) else repr(str(value))}"
            for name, value in given.items()
            if value is not None
        )


def parse_request(
    manifest: Manifest,
    *,
    backend: str | None = None,
    precision: str | None = None,
    artifact: str | None = None,
    device: int | str | None = None,
    threads: int | None = None,
    prefer: str = "latency",
    cache: bool = True,
    routes: tuple[Route, ...] = ROUTES,
) -> SessionSpec:
    """Return the request, checked against the routes and the manifest.

    Names are read in any case, devices also as PyTorch spells them: "cuda", "cuda:1". Raises RequestError, or
    BundleError when the bundle has no such artifact.
    """
    if artifact is not None:
        manifest.artifact(artifact)
    backends = tuple(dict.fromkeys(route.backend for route in routes))
    return SessionSpec(
        backend=None if backend is None else _parse_name("backend", backend, backends),
        precision=None
        if precision is None
        else Precision(_parse_name("precision", precision, tuple(Precision))),
        artifact=artifact,
        device=None if device is None else _parse_device(device),
        threads=None if threads is None else _parse_threads(threads),
        prefer=_parse_preference(prefer),
        cache=cache,
    )


def _parse_name(what: str, value: object, names: tuple[str, ...]) -> str:
    name = value.strip().lower() if isinstance(value, str) else None
    if name is None or name not in names:
        raise RequestError(f"there is no {what} {value!r}; give one of {', '.join(names)}")
    return name


def _parse_preference(value: object) -> Preference:
    name = value.strip().lower() if isinstance(value, str) else value
    for preference in get_args(Preference):
        if name == preference:
            return preference  # type: ignore[no-any-return]
    raise RequestError(f"prefer is {value!r}, expected one of {', '.join(get_args(Preference))}")


def _parse_device(device: object) -> int | Literal["cpu", "gpu"]:
    name = device.strip().lower() if isinstance(device, str) else device
    if name == "cpu":
        return "cpu"
    if name in ("gpu", "cuda"):
        return "gpu"
    index = _GPU_INDEX.fullmatch(name) if isinstance(name, str) else None
    number = _parse_count(device) if index is None else int(index[1])
    if number is None or number < 0:
        raise RequestError(
            f"there is no device {device!r}; give 'cpu', 'gpu' or the index of a GPU, such as 1 or 'cuda:1'"
        )
    return number


def _parse_threads(threads: object) -> int:
    number = _parse_count(threads)
    if number is None or number < 1:
        raise RequestError(f"threads is {threads!r}, expected a number from 1 on")
    return number


def _parse_count(value: object) -> int | None:
    """Return a whole number, NumPy's among them, as an int; None for anything else."""
    try:
        return None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
