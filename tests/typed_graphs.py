"""Small graphs written by hand, and what it means that a graph is strongly typed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.exporter.graph.exported_graph import ExportedGraph, serialize
from resnet_export.exporter.graph.precision import TypedGraph

FLOAT, FLOAT16, INT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8


def graph_of(
    nodes: Sequence[tuple[str, Sequence[str], str]],
    constants: Mapping[str, NDArray[Any]],
    shape: Sequence[int] = (4, 8, 8),
    **attributes: Mapping[str, Any],
) -> ExportedGraph:
    """A graph from (operator, inputs, output) triples, whose nodes are called after their outputs."""
    made = [
        helper.make_node(
            operator, inputs, [output], output.removesuffix(".output"), **attributes.get(operator, {})
        )
        for operator, inputs, output in nodes
    ]
    model = helper.make_model(
        helper.make_graph(
            made,
            "test",
            [helper.make_tensor_value_info("input", FLOAT, ["N", *shape])],
            [onnx.ValueInfoProto(name="logits")],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    model.graph.output[0].CopyFrom(infer_types(model)["logits"])
    return ExportedGraph(model, {node.name: node.name for node in made}, "dynamo")


def types_of(graph: ExportedGraph) -> dict[str, int]:
    """The type of every tensor, constants included, as ONNX's strict inference sees it."""
    found = {name: value.type.tensor_type.elem_type for name, value in infer_types(graph.model).items()}
    return found | {tensor.name: tensor.data_type for tensor in graph.model.graph.initializer}


def assert_strongly_typed(graph: ExportedGraph) -> None:
    """Every node has one floating-point type, Casts change it, and no Cast is doubled, useless or unread."""
    onnx.checker.check_model(graph.model, full_check=True)
    types = types_of(graph)
    names = [node.name for node in graph.model.graph.node]
    assert len(set(names)) == len(names)
    assert set(graph.modules) == set(names)
    for node in graph.model.graph.node:
        floats = {types[name] for name in (*node.input, *node.output) if name} & {FLOAT, FLOAT16}
        changes = node.op_type == "Cast" and types[node.input[0]] in floats
        assert len(floats) == 2 if changes else len(floats) <= 1, node.name
    casts = Counter(
        (node.input[0], types[node.output[0]]) for node in graph.model.graph.node if node.op_type == "Cast"
    )
    assert set(casts.values()) <= {1}
    read = {name for node in graph.model.graph.node for name in node.input} | {"logits"}
    assert all(set(node.output) & read for node in graph.model.graph.node)
    assert {tensor.name for tensor in graph.model.graph.initializer} <= read
    (source,), (target,) = graph.model.graph.input, graph.model.graph.output
    assert target.type.tensor_type.elem_type == FLOAT
    assert source.type.tensor_type.elem_type in (FLOAT, TensorProto.UINT8)


def run(graph: ExportedGraph, batch: NDArray[Any]) -> NDArray[Any]:
    return CpuSession(serialize(graph.model)).run(batch)[0]


def excluded(typed: TypedGraph) -> list[str]:
    return [layer.node for layer in typed.excluded]
