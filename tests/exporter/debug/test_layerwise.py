"""The first layer that diverges is the layer with the fault, and in sound graphs nothing diverges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from resnet_export.calibration.observe.activations import activations
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.plan import QuantPlan
from resnet_export.calibration.quantize.qdq import origins, quantize
from resnet_export.exporter.debug.layerwise import compare_layers
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.precision import to_fp16
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.runtime.errors import DatasetError, ExportError
from resnet_export.runtime.parity.attribution.layers import LIMITS, ErrorSums, LayerFigure, Layerwise
from tests import resnet_onnx

Precision = Literal["fp16", "int8", "int8.cpu"]
Depth = Literal[18, 50]
DEPTHS: tuple[Depth, ...] = (18, 50)
PRECISIONS: tuple[Precision, ...] = ("fp16", "int8", "int8.cpu")
CASES: list[tuple[Depth, Precision]] = [*((18, one) for one in PRECISIONS), (50, "int8")]

CONV = {18: "layer2.0.conv2", 50: "layer3.1.conv2"}
RELU = {18: "layer2.0.conv1.relu", 50: "layer3.1.conv2.relu"}


@dataclass(frozen=True)
class Graphs:
    """The fp32 graph of one depth, and what the exporter makes of it."""

    fp32: onnx.ModelProto
    artifacts: dict[str, onnx.ModelProto]
    modules: dict[str, str]

    def copy(self, precision: Precision) -> onnx.ModelProto:
        copied = onnx.ModelProto()
        copied.CopyFrom(self.artifacts[precision])
        return copied

    def compare(self, artifact: onnx.ModelProto) -> Layerwise:
        return compare_layers(
            self.fp32, artifact, [images()[:6], images()[6:]], modules=self.modules, threads=2
        )


@cache
def images() -> NDArray[np.float32]:
    """Smooth random colors, float32 [10, 3, 32, 32]."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(10, 3, 8, 8)).repeat(4, axis=2).repeat(4, axis=3)
    return (coarse + rng.normal(scale=0.2, size=coarse.shape)).astype(np.float32)


@cache
def graphs(depth: Depth) -> Graphs:
    fp32 = onnx.load_from_string(resnet_onnx.resnet(depth, size=32, width=8))
    last = fp32.graph.node.pop()  # a Cast, where the exporter's graphs end with the classifier
    fp32.graph.node[-1].output[0] = last.output[0]
    modules = {node.name: f"module.{node.name}" for node in fp32.graph.node}
    exported = ExportedGraph(fp32, modules, "dynamo")
    spans = scan_ranges(exported, iter([images()]))
    table = calibrate(fp32, [images()], threads=2)
    plan = QuantPlan(method="mse")
    quantized = {target: quantize(fp32, plan.choose_ranges(table), plan, target) for target in TARGETS}
    typed = quantized["tensorrt"]
    paths = {name: modules[origin] for name, origin in origins(typed).items()}
    return Graphs(
        fp32,
        {
            "fp16": to_fp16(exported, spans).graph.model,
            "int8": to_fp16(replace(exported, model=typed, modules=paths), spans).graph.model,
            "int8.cpu": quantized["cpu"],
        },
        modules,
    )


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if one.name == name)


def change(model: onnx.ModelProto, name: str, how: Callable[[NDArray[Any]], NDArray[Any]]) -> onnx.ModelProto:
    """Put other values into an initializer."""
    tensor = next(one for one in model.graph.initializer if one.name == name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(how(values).astype(values.dtype), name))
    return model


def scale_weights(model: onnx.ModelProto, conv: str, factor: float) -> onnx.ModelProto:
    weight = node(model, conv).input[1]
    dequantizer = [one for one in model.graph.node if weight in one.output]
    return change(model, dequantizer[0].input[1] if dequantizer else weight, lambda values: values * factor)


def reader(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(one for one in model.graph.node if tensor in one.input)


def found(graphs: Graphs, model: onnx.ModelProto) -> LayerFigure:
    first = graphs.compare(model).first
    assert first is not None
    return first


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_no_layer_of_a_sound_graph_diverges(depth: Depth, precision: Precision) -> None:
    result = graphs(depth).compare(graphs(depth).artifacts[precision])
    assert [layer.reason for layer in result.layers if layer.diverges] == []
    assert result.first is None
    assert result.unpaired == ()
    assert not any(layer.missing for layer in result.layers)
    assert result.images == len(images())
    # Every node of the fp32 graph is among the layers, those in front of an Add or a pool included.
    names = {layer.node for layer in result.layers}
    assert {one.name for one in graphs(depth).fp32.graph.node} <= names


@pytest.mark.parametrize("precision", PRECISIONS)
def test_sound_layers_stay_at_half_their_limits_or_less(precision: Precision) -> None:
    result = graphs(18).compare(graphs(18).artifacts[precision])
    assert max(layer.excess for layer in result.layers) <= 0.5


@pytest.mark.parametrize(("depth", "precision"), CASES)
def test_weights_scaled_by_one_percent_are_found_in_their_layer(depth: Depth, precision: Precision) -> None:
    model = scale_weights(graphs(depth).copy(precision), CONV[depth], 1.01)
    first = found(graphs(depth), model)
    assert (first.node, first.module) == (CONV[depth], f"module.{CONV[depth]}")
    assert first.reason


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_batchnorm_that_was_not_folded_is_found_in_its_convolution(depth: Depth) -> None:
    model = graphs(depth).copy("fp16")
    conv = node(model, CONV[depth])
    factors = np.random.default_rng(1).uniform(0.5, 2, 8 << (1 if depth == 18 else 2))
    change(model, conv.input[1], lambda weight: weight / factors[:, None, None, None])
    change(model, conv.input[2], lambda bias: bias * 0)
    assert found(graphs(depth), model).node == CONV[depth]


def test_a_batchnorm_in_a_node_of_its_own_is_no_divergence() -> None:
    model, conv = graphs(18).copy("fp16"), CONV[18]
    target = node(model, conv)
    channels = 16
    gamma = np.random.default_rng(1).uniform(0.5, 2, channels).astype(np.float16)
    change(model, target.input[1], lambda weight: weight / gamma[:, None, None, None])
    change(model, target.input[2], lambda bias: bias / gamma)
    values = {"gamma": gamma, "beta": gamma * 0, "mean": gamma * 0, "var": gamma * 0 + 1}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    output = target.output[0]
    target.output[0] = "unfolded"
    norm = helper.make_node(
        "BatchNormalization", ["unfolded", *values], [output], name="layer2.0.bn2", epsilon=0.0
    )
    model.graph.node.insert(list(model.graph.node).index(target) + 1, norm)
    result = graphs(18).compare(model)
    assert result.first is None
    assert "layer2.0.bn2" in {layer.node for layer in result.layers}
    assert conv in result.unpaired


@pytest.mark.parametrize(("depth", "precision"), CASES)
def test_a_missing_relu_is_found_and_called_missing(depth: Depth, precision: Precision) -> None:
    model = graphs(depth).copy(precision)
    relu = node(model, RELU[depth])
    for one in model.graph.node:
        for position, name in enumerate(one.input):
            if name == relu.output[0]:
                one.input[position] = relu.input[0]
    model.graph.node.remove(relu)
    first = found(graphs(depth), model)
    assert (first.node, first.op, first.missing) == (RELU[depth], "Relu", True)
    assert "does not have it" in first.reason


def test_a_relu_that_became_another_operator_is_found() -> None:
    model = graphs(18).copy("fp16")
    node(model, RELU[18]).op_type = "Identity"
    assert found(graphs(18), model).node == RELU[18]


@pytest.mark.parametrize("depth", DEPTHS)
def test_an_overflow_of_fp16_is_found_where_it_happens(depth: Depth) -> None:
    model = scale_weights(graphs(depth).copy("fp16"), CONV[depth], 3e4)
    first = found(graphs(depth), model)
    assert first.node == CONV[depth]
    assert first.non_finite == len(images())
    assert "NaN or infinite" in first.reason


@pytest.mark.parametrize(("depth", "precision"), CASES[1:])
def test_a_doubled_activation_scale_is_found_in_its_quantization(depth: Depth, precision: Precision) -> None:
    model = graphs(depth).copy(precision)
    quantizer = reader(model, node(model, RELU[depth]).output[0])
    change(model, quantizer.input[1], lambda scale: scale * 2)
    first = found(graphs(depth), model)
    assert (first.node, first.module) == (quantizer.name, f"module.{RELU[depth]}")
    assert "half its scale" in first.reason


@pytest.mark.parametrize("precision", ["int8", "int8.cpu"])
@pytest.mark.parametrize("position", [1, 2], ids=["scale", "zero-point"])
def test_a_dequantization_unlike_its_quantization_is_found(precision: Precision, position: int) -> None:
    model = graphs(18).copy(precision)
    quantizer = reader(model, node(model, RELU[18]).output[0])
    dequantizer = reader(model, quantizer.output[0])
    constant = next(one for one in model.graph.initializer if one.name == dequantizer.input[position])
    values = numpy_helper.to_array(constant)
    wrong = values * 2 if position == 1 else values + 30
    model.graph.initializer.append(numpy_helper.from_array(wrong.astype(values.dtype), "wrong"))
    dequantizer.input[position] = "wrong"
    assert found(graphs(18), model).node == quantizer.name


def test_a_stride_that_moved_to_another_convolution_is_found_by_its_shape() -> None:
    model = graphs(50).copy("fp16")
    for name, stride in (("layer2.0.conv1", 2), ("layer2.0.conv2", 1)):
        target = node(model, name)
        strides = next(one for one in target.attribute if one.name == "strides")
        strides.ints[:] = [stride, stride]
    first = found(graphs(50), model)
    assert first.node == "layer2.0.conv1"
    assert "[N, 16, 4, 4]" in first.reason
    assert "[N, 16, 8, 8]" in first.reason


@pytest.mark.parametrize(
    ("precision", "tensor", "layer"),
    [
        ("fp16", "layer1.0.add.relu_out", "layer1.0.add.relu"),
        ("int8", "layer1.0.add.relu_out_dequantized", "layer1.0.add.relu_out.QuantizeLinear"),
        ("int8.cpu", "layer1.0.add.relu_out_dequantized", "layer1.0.add.relu_out.QuantizeLinear"),
    ],
)
def test_the_figures_in_place_are_those_of_the_activations(
    precision: Precision, tensor: str, layer: str
) -> None:
    artifact = graphs(18).artifacts[precision]
    (expected,) = activations(graphs(18).fp32, [images()], ["layer1.0.add.relu_out"])
    (values,) = activations(artifact, [images()], [tensor])
    wanted = ErrorSums.of(values[tensor], expected["layer1.0.add.relu_out"]).relative_error
    figures = {one.node: one for one in graphs(18).compare(artifact).layers}
    assert figures[layer].relative_error == pytest.approx(wanted, rel=0.02)
    assert figures["layer1.0.conv1"].relative_error is None  # a Relu alone reads it: a runtime fuses them


def test_measuring_does_not_change_what_the_integer_graph_computes() -> None:
    """With every tensor measured in place it would."""
    artifact = graphs(18).artifacts["int8.cpu"]
    assert graphs(18).compare(artifact).perturbation_db is None


def test_graphs_of_different_networks_are_refused() -> None:
    other = onnx.load_from_string(resnet_onnx.resnet(18, size=32, width=8))
    for one in other.graph.node:
        one.name = f"other/{one.name}"
    with pytest.raises(ExportError, match="no node"):
        graphs(18).compare(other)


def test_no_images_are_refused() -> None:
    with pytest.raises(DatasetError, match="no images"):
        compare_layers(graphs(18).fp32, graphs(18).artifacts["fp16"], [])


def test_the_limits_are_ordered_as_the_precisions_are() -> None:
    assert LIMITS["fp32"] < LIMITS["fp16"] < LIMITS["weights"] < LIMITS["activations"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_further_outputs_change_nothing_of_what_is_found(precision: Precision) -> None:
    """Features and embeddings leave a graph beside the logits, wherever in it their tensors are."""
    plain = graphs(18)
    fp32, artifact = onnx.ModelProto(), plain.copy(precision)
    fp32.CopyFrom(plain.fp32)
    for model in (fp32, artifact):
        for name in ("layer1.0.conv1", "layer3.1.conv2", "layer4.0.conv1.relu"):
            model.graph.output.append(onnx.ValueInfoProto(name=node(model, name).output[0]))
    wider = Graphs(fp32, {precision: artifact}, plain.modules)
    said, expected = wider.compare(artifact), plain.compare(plain.artifacts[precision])
    assert [(layer.node, layer.kind, layer.missing, layer.diverges) for layer in said.layers] == [
        (layer.node, layer.kind, layer.missing, layer.diverges) for layer in expected.layers
    ]
    assert (said.unpaired, said.sentence) == (expected.unpaired, expected.sentence)
    fault = scale_weights(wider.copy(precision), CONV[18], 1.5)
    assert found(wider, fault).node == CONV[18]
