"""Element types and shapes of a graph's tensors, inferred without copying its weights."""

from __future__ import annotations

import onnx

__all__ = ["infer_types"]

_SMALL = 64  # elements; shapes and axes are smaller, and inference needs their values


def infer_types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    """Return the type and shape of every graph input and node output, by tensor name.

    `onnx.shape_inference` takes and returns whole serialized models; here each large initializer is replaced
    by an input of its type and shape, so the cost does not grow with the weights. Raises
    `onnx.shape_inference.InferenceError` when an operator is unknown or its inputs break its schema.
    """
    graph = onnx.GraphProto(name=model.graph.name, node=model.graph.node, output=model.graph.output)
    graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if sum(tensor.dims) <= _SMALL and len(tensor.dims) <= 1:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    skeleton = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions, graph=graph
    )
    inferred = onnx.shape_inference.infer_shapes(skeleton, check_type=True, strict_mode=True).graph
    weights = {tensor.name for tensor in model.graph.initializer}
    every = (*inferred.input, *inferred.value_info, *inferred.output)
    types = {value.name: value for value in every if value.name not in weights}
    for node in graph.node:
        if missing := [name for name in node.output if name and name not in types]:
            raise onnx.shape_inference.InferenceError(
                f"the type of {missing[0]!r} is unknown: there is no rule for operator {node.op_type!r}"
            )
    return types
