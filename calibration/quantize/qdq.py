"""From a float32 graph, ranges and a plan to the Q/DQ graph of one target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from resnet_export.calibration.observe.ranges import Range
from resnet_export.calibration.quantize.grid import (
    Grid,
    affine_grid,
    quantize_weight,
    rescaled,
    symmetric_grid,
)
from resnet_export.calibration.quantize.placement import TARGETS, Target, place
from resnet_export.calibration.quantize.plan import QuantPlan
from resnet_export.calibration.quantize.topology import Layer, Topology
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import RequestError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

_QDQ = frozenset({QUANTIZE, DEQUANTIZE})
_LARGEST_BIAS = 2.0**30  # leaves int32 accumulators as much again for the products


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, Range], plan: QuantPlan, target: TargetName
) -> onnx.ModelProto:
    """Return the Q/DQ graph of `model` for `target`. Everything but the integers is float32.

    Nodes of `model` keep their names. Weights are int8 initializers behind a DequantizeLinear along the output
    channels' axis; activations pass through one QuantizeLinear and one DequantizeLinear where the target's
    layout has them (`calibration.layout`).

    Args:
        model: the float32 graph that `ranges` were observed on.
        ranges: by tensor, as `plan.choose_ranges` returns them.
        plan: what to keep, and which weights and biases to use.
        target: "tensorrt" (to be typed by `exporter.precision` next) or "cpu".

    Raises:
        RequestError: `ranges` lacks a tensor, or the plan names a layer that the graph does not have.
        ExportError: a weight is not finite, or nodes have no unique names.
    """
    return emit(model, ranges, plan, plan.excluded_for(target), TARGETS[target])


def emit(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    plan: QuantPlan,
    excluded: Mapping[str, str],
    target: Target,
) -> onnx.ModelProto:
    """Return the Q/DQ graph in any layout: `quantize` makes what ships, this lets other choices be measured."""
    topology = Topology(model)
    known = {layer.name for layer in topology.layers}
    if unknown := sorted({*excluded, *plan.excluded, *plan.weights, *plan.bias_corrections} - known):
        raise RequestError(
            f"the plan names layer {unknown[0]!r}, which this graph does not have; "
            f"its layers are {', '.join(layer.name for layer in topology.layers)}"
        )
    placement = place(topology, excluded, target)
    make = symmetric_grid if target.signed else affine_grid
    grids: dict[str, Grid] = {}
    for tensor, source in placement.ranges.items():
        if source not in ranges:
            raise RequestError(f"there is no range for tensor {source!r}; calibrate this network again")
        grids[tensor] = make(ranges[source])
    writer = _Writer(topology, plan, grids, integer_bias=target.integer_bias)
    layers = {layer.name: layer for layer in topology.layers}
    writer.activations(topology.inputs)
    for node in topology.nodes:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        for position, name in enumerate(node.input):
            if (node.name, position) in placement.reads:
                new.input[position] = f"{name}_dequantized"
        if node.name in layers and node.name not in excluded:
            writer.constants(layers[node.name], new)
        if node.name in writer.biases:
            _set(new, *writer.biases[node.name])
        writer.nodes.append(new)
        writer.activations(node.output)
    return _rebuilt(model, writer)


def origins(quantized: onnx.ModelProto) -> dict[str, str]:
    """Return, for every node of a graph that `quantize` made, the name of the node of the float graph it serves.

    A constant's DequantizeLinear serves the node that reads it. An activation's QuantizeLinear and
    DequantizeLinear serve the node that writes the tensor, or the first that reads it where that is the graph's
    input. Every other node serves itself.
    """
    nodes = quantized.graph.node
    writer = {name: node for node in nodes for name in node.output}
    first_reader = {name: node for node in reversed(nodes) for name in node.input}
    found: dict[str, str] = {}
    for node in nodes:
        origin = node
        while origin.op_type in _QDQ and origin.input[0] in writer:
            origin = writer[origin.input[0]]
        while origin.op_type in _QDQ:
            origin = first_reader[origin.output[0]]
        found[node.name] = origin.name
    return found


def _rebuilt(model: onnx.ModelProto, writer: _Writer) -> onnx.ModelProto:
    used = {name for node in writer.nodes for name in node.input}
    graph = onnx.GraphProto(name=model.graph.name, input=model.graph.input, output=model.graph.output)
    graph.node.extend(writer.nodes)
    graph.initializer.extend(one for one in model.graph.initializer if one.name in used)
    graph.initializer.extend(writer.initializers.values())
    return onnx.ModelProto(
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        opset_import=model.opset_import,
        metadata_props=model.metadata_props,
        graph=graph,
    )


class _Writer:
    """Collects the nodes and constants of the new graph, in an order that is topological by construction.

    `biases` maps each node that reads a new bias to its input position and the name of the tensor.
    """

    def __init__(
        self, topology: Topology, plan: QuantPlan, grids: Mapping[str, Grid], *, integer_bias: bool
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.biases: dict[str, tuple[int, str]] = {}
        self._topology, self._plan, self._grids, self._integer_bias = topology, plan, grids, integer_bias

    def activations(self, tensors: Iterable[str]) -> None:
        """Write the quantization of those `tensors` that have a grid, right after the node that writes them."""
        for name in tensors:
            if name in self._grids:
                grid = self._grids[name]
                scale = self._constant(f"{name}_scale", np.array(grid.scale, np.float32))
                zero = self._constant(f"{name}_zero_point", np.array(grid.zero_point, grid.dtype))
                self._node(QUANTIZE, (name, scale, zero), f"{name}_quantized")
                self._node(DEQUANTIZE, (f"{name}_quantized", scale, zero), f"{name}_dequantized")

    def constants(self, layer: Layer, node: onnx.NodeProto) -> None:
        """Write a layer's weight and bias as integers, and let `node`, its copy in the new graph, read the weight.

        The bias that an Add behind a MatMul adds stays float.
        """
        weight = self._plan.weights.get(layer.name)
        if weight is None:
            weight = quantize_weight(self._topology.constant(layer.weight), layer.axis)
        bias = self._bias(layer)
        if bias is not None and self._integer_bias and layer.bias_input == (layer.name, 2):
            # A channel with hardly any weight and a large bias would need more than 32 bits for it.
            unit = self._grids[layer.input].scale
            weight = rescaled(weight, at_least=np.abs(bias) / (unit * _LARGEST_BIAS))
            scales = (weight.scales * np.float64(unit)).astype(np.float32)
            integers = np.rint(bias / scales.astype(np.float64)).astype(np.int32)
            self.biases[layer.name] = 2, self._dequantized(f"{layer.name}.bias", integers, scales, axis=0)
        elif bias is not None and layer.bias_input and layer.name in self._plan.bias_corrections:
            reader, position = layer.bias_input
            self.biases[reader] = position, self._constant(f"{layer.name}.bias_corrected", bias)
        _set(
            node, 1, self._dequantized(f"{layer.name}.weight", weight.values, weight.scales, axis=weight.axis)
        )

    def _bias(self, layer: Layer) -> NDArray[np.float32] | None:
        correction = self._plan.bias_corrections.get(layer.name)
        if layer.bias is None:
            return correction
        bias = self._topology.constant(layer.bias)
        return bias if correction is None else bias + correction

    def _dequantized(
        self,
        name: str,
        values: NDArray[np.int8] | NDArray[np.int32],
        scales: NDArray[np.float32],
        *,
        axis: int,
    ) -> str:
        integers = self._constant(f"{name}_quantized", values)
        scale = self._constant(f"{name}_scale", scales)
        zero = self._constant(f"{name}_zero_point", np.zeros(len(scales), values.dtype))
        return self._node(DEQUANTIZE, (integers, scale, zero), f"{name}_dequantized", axis=axis)

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self.initializers[name] = numpy_helper.from_array(values, name)
        return name

    def _node(self, operator: str, inputs: tuple[str, ...], output: str, **attributes: Any) -> str:
        name = output.removesuffix("_dequantized").removesuffix("_quantized")
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=f"{name}.{operator}", **attributes)
        )
        return output


def _set(node: onnx.NodeProto, position: int, name: str) -> None:
    while len(node.input) <= position:
        node.input.append("")
    node.input[position] = name
