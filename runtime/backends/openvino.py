"""OpenVINO on the CPU, in the precision that was asked for.

Left alone, OpenVINO runs fp32 and fp16 graphs in bf16 on CPUs that have it. The precision hint is therefore
always set, and the compiled model is asked what it took.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.libraries import import_library
from resnet_export.runtime.backends.protocol import OpenRequest, native_error
from resnet_export.runtime.backends.signature import Tensor, check_signature
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.precision import Precision

_HINT = "INFERENCE_PRECISION_HINT"


class OpenVinoBackend:
    """One ONNX artifact in an `openvino.CompiledModel`.

    An infer request serves one thread at a time, so they lie in a pool as large as OpenVINO can use at once;
    further threads wait.
    """

    batch: BatchRange | None = None

    def __init__(self, compiled: Any, request: OpenRequest) -> None:
        self._name = request.artifact.name
        self.provider: str = request.provider
        self.precision: Precision = request.precision
        self.notes: tuple[str, ...] = ()
        self._compiled = compiled
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")):
            self._idle.put(compiled.create_infer_request())

    def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        """See `Backend.run`."""
        request = self._idle.get()
        try:
            # OpenVINO reads the input in place; what is asked for is copied, so that the next call spares it.
            request.infer(batch, share_inputs=True, share_outputs=True)
            return tuple(np.array(request.get_tensor(name).data) for name in outputs)
        except Exception as error:
            raise native_error(f"OpenVINO failed to run artifact {self._name!r}", error) from error
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """See `Backend.close`."""
        while not self._idle.empty():
            self._idle.get()
        self._compiled = None


def open_backend(request: OpenRequest) -> OpenVinoBackend:
    """Open an ONNX artifact on the CPU. Raises BackendError."""
    name = request.artifact.name
    openvino = import_library("openvino")
    hint = "bf16" if request.precision == Precision.BF16 else "f32"
    config: dict[str, str | int] = {_HINT: hint, "PERFORMANCE_HINT": "LATENCY"}
    if request.threads is not None:
        config["INFERENCE_NUM_THREADS"] = request.threads
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(request.data), request.provider, config)
        taken = compiled.get_property(_HINT).get_type_name()
        inputs, outputs = _tensors(compiled.inputs), _tensors(compiled.outputs)
    except Exception as error:
        raise native_error(f"OpenVINO cannot open artifact {name!r}", error) from error
    if taken != hint:
        raise BackendError(f"OpenVINO would run artifact {name!r} in {taken}, it was asked for {hint}")
    check_signature(request, inputs, outputs)
    return OpenVinoBackend(compiled, request)


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
