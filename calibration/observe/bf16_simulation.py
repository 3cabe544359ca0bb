"""A bf16 graph as float32 arithmetic that rounds to bf16 wherever the graph does.

ONNX Runtime's CPU provider has no bf16 convolution or pooling, and refuses such a graph. Hardware with bf16 multiplies
bf16 numbers exactly, adds up in fp32, and rounds once, to the nearest even bf16 number, when it writes a tensor (Intel,
"BFLOAT16 Hardware Numerics Definition", 2018; NVIDIA's tensor cores add up in fp32 as well). Weights of bf16 are fp32
numbers, so an fp32 operator followed by a Cast to bf16 and back computes the same, but for the order of the sums.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from resnet_export.calibration.quantize.operators import operator
from resnet_export.calibration.quantize.tensor_types import infer_types

__all__ = ["simulate_bf16"]


def simulate_bf16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with every bf16 tensor as a float32 tensor of bf16 numbers; names stay."""
    types = infer_types(model)
    made = ir.from_proto(model)
    graph = made.graph
    for value in graph.initializers.values():
        if value.dtype == ir.DataType.BFLOAT16 and value.const_value is not None:
            tensor = ir.tensor(value.const_value.numpy().astype("float32"), name=value.name)
            value.const_value, value.dtype = tensor, ir.DataType.FLOAT
    for node in tuple(graph):
        for value in node.outputs:
            name = str(value.name)
            if name not in types or types[name].type.tensor_type.elem_type != ir.DataType.BFLOAT16:
                continue
            if operator(node.op_type).exact:
                value.dtype = ir.DataType.FLOAT
            else:
                _rounded(graph, node, value, cast=node.op_type == "Cast")
    return ir.to_proto(made)


def _rounded(graph: ir.Graph, node: ir.Node, value: ir.Value, *, cast: bool) -> None:
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
