"""The range of every tensor of a float32 graph: scanned where it must be, derived where it can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from resnet_export.calibration.observe.activations import activations, float_tensors, in_fours
from resnet_export.calibration.quantize.operators import operator
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.progress import Progress, silent

__all__ = ["Span", "complete", "dequantized", "scan_ranges"]

Span = tuple[float, float]


def scan_ranges(
    graph: ExportedGraph, batches: Iterable[NDArray[Any]], progress: Progress = silent
) -> dict[str, Span]:
    """Return the least and greatest value of each tensor that a range can only be observed for.

    Those are the graph's input and the outputs of convolutions, additions, averages and the like; `complete`
    derives the others. Batches may be of any size, in the layout and dtype of the graph's input.

    Raises ExportError when a tensor is infinite or NaN on an image, or when there is no image; DatasetError
    when an image itself is not finite.
    """
    floats = set(float_tensors(graph.model))
    tensors = [graph.model.graph.input[0].name]
    known = {tensors[0], *floats}
    for node in graph.model.graph.node:
        row = operator(node.op_type)
        if not (row.span or (row.within and node.input[0] in known)):
            tensors.extend(name for name in node.output if name in floats)
    ranges: dict[str, Span] = {}
    for found in progress(activations(graph.model, in_fours(batches), tensors), "Scanning ranges"):
        for name, values in found.items():
            low, high = ranges.get(name, (np.inf, -np.inf))
            ranges[name] = (min(low, float(values.min())), max(high, float(values.max())))
        found.clear()  # before the next batch is computed
    if not ranges:
        raise ExportError("there is no image to scan ranges on; give at least one")
    return ranges


def complete(model: onnx.ModelProto, ranges: Mapping[str, Span]) -> dict[str, Span]:
    """Return a range for every activation, from those in `ranges` and from what operators promise.

    A dequantized activation is bounded by its scale and zero point. Raises ExportError when a range can
    neither be found nor derived.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = set(float_tensors(model))
    source = model.graph.input[0]
    found: dict[str, Span] = {}
    if source.type.tensor_type.elem_type == TensorProto.UINT8:
        found[source.name] = (0.0, 255.0)
    elif source.name in ranges:
        found[source.name] = ranges[source.name]
    for node in model.graph.node:
        for output in node.output:
            if output in floats and (span := _span(node, output, ranges, found, constants)) is not None:
                found[output] = span
    return found


def _span(
    node: onnx.NodeProto,
    output: str,
    ranges: Mapping[str, Span],
    found: Mapping[str, Span],
    constants: Mapping[str, onnx.TensorProto],
) -> Span | None:
    """Return the range of what `node` writes; None for the weights behind a DequantizeLinear."""
    row = operator(node.op_type)
    if output in ranges:
        return ranges[output]
    if row.span is not None:
        return row.span
    if node.op_type == "DequantizeLinear":
        return None if node.input[0] in constants else dequantized(node, constants)
    if row.within and node.input[0] in found:
        low, high = found[node.input[0]]
        return (max(low, 0.0), max(high, 0.0)) if node.op_type == "Relu" else (low, high)
    raise ExportError(f"tensor {output!r} has no scanned range; scan the graph that is to be converted")


def dequantized(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Span:
    """Return what a per-tensor DequantizeLinear can give at most."""
    scale = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
    zero = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 else np.uint8(0)
    ends = np.array([np.iinfo(zero.dtype).min, np.iinfo(zero.dtype).max], np.float64) - np.float64(zero.max())
    return float(ends[0] * scale.max()), float(ends[1] * scale.max())
