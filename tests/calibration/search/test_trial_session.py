"""The engine that trial graphs run on: integers where this host has them, the same numbers everywhere."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.search import trial_session
from resnet_export.calibration.search.search import Int8Plan, plan_from_table
from resnet_export.calibration.search.trial_session import open_trial
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import BackendError, ExportError
from tests.residual_net import images, residual_net


def quantized() -> Int8Plan:
    model = residual_net()
    return plan_from_table(model, calibrate(model, [images(32)], methods=("minmax",)))


def onnxruntime(graph: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return CpuSession(graph.SerializeToString()).run(x)[0]


def decibels(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.square(expected).sum() / np.square(found - expected).sum()))


@pytest.mark.parametrize("target", TARGETS)
def test_a_trial_is_as_far_from_the_float_network_as_onnxruntime_says(target: TargetName) -> None:
    plan, x = quantized(), images(64, seed=9)
    graph, expected = plan.graph(target), onnxruntime(plan.model, x)
    there = decibels(onnxruntime(graph, x), expected)
    assert decibels(open_trial(graph, target, None)(x), expected) == pytest.approx(there, abs=0.5)


def test_a_float_graph_and_the_cpu_layout_run_on_onnxruntime() -> None:
    plan, x = quantized(), images(8)
    np.testing.assert_array_equal(open_trial(plan.model, None, None)(x), onnxruntime(plan.model, x))
    graph = plan.graph("cpu")
    np.testing.assert_array_equal(open_trial(graph, "cpu", None)(x), onnxruntime(graph, x))


class Refusing:
    """An OpenVINO that takes no graph."""

    def Core(self) -> Refusing:
        return self

    def read_model(self, data: bytes) -> bytes:
        return data

    def compile_model(self, *given: object) -> None:
        raise RuntimeError("no such operator")


def test_without_integers_to_run_in_the_tensorrt_layout_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, x = quantized(), images(8)
    graph = plan.graph("tensorrt")
    expected = onnxruntime(graph, x)

    def missing(module: str) -> object:
        raise BackendError(f"{module} is not installed")

    for name, stand_in in (
        ("import_library", missing),
        ("import_library", lambda module: Refusing()),
        ("cpu_features", lambda: (("avx2",), None)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(trial_session, name, stand_in)
            np.testing.assert_array_equal(open_trial(graph, "tensorrt", None)(x), expected)


def test_what_no_engine_takes_is_an_export_error() -> None:
    graph = quantized().graph("tensorrt")
    graph.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ExportError, match="refuses"):
        open_trial(graph, "tensorrt", None)
