"""What fits into fp16, and what has to stay in fp32.

fp16 ends at ±65504, has 11 significant bits down to 2⁻¹⁴, and steps of 2⁻²⁴ below (IEEE 754-2008, binary16).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from resnet_export.calibration.quantize.operators import operator
from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.exporter.graph.value_ranges import Span, complete

__all__ = ["HEADROOM", "misfits", "scale_fits"]

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
LARGEST_SCALE = 65504.0 // 255  # times the most steps that an 8-bit number can be from its zero point

HEADROOM = 4.0
"""How much further than the scanned images other images may go. Measured from the 36 bundled photographs to
512 natural crops, no tensor of ResNet-18, -50 or -152 went more than 1.6 times as far."""

WEIGHT_ERROR = 2.0**-10
"""The relative change of a weight tensor at which it stays in fp32: twice the most that rounding normal
numbers can do, so only weights below fp16's normal range get there."""


def misfits(model: onnx.ModelProto, ranges: Mapping[str, Span]) -> dict[str, str]:
    """Return, by node name, why a node cannot run in fp16.

    A node stays in fp32 when

    1. a tensor that it writes or reads leaves fp16's range with HEADROOM to spare, or is all subnormal;
    2. it averages, and the sum before the division leaves that range;
    3. one of its weights does not fit, or loses WEIGHT_ERROR to subnormal steps (not a bias: what they take from it
       is at most 2⁻²⁵, and an output that is not all subnormal loses as much by itself);
    4. a scale that one of its inputs is dequantized with is not a normal fp16 number, or is so large that
       255 steps leave fp16's range.

    The products of a convolution are not among them: engines accumulate those in fp32. Quantization nodes are
    not either: they take the precision of what they serve. Raises ExportError when a range is missing.
    """
    spans = complete(model, ranges)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    dequantizers = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    types = infer_types(model)
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            continue
        reason = next(_reasons(node, spans, constants, dequantizers, types), None)
        if reason is not None:
            found[node.name] = reason
    return found


def scale_fits(scale: NDArray[np.float32]) -> bool:
    """Say whether every scale of a quantized tensor is a normal fp16 number, and so is what it dequantizes to."""
    return bool(scale.min() >= SMALLEST_NORMAL and scale.max() <= LARGEST_SCALE)


def _reasons(
    node: onnx.NodeProto,
    spans: Mapping[str, Span],
    constants: Mapping[str, onnx.TensorProto],
    dequantizers: Mapping[str, onnx.NodeProto],
    types: Mapping[str, onnx.ValueInfoProto],
) -> Iterator[str]:
    for name in node.output:
        if name in spans and (fault := _span_fault(spans[name])):
            yield f"its output {fault}"
    if operator(node.op_type).averages:
        count = _elements(types[node.input[0]]) // _elements(types[node.output[0]])
        low, high = spans[node.output[0]]
        if fault := _span_fault((low * count, high * count)):
            yield f"the sum of the {count} values that it averages {fault}"
    for position, name in enumerate(node.input):
        if name in constants and constants[name].data_type == TensorProto.FLOAT:
            added = node.op_type == "Add" or (node.op_type in ("Conv", "Gemm") and position == 2)
            if fault := _weight_fault(numpy_helper.to_array(constants[name]), added=added):
                yield f"its constant {name!r} {fault}"
        elif name in dequantizers:
            scale = numpy_helper.to_array(constants[dequantizers[name].input[1]])
            if not scale_fits(scale):
                yield (
                    f"the scales of its input {name!r} go from {scale.min():.3g} to {scale.max():.3g}; "
                    f"fp16 takes {SMALLEST_NORMAL:.3g} to {LARGEST_SCALE:.0f}"
                )
        elif name in spans and (fault := _span_fault(spans[name])):
            yield f"its input {name!r} {fault}"


def _span_fault(span: Span) -> str | None:
    low, high = span
    reach = max(abs(low), abs(high))
    if reach > LARGEST / HEADROOM:
        return (
            f"goes from {low:.4g} to {high:.4g}; fp16 ends at {LARGEST:.0f}, and is used up to "
            f"{LARGEST / HEADROOM:.0f} because other images may go further"
        )
    if 0 < reach < SMALLEST_NORMAL:
        return f"goes from {low:.3g} to {high:.3g}; fp16's smallest normal number is {SMALLEST_NORMAL:.3g}"
    return None


def _weight_fault(values: NDArray[np.float32], *, added: bool) -> str | None:
    largest = float(np.abs(values).max(initial=0.0))
    if largest > LARGEST:
        return f"reaches {largest:.4g}, and fp16 ends at {LARGEST:.0f}"
    # Only numbers below the normal range lose more than the limit, so most tensors need no second look.
    norm = math.sqrt(float(np.vdot(values, values)))
    error = float(np.linalg.norm(values - values.astype(np.float16).astype(np.float32)))
    if error > WEIGHT_ERROR * norm and not added:
        return (
            f"changes by {error / norm:.2g} of itself in fp16, whose normal numbers change by at most "
            f"{WEIGHT_ERROR / 2:.2g}"
        )
    return None


def _elements(value: onnx.ValueInfoProto) -> int:
    """Return the number of elements for one image: the batch axis, which has no fixed size, counts once."""
    return math.prod(dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim)
