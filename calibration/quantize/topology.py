"""Who writes and who reads each tensor of a graph, and which of its layers can be quantized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from resnet_export.runtime.errors import ExportError


@dataclass(frozen=True)
class Layer:
    """A Conv, Gemm or MatMul with constant weights.

    Attributes:
        node: it.
        index: its position among the nodes.
        weight: its constant weight; a MatMul's is a matrix [inputs, outputs].
        bias: the constant that is added to each output channel, if there is one.
        axis: the weight's axis of output channels.
        bias_input: the node and the input position where a bias is read: its own, or, of a MatMul, that of the Add
            behind it; None for a MatMul without one.
    """

    node: onnx.NodeProto
    index: int
    weight: str
    bias: str | None
    axis: int
    bias_input: tuple[str, int] | None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def input(self) -> str:
        return str(self.node.input[0])

    @property
    def output(self) -> str:
        return str(self.node.output[0])


class Topology:
    """An index of a graph. Nodes are in topological order and have unique names (else ExportError).

    `taps` are the nodes that read a tensor off as an output of the graph. They do not count as readers: the chain that
    they read from is what it would be without them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = tuple(graph.node)
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names) or "" in names:
            raise ExportError("the graph's nodes do not have unique names; export it with resnet-export")
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = tuple(value.name for value in graph.input if value.name not in self.constants)
        self.outputs = frozenset(value.name for value in graph.output)
        self.taps = tuple(
            node for node in self.nodes if node.op_type == "Identity" and node.output[0] in self.outputs
        )
        self.writers = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        aside = {node.name for node in self.taps}
        for node in self.nodes:
            for name in () if node.name in aside else node.input:
                if name and name not in self.constants:
                    self.readers.setdefault(name, []).append(node)
        self.layers = tuple(self._layers())

    def only_reader(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that reads `tensor` if it is the only one, and the tensor is no output."""
        readers = self.readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.outputs else None

    def activated(self, tensor: str) -> str:
        """Return what a Relu or a Clip makes of `tensor` where nothing else reads it, and `tensor` itself otherwise."""
        reader = self.only_reader(tensor)
        return reader.output[0] if reader is not None and reader.op_type in ("Clip", "Relu") else tensor

    def constant(self, name: str) -> NDArray[np.float32]:
        """Return an initializer as float32. Raises ExportError when it is infinite or NaN somewhere."""
        array = numpy_helper.to_array(self.constants[name]).astype(np.float32)
        if not np.isfinite(array).all():
            raise ExportError(f"weight {name!r} holds infinite values or NaN; check the checkpoint")
        return array

    def residuals(self) -> Iterator[tuple[onnx.NodeProto, str, str]]:
        """Yield every Add of two activations with its main and its skip operand.

        The main branch is the one with more nodes between it and the graph's input.
        """
        depth = dict.fromkeys(self.inputs, 0)
        for node in self.nodes:
            reach = 1 + max((depth.get(name, 0) for name in node.input), default=0)
            depth.update(dict.fromkeys(node.output, reach))
            if node.op_type == "Add" and not any(name in self.constants for name in node.input):
                first, second = node.input
                main, skip = (first, second) if depth[first] >= depth[second] else (second, first)
                yield node, main, skip

    def _layers(self) -> Iterator[Layer]:
        for index, node in enumerate(self.nodes):
            constant = len(node.input) > 1 and node.input[1] in self.constants
            bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
            if not constant or (bias is not None and bias not in self.constants):
                continue
            own = (node.name, 2)
            if node.op_type == "Conv":
                yield Layer(node, index, node.input[1], bias, axis=0, bias_input=own)
            elif node.op_type == "Gemm":
                attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
                plain = attributes.get("alpha", 1.0) == 1 and attributes.get("beta", 1.0) == 1
                if plain and not attributes.get("transA", 0):
                    axis = 0 if attributes.get("transB", 0) else 1
                    yield Layer(node, index, node.input[1], bias, axis, bias_input=own)
            elif node.op_type == "MatMul" and len(self.constants[node.input[1]].dims) == 2:
                bias, place = self._added(node, int(self.constants[node.input[1]].dims[1]))
                yield Layer(node, index, node.input[1], bias, axis=1, bias_input=place)

    def _added(self, node: onnx.NodeProto, channels: int) -> tuple[str | None, tuple[str, int] | None]:
        """Return the constant [channels] that an Add behind a MatMul adds to what it writes, and where it is read."""
        reader = self.only_reader(node.output[0])
        if reader is not None and reader.op_type == "Add":
            for position, name in enumerate(reader.input):
                if name in self.constants and list(self.constants[name].dims) == [channels]:
                    return name, (reader.name, position)
        return None, None
