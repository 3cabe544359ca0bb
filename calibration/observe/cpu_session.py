"""ONNX Runtime on the CPU, opened one way: for checks and for calibration, never for shipping.

ONNX Runtime 1.31's WeightBiasQuantization optimizer derives int32 bias scales in the type of the graph's own
scales. In a graph with fp16 scales most of them come out subnormal, and the logits are silently wrong; so it
is off here, for every graph.

It has no kernels for bf16 graphs either: they are computed in fp32, rounded wherever they round (`bf16_simulation`).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.libraries import import_library
from resnet_export.runtime.errors import BackendError, DependencyError, ExportError

__all__ = ["CpuSession", "cpu_threads"]

_ERROR = 3  # onnxruntime's severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal


def cpu_threads() -> int:
    """Return the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class CpuSession:
    """One graph with one input, on ONNX Runtime's CPU provider.

    Attributes:
        input: the name of the graph's input.
        outputs: the names of the graph's outputs, in the order in which `run` returns them.
    """

    def __init__(self, model: bytes, *, threads: int | None = None) -> None:
        """Open a serialized ModelProto with `threads` threads (None: one for each processor).

        Raises DependencyError without ONNX Runtime, and ExportError when it refuses the graph.
        """
        try:
            onnxruntime = import_library("onnxruntime")
        except BackendError as error:
            raise DependencyError(
                f"{error}, and every graph is checked with it; run: pip install 'resnet-export[cpu]'"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or cpu_threads()
        options.log_severity_level = _ERROR
        # Saves nothing where batch sizes change, and with many outputs holds each activation twice: ResNet-50
        # observed at batch 8 peaks 1 GB higher with it.
        options.enable_mem_pattern = False
        # Threads that wait would spin on the processors that the eager network or the observers need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")

        def opened(data: bytes) -> Any:
            return onnxruntime.InferenceSession(
                data,
                options,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=["WeightBiasQuantization"],
            )

        try:
            try:
                self._session: Any = opened(model)
            except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
                self._session = opened(_simulated(model))
        except Exception as error:
            raise ExportError(f"ONNX Runtime refuses the graph: {_first_line(error)}") from error
        self.input: str = self._session.get_inputs()[0].name
        self.outputs: tuple[str, ...] = tuple(one.name for one in self._session.get_outputs())

    def run(self, batch: NDArray[Any]) -> list[NDArray[Any]]:
        """Return every output for one batch, in the layout and dtype of the graph's input.

        Raises ExportError when ONNX Runtime does, as it does for a batch of another shape or dtype.
        """
        try:
            results = self._session.run(None, {self.input: np.ascontiguousarray(batch)})
        except Exception as error:
            raise ExportError(
                f"ONNX Runtime cannot run the graph on {batch.dtype} {list(batch.shape)}: "
                f"{_first_line(error)}"
            ) from error
        return list(results)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _simulated(model: bytes) -> bytes:
    import onnx

    from resnet_export.calibration.observe.bf16_simulation import simulate_bf16

    simulated: bytes = simulate_bf16(onnx.ModelProto.FromString(model)).SerializeToString()
    return simulated
