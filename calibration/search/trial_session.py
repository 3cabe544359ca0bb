"""Run a trial graph on an engine of this host that computes its integers as integers, where there is one.

ONNX Runtime has no integer kernels for the layout of a TensorRT graph and simulates it in float32, at 1.4 times the
time of the float network. OpenVINO runs the same graph in integers at 0.3 times: an SNR of the logits within 0.1 dB of
the simulated one (ResNet-18 trained on digits, ResNet-50 untrained, every method of choosing ranges).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.observe.cpu_session import CpuSession, cpu_threads
from resnet_export.runtime.backends.libraries import import_library
from resnet_export.runtime.backends.routes import ROUTES
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.eligibility import VNNI
from resnet_export.runtime.select.host import cpu_features

__all__ = ["open_trial"]

Run = Callable[[NDArray[Any]], NDArray[np.float32]]


def open_trial(model: onnx.ModelProto, target: TargetName | None, threads: int | None) -> Run:
    """Return a function from a batch, in the layout and dtype of the graph's input, to the logits.

    Args:
        model: a float32 graph, or a Q/DQ graph that is float32 outside its integers.
        target: whose layout it has; None for a float graph.
        threads: None means all processors.

    Raises as `CpuSession` does.
    """
    data = model.SerializeToString()
    if target is not None and _simulated_by_onnxruntime(target):
        found = _open_openvino(data, threads or cpu_threads())
        if found is not None:
            return found
    session = CpuSession(data, threads=threads)
    return lambda batch: session.run(batch)[0]


def _simulated_by_onnxruntime(target: TargetName) -> bool:
    route = next(row for row in ROUTES if row.provider == "CPUExecutionProvider")
    execution = route.execution(Precision.INT8, target)
    return execution is not None and execution.simulated


def _open_openvino(data: bytes, threads: int) -> Run | None:
    """Open a graph on OpenVINO; None where it is not installed, refuses the graph or would saturate.

    Without VNNI, sums of two 8-bit products saturate at 16 bits on x86.
    """
    if not set(VNNI) & set(cpu_features()[0]):
        return None
    config = {
        "INFERENCE_PRECISION_HINT": "f32",  # of what is no integer: bf16 by default
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        core = import_library("openvino").Core()
    except BackendError:
        return None
    try:
        request = core.compile_model(core.read_model(data), "CPU", config).create_infer_request()
    except RuntimeError:  # ONNX Runtime takes the graph or says why not
        return None
    return lambda batch: np.array(request.infer({0: np.ascontiguousarray(batch)})[0])
