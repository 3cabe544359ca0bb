"""Which channels share a scale, and that rescaling them leaves the function alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from resnet_export.calibration.improve.channel_scaling import by_input, channel_groups, from_rows, rescale
from resnet_export.calibration.quantize.plan import Equalization
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.runtime.errors import RequestError
from tests.residual_net import images, residual_net


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], channels: int) -> onnx.ModelProto:
    """A graph from input [N, channels, 4, 4] to output."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", channels, 4, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def logits(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What ONNX's own reference evaluator makes of the graph."""
    return np.asarray(ReferenceEvaluator(model).run(None, {model.graph.input[0].name: x})[0])


def test_a_residual_stream_is_one_group_and_each_tensor_inside_a_block_its_own() -> None:
    found = {
        (tuple(one.name for one in group.producers), tuple(one.name for one in group.consumers))
        for group in channel_groups(residual_net())
    }
    assert found == {
        (("stem", "a.conv2"), ("a.conv1", "b.conv1", "b.down")),
        (("a.conv1",), ("a.conv2",)),
        (("b.conv1",), ("b.conv2",)),
        (("b.conv2", "b.down"), ("fc",)),
    }


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 4))
def test_rescaling_any_group_by_any_factors_leaves_the_function_as_it_is(seed: int, spread: float) -> None:
    model, rng = residual_net(), np.random.default_rng(seed)
    done = [
        Equalization(
            tuple(one.name for one in group.producers),
            tuple(one.name for one in group.consumers),
            np.exp(rng.normal(0, spread, group.channels)).astype(np.float32),
        )
        for group in channel_groups(model)
    ]
    x = images(2)
    expected = logits(model, x)
    np.testing.assert_allclose(logits(rescale(model, done), x), expected, atol=2e-5 * np.abs(expected).max())


def test_a_depthwise_convolution_reads_each_channel_in_its_own_group() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["output"], name="depthwise", group=6, pads=[1, 1, 1, 1]),
    ]
    model = graph_of(nodes, {"w1": rng.normal(size=(6, 3, 1, 1)), "w2": rng.normal(size=(6, 1, 3, 3))}, 3)
    (group,) = channel_groups(model)
    assert group.channels == 6
    factors = np.geomspace(0.01, 100, 6).astype(np.float32)
    x = rng.normal(size=(2, 3, 4, 4)).astype(np.float32)
    scaled = rescale(model, [Equalization(("first",), ("depthwise",), factors)])
    np.testing.assert_allclose(logits(scaled, x), logits(model, x), rtol=1e-4, atol=1e-5)


def test_what_a_gate_multiplies_may_be_rescaled_and_the_gate_may_not() -> None:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], name="main"),
        helper.make_node("GlobalAveragePool", ["a"], ["squeezed"], name="squeeze"),
        helper.make_node("Conv", ["squeezed", "w2"], ["excited"], name="excite"),
        helper.make_node("Sigmoid", ["excited"], ["gate"], name="sigmoid"),
        helper.make_node("Mul", ["a", "gate"], ["gated"], name="gating"),
        helper.make_node("Conv", ["gated", "w3"], ["output"], name="last"),
    ]
    shape = (4, 4, 1, 1)
    constants = {name: rng.normal(size=shape) for name in ("w1", "w2", "w3")}
    (group,) = channel_groups(graph_of(nodes, constants, 4))
    assert set(group.tensors) == {"a", "squeezed", "gated"}
    assert [one.name for one in group.consumers] == ["excite", "last"]


@pytest.mark.parametrize("operator", ["Sigmoid", "Tanh", "Exp"])
def test_channels_stay_as_they_are_around_an_operator_that_scales_do_not_pass(operator: str) -> None:
    weight = np.ones((3, 3, 1, 1))
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], name="first"),
        helper.make_node(operator, ["a"], ["b"], name="between"),
        helper.make_node("Conv", ["b", "w2"], ["output"], name="second"),
    ]
    assert channel_groups(graph_of(nodes, {"w1": weight, "w2": weight}, 3)) == ()


def test_weights_that_two_layers_share_are_left_alone() -> None:
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w"], ["output"], name="second"),
    ]
    assert channel_groups(graph_of(nodes, {"w": np.ones((3, 3, 1, 1))}, 3)) == ()


@pytest.mark.parametrize("layer", ["a.conv1", "fc"])
def test_a_weight_by_input_channels_reads_back_as_it_was(layer: str) -> None:
    topology = Topology(residual_net())
    one = next(found for found in topology.layers if found.name == layer)
    weight = topology.constant(one.weight).astype(np.float64)
    np.testing.assert_array_equal(from_rows(by_input(weight, one), weight.shape, one), weight)


def test_factors_for_another_number_of_channels_or_another_layer_are_refused() -> None:
    with pytest.raises(RequestError, match="3 factors"):
        rescale(residual_net(), [Equalization(("a.conv1",), ("a.conv2",), np.ones(3, np.float32))])
    with pytest.raises(RequestError, match="nowhere"):
        rescale(residual_net(), [Equalization(("nowhere",), ("a.conv2",), np.ones(8, np.float32))])
