"""What an ONNX artifact may hold, with ONNX itself as the independent reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, defs, helper, numpy_helper

from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.graph_check import (
    _INPUTS,
    _OPSET,
    OPERATORS,
    _check_model,
    _Value,
    check_graph,
)
from resnet_export.runtime.bundle.manifest import verify_bundle
from resnet_export.runtime.bundle.onnx_wire import WireError, read_model
from resnet_export.runtime.errors import IntegrityError
from tests import tiny_bundle
from tests.tiny_bundle import ALL, FP32, INT8_CPU, Variant

IMAGE = ("N", 3, 64, 64)
Edit = Callable[[onnx.ModelProto], None]


def model(*nodes: onnx.NodeProto, shape: tuple[object, ...] = IMAGE, **constants: np.ndarray) -> bytes:
    """A graph from "input" to "y", which the last node makes."""
    data: bytes = helper.make_model(
        helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    ).SerializeToString()
    return data


def edited(edit: Edit, variant: Variant = FP32) -> bytes:
    found = onnx.load_from_string(tiny_bundle.graph(variant))
    edit(found)
    data: bytes = found.SerializeToString()
    return data


@pytest.mark.parametrize("variant", ALL, ids=lambda variant: variant.name)
@pytest.mark.parametrize("uint8", [False, True])
def test_the_graphs_of_bundles_pass(variant: Variant, uint8: bool) -> None:
    check_graph(tiny_bundle.graph(variant, uint8=uint8), "model.onnx")


def test_a_dequantized_weight_may_be_as_large_as_the_weight_in_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first Gemm of a VGG-19 has 102,760,448 weights."""
    monkeypatch.setattr("resnet_export.runtime.bundle.graph_check._MAX_ELEMENTS", 100)
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"], "flatten"),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["real"], "dequantize"),
        helper.make_node("MatMul", ["flat", "real"], ["y"], "product"),
    ]
    weight = np.ones((12288, 100), np.int8)
    check_graph(model(*nodes, w=weight, scale=np.float32(1.0)), "model.onnx")
    larger = [*nodes[:2], helper.make_node("Tile", ["real", "twice"], ["y"], "tile")]
    with pytest.raises(IntegrityError, match="tile"):
        check_graph(model(*larger, w=weight, scale=np.float32(1.0), twice=np.array([2, 1])), "model.onnx")


@pytest.mark.parametrize("variant", [FP32, INT8_CPU], ids=lambda variant: variant.name)
def test_the_reader_sees_what_onnx_sees(variant: Variant) -> None:
    data = tiny_bundle.graph(variant)
    theirs, ours = onnx.load_from_string(data), read_model(data)["graph"]
    assert [bytes(node["op_type"]).decode() for node in ours["node"]] == [
        node.op_type for node in theirs.graph.node
    ]
    assert [[bytes(name).decode() for name in node["input"]] for node in ours["node"]] == [
        list(node.input) for node in theirs.graph.node
    ]
    for mine, other in zip(ours["initializer"], theirs.graph.initializer, strict=True):
        assert mine.get("dims", []) == list(other.dims)
        assert bytes(mine["raw_data"]) == other.raw_data


# What reaches outside the file, or brings more than a plain graph


def _external(found: onnx.ModelProto) -> None:
    tensor = found.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    for key, value in (("location", "*/_ORT_MEM_ADDR_/*"), ("offset", "140000000000"), ("length", "64")):
        tensor.external_data.add(key=key, value=value)


def _external_by_location_alone(found: onnx.ModelProto) -> None:
    found.graph.initializer[0].data_location = TensorProto.EXTERNAL


def _external_by_entries_alone(found: onnx.ModelProto) -> None:
    found.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def _external_in_an_attribute(found: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "constant")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    found.graph.node.insert(0, helper.make_node("Constant", [], ["more"], value=tensor))


def _subgraph(found: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    found.graph.node[0].attribute.append(helper.make_attribute("body", inner))


def _subgraphs(found: onnx.ModelProto) -> None:
    attribute = onnx.AttributeProto(name="bodies", type=onnx.AttributeProto.GRAPHS)
    attribute.graphs.append(helper.make_graph([], "inner", [], []))
    found.graph.node[0].attribute.append(attribute)


def _function(found: onnx.ModelProto) -> None:
    found.functions.append(helper.make_function("mine", "f", ["x"], ["y"], [], [helper.make_opsetid("", 20)]))


def _sparse(found: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "sparse")
    indices = numpy_helper.from_array(np.zeros(1, np.int64))
    found.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2**40]))


def _sparse_in_an_attribute(found: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32))
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64)), [2**40])
    found.graph.node.insert(0, helper.make_node("Constant", [], ["more"], sparse_value=sparse))


def _custom_domain(found: onnx.ModelProto) -> None:
    found.graph.node[0].domain = "com.example"


def _strings(found: onnx.ModelProto) -> None:
    found.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, [1], [b"x"]))


def _training(found: onnx.ModelProto) -> None:
    found.training_info.add()


def _operator(name: str) -> Edit:
    def edit(found: onnx.ModelProto) -> None:
        found.graph.node[1].op_type = name

    edit.__name__ = name
    return edit


def _too_little_data(found: onnx.ModelProto) -> None:
    found.graph.initializer[0].dims[0] = 2**20


def _two_kinds_of_data(found: onnx.ModelProto) -> None:
    found.graph.initializer[0].float_data.append(1.0)


def _missing_input(found: onnx.ModelProto) -> None:
    del found.graph.node[0].input[1:]


def _empty_input(found: onnx.ModelProto) -> None:
    found.graph.node[0].input[1] = ""


def _input_of_later(found: onnx.ModelProto) -> None:
    found.graph.node[0].input[0] = found.graph.node[2].output[0]


def _fixed_batch(found: onnx.ModelProto) -> None:
    found.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2**20


def _made_twice(found: onnx.ModelProto) -> None:
    found.graph.node.append(found.graph.node[-1])


def _old_operators(found: onnx.ModelProto) -> None:
    found.opset_import[0].version = 12


def _two_versions(found: onnx.ModelProto) -> None:
    found.opset_import.add(domain="ai.onnx", version=19)


def _negative_axis(found: onnx.ModelProto) -> None:
    found.graph.initializer[0].dims[0] = -1


def _no_tensor_as_input(found: onnx.ModelProto) -> None:
    found.graph.input[0].type.sequence_type.elem_type.tensor_type.elem_type = 1


@pytest.mark.parametrize(
    "edit",
    [
        _external,
        _external_by_location_alone,
        _external_by_entries_alone,
        _external_in_an_attribute,
        _subgraph,
        _subgraphs,
        _function,
        _sparse,
        _sparse_in_an_attribute,
        _custom_domain,
        _strings,
        _training,
        _too_little_data,
        _two_kinds_of_data,
        _fixed_batch,
        _made_twice,
        _old_operators,
        _two_versions,
        _missing_input,
        _empty_input,
        _input_of_later,
        _negative_axis,
        _no_tensor_as_input,
        *map(_operator, ("Loop", "If", "Scan", "RandomNormal", "SequenceEmpty", "StringConcat", "Unheard")),
    ],
)
def test_what_is_no_plain_graph_is_refused(edit: Edit) -> None:
    with pytest.raises(IntegrityError, match=r"'model\.onnx' .*; export the bundle again$"):
        check_graph(edited(edit), "model.onnx")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_no_engine_and_no_other_reader_sees_a_graph_with_data_outside(tmp_path: Path, backend: str) -> None:
    bundle = tiny_bundle.write(tmp_path / "bundle", (FP32,), graphs={"fp32": edited(_external)})
    with pytest.raises(IntegrityError, match="holds data outside the file"):
        open_session(bundle, backend=backend)
    with pytest.raises(IntegrityError, match="holds data outside the file"):
        verify_bundle(bundle)


def test_two_graphs_of_which_readers_could_take_either_are_refused() -> None:
    data = tiny_bundle.graph(FP32)
    with pytest.raises(IntegrityError, match=r"says .* twice"):
        check_graph(data + data, "model.onnx")


def test_every_operator_is_onnxs_own_and_has_neither_graphs_nor_chance() -> None:
    schemas = {schema.name: schema for schema in defs.get_all_schemas() if schema.domain == ""}
    assert schemas.keys() >= OPERATORS
    for name in OPERATORS:
        kinds = {attribute.type for attribute in schemas[name].attributes.values()}
        assert not kinds & {defs.OpSchema.AttrType.GRAPH, defs.OpSchema.AttrType.GRAPHS}, name
        assert "seed" not in schemas[name].attributes or name == "Dropout", name


def test_operators_take_as_many_inputs_as_onnx_says() -> None:
    history = [schema for schema in defs.get_all_schemas_with_history() if schema.domain == ""]
    for name in OPERATORS:
        first = min(schema.since_version for schema in history if schema.name == name)
        versions = range(max(first, _OPSET), defs.onnx_opset_version() + 1)
        schemas = [defs.get_schema(name, version, "") for version in versions]
        least = min(schema.min_input for schema in schemas)
        most = max(schema.max_input for schema in schemas)
        assert _INPUTS.get(name, (1, 1)) == (least, min(most, 2**20)), name


# Sizes, against ONNX's own shape inference

NODES = {
    "conv": (
        helper.make_node("Conv", ["input", "w"], ["y"], strides=[2, 1], pads=[3, 1, 3, 2], dilations=[1, 2]),
        {"w": np.zeros((8, 3, 7, 3), np.float32)},
    ),
    "grouped": (
        helper.make_node("Conv", ["input", "w"], ["y"], group=3, auto_pad="SAME_UPPER", strides=[3, 3]),
        {"w": np.zeros((6, 1, 3, 3), np.float32)},
    ),
    "transposed": (
        helper.make_node("ConvTranspose", ["input", "w"], ["y"], strides=[2, 2], output_padding=[1, 0]),
        {"w": np.zeros((3, 4, 3, 3), np.float32)},
    ),
    "maximum": (
        helper.make_node("MaxPool", ["input"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        {},
    ),
    "ceiled": (
        helper.make_node("AveragePool", ["input"], ["y"], kernel_shape=[3, 2], strides=[2, 3], ceil_mode=1),
        {},
    ),
    "global": (helper.make_node("GlobalAveragePool", ["input"], ["y"]), {}),
    "flat": (helper.make_node("Flatten", ["input"], ["y"], axis=-2), {}),
    "reshaped": (helper.make_node("Reshape", ["input", "to"], ["y"]), {"to": np.array([0, -1, 8])}),
    "transposition": (helper.make_node("Transpose", ["input"], ["y"], perm=[0, 2, 3, 1]), {}),
    "broadcast": (helper.make_node("Add", ["input", "b"], ["y"]), {"b": np.zeros((5, 1, 1, 1), np.float32)}),
    "joined": (helper.make_node("Concat", ["input", "input"], ["y"], axis=-3), {}),
    "padded": (helper.make_node("Pad", ["input", "p"], ["y"]), {"p": np.array([0, 1, 2, 3, 0, 0, 1, -1])}),
    "tiled": (helper.make_node("Tile", ["input", "t"], ["y"]), {"t": np.array([1, 2, 3, 1])}),
    "expanded": (helper.make_node("Expand", ["input", "s"], ["y"]), {"s": np.array([7, 1, 1, 1])}),
    "squeezed": (helper.make_node("Unsqueeze", ["input", "a"], ["y"]), {"a": np.array([-1, 1])}),
    "product": (helper.make_node("MatMul", ["input", "m"], ["y"]), {"m": np.zeros((64, 5), np.float32)}),
    "depth": (helper.make_node("SpaceToDepth", ["input"], ["y"], blocksize=4), {}),
}


@pytest.mark.parametrize("name", NODES)
def test_shapes_are_those_of_onnxs_shape_inference(name: str) -> None:
    node, constants = NODES[name]
    data = model(node, shape=(1, 3, 64, 64), **constants)
    inferred = onnx.shape_inference.infer_shapes(
        onnx.load_from_string(data), check_type=True, strict_mode=True, data_prop=True
    )
    expected = [dim.dim_value for dim in inferred.graph.output[0].type.tensor_type.shape.dim]
    assert _shape(data) == expected


def _shape(data: bytes) -> list[int] | None:
    """The shape that the check finds for "y"."""
    seen: dict[str, _Value] = _check_model(read_model(data), ())
    shape = seen["y"].shape
    return None if shape is None else list(shape)


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("Conv", ["input", "w"], ["y"], pads=[2**30, 0, 0, 0]),
        helper.make_node("Conv", ["input", "w"], ["y"], pads=[-1, 0, 0, 0]),
        helper.make_node("Conv", ["input", "w"], ["y"], strides=[0, 1]),
        helper.make_node("Conv", ["input", "w"], ["y"], strides=[1, -1]),
        helper.make_node("Conv", ["input", "w"], ["y"], dilations=[0, 1]),
        helper.make_node("Conv", ["input", "w"], ["y"], dilations=[2**40, 1]),
        helper.make_node("Conv", ["input", "w"], ["y"], group=0),
        helper.make_node("Conv", ["input", "w"], ["y"], group=5),
        helper.make_node("Conv", ["input", "w"], ["y"], kernel_shape=[9, 9]),
        helper.make_node("Conv", ["input", "w"], ["y"], strides=[1]),
        helper.make_node("MaxPool", ["input"], ["y"], kernel_shape=[0, 1]),
        helper.make_node("MaxPool", ["input"], ["y"], kernel_shape=[2**40, 1]),
        helper.make_node("AveragePool", ["input"], ["y"], kernel_shape=[3, 3], pads=[2**31, 0, 0, 0]),
        helper.make_node("MaxPool", ["input"], ["y"], kernel_shape=[65, 65]),
        helper.make_node("MaxPool", ["input"], ["y"]),
        helper.make_node("SpaceToDepth", ["input"], ["y"], blocksize=0),
        helper.make_node("Tile", ["input", "many"], ["y"]),
        helper.make_node("Expand", ["input", "many"], ["y"]),
        helper.make_node("Pad", ["input", "border"], ["y"]),
        helper.make_node("ConstantOfShape", ["many"], ["y"]),
        helper.make_node("Resize", ["input", "", "", "many"], ["y"]),
        helper.make_node("Gemm", ["input", "w"], ["y"]),
        helper.make_node("Transpose", ["input"], ["y"], perm=[0, 1, 2, 9]),
        helper.make_node("Reshape", ["input", "odd"], ["y"]),
        helper.make_node("Concat", ["input", "input"], ["y"], axis=4),
        helper.make_node("Flatten", ["input"], ["y"], axis=9),
    ],
    ids=lambda node: f"{node.op_type} {' '.join(str(helper.get_attribute_value(a)) for a in node.attribute)}",
)
def test_an_attribute_or_a_size_that_an_engine_stumbles_over_is_refused(node: onnx.NodeProto) -> None:
    data = model(
        node,
        w=np.zeros((6, 3, 3, 3), np.float32),
        many=np.array([1, 3, 2**14, 2**14]),
        border=np.array([0, 0, 0, 0, 0, 0, 2**20, 2**20]),
        odd=np.array([-1, -1, -5]),
    )
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        check_graph(data, "model.onnx", IMAGE)


def test_an_axis_that_the_graph_leaves_open_has_the_size_that_the_manifest_says() -> None:
    node = helper.make_node("Conv", ["input", "w"], ["y"])
    data = model(node, shape=("N", 3, "H", "W"), w=np.zeros((2**12, 3, 1, 1), np.float32))
    check_graph(data, "model.onnx", ("N", 3, 64, 64))
    with pytest.raises(IntegrityError, match="more than 50,331,648 elements"):
        check_graph(data, "model.onnx", ("N", 3, 512, 512))


# Bytes that are nothing in particular


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_bytes_are_refused_or_read_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"model\.onnx"):
        check_graph(data, "model.onnx")


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_what_both_readers_take_they_take_for_the_same(data: st.DataObject) -> None:
    valid = bytearray(tiny_bundle.graph(FP32))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(valid) - 1))
        valid[at] = data.draw(st.integers(0, 255))
    try:
        ours = read_model(bytes(valid))
    except WireError:
        return
    graph, theirs = ours.get("graph", {}), onnx.ModelProto.FromString(bytes(valid))
    assert len(graph.get("node", ())) == len(theirs.graph.node)
    assert [bytes(node.get("op_type", b"")) for node in graph.get("node", ())] == [
        node.op_type if isinstance(node.op_type, bytes) else node.op_type.encode()  # bytes when no UTF-8
        for node in theirs.graph.node
    ]
    assert [tensor.get("dims", []) for tensor in graph.get("initializer", ())] == [
        list(tensor.dims) for tensor in theirs.graph.initializer
    ]
    assert not any(tensor.external_data or tensor.HasField("segment") for tensor in theirs.graph.initializer)
