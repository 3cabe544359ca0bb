"""The engines that run artifacts, behind one small protocol and listed in one table.

A backend module has one function, `open_backend(request) -> Backend`. Adding an engine means one such module
and one row in `ROUTES`; nothing is imported before a session opens it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.manifest import Artifact, BatchRange, TensorSpec
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.precision import Precision

__all__ = [
    "ROUTES",
    "Backend",
    "DeviceBackend",
    "OpenRequest",
    "Route",
    "find_route",
    "native_error",
    "open_backend",
]

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

    def run(self, batch: np.ndarray) -> NDArray[np.float32]:
        """Return the logits, float32 [N, classes], in memory that belongs to the caller.

        `batch` is C-contiguous and has been checked against the manifest's input. Safe to call from many
        threads. Raises BackendError, with what the engine raised as its cause.
        """

    def close(self) -> None:
        """Free what the engine holds. Called once, when no `run` is under way and none will follow."""


@runtime_checkable
class DeviceBackend(Protocol):
    """A backend that also takes and returns arrays on the GPU, without a copy."""

    def run_on_device(self, array: Any) -> Any:
        """Return the logits, float32 [N, classes] on the GPU, of an input array that lies there.

        Both speak DLPack and `__cuda_array_interface__`. Raises RequestError for an array that does not fit,
        BackendError.
        """


@dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """All that a backend needs to open one artifact.

    `data` are the artifact's bytes, hash already checked: a backend never reads the file itself. `precision`
    is what has to run; a backend that would run anything else raises. `device` is a GPU's index, None on the
    CPU. `threads` is the number of CPU threads, None for the engine's default. `bundle` is where caches may
    lie.
    """

    data: bytes
    artifact: Artifact
    input: TensorSpec
    output: TensorSpec
    batch: BatchRange
    provider: str
    precision: Precision
    device: int | None
    threads: int | None
    bundle: Path


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way to run artifacts of one kind.

    `module` is the Python module that must be installed (by one of `distributions`, where that matters) and
    `install` what brings it. `also` lists the coarser arithmetic that it can use for fp32 graphs on request, `lacks`
    the precisions whose graphs it has no kernels for.
    `runner` is the module with `open_backend`, None for a route whose candidates are only explained.
    """

    backend: str
    provider: str
    kind: Literal["onnx", "engine"]
    device: Literal["cpu", "gpu"]
    module: str
    install: str
    distributions: tuple[str, ...] = ()
    also: tuple[Precision, ...] = ()
    lacks: tuple[Precision, ...] = ()
    runner: str | None


ROUTES: tuple[Route, ...] = (
    Route(
        backend="tensorrt",
        provider="tensorrt",
        kind="engine",
        device="gpu",
        module="tensorrt",
        install="pip install 'resnet-export[tensorrt]'",
        runner="resnet_export.runtime.backends.tensorrt",
    ),
    Route(
        backend="tensorrt",
        provider="tensorrt_rtx",
        kind="engine",
        device="gpu",
        module="tensorrt_rtx",
        install="pip install 'resnet-export[tensorrt-rtx]'",
        runner="resnet_export.runtime.backends.tensorrt",
    ),
    Route(
        backend="onnxruntime",
        provider="CUDAExecutionProvider",
        kind="onnx",
        device="gpu",
        module="onnxruntime",
        install="pip install 'resnet-export[gpu]'",
        distributions=("onnxruntime-gpu",),
        lacks=(Precision.BF16,),
        runner="resnet_export.runtime.backends.onnxruntime_gpu",
    ),
    Route(
        backend="onnxruntime-tensorrt",
        provider="TensorrtExecutionProvider",
        kind="onnx",
        device="gpu",
        module="onnxruntime",
        install="pip install 'resnet-export[gpu]' tensorrt-cu12~=10.0",
        distributions=("onnxruntime-gpu",),
        runner="resnet_export.runtime.backends.onnxruntime_gpu",
    ),
    Route(
        backend="onnxruntime-tensorrt-rtx",
        provider="NvTensorRTRTXExecutionProvider",
        kind="onnx",
        device="gpu",
        module="onnxruntime_ep_nv_tensorrt_rtx",
        install="pip install 'onnxruntime>=1.24' onnxruntime-ep-nv-tensorrt-rtx",
        runner="resnet_export.runtime.backends.onnxruntime_gpu",
    ),
    Route(
        backend="onnxruntime",
        provider="CPUExecutionProvider",
        kind="onnx",
        device="cpu",
        module="onnxruntime",
        install="pip install 'resnet-export[cpu]'",
        lacks=(Precision.BF16,),
        runner="resnet_export.runtime.backends.onnxruntime",
    ),
    Route(
        backend="openvino",
        provider="CPU",
        kind="onnx",
        device="cpu",
        module="openvino",
        install="pip install 'resnet-export[openvino]'",
        also=(Precision.BF16,),
        runner="resnet_export.runtime.backends.openvino",
    ),
)


def find_route(backend: str, provider: str, routes: tuple[Route, ...] = ROUTES) -> Route:
    """Return the route of a choice. Raises LookupError when there is none."""
    for route in routes:
        if (route.backend, route.provider) == (backend, provider):
            return route
    raise LookupError(f"no route runs {backend} with {provider}")


def open_backend(route: Route, request: OpenRequest) -> Backend:
    """Import the route's module and open the artifact. Raises BackendError."""
    if route.runner is None:
        raise LookupError(
            f"{route.backend} with {route.provider} has no runner"
        )  # the resolver never chooses it
    backend: Backend = importlib.import_module(route.runner).open_backend(request)
    return backend


def native_error(doing: str, error: Exception) -> BackendError:
    """Return a one-line BackendError for what a native library raised, to be raised `from` it."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > _MESSAGE_CHARACTERS:
        text = text[:_MESSAGE_CHARACTERS] + "…"
    return BackendError(f"{doing}: {text}")
