"""A CUDA runtime that keeps "device" memory on the host and a journal of what was asked of it.

It stands in for `cuda.bindings.runtime`, whose functions it checks each call against: same name, same
number of arguments. Streams run at once, except while they are captured.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cuda.bindings import runtime as real


@dataclass
class Graph:
    """What was enqueued while a stream was captured."""

    handle: int
    work: list[Callable[[], None]]

    def __int__(self) -> int:
        return self.handle


@dataclass
class FakeCuda:
    """The double. `journal` lists calls in order, as "name" strings; other doubles may add theirs.

    `broken` maps a function's name to the status that it shall return from now on, `broken_streams` does
    the same for whatever waits for a stream.
    """

    journal: list[str] = field(default_factory=list)
    memory: dict[int, tuple[str, Any]] = field(default_factory=dict)
    streams: set[int] = field(default_factory=set)
    graphs: set[int] = field(default_factory=set)
    broken: dict[str, Any] = field(default_factory=dict)
    broken_streams: dict[int, Any] = field(default_factory=dict)
    capturing: dict[int, list[Callable[[], None]]] = field(default_factory=dict)
    copied: int = 0
    lock: Any = field(default_factory=threading.RLock)

    def __getattr__(self, name: str) -> Any:
        """Constants and enumerations are the real ones; so is the signature of every function."""
        found = getattr(real, name)
        if not name.startswith("cuda") or not callable(found) or isinstance(found, type):
            return found
        count = _arguments(found)

        def call(*arguments: Any) -> tuple[Any, ...]:
            assert len(arguments) == count, f"{name} takes {count} arguments"
            with self.lock:
                self.journal.append(name)
                if name in self.broken:
                    return self.broken[name], None
                values = getattr(self, f"_{name}")(*arguments)
            if isinstance(values, real.cudaError_t):
                return (values,)
            return (real.cudaError_t.cudaSuccess, *(() if values is None else (values,)))

        return call

    def submit(self, stream: int, work: Callable[[], None]) -> None:
        """Run `work` in `stream`: now, or when the graph that is being captured is launched."""
        with self.lock:
            if int(stream) in self.capturing:
                self.capturing[int(stream)].append(work)
            else:
                work()

    def is_clean(self) -> bool:
        """Whether everything that was allocated or created is gone again."""
        return not (self.memory or self.streams or self.graphs or self.capturing)

    def _allocate(self, kind: str, size: int) -> int:
        memory = (ctypes.c_uint8 * size)()
        self.memory[ctypes.addressof(memory)] = (kind, memory)
        return ctypes.addressof(memory)

    def _release(self, kind: str, pointer: int) -> None:
        assert self.memory.pop(pointer)[0] == kind

    def _cudaSetDevice(self, device: int) -> None:
        assert device == 0

    def _cudaMalloc(self, size: int) -> int:
        return self._allocate("device", size)

    def _cudaFree(self, pointer: int) -> None:
        self._release("device", pointer)

    def _cudaHostAlloc(self, size: int, _: int) -> int:
        return self._allocate("pinned", size)

    def _cudaFreeHost(self, pointer: int) -> None:
        self._release("pinned", pointer)

    def _cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == real.cudaStreamNonBlocking
        handle = 1000 + len(self.journal)
        self.streams.add(handle)
        return real.cudaStream_t(handle)

    def _cudaStreamDestroy(self, stream: Any) -> None:
        self.streams.remove(int(stream))

    def _cudaStreamSynchronize(self, stream: Any) -> Any:
        return self.broken_streams.get(int(stream))

    def _cudaMemcpyAsync(self, target: int, source: int, size: int, kind: Any, stream: Any) -> None:
        kinds = real.cudaMemcpyKind
        between = ("pinned", "device") if kind == kinds.cudaMemcpyHostToDevice else ("device", "pinned")
        assert between == (self.memory[source][0], self.memory[target][0])
        self.copied += 1
        self.submit(stream, lambda: ctypes.memmove(target, source, size) and None)

    def _cudaStreamBeginCapture(self, stream: Any, _: Any) -> None:
        self.capturing[int(stream)] = []

    def _cudaStreamEndCapture(self, stream: Any) -> Any:
        graph = Graph(len(self.journal), self.capturing.pop(int(stream)))
        self.graphs.add(graph.handle)
        return graph

    def _cudaGraphInstantiate(self, graph: Graph, _: int) -> Graph:
        executable = Graph(len(self.journal), graph.work)
        self.graphs.add(executable.handle)
        return executable

    def _cudaGraphDestroy(self, graph: Graph) -> None:
        self.graphs.remove(graph.handle)

    def _cudaGraphExecDestroy(self, graph: Graph) -> None:
        self.graphs.remove(graph.handle)

    def _cudaGraphLaunch(self, graph: Graph, _: Any) -> None:
        assert graph.handle in self.graphs
        for work in graph.work:
            work()


def _arguments(function: Any) -> int:
    signature = (function.__doc__ or "").splitlines()[0]
    inside = signature[signature.index("(") + 1 : signature.rindex(")")]
    return len([part for part in inside.split(",") if part.strip()])
