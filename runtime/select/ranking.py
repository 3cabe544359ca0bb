"""Which way of running an artifact is the better one: a table of data, with the figures behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from resnet_export.runtime.backends import Route
from resnet_export.runtime.bundle.manifest import Artifact
from resnet_export.runtime.precision import Precision


@dataclass(frozen=True)
class Candidate:
    """One artifact on one route, in one arithmetic."""

    artifact: Artifact
    route: Route
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One row of the ranking. A field that is None matches anything."""

    backend: str
    provider: str | None = None
    precision: Precision
    target: Literal["any", "cpu", "tensorrt"] | None = None
    why: str


# Best first. Times: ResNet-50 at 224 pixels, batch 1, two threads of an AVX-512 CPU with VNNI and bf16, ONNX
# Runtime 1.31 and OpenVINO 2026.4; fp32 took 42 and 44 ms. The order of the GPU rows rests on what NVIDIA
# publishes and on plans of TensorRT for RTX 1.7; this project has not measured it.
PREFERENCES: tuple[Preference, ...] = (
    Preference(
        backend="tensorrt",
        provider="tensorrt",
        precision=Precision.INT8,
        why="compiled for this GPU, as in NVIDIA's INT8 submissions to MLPerf",
    ),
    Preference(
        backend="tensorrt",
        provider="tensorrt",
        precision=Precision.FP16,
        why="compiled for this GPU, on FP16 tensor cores",
    ),
    Preference(
        backend="tensorrt", precision=Precision.BF16, why="compiled for this GPU, on BF16 tensor cores"
    ),
    # Its plans requantize after INT8 convolutions in kernels of their own.
    Preference(
        backend="tensorrt",
        provider="tensorrt_rtx",
        precision=Precision.FP16,
        why="compiled for this GPU, on FP16 tensor cores",
    ),
    Preference(
        backend="tensorrt",
        provider="tensorrt_rtx",
        precision=Precision.INT8,
        why="compiled for this GPU, but INT8 is no gain in TensorRT for RTX",
    ),
    Preference(backend="tensorrt", precision=Precision.FP32, why="compiled for this GPU"),
    Preference(
        backend="onnxruntime",
        provider="CUDAExecutionProvider",
        precision=Precision.FP16,
        why="on FP16 tensor cores, but not compiled for this GPU",
    ),
    Preference(
        backend="onnxruntime",
        provider="CUDAExecutionProvider",
        precision=Precision.FP32,
        why="on the GPU in full precision",
    ),
    # Compiling takes from seconds to minutes, which nobody who did not ask for it expects of opening a session.
    Preference(
        backend="onnxruntime-tensorrt",
        precision=Precision.INT8,
        target="tensorrt",
        why="compiled for this GPU, but not before it is first opened",
    ),
    Preference(
        backend="onnxruntime-tensorrt",
        precision=Precision.FP16,
        why="compiled for this GPU, but not before it is first opened",
    ),
    Preference(
        backend="onnxruntime-tensorrt",
        precision=Precision.BF16,
        why="compiled for this GPU, but not before it is first opened",
    ),
    Preference(
        backend="onnxruntime-tensorrt-rtx",
        precision=Precision.FP16,
        why="compiled for this GPU, but not before it is first opened",
    ),
    Preference(
        backend="openvino",
        precision=Precision.INT8,
        target="cpu",
        why="3 times as fast as fp32 where it was measured",  # 13.8 ms
    ),
    Preference(
        backend="onnxruntime",
        provider="CPUExecutionProvider",
        precision=Precision.INT8,
        target="cpu",
        why="1.7 to 2 times as fast as fp32 where it was measured",  # 21 to 25 ms
    ),
    Preference(
        backend="openvino",
        precision=Precision.INT8,
        why="3 times as fast as fp32 where it was measured, but not laid out for CPUs",  # 13.8 ms
    ),
    Preference(
        backend="openvino", precision=Precision.BF16, why="twice as fast as fp32 where it was measured"
    ),  # 22 ms
    Preference(
        backend="onnxruntime",
        provider="CPUExecutionProvider",
        precision=Precision.FP32,
        why="full precision, 5 % ahead of OpenVINO where it was measured",  # 42 ms
    ),
    Preference(backend="openvino", precision=Precision.FP32, why="full precision"),  # 44 ms
    Preference(
        backend="openvino", precision=Precision.FP16, why="simulated: no faster than fp32, less exact"
    ),
    Preference(
        backend="onnxruntime", precision=Precision.FP16, why="simulated: slower than fp32, less exact"
    ),
    Preference(backend="onnxruntime", precision=Precision.INT8, why="simulated: as slow as fp32, less exact"),
)


def rank(candidate: Candidate) -> int:
    """Return the index of the candidate's row in `PREFERENCES`, or their number when it has none."""
    return next((i for i, row in enumerate(PREFERENCES) if _matches(row, candidate)), len(PREFERENCES))


def _matches(row: Preference, candidate: Candidate) -> bool:
    return (
        row.backend == candidate.route.backend
        and row.provider in (None, candidate.route.provider)
        and row.precision == candidate.precision
        and row.target in (None, candidate.artifact.target)
    )


def is_simulated(candidate: Candidate) -> bool:
    """Tell whether the engine computes the candidate's precision in wider arithmetic.

    CPU engines run fp16 graphs in fp32. ONNX Runtime's CPU provider does not fuse Q/DQ around a convolution
    with fp16 scales, or with signed activations after a Relu, into its INT8 kernels, and that is how graphs
    for TensorRT look. Its CUDA provider has no INT8 convolution.
    """
    cpu = candidate.route.device == "cpu"
    if candidate.precision == Precision.FP16:
        return cpu
    if candidate.precision == Precision.INT8 and candidate.route.backend == "onnxruntime":
        return not cpu or candidate.artifact.target != "cpu"
    return False
