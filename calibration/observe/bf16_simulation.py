"""A bf16 graph as float32 arithmetic that rounds to bf16 wherever the graph does.

ONNX Runtime's CPU provider has no bf16 convolution or pooling, and refuses such a graph. Hardware with bf16 multiplies
bf16 numbers exactly, adds up in fp32, and rounds once, to the nearest even bf16 number, when it writes a tensor (Intel,
"BFLOAT16 Hardware Numerics Definition", 2018; NVIDIA's tensor cores add up in fp32 as well). Weights of bf16 are fp32
numbers, so an fp32 operator followed by a Cast to bf16 and back computes the same, but for the order of the sums.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

__all__ = ["simulate_bf16"]

_EXACT = frozenset({"Flatten", "Identity", "MaxPool", "Relu", "Reshape", "Transpose"})
"""Operators that round nothing: each element of the output is one of the input's, or zero."""


def simulate_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every bf16 tensor as a float32 tensor of bf16 numbers; names stay."""
    made = ir.from_proto(model)
    graph = made.graph
    narrow: set[ir.Value] = set()
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.BFLOAT16 and value.const_value is not None:
            tensor = ir.tensor(value.const_value.numpy().astype("float32"), name=value.name)
            value.const_value, value.dtype = tensor, ir.DataType.FLOAT
            narrow.add(value)
    for node in tuple(graph):
        to = node.attributes.get_int("to") if node.op_type == "Cast" else None
        if to is None and not any(value in narrow for value in node.inputs):
            continue
        if to not in (None, ir.DataType.BFLOAT16):
            continue
        if node.op_type in _EXACT:
            narrow.update(node.outputs)
            for value in node.outputs:
                value.dtype = ir.DataType.FLOAT
            continue
        for value in node.outputs:
            narrow.add(_rounded(graph, node, value, cast=to is not None))
    return ir.to_proto(made)


def _rounded(graph: ir.Graph, node: ir.Node, value: ir.Value, *, cast: bool) -> ir.Value:
    """Round what `node` writes to bf16, for everyone who reads it; `cast` where the node is that rounding itself."""
    name, shape = str(value.name), value.shape
    value.name, value.type, value.shape = f"{name}.wide", None, None
    last = node
    if not cast:
        last = ir.node("Cast", [value], {"to": ir.DataType.BFLOAT16.value}, name=f"{name}.round")
        last.outputs[0].name = f"{name}.narrow"
        graph.insert_after(node, last)
    back = ir.node("Cast", [last.outputs[0]], {"to": ir.DataType.FLOAT.value}, name=f"{name}.widen")
    graph.insert_after(last, back)
    found = back.outputs[0]
    found.name, found.dtype, found.shape = name, ir.DataType.FLOAT, shape
    for reader, position in tuple(value.uses()):
        if reader not in (last, back):
            reader.replace_input_with(position, found)
    if value.is_graph_output():
        graph.outputs[graph.outputs.index(value)] = found
    return found
