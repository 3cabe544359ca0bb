"""Networks that arrive quantized: taken apart, and emitted for the other target with the scales that they came with."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.quantize.plan import Exclusion, QuantPlan
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.calibration.quantize.read_quantized import is_quantized, read_quantized
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.measure.metrics import relative_error
from tests.residual_net import images, residual_net

TARGETS = get_args(TargetName)


def _quantized(target: TargetName, *excluded: str) -> onnx.ModelProto:
    model = residual_net()
    plan = QuantPlan(method="minmax", excluded={name: Exclusion(reason="for a test") for name in excluded})
    ranges = plan.choose_ranges(calibrate(model, [images(16)], methods=("minmax",), threads=1))
    return quantize(model, ranges, plan, target)


def _run(model: onnx.ModelProto) -> NDArray[np.float32]:
    return np.asarray(ReferenceEvaluator(model).run(None, {"input": images(8, seed=5)})[0])


@pytest.mark.parametrize("target", TARGETS)
def test_a_graph_is_emitted_again_with_the_same_integers_and_scales(target: TargetName) -> None:
    before = _quantized(target)
    found = read_quantized(before)
    assert is_quantized(before)
    assert not is_quantized(found.model)
    again = quantize(found.model, found.ranges, found.plan, target)
    onnx.checker.check_model(again, full_check=True)
    np.testing.assert_allclose(_run(again), _run(before), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("source", "target"), [("tensorrt", "cpu"), ("cpu", "tensorrt")])
def test_a_graph_is_emitted_for_the_other_target_with_calibrated_ranges_where_it_has_none(
    source: TargetName, target: TargetName
) -> None:
    before = _quantized(source)
    found = read_quantized(before)
    calibrated = calibrate(found.model, [images(16)], methods=("minmax",), threads=1)
    ranges = {**QuantPlan(method="minmax").choose_ranges(calibrated), **found.ranges}
    made = quantize(found.model, ranges, found.plan, target)
    assert (relative_error(_run(made), _run(residual_net())) or 0) < 0.05
    scales = {node.input[0]: node.input[1] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    given = {node.input[0]: node.input[1] for node in before.graph.node if node.op_type == "QuantizeLinear"}
    constants = [{t.name: numpy_helper.to_array(t) for t in one.graph.initializer} for one in (made, before)]
    if source == "tensorrt":  # its grid is one of the CPU's: the trained scale is obeyed as it is
        for tensor in scales.keys() & given.keys() - {"stem.relu.out"}:
            assert constants[0][scales[tensor]] == pytest.approx(constants[1][given[tensor]], rel=1e-6), (
                tensor
            )
    for name in ("a.conv1.weight_quantized", "fc.weight_quantized"):
        np.testing.assert_array_equal(constants[0][name], constants[1][name])


def test_layers_that_the_file_leaves_float_stay_so() -> None:
    found = read_quantized(_quantized("tensorrt", "fc", "b.conv1"))
    assert set(found.plan.excluded) == {"fc", "b.conv1"}
    assert set(found.plan.weights) == {"stem", "a.conv1", "a.conv2", "b.conv2", "b.down"}


def test_fake_quantized_weights_are_read_as_the_integers_that_they_round_to() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "s", "z"], ["xq"], "q"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], "d"),
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], "wq", axis=0),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], "wd", axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["logits"], "conv"),
    ]
    constants = {
        "s": np.float32(0.05),
        "z": np.int8(0),
        "w": weight,
        "ws": scale,
        "wz": np.zeros(4, np.int8),
    }
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "qat",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 4, 4])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4, 4, 4])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 19)],
        ir_version=9,
    )
    found = read_quantized(model)
    expected = np.rint(weight / scale.reshape(-1, 1, 1, 1))
    np.testing.assert_array_equal(found.plan.weights["conv"].values, expected)
    assert found.ranges["input"].amax == pytest.approx(127 * 0.05)
    assert found.ranges["input"].low == pytest.approx(-128 * 0.05)


def test_a_network_that_onnx_runtime_quantized_is_read_and_emitted_for_both_targets(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    onnx.save(residual_net(), tmp_path / "float.onnx")

    class Reader(quantization.CalibrationDataReader):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.batches = iter([{"input": images(16)}])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(self.batches, None)

    quantization.quantize_static(
        tmp_path / "float.onnx",
        tmp_path / "theirs.onnx",
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    theirs = onnx.load(tmp_path / "theirs.onnx")
    found = read_quantized(theirs)
    assert set(found.plan.excluded) == set()
    calibrated = calibrate(found.model, [images(16)], methods=("minmax",), threads=1)
    ranges = {**QuantPlan(method="minmax").choose_ranges(calibrated), **found.ranges}
    for target in TARGETS:
        made = quantize(found.model, ranges, found.plan, target)
        onnx.checker.check_model(made, full_check=True)
        assert (relative_error(_run(made), _run(theirs)) or 0) < 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("a zero point of a weight", "quantized with a zero point"),
        ("scales per channel of an activation", "has 3 scales, expected one"),
        ("a computed scale", "is computed, expected a constant"),
        ("integers that an operator reads", "reads integers"),
    ],
)
def test_what_no_target_has_is_refused_in_one_sentence(change: str, words: str) -> None:
    model = _quantized("tensorrt")
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    if change == "a zero point of a weight":
        zero = constants["stem.weight_zero_point"]
        zero.CopyFrom(numpy_helper.from_array(np.ones(8, np.int8), zero.name))
    elif change == "scales per channel of an activation":
        scale = constants["input_scale"]
        scale.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), scale.name))
    elif change == "a computed scale":
        next(node for node in model.graph.node if node.op_type == "QuantizeLinear").input[1] = "input"
    else:
        next(node for node in model.graph.node if node.name == "stem").input[0] = "input_quantized"
    with pytest.raises(RequestError, match=words) as caught:
        read_quantized(model)
    assert "\n" not in str(caught.value)
