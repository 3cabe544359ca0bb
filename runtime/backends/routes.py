"""Every way to run an artifact, one row per backend and provider; everything else reads this table.

A further backend is a row here and the module that it names (with `open_backend(request) -> Backend`). No module is
imported before a session opens it.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Literal

from resnet_export.runtime.backends.protocol import Backend, OpenRequest
from resnet_export.runtime.bundle.manifest import EngineInfo
from resnet_export.runtime.precision import Precision

__all__ = ["ROUTES", "Execution", "Route", "find_route", "open_backend"]


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a route executes artifacts of one precision.

    Attributes:
        precision: the arithmetic.
        target: the layout of the graphs that this row is about; None for any.
        order: where the pair of route and precision comes among all routes until a host has measured it; lowest first.
        why: the reason for that place, as half a sentence.
        simulated: the engine computes in wider arithmetic: the numbers are those of `precision`, the speed is not.
    """

    precision: Precision
    target: Literal["any", "cpu", "tensorrt"] | None = None
    order: int
    why: str
    simulated: bool = False


@dataclass(frozen=True, kw_only=True)
class Route:
    """One way to run artifacts of one kind.

    Attributes:
        backend, provider: the names by which users and the engine know it. The provider of engines is the TensorRT
            variant that builds and loads them, or the lean runtime.
        kind: what it opens.
        device: where it computes.
        module: the Python module that must be installed.
        packages: the distributions that bring the module, the most telling name first; the host is probed for them.
        required: those of `packages` that serve; empty when each does.
        install: the command that installs it.
        executions: what it computes in, with the order of preference; the first row that matches an artifact counts.
        also: the coarser arithmetic that it can use for fp32 graphs on request.
        lacks: the precisions whose graphs it has no kernels for.
        compiles: it compiles kernels or an engine when an artifact is first opened, worth keeping for the next session.
        runner: the module with `open_backend`.
    """

    backend: str
    provider: str
    kind: Literal["onnx", "engine"]
    device: Literal["cpu", "gpu"]
    module: str
    packages: tuple[str, ...]
    required: tuple[str, ...] = ()
    install: str
    executions: tuple[Execution, ...]
    also: tuple[Precision, ...] = ()
    lacks: tuple[Precision, ...] = ()
    compiles: bool = False
    runner: str

    def loads(self, engine: EngineInfo) -> bool:
        """Whether it is a library for such engines: their own variant, or for some of them the lean runtime."""
        if self.provider != "tensorrt_lean":
            return self.provider == engine.variant
        options = engine.options  # what was left out of an engine only the full library puts back
        compatible = options.get("version_compatible") and not options.get("strip_weights")
        return engine.variant == "tensorrt" and bool(compatible)

    def execution(self, precision: Precision, target: str | None) -> Execution | None:
        """Return how the route executes `precision` on a graph laid out for `target`; None when that is not known."""
        return next(
            (row for row in self.executions if row.precision == precision and row.target in (None, target)),
            None,
        )


_ONNXRUNTIME = ("onnxruntime-gpu", "onnxruntime")
_TENSORRT = (
    "tensorrt",
    "tensorrt-cu13",
    "tensorrt-cu12",
    "tensorrt-cu13-bindings",
    "tensorrt-cu12-bindings",
)
_TENSORRT_RTX = (
    "tensorrt-rtx",
    "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13-bindings",
)
_TENSORRT_LEAN = ("tensorrt-lean-cu13-bindings", "tensorrt-lean-cu12-bindings")
_RTX_PLUGIN = (
    "onnxruntime-ep-nv-tensorrt-rtx",
    "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
)
_COMPILED = "compiled for this GPU"
# Compiling takes from seconds to minutes, which nobody who did not ask for it expects of opening a session.
_COMPILED_LATE = "compiled for this GPU, but not before it is first opened"

# Measured both ways round: 42 ms (ONNX Runtime) against 44 ms (OpenVINO), and 23.8 against 20.4 ms on another machine.
_FULL = "full precision; which CPU engine is faster depends on network and CPU: `resnet-export bench` tells"

# Times in the reasons: ResNet-50 at 224 pixels, batch 1, two threads of an AVX-512 CPU with VNNI and bf16, ONNX Runtime
# 1.31 and OpenVINO 2026.4. The order on GPUs follows NVIDIA's published results and plans of TensorRT for RTX 1.7; this
# project has not measured it.
ROUTES: tuple[Route, ...] = (
    Route(
        backend="tensorrt",
        provider="tensorrt",
        kind="engine",
        device="gpu",
        module="tensorrt",
        packages=_TENSORRT,
        install="pip install 'resnet-export[tensorrt]'",
        executions=(
            Execution(
                precision=Precision.INT8,
                order=10,
                why=f"{_COMPILED}, as in NVIDIA's INT8 submissions to MLPerf",
            ),
            Execution(precision=Precision.FP16, order=20, why=f"{_COMPILED}, on FP16 tensor cores"),
            Execution(precision=Precision.BF16, order=30, why=f"{_COMPILED}, on BF16 tensor cores"),
            Execution(precision=Precision.FP32, order=60, why=_COMPILED),
        ),
        runner="resnet_export.runtime.backends.tensorrt",
    ),
    # It builds nothing and takes 45 MB: version-compatible engines run on it.
    Route(
        backend="tensorrt",
        provider="tensorrt_lean",
        kind="engine",
        device="gpu",
        module="tensorrt_lean_bindings",
        packages=_TENSORRT_LEAN,
        install="pip install 'resnet-export[tensorrt-lean]'",
        executions=(
            Execution(precision=Precision.INT8, order=11, why=f"{_COMPILED}, on the lean runtime"),
            Execution(precision=Precision.FP16, order=21, why=f"{_COMPILED}, on the lean runtime"),
            Execution(precision=Precision.BF16, order=31, why=f"{_COMPILED}, on the lean runtime"),
            Execution(precision=Precision.FP32, order=61, why=f"{_COMPILED}, on the lean runtime"),
        ),
        runner="resnet_export.runtime.backends.tensorrt",
    ),
    Route(
        backend="tensorrt",
        provider="tensorrt_rtx",
        kind="engine",
        device="gpu",
        module="tensorrt_rtx",
        packages=_TENSORRT_RTX,
        install="pip install 'resnet-export[tensorrt-rtx]'",
        executions=(
            Execution(precision=Precision.BF16, order=30, why=f"{_COMPILED}, on BF16 tensor cores"),
            Execution(precision=Precision.FP16, order=40, why=f"{_COMPILED}, on FP16 tensor cores"),
            # Its plans requantize after INT8 convolutions in kernels of their own.
            Execution(
                precision=Precision.INT8,
                order=50,
                why=f"{_COMPILED}, but INT8 is no gain in TensorRT for RTX",
            ),
            Execution(precision=Precision.FP32, order=60, why=_COMPILED),
        ),
        compiles=True,
        runner="resnet_export.runtime.backends.tensorrt",
    ),
    Route(
        backend="onnxruntime",
        provider="CUDAExecutionProvider",
        kind="onnx",
        device="gpu",
        module="onnxruntime",
        packages=_ONNXRUNTIME,
        required=("onnxruntime-gpu",),
        install="pip install 'resnet-export[gpu]'",
        executions=(
            Execution(
                precision=Precision.FP16,
                order=70,
                why="on FP16 tensor cores, but not compiled for this GPU",
            ),
            Execution(precision=Precision.FP32, order=80, why="on the GPU in full precision"),
            # It has no INT8 convolution.
            Execution(
                precision=Precision.INT8,
                order=220,
                why="simulated: as slow as fp32, less exact",
                simulated=True,
            ),
        ),
        lacks=(Precision.BF16,),
        runner="resnet_export.runtime.backends.onnxruntime_gpu",
    ),
    Route(
        backend="onnxruntime-tensorrt",
        provider="TensorrtExecutionProvider",
        kind="onnx",
        device="gpu",
        module="onnxruntime",
        packages=_ONNXRUNTIME,
        required=("onnxruntime-gpu",),
        install="pip install 'resnet-export[gpu]' tensorrt-cu12~=10.0",
        executions=(
            Execution(precision=Precision.INT8, target="tensorrt", order=90, why=_COMPILED_LATE),
            Execution(precision=Precision.FP16, order=100, why=_COMPILED_LATE),
            Execution(precision=Precision.BF16, order=110, why=_COMPILED_LATE),
        ),
        compiles=True,
        runner="resnet_export.runtime.backends.onnxruntime_gpu",
    ),
    Route(
        backend="onnxruntime-tensorrt-rtx",
        provider="NvTensorRTRTXExecutionProvider",
        kind="onnx",
        device="gpu",
        module="onnxruntime_ep_nv_tensorrt_rtx",
        packages=_RTX_PLUGIN,
        install="pip install 'onnxruntime>=1.24' onnxruntime-ep-nv-tensorrt-rtx",
        executions=(Execution(precision=Precision.FP16, order=120, why=_COMPILED_LATE),),
        compiles=True,
        runner="resnet_export.runtime.backends.onnxruntime_gpu",
    ),
    Route(
        backend="onnxruntime",
        provider="CPUExecutionProvider",
        kind="onnx",
        device="cpu",
        module="onnxruntime",
        packages=_ONNXRUNTIME,
        install="pip install 'resnet-export[cpu]'",
        executions=(
            Execution(
                precision=Precision.INT8,
                target="cpu",
                order=140,
                why="1.7 to 2 times as fast as fp32 where it was measured",  # 21 to 25 ms against 42
            ),
            Execution(precision=Precision.FP32, order=170, why=_FULL),
            Execution(
                precision=Precision.FP16,
                order=210,
                why="simulated: computed in fp32, less exact",
                simulated=True,
            ),
            # The provider does not fuse Q/DQ around a convolution with fp16 scales, or with signed activations after a
            # Relu, into its INT8 kernels, and that is how graphs for TensorRT look.
            Execution(
                precision=Precision.INT8,
                order=220,
                why="simulated: as slow as fp32, less exact",
                simulated=True,
            ),
        ),
        lacks=(Precision.BF16,),
        runner="resnet_export.runtime.backends.onnxruntime",
    ),
    Route(
        backend="openvino",
        provider="CPU",
        kind="onnx",
        device="cpu",
        module="openvino",
        packages=("openvino",),
        install="pip install 'resnet-export[openvino]'",
        executions=(
            Execution(
                precision=Precision.INT8,
                target="cpu",
                order=130,
                why="3 times as fast as fp32 where it was measured",  # 13.8 ms against 44
            ),
            Execution(
                precision=Precision.INT8,
                order=150,
                why="3 times as fast as fp32 where it was measured, but not laid out for CPUs",
            ),
            Execution(
                precision=Precision.BF16, order=160, why="twice as fast as fp32 where it was measured"
            ),  # 22 ms
            Execution(
                precision=Precision.FP32,
                order=170,
                why="full precision, on par with ONNX Runtime or ahead of it",
            ),
            Execution(
                precision=Precision.FP16,
                order=200,
                why="simulated: computed in fp32, less exact",
                simulated=True,
            ),
        ),
        also=(Precision.BF16,),
        compiles=True,
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
    backend: Backend = importlib.import_module(route.runner).open_backend(request)
    return backend
