"""bf16 graphs on a CPU provider that has no bf16 kernels: computed in fp32, rounded where the graph rounds."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from resnet_export.calibration.observe.bf16_simulation import simulate_bf16
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.runtime.parity.measure.metrics import relative_error

BF16 = TensorProto.BFLOAT16


def graph(weight: NDArray[np.float32]) -> onnx.ModelProto:
    """Cast → Conv → Relu → MaxPool → Add → Cast, in bf16."""
    nodes = [
        helper.make_node("Cast", ["input"], ["narrow"], "narrow", to=BF16),
        helper.make_node("Conv", ["narrow", "weight"], ["conv"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv"], ["relu"], "relu"),
        helper.make_node("MaxPool", ["relu"], ["pool"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Add", ["pool", "pool"], ["twice"], "twice"),
        helper.make_node("Cast", ["twice"], ["logits"], "logits", to=TensorProto.FLOAT),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 4, 4, 4])],
            [numpy_helper.from_array(weight.astype(ml_dtypes.bfloat16), "weight")],
        ),
        opset_imports=[helper.make_opsetid("", 22)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def test_the_provider_refuses_what_is_simulated() -> None:
    """The day that it does not, the simulation can go."""
    import onnxruntime

    data = graph(np.ones((4, 3, 3, 3), np.float32)).SerializeToString()
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented):
        onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def test_exact_sums_come_out_to_the_last_bit_as_onnxs_reference_evaluator_has_them() -> None:
    rng = np.random.default_rng(0)
    model = graph(rng.integers(-8, 9, (4, 3, 3, 3)).astype(np.float32))
    images = rng.integers(-100, 101, (5, 3, 8, 8)).astype(
        np.float32
    )  # sums need more than the 8 bits of bf16
    (expected,) = ReferenceEvaluator(model).run(None, {"input": images})
    found = CpuSession(model.SerializeToString()).run(images)[0]
    np.testing.assert_array_equal(found, expected)
    wide = CpuSession(in_fp32(model).SerializeToString()).run(images)[0]
    assert not np.array_equal(wide, expected)  # rounding did something


def test_other_numbers_differ_by_the_order_of_the_sums_alone() -> None:
    rng = np.random.default_rng(1)
    model = graph(rng.normal(size=(4, 3, 3, 3)).astype(np.float32))
    images = rng.normal(size=(5, 3, 8, 8)).astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"input": images})
    found = CpuSession(model.SerializeToString()).run(images)[0]
    # A sum that lies between two bf16 numbers may go either way; most do not.
    assert (found != expected).mean() < 0.1
    assert relative_error(found, expected) < 2e-3


def test_the_graph_itself_is_left_alone() -> None:
    model = graph(np.ones((4, 3, 3, 3), np.float32))
    before = model.SerializeToString(deterministic=True)
    simulate_bf16(model)
    assert model.SerializeToString(deterministic=True) == before


def in_fp32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with nothing rounded."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to":
                attribute.i = TensorProto.FLOAT
    for tensor in wide.graph.initializer:
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)
        )
    return wide
