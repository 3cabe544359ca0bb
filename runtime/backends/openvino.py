"""OpenVINO on the CPU, in the precision that was asked for.

Left alone, OpenVINO runs fp32 and fp16 graphs in bf16 on CPUs that have it. The precision hint is therefore
always set, and the compiled model is asked what it took.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.compiled_file import read_compiled, write_compiled
from resnet_export.runtime.backends.libraries import import_library
from resnet_export.runtime.backends.protocol import OpenRequest, native_error
from resnet_export.runtime.backends.signature import Tensor, check_signature
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.user_cache import trim

_HINT = "INFERENCE_PRECISION_HINT"

_KEPT_BYTES = 1 << 30
"""How much the compiled models of all bundles may take: those of ResNet-50 take 26 (INT8) to 100 MB (fp32)."""


class OpenVinoBackend:
    """One ONNX artifact in OpenVINO, compiled for one call at a time and, once calls overlap, for several.

    A stream of OpenVINO runs one request after the other on the processors that it has. Compiled for latency there is
    one stream with all of them, which is best for a lone call and serves any number of threads one by one; compiled
    for throughput each stream has a few. The second kind is made when calls first overlap, shares the weights of the
    first, and gives the same logits; the calls that come meanwhile wait for the first kind as before.
    """

    batch: BatchRange | None = None

    def __init__(self, compiled: _Compiled, request: OpenRequest, notes: tuple[str, ...] = ()) -> None:
        self._name = request.artifact.name
        self.provider: str = request.provider
        self.precision: Precision = request.precision
        self._compiled: _Compiled | None = compiled
        self._notes = notes
        self._alone = compiled.requests("LATENCY")
        self._together = self._alone
        self._refusal: str | None = None
        self._overlapped = request.threads == 1  # then a second stream would have no processor
        self._calls = 0
        self._lock = threading.Lock()

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Backend.notes`."""
        refused = () if self._refusal is None else (f"overlapping calls run one by one: {self._refusal}",)
        return (*self._notes, *refused)

    def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        """See `Backend.run`."""
        with self._requests() as idle:
            request = idle.get()
            try:
                # OpenVINO reads the input in place; what is asked for is copied, so that the next call spares it.
                request.infer(batch, share_inputs=True, share_outputs=True)
                return tuple(np.array(request.get_tensor(name).data) for name in outputs)
            except Exception as error:
                raise native_error(f"OpenVINO failed to run artifact {self._name!r}", error) from error
            finally:
                idle.put(request)

    def close(self) -> None:
        """See `Backend.close`."""
        for requests in (self._alone, self._together):
            while not requests.empty():
                requests.get()
        self._compiled = None

    @contextlib.contextmanager
    def _requests(self) -> Iterator[queue.SimpleQueue[Any]]:
        with self._lock:
            self._calls += 1
            alone = self._calls == 1
            first_overlap = not alone and not self._overlapped
            self._overlapped |= first_overlap
        try:
            if first_overlap and self._compiled is not None:
                try:
                    self._together = self._compiled.requests("THROUGHPUT")
                except Exception as error:  # noqa: BLE001 — the other kind serves these calls too
                    self._refusal = str(native_error("OpenVINO cannot compile it for throughput", error))
            yield self._alone if alone else self._together
        finally:
            with self._lock:
                self._calls -= 1


class _Compiled:
    """An artifact that OpenVINO compiles for a performance hint.

    Attributes:
        latency: the model compiled for one call at a time, or what an earlier session kept of it.
        not_kept: why it cannot be kept for later sessions, None when it is or need not be.
    """

    def __init__(self, core: Any, request: OpenRequest, config: dict[str, str | int | bool]) -> None:
        self._core, self._device, self._config = core, request.provider, config
        self._graph: bytes | None = request.data
        self._model: Any = None
        self.not_kept: str | None = None
        self.latency = self._compile("LATENCY") if request.cache is None else self._load(request.cache)

    def _load(self, folder: Path) -> Any:
        # OpenVINO's own cache (CACHE_DIR) believes whatever stands in its files, and maps them while others write them.
        config = self._config | {"PERFORMANCE_HINT": "LATENCY"}
        name = hashlib.sha256(repr(sorted(config.items())).encode()).hexdigest()[:16]
        path = folder / f"{name}.model"
        kept = read_compiled(path)
        if kept is not None:
            with contextlib.suppress(RuntimeError):  # of another build of OpenVINO
                return self._core.import_model(kept, self._device, config)
        compiled = self._compile("LATENCY")
        try:
            write_compiled(path, compiled.export_model().getvalue())
            trim("openvino-*/*.model", _KEPT_BYTES)
        except (OSError, RuntimeError) as error:
            self.not_kept = f"is compiled anew each time: the compiled model cannot be kept ({error})"
        return compiled

    def _compile(self, hint: str) -> Any:
        if self._model is None:
            self._model, self._graph = self._core.read_model(self._graph), None
        return self._core.compile_model(self._model, self._device, self._config | {"PERFORMANCE_HINT": hint})

    def requests(self, hint: str) -> queue.SimpleQueue[Any]:
        """Return as many infer requests as OpenVINO can use at once; one serves one thread at a time."""
        compiled = self.latency if hint == "LATENCY" else self._compile(hint)
        idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
            idle.put(compiled.create_infer_request())
        return idle


def open_backend(request: OpenRequest) -> OpenVinoBackend:
    """Open an ONNX artifact on the CPU. Raises BackendError."""
    name = request.artifact.name
    openvino = import_library("openvino")
    hint = "bf16" if request.precision == Precision.BF16 else "f32"
    # Pinned threads are watched by TBB, and a fork of a process that has loaded or kept a compiled model may wait for
    # ever for one that only its parent has (2026.4). Where other processes compete, runs without pins are quicker, too.
    config: dict[str, str | int | bool] = {_HINT: hint, "ENABLE_CPU_PINNING": False}
    if request.threads is not None:
        config["INFERENCE_NUM_THREADS"] = request.threads
    try:
        core = openvino.Core()
        compiled = _Compiled(core, request, config)
        taken = compiled.latency.get_property(_HINT).get_type_name()
        inputs, outputs = _tensors(compiled.latency.inputs), _tensors(compiled.latency.outputs)
    except Exception as error:
        raise native_error(f"OpenVINO cannot open artifact {name!r}", error) from error
    if taken != hint:
        raise BackendError(f"OpenVINO would run artifact {name!r} in {taken}, it was asked for {hint}")
    check_signature(request, inputs, outputs)
    return OpenVinoBackend(compiled, request, (compiled.not_kept,) if compiled.not_kept else ())


def _tensors(ports: Any) -> list[Tensor]:
    return [
        Tensor(
            name=port.any_name,
            aliases=tuple(port.names),
            dtype=str(np.dtype(port.element_type.to_dtype())),
            shape=tuple(size.get_length() if size.is_static else None for size in port.partial_shape),
        )
        for port in ports
    ]
