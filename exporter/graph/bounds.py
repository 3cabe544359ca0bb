"""The range of every tensor of a Q/DQ graph from what it is computed of, where nothing has to be run for it.

Interval arithmetic (Moore, "Interval Analysis", 1966): a layer's output lies within what its weights make of the ends
of its input's range. That is far wider than what occurs, and still far inside fp16 in a network of quantized
activations, each of which starts anew from a range that is known.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from resnet_export.calibration.quantize.operators import operator
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.exporter.graph.value_ranges import Span, dequantized

__all__ = ["bound_ranges"]


def bound_ranges(model: onnx.ModelProto, known: Mapping[str, Span]) -> dict[str, Span] | None:
    """Return a range for every float tensor of a float32 Q/DQ graph, whatever the image; None where one has no bound.

    Args:
        model: as `quantize` emits it.
        known: the ranges of tensors, observed on real images, that are taken as they are. The input is among them.
    """
    topology = Topology(model)
    spans = dict(known)
    if model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8:
        spans[model.graph.input[0].name] = (0.0, 255.0)
    for node in topology.nodes:
        output = node.output[0]
        if output in spans or node.op_type == "QuantizeLinear" or _constant(topology, output):
            continue
        span = _bound(node, topology, spans)
        if span is None:
            return None
        spans[output] = span
    return spans


def _bound(node: onnx.NodeProto, topology: Topology, spans: Mapping[str, Span]) -> Span | None:
    if node.op_type == "DequantizeLinear":
        return dequantized(node, topology.constants)
    row = operator(node.op_type)
    if row.span is not None:
        return row.span
    inputs = [spans.get(name) for name in node.input if name and not _constant(topology, name)]
    if len(node.output) > 1 or not inputs or any(one is None for one in inputs):
        return None
    found = [one for one in inputs if one is not None]
    if node.op_type in ("Conv", "Gemm") and len(found) == 1:
        return _layer_bound(node, topology, found[0])
    if node.op_type == "Add" and len(found) == 2:
        return found[0][0] + found[1][0], found[0][1] + found[1][1]
    if node.op_type == "Mul" and len(found) == 2:
        products = [one * other for one in found[0] for other in found[1]]
        return min(products), max(products)
    if node.op_type == "Relu":
        return max(found[0][0], 0.0), max(found[0][1], 0.0)
    if (row.within or row.averages) and len(found) == 1:
        return min(found[0][0], 0.0), max(found[0][1], 0.0)  # padding is zero
    return None


def _layer_bound(node: onnx.NodeProto, topology: Topology, span: Span) -> Span | None:
    found = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if not all(_constant(topology, name) for name in node.input[1:] if name):
        return None
    if any(found.get(name, 1) != 1 for name in ("alpha", "beta")) or found.get("transA"):
        return None
    weight = _values(topology, node.input[1])
    rows = weight.T if node.op_type == "Gemm" and not found.get("transB") else weight
    rows = rows.reshape(len(rows), -1)
    bias = _values(topology, node.input[2]) if len(node.input) > 2 and node.input[2] else np.float32(0)
    low, high = min(span[0], 0.0), max(span[1], 0.0)  # padding is zero
    above = np.maximum(rows, 0).sum(axis=1, dtype=np.float64)
    below = np.minimum(rows, 0).sum(axis=1, dtype=np.float64)
    return float((above * low + below * high + bias).min()), float((above * high + below * low + bias).max())


def _constant(topology: Topology, name: str) -> bool:
    """Say whether a tensor is a constant, or what a DequantizeLinear makes of one."""
    node = topology.writers.get(name)
    return name in topology.constants or (
        node is not None and node.op_type == "DequantizeLinear" and node.input[0] in topology.constants
    )


def _values(topology: Topology, name: str) -> NDArray[np.float32]:
    if name in topology.constants:
        return topology.constant(name)
    node = topology.writers[name]
    values, scale = (numpy_helper.to_array(topology.constants[one]) for one in node.input[:2])
    axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
    shape = [-1 if place == axis else 1 for place in range(values.ndim)] if scale.ndim else []
    return values.astype(np.float32) * scale.astype(np.float32).reshape(shape)
