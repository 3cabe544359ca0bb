"""The plan: how ranges are chosen, what is kept for whom, and what the report says."""

from __future__ import annotations

import msgspec
import numpy as np
import onnx
import pytest

from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.table import CalibrationTable
from resnet_export.calibration.quantize.grid import quantize_weight
from resnet_export.calibration.quantize.plan import (
    Equalization,
    Exclusion,
    QuantPlan,
    default_exclusions,
    summarize,
)
from resnet_export.runtime.bundle.manifest import ExcludedLayer
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.report.search_report import PlanSummary
from resnet_export.runtime.precision import Precision
from tests.residual_net import images, residual_net


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return residual_net()


@pytest.fixture(scope="module")
def table(model: onnx.ModelProto) -> CalibrationTable:
    return calibrate(model, [images(8)], methods=("minmax", "mse"), threads=1)


def test_a_tensors_own_method_goes_before_the_plans(table: CalibrationTable) -> None:
    plan = QuantPlan(method="minmax", methods={"input": "mse"})
    chosen = plan.choose_ranges(table)
    assert chosen.keys() == table.tensors.keys()
    assert chosen["input"] == table.range("input", "mse") != table.range("input", "minmax")
    assert chosen["a.relu1.out"] == table.range("a.relu1.out", "minmax")


def test_a_tensor_that_the_table_lacks_is_refused(table: CalibrationTable) -> None:
    with pytest.raises(RequestError, match="'x'"):
        QuantPlan(methods={"x": "mse"}).choose_ranges(table)


def test_the_classifier_is_kept_for_tensorrt_alone(model: onnx.ModelProto) -> None:
    plan = QuantPlan(excluded=default_exclusions(model))
    assert list(plan.excluded_for("tensorrt")) == ["fc"]
    assert plan.excluded_for("cpu") == {}


def test_a_network_that_does_not_end_in_a_classifier_keeps_nothing(model: onnx.ModelProto) -> None:
    headless = onnx.load_from_string(model.SerializeToString())
    del headless.graph.node[-1]
    assert default_exclusions(headless) == {}


def test_the_manifest_lists_what_a_kept_layer_computes_in() -> None:
    plan = QuantPlan(excluded={"fc": Exclusion(reason="why")})
    modules = {"fc": "head.fc"}
    assert plan.excluded_layers("tensorrt", modules) == (
        ExcludedLayer(node="fc", module="head.fc", precision=Precision.FP16, reason="why"),
    )
    assert plan.excluded_layers("cpu", modules)[0].precision is Precision.FP32


def test_a_summary_is_json_that_reads_back_and_names_every_decision(model: onnx.ModelProto) -> None:
    weight = quantize_weight(np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32), 0)
    plan = QuantPlan(
        method="entropy",
        methods={"input": "minmax"},
        excluded=default_exclusions(model),
        equalization=(Equalization(("stem",), ("a.conv1",), np.array([0.5, 4], np.float32)),),
        weights={"a.conv1": weight},
        bias_corrections={"a.conv2": np.array([0.25, -0.5], np.float32)},
    )
    summary = summarize(plan)
    assert msgspec.json.decode(msgspec.json.encode(summary), type=PlanSummary) == summary
    assert (
        summary.equalization[0].channels,
        summary.equalization[0].least,
        summary.equalization[0].greatest,
    ) == (2, 0.5, 4)
    assert summary.bias_corrections == {"a.conv2": 0.5}
    assert len(summary.weights["a.conv1"]) == 16
    other = summarize(QuantPlan(weights={"a.conv1": quantize_weight(weight.real() * 0.99, 0, weight.scales)}))
    assert other.weights != summary.weights
