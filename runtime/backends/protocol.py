"""What a backend is: one opened artifact behind one small protocol.

A backend module has one function, `open_backend(request) -> Backend`; `routes.py` lists the modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.manifest import Artifact, BatchRange, TensorSpec
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.precision import Precision

__all__ = ["Backend", "DeviceBackend", "OpenRequest", "native_error"]

# Native messages go on for pages; the whole text stays in `__cause__`.
_MESSAGE_CHARACTERS = 300


class Backend(Protocol):
    """One opened artifact."""

    @property
    def provider(self) -> str:
        """What really executes the graph, as the engine names it."""

    @property
    def precision(self) -> Precision:
        """The coarsest arithmetic that really runs, as the engine reports it."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the artifact is run, such as settings that are no defaults."""

    @property
    def batch(self) -> BatchRange | None:
        """The batch sizes that one call takes; None when it takes any."""

    def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        """Return the outputs of these names, float32 [N, …] each, in memory that belongs to the caller.

        `batch` is C-contiguous and has been checked against the manifest's input, and `outputs` are among its. Safe
        to call from many threads. Raises BackendError, with what the engine raised as its cause.
        """

    def close(self) -> None:
        """Free what the engine holds. Called once, when no `run` is under way and none will follow."""


@runtime_checkable
class DeviceBackend(Protocol):
    """A backend that also takes and returns arrays on the GPU, without a copy."""

    def run_on_device(self, array: Any, outputs: Sequence[str]) -> tuple[Any, ...]:
        """Return the outputs of these names, float32 [N, …] on the GPU, of an input array that lies there.

        All of them speak DLPack and `__cuda_array_interface__`. Raises RequestError for an array that does not fit,
        BackendError.
        """


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """All that a backend needs to open one artifact.

    `data` are the artifact's bytes, hash already checked: a backend never reads the file itself. `precision`
    is what has to run; a backend that would run anything else raises. `device` is a GPU's index, None on the
    CPU. `threads` is the number of CPU threads, None for the engine's default. `bundle` is where
    the artifacts lie, to be read only. `cache` is a folder of this user for what the backend compiles for just this
    artifact, these libraries and this GPU; None where nothing can be kept.
    """

    data: bytes
    artifact: Artifact
    input: TensorSpec
    outputs: tuple[TensorSpec, ...]
    batch: BatchRange
    provider: str
    precision: Precision
    device: int | None
    threads: int | None
    bundle: Path
    cache: Path | None = None


def native_error(doing: str, error: Exception) -> BackendError:
    """Return a one-line BackendError for what a native library raised, to be raised `from` it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > _MESSAGE_CHARACTERS:
        text = text[:_MESSAGE_CHARACTERS] + "…"
    return BackendError(f"{doing}: {text}")
