"""The placement rules, one small graph for each kind of layer and neighbor, for both targets.

What is quantized is stated by hand; what the graph then computes is held to ONNX's reference evaluator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.ranges import Range
from resnet_export.calibration.quantize.grid import affine_grid, symmetric_grid
from resnet_export.calibration.quantize.operators import OPERATORS, Operator
from resnet_export.calibration.quantize.placement import TARGETS, place
from resnet_export.calibration.quantize.plan import QuantPlan
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.parity.measure.metrics import relative_error
from tests.grids import round_trip
from tests.layer_graphs import CASES, CHANNELS, CONSTANTS, Case, images

every_case = pytest.mark.parametrize("name", CASES)
every_target = pytest.mark.parametrize("target", get_args(TargetName))


def _quantized(case: Case, target: TargetName) -> onnx.ModelProto:
    model = case.model()
    plan = QuantPlan(method="minmax")
    table = calibrate(model, [images(16, seed=1)], methods=("minmax",), threads=1)
    return quantize(model, plan.choose_ranges(table), plan, target)


@every_case
@every_target
def test_what_is_quantized_is_what_the_rules_say(name: str, target: TargetName) -> None:
    case = CASES[name]
    placed = place(Topology(case.model()), (), TARGETS[target])
    assert set(placed.ranges) == (case.tensorrt if target == "tensorrt" else case.cpu)


@every_case
@every_target
def test_the_graph_computes_what_the_float_graph_does_to_8_bits(name: str, target: TargetName) -> None:
    case = CASES[name]
    made = _quantized(case, target)
    onnx.checker.check_model(made, full_check=True)
    batch = images(4, seed=2)
    (reference,) = ReferenceEvaluator(made).run(None, {"input": batch})
    (expected,) = ReferenceEvaluator(case.model()).run(None, {"input": batch})
    assert 1e-4 < (relative_error(reference, expected) or 0) < 0.05
    # ONNX Runtime rounds ties and sums elsewhere: a few values fall on the neighboring integer.
    assert (
        relative_error(CpuSession(made.SerializeToString(), threads=1).run(batch)[0], reference) or 0
    ) < 0.02


def test_the_parts_of_a_concatenation_share_one_grid_on_a_cpu() -> None:
    made = _quantized(CASES["a concatenation, of which every part has the grid of the whole"], "cpu")
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    for part in ("ra", "b"):
        assert values[f"{part}_scale"] == values["both_scale"]
        assert values[f"{part}_zero_point"] == values["both_zero_point"]


@every_target
def test_a_matmuls_weight_has_a_scale_for_each_column_and_its_bias_stays_float(target: TargetName) -> None:
    made = _quantized(CASES["a MatMul with its bias, LayerNorm and GELU, as of a transformer"], target)
    writers = {name: node for node in made.graph.node for name in node.output}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    product = next(node for node in made.graph.node if node.name == "m1")
    dequantize = writers[product.input[1]]
    assert helper.get_node_attr_value(dequantize, "axis") == 1
    assert values[dequantize.input[0]].dtype == np.int8
    assert values[dequantize.input[1]].shape == (CHANNELS,)
    added = next(node for node in made.graph.node if node.name == "m1b")
    np.testing.assert_array_equal(values[added.input[1]], CONSTANTS["bias"])


@every_target
def test_a_bias_correction_of_a_matmul_goes_into_the_add_behind_it_or_nowhere(target: TargetName) -> None:
    case = CASES["a MatMul with its bias, LayerNorm and GELU, as of a transformer"]
    model = case.model()
    table = calibrate(model, [images(16, seed=1)], methods=("minmax",), threads=1)
    shift = np.arange(CHANNELS, dtype=np.float32)
    plan = QuantPlan(method="minmax", bias_corrections={"m1": shift, "m2": shift})
    made = quantize(model, plan.choose_ranges(table), plan, target)
    onnx.checker.check_model(made, full_check=True)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    added = {node.name: node for node in made.graph.node}
    np.testing.assert_array_equal(values[added["m1b"].input[1]], CONSTANTS["bias"] + shift)
    assert [layer.bias_input for layer in Topology(model).layers] == [("patches", 2), ("m1b", 1), None]


# What operators without a case need besides their first input, and their attributes.
SAMPLES: Mapping[str, tuple[list[Any], dict[str, Any]]] = {
    "AveragePool": ([], {"kernel_shape": [2, 2]}),
    "Cast": ([], {"to": onnx.TensorProto.FLOAT}),
    "Concat": ([np.ones((2, 4, 4, 4), np.float32) / 3], {"axis": 1}),
    "DepthToSpace": ([], {"blocksize": 2}),
    "Expand": ([np.array([3, 2, 4, 4, 4])], {}),
    "Gather": ([np.array([1, 0])], {"axis": 1}),
    "GatherND": ([np.array([[1, 0], [0, 3]])], {}),
    "MaxPool": ([], {"kernel_shape": [2, 2]}),
    "QuantizeLinear": ([np.float32(0.02), np.int8(0)], {}),
    "ReduceMean": ([np.array([2, 3])], {}),
    "Reshape": ([np.array([2, -1])], {}),
    "Slice": ([np.array([1]), np.array([3]), np.array([1])], {}),
    "SpaceToDepth": ([], {"blocksize": 2}),
    "Split": ([], {"axis": 1, "num_outputs": 2}),
    "Squeeze": ([], {}),
    "Tile": ([np.array([1, 2, 1, 1])], {}),
    "Transpose": ([], {"perm": [0, 2, 3, 1]}),
    "Unsqueeze": ([np.array([0])], {}),
}


def _computed(row: Operator, *arrays: Any) -> list[Any]:
    attributes = SAMPLES.get(row.name, ([], {}))[1]
    names = [f"x{index}" for index in range(len(arrays))]
    outputs = ["y", "z"] if row.name == "Split" else ["y"]
    node = helper.make_node(row.name, names, outputs, **attributes)
    return list(ReferenceEvaluator(node, opsets={"": 19}).run(None, dict(zip(names, arrays, strict=True))))


@pytest.mark.parametrize("row", OPERATORS.values(), ids=lambda row: row.name)
def test_a_row_of_the_operators_says_what_onnxs_reference_evaluator_computes(row: Operator) -> None:
    x = np.random.default_rng(3).normal(size=(2, 4, 4, 4)).astype(np.float32)
    others = SAMPLES.get(row.name, ([], {}))[0]
    found = np.concatenate([one.ravel() for one in _computed(row, x, *others)])
    operands = [x, *(others if row.moves is None else [])]
    assert set(SAMPLES) <= set(OPERATORS)
    if row.name == "QuantizeLinear":
        found = found * others[0]
    if row.within:
        step = others[0] / 2 if row.name == "QuantizeLinear" else 0
        assert x.min() - step <= found.min()
        assert found.max() <= x.max() + step
    if row.span is not None:
        assert row.span[0] <= found.min()
        assert found.max() <= row.span[1]
    if row.exact:
        assert set(found.tolist()) <= {0.0, *(value for one in operands for value in one.ravel().tolist())}
    if row.averages:
        assert np.abs(found).max() < np.abs(x).max()
    if row.moves != 0:
        limits = Range(amax=2.0, low=-1.0, high=2.0)
        for grid in (symmetric_grid(limits), affine_grid(limits)):
            rounded = [round_trip(grid, one) for one in operands]
            before = _computed(row, *rounded, *others[len(operands) - 1 :])
            after = [round_trip(grid, one) for one in _computed(row, x, *others)]
            for one, other in zip(before, after, strict=True):
                np.testing.assert_array_equal(one, other)
