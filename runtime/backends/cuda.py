"""The part of CUDA's runtime API that an engine needs, through NVIDIA's own bindings (cuda-python 12 and 13).

Every call is checked: a status other than success becomes a BackendError that names the call and the status.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.errors import BackendError

INSTALL = "pip install cuda-bindings, of the major version that `nvidia-smi` shows as CUDA Version"


def load_runtime() -> ModuleType:
    """Import `cuda.bindings.runtime`. Raises BackendError, with the command that installs it."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:
        raise BackendError(f"the CUDA bindings for Python cannot be imported ({error}); {INSTALL}") from error


class Cuda:
    """One GPU. Pointers and graphs are what the bindings return; streams too, and `int(stream)` is the handle.

    CUDA's current device belongs to a thread, so each public operation of a backend starts with `enter`.
    """

    def __init__(self, device: int, runtime: Any = None) -> None:
        self.device = device
        self._runtime = load_runtime() if runtime is None else runtime

    def enter(self) -> None:
        """Make this GPU the current one of the calling thread."""
        self._call("cudaSetDevice", self.device)

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of device memory."""
        return int(self._call("cudaMalloc", size))

    def free(self, pointer: int) -> None:
        """Free what `allocate` returned."""
        self._call("cudaFree", pointer)

    def allocate_pinned(self, size: int) -> int:
        """Return the address of `size` bytes of page-locked host memory, which the GPU copies from and to
        itself.
        """
        return int(self._call("cudaHostAlloc", size, self._runtime.cudaHostAllocDefault))

    def free_pinned(self, pointer: int) -> None:
        """Free what `allocate_pinned` returned."""
        self._call("cudaFreeHost", pointer)

    def create_stream(self) -> Any:
        """Return a stream that does not wait for the default stream."""
        return self._call("cudaStreamCreateWithFlags", self._runtime.cudaStreamNonBlocking)

    def destroy_stream(self, stream: Any) -> None:
        """Destroy what `create_stream` returned."""
        self._call("cudaStreamDestroy", stream)

    def synchronize(self, stream: Any) -> None:
        """Wait for everything in `stream`; errors of earlier work in it are raised here."""
        self._call("cudaStreamSynchronize", stream)

    def copy_to_device(self, target: int, source: int, size: int, stream: Any) -> None:
        """Enqueue a copy of `size` bytes from host to device."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    def copy_to_host(self, target: int, source: int, size: int, stream: Any) -> None:
        """Enqueue a copy of `size` bytes from device to host."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", target, source, size, kind, stream)

    @contextlib.contextmanager
    def capture(self, stream: Any) -> Iterator[list[Any]]:
        """Record what the block enqueues in `stream` instead of running it.

        Yields a list that holds the executable graph after the block. Other threads may use CUDA meanwhile.
        When the block raises, the capture is ended and its graph destroyed.
        """
        result: list[Any] = []
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", stream, mode)
        try:
            yield result
        except BaseException:
            # The capture is invalid by now, and ending it reports that once more.
            _, graph = self._runtime.cudaStreamEndCapture(stream)
            if graph is not None and int(graph):
                self._runtime.cudaGraphDestroy(graph)
            raise
        graph = self._call("cudaStreamEndCapture", stream)
        try:
            result.append(self._call("cudaGraphInstantiate", graph, 0))
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: Any, stream: Any) -> None:
        """Enqueue a captured graph."""
        self._call("cudaGraphLaunch", graph, stream)

    def destroy_graph(self, graph: Any) -> None:
        """Destroy an executable graph."""
        self._call("cudaGraphExecDestroy", graph)

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *values = getattr(self._runtime, function)(*arguments)
        if status != self._runtime.cudaError_t.cudaSuccess:
            raise BackendError(
                f"CUDA's {function} failed on GPU {self.device}: {status.name} ({int(status)})"
            )
        return values[0] if values else None


def host_view(pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return host memory at `pointer` as an array. It must not be used after the memory is freed."""
    size = int(np.prod(shape)) * dtype.itemsize
    memory = (ctypes.c_uint8 * size).from_address(pointer)
    return np.ctypeslib.as_array(memory).view(dtype).reshape(shape)
