"""Layer reports from what TensorRT really writes: literal lines of its log, and the JSON of its
documentation.
"""

from __future__ import annotations

import json

import onnx
import pytest
from onnx import TensorProto, helper

from resnet_export.exporter.engine.layers import (
    TypedNode,
    make_report,
    parse_build_log,
    parse_inspector,
    typed_nodes,
)
from resnet_export.runtime.bundle.layer_report import (
    LayerInfo,
    LayerReport,
    decode_report,
    encode_report,
    summary,
)
from resnet_export.runtime.bundle.manifest import ExcludedLayer
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.precision import Precision
from tests.resnet_onnx import CONVOLUTIONS, resnet

# Lines of a build of ResNet-50 by TensorRT for RTX 1.7.1.116, the constants shortened.
LOG = """Layers:
Name: __mye957_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: 
Name: __myl_CastMul_myl0_1, LayerType: kgen, Inputs: [ { Name: input, Dimensions: [-1,3,224,224], Strides: [150528,50176,224,1], StrideOrder: [3,2,1,0], Datatype: Float, Format: (Linear) Row major linear format }], Constants: [ { Name: c, Dimensions: [1], Strides: [1], StrideOrder: [0], Datatype: Half, Format: (Linear) Row major linear format }], Outputs: [ { Name: y, Dimensions: [-1,4,224,224], Strides: [200704,1,896,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], TacticName: __myl_CastMul_0xc8ad, StreamId: 0, Metadata: [ONNX Layer: cast_in]\x1f[ONNX Layer: node_Conv_293]
Name: node_Conv_293_myl0_2, LayerType: correlation, Inputs: [ { Name: y, Dimensions: [-1,4,224,224], Strides: [200704,1,896,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: scale, Dimensions: [1,64,1,1], Strides: [64,1,64,64], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }, { Name: weight, Dimensions: [64,4,7,7], Strides: [196,1,28,4], StrideOrder: [3,0,2,1], Datatype: Int8, Format: (NHWC) Channel major format }], Outputs: [ { Name: z, Dimensions: [-1,64,112,112], Strides: [802816,1,7168,64], StrideOrder: [3,0,2,1], Datatype: Float, Format: (NHWC) Channel major format }], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: [ONNX Layer: node_Conv_293]\x1f[ONNX Layer: conv1.weight_DQ]
Name: __mye16440_myl0_13, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, EventId: 1, Metadata: 
Name: __myl_FcRelu_myl0_27, LayerType: runtime_fusion, Inputs: [ { Name: r, Dimensions: [-1,512,784], Strides: [401408,1,512], StrideOrder: [2,0,1], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: d, Dimensions: [1,256,512], Strides: [131072,1,256], StrideOrder: [2,0,1], Datatype: Half, Format: (Transposed) Transposed format }], Outputs: [ { Name: m, Dimensions: [-1,256,784], Strides: [200704,1,256], StrideOrder: [2,0,1], Datatype: Half, Format: (Transposed) Transposed format }], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_Conv_827]\x1f[ONNX Layer: node[relu]_22]__gemm_from_conv1x1

I/O Tensors:
 Name: input, IOMode: Input, DataType: Float, Dimensions: [-1,3,224,224]
"""  # noqa: E501, W291

# TensorRT developer guide, "Engine Inspector", detailed verbosity.
DOCUMENTED = """{"Layers": [{
  "Name": "node_of_gpu_0/res4_0_branch2a_1 + node_of_gpu_0/res4_0_branch2a_bn_1",
  "LayerType": "CaskConvolution",
  "Inputs": [{
    "Name": "gpu_0/res3_3_branch2c_bn_3",
    "Dimensions": [16,512,28,28],
    "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."
  }],
  "Outputs": [{
    "Name": "gpu_0/res4_0_branch2a_bn_2",
    "Dimensions": [16,256,28,28],
    "Format/Datatype": "Channel major FP16 format where channel % 8 == 0"
  }],
  "ParameterType": "Convolution",
  "Kernel": [1,1],
  "Weights": {"Type": "Int8", "Count": 131072},
  "Bias": {"Type": "Float", "Count": 256},
  "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32",
  "TacticValue": "0x11bde0e1d9f2f35d"
}], "Bindings": ["input", "logits"]}"""


def test_the_log_of_a_build_is_read_layer_by_layer() -> None:
    layers = parse_build_log(["Building.", LOG, "Layer timing"])
    assert [layer.name for layer in layers] == [
        "__mye957_0_myl0_0",
        "__myl_CastMul_myl0_1",
        "node_Conv_293_myl0_2",
        "__mye16440_myl0_13",
        "__myl_FcRelu_myl0_27",
    ]
    assert layers[2] == LayerInfo(
        name="node_Conv_293_myl0_2",
        type="correlation",
        nodes=("node_Conv_293", "conv1.weight_DQ"),
        inputs=("int8",),
        outputs=("fp32",),
        weights="int8",
        tactic="__myelin_CASK_STUB",
    )
    assert layers[4].nodes == ("node_Conv_827", "node[relu]_22")
    assert layers[4].weights == "fp16"
    assert layers[1].weights is None, "a scale is no weight"


def test_a_log_without_a_list_of_layers_gives_none() -> None:
    assert parse_build_log(["Layers are many", "Local timing cache in use."]) == ()


def test_the_json_of_an_inspector_is_read_layer_by_layer() -> None:
    (layer,) = parse_inspector(DOCUMENTED)
    assert layer.nodes == ("node_of_gpu_0/res4_0_branch2a_1", "node_of_gpu_0/res4_0_branch2a_bn_1")
    assert (layer.inputs, layer.outputs, layer.weights) == (("int8",), ("fp16",), "int8")
    assert layer.tactic.startswith("sm80_xmma_fprop")


def test_metadata_wins_over_a_layer_name_that_only_looks_like_nodes() -> None:
    entry = json.loads(DOCUMENTED)
    entry["Layers"][0]["Metadata"] = "[ONNX Layer: conv1]\x1f[ONNX Layer: relu]"
    (layer,) = parse_inspector(json.dumps(entry))
    assert layer.nodes == ("conv1", "relu")


def test_an_inspector_that_lists_names_only_gives_layers_without_types() -> None:
    (layer,) = parse_inspector('{"Layers": ["conv1 + relu"], "Bindings": []}')
    assert layer == LayerInfo(name="conv1 + relu", type="", nodes=("conv1", "relu"), inputs=(), outputs=())


@pytest.mark.parametrize(
    "text", ["", "null", "[]", '{"Layers": [{"Title": "x"}]}', '{"Layers": 3}', '{"Layers": [3]}']
)
def test_an_answer_of_another_form_is_an_error(text: str) -> None:
    with pytest.raises(ExportError, match="not a list of layers"):
        parse_inspector(text)


@pytest.mark.parametrize(
    "field", ["LayerType", "Inputs", "Outputs", "TacticName", "Metadata", "Weights", "Constants"]
)
def test_a_field_that_a_version_leaves_out_stays_empty(field: str) -> None:
    entry = json.loads(DOCUMENTED)
    names = [layer["Name"] for layer in entry["Layers"]]
    for layer in entry["Layers"]:
        layer.pop(field, None)
        layer["Novelty"] = {"unheard": "of"}
    assert [layer.name for layer in parse_inspector(json.dumps(entry))] == names


@pytest.mark.parametrize("depth", [18, 50])
def test_every_convolution_has_the_precision_that_the_graph_gives_it(depth: int) -> None:
    for precision in ("fp32", "fp16", "int8"):
        model = onnx.load_from_string(resnet(depth, precision, keep={"layer1.0.conv1"}))  # type: ignore[arg-type]
        found = {node.name: node.precision for node in typed_nodes(model) if node.op == "Conv"}
        assert len(found) == CONVOLUTIONS[depth]
        assert found.pop("layer1.0.conv1") == ("fp16" if precision == "int8" else precision)
        assert set(found.values()) == {precision}


def test_a_weight_only_quantized_convolution_computes_in_floating_point() -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["weight"], axis=0, name="dq"),
        helper.make_node("Conv", ["input", "weight"], ["logits"], name="conv"),
    ]
    constants = [
        helper.make_tensor("w", TensorProto.INT8, [1, 3, 1, 1], [1, 2, 3]),
        helper.make_tensor("s", TensorProto.FLOAT16, [1], [1.0]),
        helper.make_tensor("z", TensorProto.INT8, [1], [0]),
    ]
    graph = helper.make_graph(nodes, "g", [], [], constants)
    assert typed_nodes(helper.make_model(graph)) == (TypedNode("conv", "Conv", Precision.FP16),)


def test_weights_of_a_type_without_a_name_have_no_precision() -> None:
    nodes = [helper.make_node("Conv", ["input", "w"], ["logits"], name="conv")]
    constants = [helper.make_tensor("w", TensorProto.DOUBLE, [1, 1, 1, 1], [1.0])]
    found = typed_nodes(helper.make_model(helper.make_graph(nodes, "g", [], [], constants)))
    assert found == (TypedNode("conv", "Conv", None),)
    unknown = report((), *found)
    assert [operator.graph for operator in unknown.operators] == [None]
    assert decode_report(encode_report(unknown)) == unknown


def test_an_engine_whose_layers_are_not_described_says_so_in_one_sentence() -> None:
    silent = make_report(
        (),
        (conv("conv1"),),
        source="inspector",
        asked=Precision.INT8,
        builder="TensorRT 12",
        undescribed="new form",
    )
    assert summary(silent) == ("the layers of this engine are not described: new form",)


def layer(
    name: str, *nodes: str, kind: str = "int8", weights: str | None = "int8", type: str = "correlation"
) -> LayerInfo:
    return LayerInfo(name=name, type=type, nodes=nodes, inputs=(kind,), outputs=(kind,), weights=weights)


def report(
    layers: tuple[LayerInfo, ...], *nodes: TypedNode, excluded: tuple[ExcludedLayer, ...] = ()
) -> LayerReport:
    return make_report(
        layers, nodes, source="build log", asked=Precision.INT8, excluded=excluded, builder="TensorRT 10.3.0"
    )


def conv(name: str, precision: Precision = Precision.INT8) -> TypedNode:
    return TypedNode(name, "Conv", precision)


def test_of_several_layers_that_name_a_node_the_one_with_weights_computes_it() -> None:
    found = report((layer("pad", "conv1", kind="fp16", weights=None), layer("conv", "conv1")), conv("conv1"))
    assert found.operators[0].layer == "conv"
    assert found.shortfalls() == ()


def test_a_generated_kernel_with_a_large_constant_does_not_compute_a_node() -> None:
    cast = layer("cast", "conv1", kind="fp32", weights="fp16", type="kgen")
    assert report((cast, layer("conv", "conv1")), conv("conv1")).operators[0].layer == "conv"
    assert report((cast,), conv("conv1")).operators[0].layer == "cast", "but there is no other here"


def test_a_node_that_one_profile_computes_otherwise_is_a_shortfall() -> None:
    layers = (layer("conv", "conv1"), layer("conv [profile 1]", "conv1", kind="fp16"))
    (operator,) = report(layers, conv("conv1")).shortfalls()
    assert (operator.layer, operator.engine) == ("conv [profile 1]", Precision.FP16)


@pytest.mark.parametrize(
    ("layers", "node", "excluded", "engine", "reason"),
    [
        ((), conv("a"), (), None, "no layer of the engine names it"),
        ((layer("l", "a", kind="fp16"),), conv("a"), (), Precision.FP16, "TensorRT 10.3.0 decided otherwise"),
        ((layer("l", "a", kind="fp16"),), conv("a", Precision.FP16), (), Precision.FP16, "no QuantizeLinear"),
        (
            (layer("l", "a", kind="fp16"),),
            conv("a", Precision.FP16),
            (ExcludedLayer(node="a", module="layer1.0.conv1", precision=Precision.FP16, reason="sensitive"),),
            Precision.FP16,
            "sensitive",
        ),
    ],
)
def test_a_shortfall_says_why(
    layers: tuple[LayerInfo, ...],
    node: TypedNode,
    excluded: tuple[ExcludedLayer, ...],
    engine: Precision | None,
    reason: str,
) -> None:
    (operator,) = report(layers, node, excluded=excluded).shortfalls()
    assert operator.engine == engine
    assert operator.reason is not None
    assert reason in operator.reason
