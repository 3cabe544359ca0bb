"""From a Q/DQ graph that somebody else made, by quantization-aware training for example, to its parts.

They are what both targets are emitted from: the float graph without its Q/DQ nodes, the ranges that the trained scales
stand for, and a plan with its integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from resnet_export.calibration.observe.ranges import Range
from resnet_export.calibration.quantize.grid import QuantizedWeight, along
from resnet_export.calibration.quantize.operators import operator
from resnet_export.calibration.quantize.plan import Exclusion, QuantPlan
from resnet_export.calibration.quantize.qdq import DEQUANTIZE, QUANTIZE
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.runtime.errors import RequestError

__all__ = ["TrainedQuantization", "is_quantized", "read_quantized"]


@dataclass(frozen=True, eq=False)
class TrainedQuantization:
    """A quantized network, taken apart.

    Attributes:
        model: the float graph, with the weights that the integers stand for; nodes and tensors keep their names.
        ranges: by tensor, where the file's scale and zero point clip it. Tensors that only a target's own layout
            quantizes are not among them: their ranges are calibrated.
        plan: the integers of every quantized layer; the other layers are excluded, as they were in the file.
    """

    model: onnx.ModelProto
    ranges: Mapping[str, Range]
    plan: QuantPlan


def is_quantized(model: onnx.ModelProto) -> bool:
    """Whether the graph has Q/DQ nodes."""
    return any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in model.graph.node)


def read_quantized(model: onnx.ModelProto) -> TrainedQuantization:
    """Take a Q/DQ graph apart.

    A scale is obeyed as it is on the affine grid of a CPU target, and up to its rounding to fp16 on TensorRT's
    symmetric one where the file's grid is symmetric; where it is not, ±the farther end is kept. Of several scales of
    one tensor the widest is taken. A grid that begins at zero may stand in place of a Relu, as ONNX Runtime's quantizer
    leaves them out: there the float graph has one.

    Raises RequestError for grids that no target has: weights with zero points, activations with a scale per channel,
    4-bit and 16-bit integers, scales that are computed; and for integer operators such as QLinearConv in place of Q/DQ.
    """
    reader = _Reader(model)
    for node in model.graph.node:
        if node.op_type == QUANTIZE:
            reader.quantize(node)
        elif node.op_type == DEQUANTIZE:
            reader.dequantize(node)
        else:
            reader.keep(node)
    return reader.finish()


class _Reader:
    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        self._nodes: list[onnx.NodeProto] = []
        self._source: dict[
            str, str
        ] = {}  # what a DequantizeLinear writes, or a QuantizeLinear → the float tensor
        self._grids: dict[str, tuple[NDArray[np.float32], NDArray[np.integer[Any]], int]] = {}
        self._positive: set[str] = set()  # tensors without negative values
        self._ranges: dict[str, Range] = {}
        self._weights: dict[str, QuantizedWeight] = {}

    def quantize(self, node: onnx.NodeProto) -> None:
        """Note what is quantized, and on which grid."""
        name = self._source.get(node.input[0], node.input[0])
        scale, zero, axis = self._grids[node.output[0]] = self._grid(node, np.uint8)
        if (
            name not in self._constants
            and name not in self._positive
            and not (zero != np.iinfo(zero.dtype).min).any()
        ):
            rectified = f"{name}.rectified"
            if rectified not in self._positive:
                self.keep(helper.make_node("Relu", [name], [rectified], name=rectified))
            name = rectified
        self._source[node.output[0]] = name
        if name in self._constants:
            values = self._constants[name].astype(np.float32)
            limits = np.iinfo(zero.dtype)
            integers = np.rint(values / _spread(scale, axis, values.ndim))
            self._constants[node.output[0]] = np.clip(integers, limits.min, limits.max).astype(zero.dtype)

    def dequantize(self, node: onnx.NodeProto) -> None:
        """Let readers of the real numbers read the float tensor, or the constant that the integers stand for."""
        integers = node.input[0]
        scale, zero, axis = self._grid(node, np.int8)
        result = node.output[0]
        if integers in self._constants:
            real = f"{result}.real"  # what is emitted from it has the names of the file again
            values = self._constants[integers]
            if zero.any():
                raise RequestError(
                    f"the constant {integers!r} is quantized with a zero point, expected symmetric weights; quantize "
                    "it anew"
                )
            self._source[result] = real
            self._constants[real] = (values * _spread(scale, axis, values.ndim).astype(np.float64)).astype(
                np.float32
            )
            if values.dtype == np.int8:
                axis = axis % max(values.ndim, 1)
                scales = np.broadcast_to(scale, (values.shape[axis],)) if values.ndim else scale
                self._weights[real] = QuantizedWeight(values, np.ascontiguousarray(scales, np.float32), axis)
            return
        if integers not in self._grids:
            raise RequestError(
                f"{integers!r} is read by a DequantizeLinear and written by no QuantizeLinear: the file has integer "
                "operators, expected Q/DQ nodes around float ones; export it in the Q/DQ form"
            )
        if scale.size != 1:
            raise RequestError(
                f"the activation {self._source[integers]!r} has {scale.size} scales, expected one; quantize it per "
                "tensor"
            )
        name = self._source[integers]
        self._source[result] = name
        found = _range(float(scale.reshape(-1)[0]), zero)
        before = self._ranges.get(name, found)
        self._ranges[name] = Range(
            amax=max(found.amax, before.amax),
            low=min(found.low, before.low),
            high=max(found.high, before.high),
        )
        if result in self._outputs:
            self._nodes.append(
                helper.make_node("Identity", [name], [result], name=f"{node.name or result}.identity")
            )

    def keep(self, node: onnx.NodeProto) -> None:
        """Keep an operator, with the float tensors to read."""
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.input[:] = [self._source.get(name, name) for name in node.input]
        if any(name in self._grids for name in node.input):
            raise RequestError(
                f"node {node.name!r} ({node.op_type}) reads integers, expected a float operator between Q/DQ nodes; "
                "export the network in the Q/DQ form"
            )
        self._nodes.append(new)
        row = operator(node.op_type)
        passed = row.within or row.averages or row.moves is None or node.op_type in ("Add", "Mul")
        read = new.input[:1] if row.within or row.averages else new.input
        if (
            node.op_type == "Relu"
            or (row.span and row.span[0] >= 0)
            or (passed and {*read} <= self._positive)
        ):
            self._positive.update(node.output)

    def finish(self) -> TrainedQuantization:
        """Return the parts."""
        source = self._model
        used = {name for node in self._nodes for name in node.input}
        graph = onnx.GraphProto(name=source.graph.name, input=source.graph.input, output=source.graph.output)
        graph.node.extend(self._nodes)
        graph.initializer.extend(
            numpy_helper.from_array(values, name) for name, values in self._constants.items() if name in used
        )
        model = onnx.ModelProto(
            ir_version=source.ir_version,
            opset_import=source.opset_import,
            metadata_props=source.metadata_props,
            graph=graph,
        )
        weights, excluded = {}, {}
        for layer in Topology(model).layers:
            weight = self._weights.get(layer.weight)
            if weight is not None and len(weight.scales) == 1:
                channels = weight.values.shape[layer.axis]
                weight = QuantizedWeight(weight.values, np.repeat(weight.scales, channels), layer.axis)
            if weight is None or weight.axis != layer.axis or layer.input not in self._ranges:
                excluded[layer.name] = Exclusion(reason="it is not quantized in the file")
            else:
                weights[layer.name] = weight
        return TrainedQuantization(model, self._ranges, QuantPlan(weights=weights, excluded=excluded))

    def _grid(
        self, node: onnx.NodeProto, default: type[np.integer[Any]]
    ) -> tuple[NDArray[np.float32], NDArray[np.integer[Any]], int]:
        names = list(node.input[1:])
        if any(name and name not in self._constants for name in names):
            raise RequestError(
                f"the scale of {node.input[0]!r} is computed, expected a constant; freeze the quantizers"
            )
        scale = self._constants[names[0]].astype(np.float32)
        zero = self._constants[names[1]] if len(names) > 1 and names[1] else np.zeros(scale.shape, default)
        if zero.dtype not in (np.int8, np.uint8, np.int32):
            raise RequestError(f"{node.input[0]!r} is quantized to {zero.dtype}, expected int8 or uint8")
        axis = next((one.i for one in node.attribute if one.name == "axis"), 1)
        return scale, zero, axis


def _spread(scale: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    return scale.reshape(()) if scale.size == 1 else along(scale, axis % ndim, ndim)


def _range(scale: float, zero: NDArray[np.integer[Any]]) -> Range:
    """Return what a grid clips to; of a signed grid around zero, the symmetric ±127 steps are `amax`."""
    limits, point = np.iinfo(zero.dtype), int(zero.reshape(-1)[0])
    low, high = (limits.min - point) * scale, (limits.max - point) * scale
    symmetric = zero.dtype == np.int8 and point == 0
    return Range(amax=high if symmetric else max(-low, high), low=min(low, 0.0), high=max(high, 0.0))
