"""Execution contexts for many threads, each with a stream, buffers and a CUDA graph of its own.

A thread borrows a context for one call. An error in a context ends that context only.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.cuda import Cuda, host_view
from resnet_export.runtime.errors import BackendError, SessionClosedError


@dataclass(frozen=True)
class EngineShape:
    """What an execution context must know of its engine: tensor names, types and shapes without the batch axis.

    `outputs` has the shape of each output, in the manifest's order.
    """

    input: str
    input_rest: tuple[int, ...]
    dtype: np.dtype[Any]
    outputs: Mapping[str, tuple[int, ...]]

    def input_bytes(self, batch: int) -> int:
        """The size of `batch` images."""
        return batch * math.prod(self.input_rest) * self.dtype.itemsize

    def output_bytes(self, name: str, batch: int) -> int:
        """The size of the float32 output `name` of `batch` images."""
        return batch * math.prod(self.outputs[name]) * 4


class NativeContext(Protocol):
    """The part of TensorRT's IExecutionContext that is used here."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool: ...
    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class ExecutionContext:
    """One execution context with all that it needs. Used by one thread at a time.

    A graph captured for one shape must not be used after the context was given another one, so a context keeps
    the shape it had last, with the outputs that it copies to the host, and captures a graph when that shape comes a
    second time (the first run of a shape may set things up that a graph cannot record).
    """

    def __init__(self, cuda: Cuda, context: NativeContext, engine: EngineShape, *, graphs: bool) -> None:
        self.batch = 0
        self.graph_error: BackendError | None = None
        self._cuda = cuda
        self._context: NativeContext | None = context
        self._engine = engine
        self._graphs = graphs
        self._graph: Any = None
        self._profile = 0
        self._copied: tuple[str, ...] = ()
        self._runs = 0
        self._capacity = 0
        self._buffers: list[tuple[Callable[[int], None], int]] = []
        self._stream: Any = None
        self._stream = cuda.create_stream()

    def run(
        self, images: NDArray[Any], profile: int, outputs: tuple[str, ...]
    ) -> tuple[NDArray[np.float32], ...]:
        """Return the outputs of these names, float32 [N, …], of images [N, ...] in host memory."""
        batch = len(images)
        self._reserve(batch)
        if (batch, profile, outputs) != (self.batch, self._profile, self._copied):
            self._shape(batch, profile, self._device_in, self._device_out)
            self._copied = outputs
        if self._graphs and self._graph is None and self._runs == 1:
            self._capture()
        shape = (batch, *self._engine.input_rest)
        np.copyto(host_view(self._pinned_in, shape, self._engine.dtype), images)
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
        else:
            self._enqueue()
        self._cuda.synchronize(self._stream)
        self._runs += 1
        shapes = self._engine.outputs
        return tuple(
            host_view(self._pinned_out[name], (batch, *shapes[name]), np.dtype(np.float32)).copy()
            for name in outputs
        )

    def run_on_device(self, images: int, outputs: Mapping[str, int], batch: int, profile: int) -> None:
        """Compute from device memory at `images` into device memory at `outputs`, which has an address for each output
        of the engine; done when this returns.
        """
        self._shape(batch, profile, images, outputs)
        self._execute()
        self._cuda.synchronize(self._stream)
        self.batch = 0  # the addresses are somebody else's: the next run sets its own

    @property
    def stream(self) -> Any:
        """The context's stream."""
        return self._stream

    def close(self) -> None:
        """Free everything, the context before the memory it points to. Raises BackendError after trying it all."""
        self._drop_graph()
        self._context = None
        errors = []
        releases = [(free, pointer) for free, pointer in self._buffers]
        if self._stream is not None:
            releases.append((self._cuda.destroy_stream, self._stream))
        self._buffers, self._stream = [], None
        for release, resource in releases:
            try:
                release(resource)
            except BackendError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _reserve(self, batch: int) -> None:
        """Make the buffers large enough. New ones have new addresses, so shape and graph are set again."""
        if batch <= self._capacity:
            return
        self._drop_graph()
        self.batch, self._capacity = 0, 0
        while self._buffers:
            free, pointer = self._buffers.pop()
            free(pointer)
        cuda, size_in = self._cuda, self._engine.input_bytes(batch)
        sizes = {name: self._engine.output_bytes(name, batch) for name in self._engine.outputs}
        self._device_in = self._keep(cuda.free, cuda.allocate(size_in))
        self._device_out = {name: self._keep(cuda.free, cuda.allocate(size)) for name, size in sizes.items()}
        self._pinned_in = self._keep(cuda.free_pinned, cuda.allocate_pinned(size_in))
        self._pinned_out = {
            name: self._keep(cuda.free_pinned, cuda.allocate_pinned(size)) for name, size in sizes.items()
        }
        self._capacity = batch

    def _keep(self, free: Callable[[int], None], pointer: int) -> int:
        self._buffers.append((free, pointer))
        return pointer

    def _shape(self, batch: int, profile: int, images: int, outputs: Mapping[str, int]) -> None:
        self._drop_graph()
        self._runs, self.batch = 0, 0
        context, engine = self._open_context(), self._engine
        if profile != self._profile:
            _require(
                context.set_optimization_profile_async(profile, int(self._stream)),
                f"optimization profile {profile}",
            )
            self._cuda.synchronize(self._stream)
            self._profile = profile
        shape = (batch, *engine.input_rest)
        _require(context.set_input_shape(engine.input, shape), f"input shape {shape}")
        _require(context.set_tensor_address(engine.input, images), "the address of the input")
        for name, address in outputs.items():
            _require(context.set_tensor_address(name, address), f"the address of the output {name!r}")
        self.batch = batch

    def _enqueue(self) -> None:
        cuda, engine = self._cuda, self._engine
        cuda.copy_to_device(self._device_in, self._pinned_in, engine.input_bytes(self.batch), self._stream)
        self._execute()
        for name in self._copied:
            size = engine.output_bytes(name, self.batch)
            cuda.copy_to_host(self._pinned_out[name], self._device_out[name], size, self._stream)

    def _execute(self) -> None:
        _require(self._open_context().execute_async_v3(int(self._stream)), "the batch")

    def _capture(self) -> None:
        """Record a graph of this shape; without one the context runs as before, and `graph_error` says why."""
        try:
            with self._cuda.capture(self._stream) as recorded:
                self._enqueue()
            self._graph = recorded[0]
        except BackendError as error:
            self.graph_error, self._graphs = error, False

    def _drop_graph(self) -> None:
        graph, self._graph = self._graph, None
        if graph is not None:
            with contextlib.suppress(BackendError):  # in a broken CUDA context nothing can be freed
                self._cuda.destroy_graph(graph)

    def _open_context(self) -> NativeContext:
        if self._context is None:
            raise SessionClosedError("the execution context is closed")
        return self._context


def _require(accepted: bool, what: str) -> None:
    if not accepted:
        raise BackendError(f"TensorRT refused {what}")


class ContextPool:
    """Up to `size` execution contexts, made when they are needed. Safe for many threads."""

    def __init__(self, make: Callable[[], ExecutionContext], size: int) -> None:
        self._make = make
        self._size = size
        self._idle: list[ExecutionContext] = []  # the one used last at the end
        self._count = 0  # idle, lent and being made
        self._closed = False
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def borrow(self, batch: int) -> Iterator[ExecutionContext]:
        """Lend a context, preferably one that ran `batch` images last; wait while all are in use.

        When the block raises, the context is closed and never lent again. Raises SessionClosedError, and what making
        a context raises unless there are others to wait for.
        """
        context = self._take(batch)
        try:
            yield context
        except BaseException:
            try:
                # What the block raised says more than what closing a broken context adds to it.
                with contextlib.suppress(Exception):
                    context.close()
            finally:
                self._forget()
            raise
        with self._changed:
            self._idle.append(context)
            self._changed.notify_all()

    def close(self) -> None:
        """Wait for every context to come back, then close them. Later calls of `borrow` raise SessionClosedError."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: len(self._idle) == self._count)
            idle, self._idle, self._count = self._idle, [], 0
        errors = []
        for context in idle:
            try:
                context.close()
            except Exception as error:  # noqa: BLE001 — the others are closed first
                errors.append(error)
        if errors:
            raise errors[0]

    def _take(self, batch: int) -> ExecutionContext:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._idle or self._count < self._size)
                if self._closed:
                    raise SessionClosedError("the session is closed; open a new one")
                same = next((context for context in self._idle if context.batch == batch), None)
                if same is not None:
                    self._idle.remove(same)
                    return same
                if self._count >= self._size:
                    return self._idle.pop(0)
                self._count += 1
            try:
                return self._make()
            except BackendError:
                with self._changed:
                    # Another context does not fit into the GPU's memory: make do with those there are.
                    if self._forget():
                        self._size = self._count
                        continue
                raise
            except BaseException:
                self._forget()
                raise

    def _forget(self) -> int:
        """Count one context less, and return how many are left."""
        with self._changed:
            self._count -= 1
            self._changed.notify_all()
            return self._count
