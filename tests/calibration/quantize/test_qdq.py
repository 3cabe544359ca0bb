"""Where Q/DQ nodes stand, rule by rule, and what the graphs compute, on a network of two residual blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.ranges import Range
from resnet_export.calibration.quantize.grid import (
    QuantizedWeight,
    affine_grid,
    quantize_weight,
    symmetric_grid,
)
from resnet_export.calibration.quantize.placement import TARGETS, place, tensors_to_observe
from resnet_export.calibration.quantize.plan import Exclusion, QuantPlan, default_exclusions
from resnet_export.calibration.quantize.qdq import emit, origins, quantize
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import ExportError, RequestError
from tests.grids import round_trip
from tests.residual_net import CLASSES, images, residual_net, with_weight

LAYERS = ["stem", "a.conv1", "a.conv2", "b.conv1", "b.conv2", "b.down", "fc"]
every_target = pytest.mark.parametrize("target", get_args(TargetName))


class Graph:
    """A Q/DQ graph, to be asked where its nodes stand."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = {node.name: node for node in model.graph.node}
        self.writer = {name: node for node in model.graph.node for name in node.output}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}

    def source(self, node: str, position: int) -> str | None:
        """The tensor that an input was quantized from; None where it is not quantized."""
        dequantize = self.writer.get(self.nodes[node].input[position])
        if dequantize is None or dequantize.op_type != "DequantizeLinear":
            return None
        quantize = self.writer.get(dequantize.input[0])
        if quantize is None:
            return str(dequantize.input[0])
        assert quantize.op_type == "QuantizeLinear"
        assert list(quantize.input[1:]) == list(dequantize.input[1:])
        return str(quantize.input[0])

    def quantized(self) -> set[str]:
        return {node.input[0] for node in self.model.graph.node if node.op_type == "QuantizeLinear"}

    def scale(self, tensor: str) -> NDArray[np.float32]:
        (node,) = [n for n in self.model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor]
        return self.constants[node.input[1]]

    def zero_point(self, tensor: str) -> NDArray[np.generic]:
        (node,) = [n for n in self.model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor]
        return self.constants[node.input[2]]


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return residual_net()


@pytest.fixture(scope="module")
def ranges(model: onnx.ModelProto) -> dict[str, Range]:
    return QuantPlan(method="minmax").choose_ranges(
        calibrate(model, [images(32)], methods=("minmax",), threads=1)
    )


@pytest.fixture(scope="module")
def tensorrt(model: onnx.ModelProto, ranges: dict[str, Range]) -> Graph:
    return Graph(quantize(model, ranges, QuantPlan(), "tensorrt"))


@pytest.fixture(scope="module")
def cpu(model: onnx.ModelProto, ranges: dict[str, Range]) -> Graph:
    return Graph(quantize(model, ranges, QuantPlan(), "cpu"))


def keep(*layers: str, targets: tuple[TargetName, ...] = tuple(TARGETS)) -> QuantPlan:
    return QuantPlan(excluded={layer: Exclusion(reason="for a test", targets=targets) for layer in layers})


# Both targets.


@pytest.mark.parametrize("name", LAYERS)
def test_the_input_of_every_layer_is_quantized(
    tensorrt: Graph, cpu: Graph, name: str, model: onnx.ModelProto
) -> None:
    source = next(node.input[0] for node in model.graph.node if node.name == name)
    assert tensorrt.source(name, 0) == source
    assert cpu.source(name, 0) == source


@pytest.mark.parametrize("name", LAYERS)
@every_target
def test_weights_are_int8_initializers_dequantized_along_their_output_channels(
    target: TargetName, name: str, tensorrt: Graph, cpu: Graph
) -> None:
    graph = {"tensorrt": tensorrt, "cpu": cpu}[target]
    dequantize = graph.writer[graph.nodes[name].input[1]]
    weight, scale, zero = (graph.constants[one] for one in dequantize.input)
    assert dequantize.op_type == "DequantizeLinear"
    assert helper.get_node_attr_value(dequantize, "axis") == 0
    assert (weight.dtype, scale.dtype, zero.dtype) == (np.int8, np.float32, np.int8)
    assert scale.shape == zero.shape == weight.shape[:1]
    assert not zero.any()
    assert weight.min() >= -127


@every_target
def test_no_float_weight_is_left_and_every_node_keeps_its_name(
    target: TargetName, tensorrt: Graph, cpu: Graph, model: onnx.ModelProto
) -> None:
    graph = {"tensorrt": tensorrt, "cpu": cpu}[target]
    assert not [
        name for name, values in graph.constants.items() if values.dtype == np.float32 and values.ndim > 1
    ]
    excluded = [node.name for node in graph.model.graph.node if "QuantizeLinear" not in node.op_type]
    excluded = [name for name in excluded if "DequantizeLinear" not in graph.nodes[name].op_type]
    assert excluded == [node.name for node in model.graph.node]
    assert len(graph.nodes) == len(graph.model.graph.node)


@every_target
def test_no_tensor_is_quantized_twice(target: TargetName, tensorrt: Graph, cpu: Graph) -> None:
    graph = {"tensorrt": tensorrt, "cpu": cpu}[target]
    sources = [node.input[0] for node in graph.model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))


@every_target
def test_the_graph_is_valid_onnx_and_keeps_its_interface(
    target: TargetName, tensorrt: Graph, cpu: Graph, model: onnx.ModelProto
) -> None:
    made = {"tensorrt": tensorrt, "cpu": cpu}[target].model
    onnx.checker.check_model(made, full_check=True)
    assert list(made.graph.input) == list(model.graph.input)
    assert list(made.graph.output) == list(model.graph.output)
    assert list(made.opset_import) == list(model.opset_import)


# TensorRT.


def test_tensorrt_activations_are_signed_and_symmetric(tensorrt: Graph, ranges: dict[str, Range]) -> None:
    for tensor in tensorrt.quantized():
        zero = tensorrt.zero_point(tensor)
        assert zero.dtype == np.int8
        assert zero == 0
        assert tensorrt.scale(tensor) == np.float32(symmetric_grid(ranges[tensor]).scale)


def test_tensorrt_scales_are_numbers_that_fp16_holds(tensorrt: Graph) -> None:
    scales = [node.input[1] for node in tensorrt.model.graph.node if node.op_type == "DequantizeLinear"]
    for scale in scales:
        values = tensorrt.constants[scale]
        np.testing.assert_array_equal(values.astype(np.float16).astype(np.float32), values)


def test_tensorrt_quantizes_the_skip_operand_alone_so_that_conv_add_relu_fuse(tensorrt: Graph) -> None:
    add = tensorrt.nodes["a.add"]
    assert list(add.input) == ["a.conv2.out", "pool.out_dequantized"]
    assert tensorrt.source("a.add", 1) == "pool.out"


def test_tensorrt_takes_the_downsampling_convolution_for_the_skip_branch(tensorrt: Graph) -> None:
    assert tensorrt.source("b.add", 0) is None
    assert tensorrt.nodes["b.add"].input[0] == "b.conv2.out"
    assert tensorrt.source("b.add", 1) == "b.down.out"


def test_tensorrt_finds_the_skip_operand_wherever_it_stands(
    model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    swapped = onnx.load_from_string(model.SerializeToString())
    for node in swapped.graph.node:
        if node.op_type == "Add":
            node.input[:] = reversed(node.input)
    graph = Graph(quantize(swapped, ranges, QuantPlan(), "tensorrt"))
    assert graph.source("a.add", 0) == "pool.out"
    assert graph.source("a.add", 1) is None
    assert graph.source("b.add", 0) == "b.down.out"
    assert graph.source("b.add", 1) is None


def test_tensorrt_quantizes_nothing_else(tensorrt: Graph) -> None:
    layer_inputs = {"input", "pool.out", "a.relu1.out", "a.relu2.out", "b.relu1.out", "flatten.out"}
    assert tensorrt.quantized() == layer_inputs | {"b.down.out"}


def test_tensorrt_biases_stay_float_as_its_parser_refuses_int32(tensorrt: Graph) -> None:
    for name in LAYERS:
        assert tensorrt.constants[tensorrt.nodes[name].input[2]].dtype == np.float32


def test_tensorrt_leaves_the_skip_operand_alone_where_nothing_fuses(
    model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    graph = Graph(quantize(model, ranges, keep("a.conv2"), "tensorrt"))
    assert graph.source("a.add", 0) is None
    assert graph.source("a.add", 1) is None
    assert graph.source("b.add", 1) == "b.down.out"


def test_tensorrt_lets_pooling_read_what_was_written(tensorrt: Graph) -> None:
    assert tensorrt.source("pool", 0) is None
    model = residual_net(averaged_skip=True)
    table = calibrate(model, [images(4)], threads=1)
    graph = Graph(quantize(model, QuantPlan().choose_ranges(table), QuantPlan(), "tensorrt"))
    assert "a.relu2.out" in graph.quantized()
    assert graph.source("b.average", 0) is None


# CPU engines.


def test_cpu_activations_are_unsigned_and_use_every_step(cpu: Graph, ranges: dict[str, Range]) -> None:
    for tensor in cpu.quantized() - {"stem.relu.out", "average.out"}:  # on the grid of what is made of them
        grid = affine_grid(ranges[tensor])
        assert cpu.zero_point(tensor).dtype == np.uint8
        assert (cpu.scale(tensor), cpu.zero_point(tensor)) == (np.float32(grid.scale), grid.zero_point)


def test_cpu_tensors_after_a_relu_have_zero_point_zero(cpu: Graph) -> None:
    for tensor in ("a.relu1.out", "a.relu2.out", "b.relu1.out"):
        assert cpu.zero_point(tensor) == 0
    assert 0 < cpu.zero_point("a.conv2.out") < 255


@pytest.mark.parametrize(
    ("add", "operands"), [("a.add", ["a.conv2.out", "pool.out"]), ("b.add", ["b.conv2.out", "b.down.out"])]
)
def test_cpu_quantizes_both_operands_of_an_add(cpu: Graph, add: str, operands: list[str]) -> None:
    assert [cpu.source(add, position) for position in (0, 1)] == operands


def test_cpu_pools_bytes_on_the_grid_of_the_result(cpu: Graph) -> None:
    assert cpu.source("pool", 0) == "stem.relu.out"
    assert cpu.scale("stem.relu.out") == cpu.scale("pool.out")
    assert cpu.zero_point("stem.relu.out") == cpu.zero_point("pool.out")


def test_cpu_never_stores_a_quantized_tensor_as_float(cpu: Graph) -> None:
    quantized = cpu.quantized()
    for node in cpu.model.graph.node:
        if node.op_type != "QuantizeLinear":
            assert not quantized & set(node.input)


def test_cpu_lets_an_average_read_the_bytes_that_the_convolutions_read() -> None:
    model = residual_net(averaged_skip=True)
    table = calibrate(model, [images(4)], threads=1)
    graph = Graph(quantize(model, QuantPlan().choose_ranges(table), QuantPlan(), "cpu"))
    assert graph.source("b.average", 0) == graph.source("b.conv1", 0) == "a.relu2.out"


def test_cpu_leaves_the_last_sum_and_the_logits_float(cpu: Graph) -> None:
    assert cpu.nodes["average"].input[0] == "b.relu2.out"
    assert cpu.model.graph.output[0].name == cpu.nodes["fc"].output[0]


def test_cpu_biases_are_int32_in_units_of_input_scale_times_weight_scale(
    cpu: Graph, model: onnx.ModelProto
) -> None:
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in LAYERS:
        node = cpu.nodes[name]
        bias, scale, zero = (cpu.constants[one] for one in cpu.writer[node.input[2]].input)
        weight_scale = cpu.constants[cpu.writer[node.input[1]].input[1]]
        source = cpu.source(name, 0)
        assert source is not None
        assert bias.dtype == zero.dtype == np.int32
        np.testing.assert_allclose(scale, weight_scale * cpu.scale(source), rtol=1e-6)
        np.testing.assert_allclose(bias * scale, floats[f"{name}.bias"], atol=float(scale.max()))


def test_cpu_gives_a_kept_layer_its_input_as_it_was(model: onnx.ModelProto, ranges: dict[str, Range]) -> None:
    graph = Graph(quantize(model, ranges, keep("b.conv1"), "cpu"))
    assert graph.nodes["b.conv1"].input[0] == "a.relu2.out"
    assert graph.source("b.down", 0) == "a.relu2.out"
    assert graph.source("b.conv1", 1) is None


def test_cpu_reads_what_an_excluded_convolution_writes_as_float(
    model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    graph = Graph(quantize(model, ranges, keep("b.conv2"), "cpu"))
    assert [graph.source("b.add", position) for position in (0, 1)] == [None, "b.down.out"]


def test_cpu_raises_the_scale_of_a_channel_whose_bias_would_not_fit_32_bits(
    model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    weight = numpy_helper.to_array(model.graph.initializer[2]).copy()
    assert model.graph.initializer[2].name == "a.conv1.weight"
    weight[3] = 0
    bias = np.zeros(len(weight), np.float32)
    bias[3] = 3e4
    changed = with_weight(with_weight(model, "a.conv1.weight", weight), "a.conv1.bias", bias)
    tight = {**ranges, "pool.out": Range(amax=1e-3, low=0.0, high=1e-3)}
    graph = Graph(quantize(changed, tight, QuantPlan(), "cpu"))
    integers, scale, _ = (graph.constants[one] for one in graph.writer[graph.nodes["a.conv1"].input[2]].input)
    assert integers[3] * np.float64(scale[3]) == pytest.approx(3e4, rel=1e-6)
    assert abs(int(integers[3])) <= 2**30


# What the plan says.


@every_target
def test_a_kept_layer_reads_floats_with_float_weights(
    target: TargetName, model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    graph = Graph(quantize(model, ranges, keep("a.conv1", "fc"), target))
    originals = {node.name: node for node in model.graph.node}
    for name in ("a.conv1", "fc"):
        assert list(graph.nodes[name].input) == list(originals[name].input)
        np.testing.assert_array_equal(
            graph.constants[f"{name}.weight"],
            numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == f"{name}.weight")),
        )
    assert "flatten.out" not in graph.quantized()


def test_a_layer_can_be_kept_for_one_target_alone(model: onnx.ModelProto, ranges: dict[str, Range]) -> None:
    plan = QuantPlan(excluded=default_exclusions(model))
    assert Graph(quantize(model, ranges, plan, "tensorrt")).source("fc", 0) is None
    assert Graph(quantize(model, ranges, plan, "cpu")).source("fc", 0) == "flatten.out"


@every_target
def test_with_every_layer_kept_the_graph_is_the_float_graph(
    target: TargetName, model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    made = quantize(model, ranges, keep(*LAYERS), target)
    assert list(made.graph.node) == list(model.graph.node)


@every_target
def test_integers_of_the_plan_take_the_place_of_rounding(
    target: TargetName, model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    values = np.full((8, 8, 3, 3), 5, np.int8)
    weight = QuantizedWeight(values, np.full(8, 0.25, np.float32), 0)
    graph = Graph(quantize(model, ranges, QuantPlan(weights={"a.conv1": weight}), target))
    integers, scales, _ = (
        graph.constants[one] for one in graph.writer[graph.nodes["a.conv1"].input[1]].input
    )
    np.testing.assert_array_equal(integers, values)
    np.testing.assert_array_equal(scales, weight.scales)


@pytest.mark.parametrize("with_bias", [True, False])
@every_target
def test_bias_corrections_are_added_to_biases_that_are_there_or_not(
    target: TargetName, with_bias: bool, ranges: dict[str, Range]
) -> None:
    model = residual_net(bias=with_bias)
    correction = np.linspace(-1, 1, 8).astype(np.float32)
    plain = quantize(model, ranges, QuantPlan(), target)
    corrected = quantize(model, ranges, QuantPlan(bias_corrections={"a.conv1": correction}), target)
    exposed = [with_output(one, "a.conv1.out") for one in (plain, corrected)]
    before, after = (run(one, images(2))[-1] for one in exposed)
    np.testing.assert_allclose(
        after - before, np.broadcast_to(correction[:, None, None], after.shape), atol=2e-3
    )


def test_unknown_layers_and_missing_ranges_are_refused_by_name(
    model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    with pytest.raises(RequestError, match=r"'layer9'.*stem, a\.conv1"):
        quantize(model, ranges, keep("layer9"), "cpu")
    with pytest.raises(RequestError, match=r"no range for tensor 'pool\.out'"):
        quantize(model, {name: one for name, one in ranges.items() if name != "pool.out"}, QuantPlan(), "cpu")


def test_weights_that_are_not_finite_are_refused_by_name(
    model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    bad = np.zeros((8, 8, 3, 3), np.float32)
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(ExportError, match=r"'a\.conv2\.weight' holds infinite values or NaN"):
        quantize(with_weight(model, "a.conv2.weight", bad), ranges, QuantPlan(), "tensorrt")


def test_nodes_without_unique_names_are_refused(model: onnx.ModelProto, ranges: dict[str, Range]) -> None:
    twins = onnx.load_from_string(model.SerializeToString())
    twins.graph.node[1].name = twins.graph.node[0].name
    with pytest.raises(ExportError, match="unique names"):
        quantize(twins, ranges, QuantPlan(), "cpu")


@every_target
def test_every_new_node_knows_which_node_it_serves(target: TargetName, tensorrt: Graph, cpu: Graph) -> None:
    graph = {"tensorrt": tensorrt, "cpu": cpu}[target]
    found = origins(graph.model)
    assert found.keys() == graph.nodes.keys()
    assert found["a.conv1"] == "a.conv1"
    assert found["a.conv1.weight.DequantizeLinear"] == "a.conv1"
    assert found["pool.out.QuantizeLinear"] == found["pool.out.DequantizeLinear"] == "pool"
    assert found["input.QuantizeLinear"] == found["input.DequantizeLinear"] == "stem"


# What the graphs compute.


def with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.load_from_string(model.SerializeToString())
    copy.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy


def run(model: onnx.ModelProto, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return CpuSession(model.SerializeToString(), threads=1).run(batch)


def snr(values: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    error = float(np.square(values - reference).sum())
    return 10 * np.log10(float(np.square(reference).sum()) / error) if error else np.inf


@every_target
def test_onnxruntime_computes_what_onnxs_reference_evaluator_does(
    target: TargetName, tensorrt: Graph, cpu: Graph
) -> None:
    made = {"tensorrt": tensorrt, "cpu": cpu}[target].model
    batch = images(4, seed=7)
    (expected,) = ReferenceEvaluator(made).run(None, {"input": batch})
    # A sum that lies on the edge between two integers may fall to either side.
    assert snr(run(made, batch)[0], expected) > 30


@every_target
def test_the_graph_stays_close_to_the_float_graph(
    target: TargetName, tensorrt: Graph, cpu: Graph, model: onnx.ModelProto
) -> None:
    made = {"tensorrt": tensorrt, "cpu": cpu}[target].model
    batch = images(64, seed=7)
    assert snr(run(made, batch)[0], run(model, batch)[0]) > 25


def test_each_layer_computes_with_the_rounded_input_and_the_rounded_weight(
    model: onnx.ModelProto, ranges: dict[str, Range], tensorrt: Graph
) -> None:
    """The first convolution by hand, in floating point, from numpy's rounding."""
    batch = images(3, seed=7)
    stem = Topology(model).layers[0]
    rounded = with_weight(
        model, "stem.weight", quantize_weight(Topology(model).constant("stem.weight"), stem.axis).real()
    )
    (_, expected) = run(with_output(rounded, "stem.out"), round_trip(symmetric_grid(ranges["input"]), batch))
    (_, found) = run(with_output(tensorrt.model, "stem.out"), batch)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_cpu_graph_runs_in_integers_from_end_to_end(cpu: Graph, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """ONNX Runtime replaces every layer, Add and pooling with an integer operator, and no float one stays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(
        cpu.model.SerializeToString(),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["WeightBiasQuantization"],
    )
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("QLinearConv") == 6
    assert operators.count("QGemm") == 1
    assert operators.count("QLinearAdd") == 1  # the last sum is float, see the layout
    assert not {"Conv", "Gemm", "FusedConv", "FusedGemm"} & set(operators)


@every_target
def test_degenerate_weights_and_tensors_leave_every_scale_positive_and_finite(target: TargetName) -> None:
    model = residual_net()
    dead = numpy_helper.to_array(
        next(t for t in model.graph.initializer if t.name == "a.conv1.weight")
    ).copy()
    dead[2] = 0
    for name, values in (
        ("a.conv1.weight", dead),
        ("a.conv1.bias", np.where(np.arange(8) == 2, -1.0, -1e4).astype(np.float32)),  # a.relu1 is all zeros
        ("a.conv2.weight", np.zeros((8, 8, 3, 3), np.float32)),
        ("fc.weight", np.full((CLASSES, 16), 1e-30, np.float32)),
    ):
        model = with_weight(model, name, values)
    table = calibrate(model, [images(4)], methods=("minmax",), threads=1)
    assert table.tensors["a.relu1.out"].high == 0
    plan = QuantPlan(method="minmax")
    made = Graph(quantize(model, plan.choose_ranges(table), plan, target))
    for name, values in made.constants.items():
        if name.endswith("_scale"):
            assert np.isfinite(values).all()
            assert (values > 0).all()
    batch = images(8, seed=3)
    assert snr(run(made.model, batch)[0], run(model, batch)[0]) > 20


# Layouts.


def test_the_tensors_to_observe_are_enough_for_every_target(model: onnx.ModelProto) -> None:
    topology = Topology(model)
    observed = set(tensors_to_observe(topology))
    for layout in TARGETS.values():
        assert set(place(topology, (), layout).ranges.values()) <= observed


@pytest.mark.parametrize("flag", ["signed", "convolved", "moved", "integer_bias"])
def test_each_choice_of_the_cpu_layout_changes_the_graph(
    flag: str, model: onnx.ModelProto, ranges: dict[str, Range], cpu: Graph
) -> None:
    other = replace(TARGETS["cpu"], **{flag: not getattr(TARGETS["cpu"], flag)})
    made = emit(model, ranges, QuantPlan(), {}, other)
    onnx.checker.check_model(made, full_check=True)
    assert made.SerializeToString() != cpu.model.SerializeToString()


def test_a_layer_with_computed_weights_or_a_scaled_gemm_is_left_alone(model: onnx.ModelProto) -> None:
    changed = onnx.load_from_string(model.SerializeToString())
    gemm = changed.graph.node[-1]
    gemm.attribute.append(helper.make_attribute("alpha", 0.5))
    first = changed.graph.node[0]
    first.input[1] = "computed"
    changed.graph.node.insert(0, helper.make_node("Identity", ["stem.weight"], ["computed"], name="identity"))
    assert [layer.name for layer in Topology(changed).layers] == LAYERS[1:-1]


def test_a_gemm_that_is_not_transposed_has_its_channels_on_the_other_axis(
    model: onnx.ModelProto, ranges: dict[str, Range]
) -> None:
    changed = onnx.load_from_string(model.SerializeToString())
    del changed.graph.node[-1].attribute[:]
    weight = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "fc.weight"))
    changed = with_weight(changed, "fc.weight", np.ascontiguousarray(weight.T))
    graph = Graph(quantize(changed, ranges, QuantPlan(), "cpu"))
    dequantize = graph.writer[graph.nodes["fc"].input[1]]
    assert helper.get_node_attr_value(dequantize, "axis") == 1
    batch = images(4, seed=7)
    original = run(quantize(model, ranges, QuantPlan(), "cpu"), batch)[0]
    np.testing.assert_allclose(run(graph.model, batch)[0], original, rtol=1e-5, atol=1e-5)
