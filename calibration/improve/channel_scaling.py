"""Which tensors must share their channels' scales, and how a network is rescaled without changing its function.

ReLU, pooling and the sum of a residual block pass a positive factor per channel through. So every convolution
that writes into a stage's residual stream may multiply its outputs by the same factors, if everything that reads
the stream divides its weights by them. Such tensors form one group, whether it is a stage's whole stream or the
single tensor between two convolutions of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from resnet_export.calibration.quantize.plan import Equalization
from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.calibration.quantize.topology import Layer, Topology
from resnet_export.runtime.errors import RequestError

_ELEMENTWISE = frozenset({"Dropout", "Identity", "LeakyRelu", "Relu"})
_POOLING = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze"})
_GATES = frozenset({"HardSigmoid", "Sigmoid"})


@dataclass(frozen=True)
class ChannelGroup:
    """Tensors whose channels can only be rescaled together.

    Attributes:
        tensors: every activation of the group, in graph order; all have `channels` channels.
        producers: the layers that write into it from outside.
        consumers: the layers that read from it to outside.
        channels: how many there are.
    """

    tensors: tuple[str, ...]
    producers: tuple[Layer, ...]
    consumers: tuple[Layer, ...]
    channels: int


def channel_groups(model: onnx.ModelProto, topology: Topology | None = None) -> tuple[ChannelGroup, ...]:
    """Return the groups of `model` that can be rescaled, in graph order.

    A tensor that any other operator reads or writes is left as it is, and its whole group with it: the graph's
    input and output, what a sigmoid makes or takes, a sum with a constant, weights that two layers share.
    """
    topology = topology or Topology(model)
    shapes = {
        name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for name, value in infer_types(model).items()
    }
    joined = _Joined()
    fixed = {*topology.inputs, *topology.outputs}
    layers = {layer.name: layer for layer in topology.layers}
    shared = _shared(topology)
    for node in topology.nodes:
        layer = layers.get(node.name)
        tensors = [name for name in (*node.input, *node.output) if name in shapes]
        if layer is not None:
            # Of more than two axes, a MatMul has its channels in the last.
            if {layer.weight, layer.bias} & shared or (
                node.op_type == "MatMul" and any(len(shapes[name]) != 2 for name in tensors)
            ):
                fixed.update(tensors)
            continue
        passed = _passes(node, topology, shapes)
        if not passed:
            fixed.update(tensors)
        for name in passed:
            joined.join(passed[0], name)
    return _collect(topology, joined, {joined.find(name) for name in fixed}, shapes)


def rescale(model: onnx.ModelProto, equalization: Iterable[Equalization]) -> onnx.ModelProto:
    """Return `model` with the factors of `equalization` worked into its weights and biases.

    Raises RequestError when a layer is missing or has another number of channels.
    """
    topology = Topology(model)
    layers = {layer.name: layer for layer in topology.layers}
    changed: dict[str, NDArray[np.float64]] = {}

    def current(name: str) -> NDArray[np.float64]:
        return changed[name] if name in changed else topology.constant(name).astype(np.float64)

    for one in equalization:
        if missing := sorted({*one.producers, *one.consumers} - layers.keys()):
            raise RequestError(
                f"the plan equalizes layer {missing[0]!r}, which this graph does not have; "
                "quantize the network that the plan was made for"
            )
        factors = one.factors.astype(np.float64)
        for layer in (layers[name] for name in one.producers):
            weight = np.moveaxis(current(layer.weight), layer.axis, 0)
            _check_channels(layer, len(weight), len(factors))
            scaled = weight * factors.reshape(-1, *[1] * (weight.ndim - 1))
            changed[layer.weight] = np.moveaxis(scaled, 0, layer.axis)
            if layer.bias is not None:
                changed[layer.bias] = current(layer.bias) * factors
        for layer in (layers[name] for name in one.consumers):
            weight = current(layer.weight)
            rows = by_input(weight, layer)
            _check_channels(layer, rows.shape[0] * rows.shape[2], len(factors))
            rows = rows / factors.reshape(rows.shape[0], 1, -1, 1)
            changed[layer.weight] = from_rows(rows, weight.shape, layer)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in changed:
            values = np.ascontiguousarray(changed[tensor.name].astype(np.float32))
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return copy


def by_input(weight: NDArray[np.float64], layer: Layer) -> NDArray[np.float64]:
    """Return a layer's weight as [groups, outputs, inputs, kernel], outputs and inputs being those of one group."""
    rows = np.moveaxis(weight, layer.axis, 0)  # [outputs, inputs of a group, …]
    groups = group_count(layer)
    return rows.reshape(groups, len(rows) // groups, rows.shape[1], -1)


def from_rows(rows: NDArray[np.float64], shape: tuple[int, ...], layer: Layer) -> NDArray[np.float64]:
    """Undo `by_input`; `shape` is the weight's."""
    outputs = shape[layer.axis]
    others = [size for axis, size in enumerate(shape) if axis != layer.axis]
    return np.moveaxis(rows.reshape(outputs, *others), 0, layer.axis)


def group_count(layer: Layer) -> int:
    """Return the number of groups of a convolution; 1 for a Gemm or MatMul."""
    return next((helper.get_attribute_value(one) for one in layer.node.attribute if one.name == "group"), 1)


class _Joined:
    """Disjoint sets of tensor names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def find(self, name: str) -> str:
        while (parent := self._parent.setdefault(name, name)) != name:
            self._parent[name] = self._parent[parent]
            name = parent
        return name

    def join(self, first: str, second: str) -> None:
        self._parent[self.find(second)] = self.find(first)


def _shared(topology: Topology) -> set[str | None]:
    """Return the constants that are read more than once."""
    seen: set[str] = set()
    twice: set[str | None] = set()
    for node in topology.nodes:
        for name in node.input:
            if name in topology.constants:
                (twice if name in seen else seen).add(name)
    return twice


def _passes(node: onnx.NodeProto, topology: Topology, shapes: Mapping[str, list[int]]) -> list[str]:
    """Return the tensors of `node` that a factor per channel passes between; none where it cannot."""
    inputs = [name for name in node.input if name in shapes]
    if any(len(shapes[name]) < 2 or shapes[name][1] < 1 for name in (*inputs, *node.output[:1])):
        return []
    source, result = inputs[0] if inputs else "", node.output[0]
    if len(inputs) == 2 and len(node.input) == 2:
        if node.op_type == "Add" and shapes[inputs[0]][1:] == shapes[inputs[1]][1:]:
            return [*inputs, result]
        if node.op_type == "Mul":  # squeeze and excitation: the gate lies between 0 and 1 and stays there
            gates = [name for name in inputs if _writer(name, topology) in _GATES]
            gated = [name for name in inputs if name not in gates]
            if len(gates) == 1 and shapes[gated[0]][1] == shapes[gates[0]][1] == shapes[result][1]:
                return [*gated, result]
        return []
    if len(inputs) != 1 or shapes[source][1] != shapes[result][1]:
        return []
    if node.op_type in _ELEMENTWISE or node.op_type in _POOLING:
        return [source, result]
    flat = all(size == 1 for name in (source, result) for size in shapes[name][2:])
    if (node.op_type in _RESHAPING and flat) or (
        node.op_type == "ReduceMean" and _axes(node, topology, len(shapes[source])) == {2, 3}
    ):
        return [source, result]
    return []


def _writer(tensor: str, topology: Topology) -> str:
    return topology.writers[tensor].op_type if tensor in topology.writers else ""


def _axes(node: onnx.NodeProto, topology: Topology, rank: int) -> set[int]:
    """Return the axes that a ReduceMean averages over; before operator set 18 they are an attribute."""
    if len(node.input) > 1 and node.input[1] in topology.constants:
        axes = numpy_helper.to_array(topology.constants[node.input[1]]).tolist()
    else:
        axes = next((one.ints for one in node.attribute if one.name == "axes"), ())
    return {axis % rank for axis in axes}


def _collect(
    topology: Topology, joined: _Joined, fixed: set[str], shapes: Mapping[str, list[int]]
) -> tuple[ChannelGroup, ...]:
    tensors: dict[str, list[str]] = {}
    for node in topology.nodes:
        for name in node.output:
            if name in shapes and joined.find(name) not in fixed:
                tensors.setdefault(joined.find(name), []).append(name)
    groups = []
    for root, members in tensors.items():
        producers = tuple(layer for layer in topology.layers if joined.find(layer.output) == root)
        consumers = tuple(layer for layer in topology.layers if joined.find(layer.input) == root)
        if producers and consumers:
            groups.append(ChannelGroup(tuple(members), producers, consumers, shapes[members[0]][1]))
    return tuple(groups)


def _check_channels(layer: Layer, found: int, expected: int) -> None:
    if found != expected:
        raise RequestError(
            f"the plan has {expected} factors for layer {layer.name!r}, which has {found} channels; "
            "quantize the network that the plan was made for"
        )
