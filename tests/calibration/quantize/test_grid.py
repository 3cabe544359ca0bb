"""Scales and rounding against ONNX Runtime's own QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.ranges import Range
from resnet_export.calibration.quantize.grid import (
    Grid,
    affine_grid,
    quantize_weight,
    rescaled,
    symmetric_grid,
    weight_scales,
)
from tests.grids import round_trip

limits = st.floats(0, 2.0**20, width=32)
weights = arrays.arrays(
    np.float32, (4, 3, 2, 2), elements=st.floats(-(2.0**10), 2.0**10, width=32, allow_subnormal=False)
)


def through_onnxruntime(values: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    kind = TensorProto.INT8 if grid.signed else TensorProto.UINT8
    constants = [
        helper.make_tensor("scale", TensorProto.FLOAT, [], [grid.scale]),
        helper.make_tensor("zero", kind, [], [grid.zero_point]),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N"])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return np.asarray(CpuSession(model.SerializeToString(), threads=1).run(values)[0])


@pytest.mark.parametrize("make", [symmetric_grid, affine_grid])
@pytest.mark.parametrize(
    "limits",
    [Range(amax=3.3, low=-1.1, high=3.3), Range(amax=8e-3, low=0.0, high=8e-3), Range(amax=0, low=0, high=0)],
)
def test_a_round_trip_is_what_onnxruntime_makes_of_the_values(make, limits: Range) -> None:  # type: ignore[no-untyped-def]
    grid = make(limits)
    values = np.random.default_rng(0).normal(scale=2, size=20_000).astype(np.float32)
    values = np.concatenate([values, np.arange(-300, 300, dtype=np.float32) * np.float32(grid.scale / 2)])
    np.testing.assert_array_equal(round_trip(grid, values), through_onnxruntime(values, grid))


@settings(deadline=None)
@given(limits, limits)
def test_an_affine_grid_covers_its_range_and_has_zero_on_it(low: float, high: float) -> None:
    grid = affine_grid(Range(amax=0, low=-low, high=high))
    assert 0 < grid.scale < np.inf
    assert 0 <= grid.zero_point <= 255
    assert round_trip(grid, np.zeros(1, np.float32))[0] == 0
    ends = np.array([-low, high], np.float32)
    np.testing.assert_allclose(round_trip(grid, ends), ends, atol=grid.scale * 0.51)


@settings(deadline=None)
@given(limits)
def test_a_symmetric_grid_covers_its_range_with_a_scale_that_fp16_holds(amax: float) -> None:
    grid = symmetric_grid(Range(amax=amax, low=0, high=0))
    assert grid.zero_point == 0
    assert float(np.float16(grid.scale)) == grid.scale > 0
    ends = np.array([-amax, amax], np.float32)
    np.testing.assert_allclose(round_trip(grid, ends), ends, atol=grid.scale * 0.51)


@settings(deadline=None)
@given(weights, st.sampled_from([0, 1]))
def test_a_weight_is_off_by_half_a_step_of_its_channel_at_most(
    weight: NDArray[np.float32], axis: int
) -> None:
    quantized = quantize_weight(weight, axis)
    assert quantized.values.dtype == np.int8
    assert quantized.values.min() >= -127
    assert (quantized.scales > 0).all()
    np.testing.assert_array_equal(quantized.scales.astype(np.float16).astype(np.float32), quantized.scales)
    error = np.abs(np.moveaxis(quantized.real() - weight, axis, 0))
    steps = quantized.scales.reshape(-1, 1, 1, 1)
    assert (error <= steps * np.float32(0.5001)).all()


def test_the_greatest_weight_of_a_channel_takes_the_greatest_integer() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 5, 3, 3)).astype(np.float32)
    assert (np.abs(quantize_weight(weight, 0).values).max(axis=(1, 2, 3)) >= 126).all()


def test_a_channel_of_zeros_or_of_next_to_nothing_takes_the_least_normal_fp16_scale() -> None:
    weight = np.zeros((3, 2, 1, 1), np.float32)
    weight[0], weight[1] = 0.5, 1e-6
    assert weight_scales(weight, 0).tolist() == [pytest.approx(0.5 / 127, rel=1e-3), 2.0**-14, 2.0**-14]


def test_a_layer_of_zeros_has_scales_all_the_same() -> None:
    scales = weight_scales(np.zeros((3, 2, 1, 1), np.float32), 0)
    assert (scales == scales[0]).all()
    assert 0 < scales[0] < np.inf
    assert not quantize_weight(np.zeros((3, 2, 1, 1), np.float32), 0).values.any()


def test_a_layer_whose_weights_are_all_tiny_keeps_its_levels() -> None:
    weight = np.random.default_rng(0).normal(scale=1e-5, size=(4, 8, 3, 3)).astype(np.float32)
    assert np.abs(quantize_weight(weight, 0).values).max() > 100


def test_raised_scales_leave_what_the_weight_stands_for() -> None:
    weight = quantize_weight(np.random.default_rng(0).normal(size=(4, 8, 3, 3)).astype(np.float32), 0)
    raised = rescaled(weight, at_least=np.array([0, 0, 0.1, 0]))
    assert raised.scales[2] == pytest.approx(0.1, rel=1e-3)
    np.testing.assert_array_equal(raised.values[[0, 1, 3]], weight.values[[0, 1, 3]])
    np.testing.assert_allclose(raised.real(), weight.real(), atol=0.051)
    assert rescaled(weight, at_least=np.zeros(4)) is weight


def test_integers_stand_for_what_onnx_says_they_do() -> None:
    weight = quantize_weight(np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32), 1)
    node = helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=1)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("q", TensorProto.INT8, [4, 8]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [8]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (expected,) = ReferenceEvaluator(model).run(None, {"q": weight.values, "s": weight.scales})
    np.testing.assert_array_equal(weight.real(), expected)
