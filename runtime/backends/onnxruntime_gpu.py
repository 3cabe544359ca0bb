"""ONNX Runtime on NVIDIA GPUs: the CUDA, the TensorRT and the TensorRT for RTX providers.

No provider may hand a node to the CPU: that would be slow and not said. The TensorRT provider of ONNX
Runtime 1.31 is built for TensorRT 10 and sets builder flags for reduced precision; it and the one for RTX
have no option that keeps fp32 from being rounded to TF32, so neither is used for fp32 graphs.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.onnxruntime import OnnxRuntimeBackend, open_session
from resnet_export.runtime.backends.protocol import Backend, OpenRequest, native_error
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.precision import Precision

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
RTX = "NvTensorRTRTXExecutionProvider"

# A CUDA graph holds its buffers for good, so only that many batch sizes (and sets of outputs) get one.
GRAPHS = 4
_NO_GRAPH = -1


_Key = tuple[int, tuple[str, ...]]
"""A batch size, and the names of the outputs that are asked for."""


@dataclass(frozen=True)
class _Bound:
    """Device memory for one batch size and what it is asked for, and how to run it."""

    binding: Any
    input: Any
    outputs: tuple[Any, ...]
    options: Any


class BoundBackend:
    """An artifact with its input and outputs bound to device memory, so that nothing is allocated in a run.

    `graphs`: the session captures a CUDA graph for every `gpu_graph_id` that it sees. Runs of several
    threads come one after the other: they would use the same memory, and a graph must not run twice at once.
    """

    def __init__(
        self,
        session: Any,
        request: OpenRequest,
        notes: tuple[str, ...],
        *,
        device: str = "cuda",
        batch: BatchRange | None = None,
        graphs: bool = False,
    ) -> None:
        self._session: Any = session
        self._input = request.input.name
        self._rest = {output.name: output.rest for output in request.outputs}
        self._name = request.artifact.name
        self._device = (device, request.device or 0)
        self._graphs = graphs
        self._bound: dict[_Key, _Bound] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self.batch = batch
        self.provider: str = request.provider
        self.precision: Precision = request.precision
        self.notes = notes

    def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        """See `Backend.run`."""
        key = (len(batch), tuple(outputs))
        try:
            with self._lock, self._forgotten_on_error(key):
                bound = self._bind(batch, key)
                bound.input.update_inplace(batch)
                self._session.run_with_iobinding(bound.binding, bound.options)
                bound.binding.synchronize_outputs()
                # On a GPU `numpy` copies; on the CPU it shows the memory that the next run overwrites.
                return tuple(np.array(output.numpy(), dtype=np.float32) for output in bound.outputs)
        except Exception as error:
            raise native_error(f"ONNX Runtime failed to run artifact {self._name!r}", error) from error

    def close(self) -> None:
        """See `Backend.close`."""
        self._bound.clear()
        self._session = None

    @contextlib.contextmanager
    def _forgotten_on_error(self, key: _Key) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._bound.pop(key, None)
            raise

    def _bind(self, batch: np.ndarray, key: _Key) -> _Bound:
        import onnxruntime

        found = self._bound.get(key)
        if found is not None:
            return found
        keep = len(self._bound) < GRAPHS
        kind, index = self._device
        value = onnxruntime.OrtValue
        source = value.ortvalue_from_shape_and_type(list(batch.shape), batch.dtype.type, kind, index)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(self._input, source)
        targets = []
        for name in key[1]:
            shape = [len(batch), *self._rest[name]]
            targets.append(value.ortvalue_from_shape_and_type(shape, np.float32, kind, index))
            binding.bind_ortvalue_output(name, targets[-1])
        options = onnxruntime.RunOptions()
        if self._graphs:
            # Each binding has a graph of its own; one without is run node by node.
            graph = next(self._numbers) if keep else _NO_GRAPH
            options.add_run_config_entry("gpu_graph_id", str(graph))
        made = _Bound(binding, source, tuple(targets), options)
        if keep:
            self._bound[key] = made
        return made


def open_backend(request: OpenRequest) -> Backend:
    """Open an ONNX artifact with one of the GPU's providers. Raises BackendError."""
    if request.provider == CUDA:
        return _open_cuda(request)
    if request.precision == Precision.FP32:
        raise BackendError(
            f"{request.provider} rounds fp32 to TF32 and has no option against it; use {CUDA} for fp32"
        )
    return _open_tensorrt(request) if request.provider == TENSORRT else _open_rtx(request)


def _open_cuda(request: OpenRequest) -> Backend:
    # TF32 is on by default and keeps 10 bits of mantissa: then fp32 would not be what runs.
    options = {"device_id": str(request.device or 0), "use_tf32": "0"}
    try:
        opened = open_session(request, options | {"enable_cuda_graph": "1"}, _refuse_cpu)
    except BackendError as error:
        if error.__cause__ is None:  # the provider itself is missing
            raise
        session, _, notes = open_session(request, options, _refuse_cpu)
        return BoundBackend(session, request, (*notes, f"runs without CUDA graphs: {error}"))
    return BoundBackend(*opened, graphs=True)


def _open_tensorrt(request: OpenRequest) -> Backend:
    options = {
        "device_id": str(request.device or 0),
        "trt_fp16_enable": "1",
        "trt_int8_enable": "1" if request.precision == Precision.INT8 else "0",
        **_profiles(request, "trt_profile_{}_shapes"),
    }
    cache = request.cache
    if cache is not None:
        options |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(cache),
            "trt_engine_cache_prefix": request.artifact.sha256[:16],
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache),
        }
    session, _, notes = open_session(request, options, _leave_to_provider)
    return BoundBackend(session, request, notes, batch=request.batch)


def _open_rtx(request: OpenRequest) -> Backend:
    options = _profiles(request, "nv_profile_{}_shapes") | {"enable_cuda_graph": "1"}
    if request.cache is not None:
        options["nv_runtime_cache_path"] = str(request.cache)

    def add_device(onnxruntime: Any, session_options: Any) -> None:
        plugin = importlib.import_module("onnxruntime_ep_nv_tensorrt_rtx")

        _leave_to_provider(onnxruntime, session_options)
        name = plugin.get_ep_name()
        if all(device.ep_name != name for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
        index = request.device or 0
        if index >= len(devices):
            raise BackendError(f"{name} offers {len(devices)} devices, GPU {index} is not among them")
        session_options.add_provider_for_devices([devices[index]], options)

    session, _, notes = open_session(request, {}, add_device, plugin=True)
    return _limited(OnnxRuntimeBackend(session, request, notes), request.batch)


def _limited(backend: OnnxRuntimeBackend, batch: BatchRange) -> OnnxRuntimeBackend:
    backend.batch = batch
    return backend


def _refuse_cpu(_: Any, options: Any) -> None:
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")


def _leave_to_provider(onnxruntime: Any, options: Any) -> None:
    """The provider optimizes the graph itself, and recognizes less of one that was rewritten before."""
    _refuse_cpu(onnxruntime, options)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


def _profiles(request: OpenRequest, key: str) -> dict[str, str]:
    rest = "x".join(str(size) for size in request.input.shape[1:])
    batch = request.batch
    sizes = {"min": batch.min, "opt": batch.opt, "max": batch.max}
    return {key.format(name): f"{request.input.name}:{size}x{rest}" for name, size in sizes.items()}
