"""Bounds hold for whatever is computed between the integers, and say so where there are none."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from resnet_export.calibration.observe.activations import float_tensors, observed_graph
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.search.search import SearchSpec, plan_from_table
from resnet_export.exporter.graph.bounds import bound_ranges
from resnet_export.exporter.graph.fp16_fit import misfits
from resnet_export.exporter.graph.value_ranges import Span
from resnet_export.runtime.bundle.schema import TargetName
from tests.residual_net import images, residual_net, with_weight


def quantized(model: onnx.ModelProto, target: TargetName) -> tuple[onnx.ModelProto, dict[str, Span]]:
    table = calibrate(model, [images(16)], methods=("minmax",))
    graph = plan_from_table(model, table, SearchSpec()).graph(target)
    return graph, {name: (entry.low, entry.high) for name, entry in table.tensors.items()}


@pytest.mark.parametrize("target", TARGETS)
def test_every_tensor_stays_within_its_bounds_where_observed_ranges_hold(target: TargetName) -> None:
    graph, observed = quantized(residual_net(), target)
    bounds = bound_ranges(graph, observed)
    assert bounds is not None
    names = [name for name in float_tensors(graph) if name in bounds]
    session = CpuSession(observed_graph(graph, names))
    for name, values in zip(session.outputs, session.run(images(16)), strict=True):
        if name not in observed:
            low, high = bounds[name]
            room = 1e-4 * max(-low, high)
            assert low - room <= values.min(), name
            assert values.max() <= high + room, name


def test_what_fits_by_its_bounds_fits_by_what_occurs() -> None:
    graph, observed = quantized(residual_net(), "tensorrt")
    assert misfits(graph, bound_ranges(graph, observed) or {}) == {}


def test_weights_that_might_leave_fp16_do_not_fit_by_their_bounds() -> None:
    model = residual_net()
    weight = onnx.numpy_helper.to_array(
        next(one for one in model.graph.initializer if one.name == "a.conv2.weight")
    )
    graph, observed = quantized(with_weight(model, "a.conv2.weight", 3e4 * weight), "tensorrt")
    assert "a.conv2" in misfits(graph, bound_ranges(graph, observed) or {})


def one_node(operator: str, **attributes: object) -> onnx.ModelProto:
    shape = [None, 3, 4, 4]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "logits")]
    inputs = ["input", "input"] if operator in ("Add", "Mul", "Div") else ["input"]
    node = helper.make_node(operator, inputs, ["logits"], name="one", **attributes)
    graph = helper.make_graph([node], "one", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("Add", (-4.0, 6.0)),
        ("Mul", (-6.0, 9.0)),
        ("Relu", (0.0, 3.0)),
        ("Sigmoid", (0.0, 1.0)),
        ("Identity", (-2.0, 3.0)),
        ("GlobalAveragePool", (-2.0, 3.0)),
        ("Exp", None),
        ("Div", None),
    ],
)
def test_each_operator_bounds_what_it_computes_or_has_no_bound(operator: str, expected: Span | None) -> None:
    model = one_node(operator)
    found = bound_ranges(model, {"input": (-2.0, 3.0)})
    assert found == (None if expected is None else {"input": (-2.0, 3.0), "logits": expected})
    if found is not None:
        rng = np.random.default_rng(0)
        x: NDArray[np.float32] = rng.uniform(-2, 3, (5, 3, 4, 4)).astype(np.float32)
        (values,) = CpuSession(model.SerializeToString()).run(x)
        assert found["logits"][0] <= values.min()
        assert values.max() <= found["logits"][1]
