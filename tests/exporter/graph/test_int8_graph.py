"""From an exported network to both INT8 graphs: typed, run, parsed and built."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.table import CalibrationTable
from resnet_export.calibration.quantize.plan import QuantPlan, default_exclusions
from resnet_export.calibration.quantize.qdq import origins, quantize
from resnet_export.exporter.engine.builder import build_engine
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.precision import TypedGraph, to_fp16
from resnet_export.exporter.graph.preprocessing import bake_preprocessing
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import normalize
from tests.exported import BATCH, PREPROCESSING, exported_resnet18, seeded_crops

CONVOLUTIONS = 20


def inputs(graph: ExportedGraph) -> NDArray[np.generic]:
    """Images in the layout of the graph's input."""
    raw = graph.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    crops = seeded_crops(16)
    return crops if raw else normalize(crops, PREPROCESSING)


@pytest.fixture(scope="module", params=["float32", "uint8"])
def graph(request: pytest.FixtureRequest) -> ExportedGraph:
    exported = exported_resnet18().graph
    return exported if request.param == "float32" else bake_preprocessing(exported, PREPROCESSING)


@pytest.fixture(scope="module")
def table(graph: ExportedGraph) -> CalibrationTable:
    return calibrate(graph.model, [inputs(graph)], methods=("minmax",), threads=2)


def typed(graph: ExportedGraph, table: CalibrationTable, plan: QuantPlan) -> TypedGraph:
    model = quantize(graph.model, plan.choose_ranges(table), plan, "tensorrt")
    modules = {name: graph.modules[origin] for name, origin in origins(model).items()}
    return to_fp16(replace(graph, model=model, modules=modules), scan_ranges(graph, iter([inputs(graph)])))


@pytest.fixture(scope="module", params=[False, True], ids=["all-int8", "classifier-fp16"])
def tensorrt(request: pytest.FixtureRequest, graph: ExportedGraph, table: CalibrationTable) -> TypedGraph:
    return typed(
        graph,
        table,
        QuantPlan(method="minmax", excluded=default_exclusions(graph.model) if request.param else {}),
    )


def snr(values: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(values - reference).sum()))


def test_the_tensorrt_graph_typed_as_fp16_agrees_with_the_float_graph(
    tensorrt: TypedGraph, graph: ExportedGraph
) -> None:
    raw = graph.model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    # Weights that take pixels from 0 to 255 are so small that their scales need fp32's range.
    assert [layer.node for layer in tensorrt.excluded] == (["conv1"] if raw else [])
    batch = inputs(graph)
    found = CpuSession(tensorrt.graph.model.SerializeToString()).run(batch)[0]
    assert snr(found, CpuSession(graph.model.SerializeToString()).run(batch)[0]) > 25


def test_every_convolution_of_the_engine_computes_in_int8(tensorrt: TypedGraph) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    engine = build_engine(
        tensorrt.graph.model.SerializeToString(),
        variant="tensorrt_rtx",
        targets=("8.6",),
        profiles=(BATCH,),
        precision=Precision.INT8,
        source="model.int8.tensorrt.onnx",
    )
    found = Counter((operator.op, operator.engine) for operator in engine.report.operators)
    assert found["Conv", Precision.INT8] == CONVOLUTIONS
    assert sum(found.values()) == CONVOLUTIONS + 1


def test_the_cpu_graph_agrees_with_the_float_graph_on_both_engines(
    graph: ExportedGraph, table: CalibrationTable
) -> None:
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    plan = QuantPlan(method="minmax")
    made = quantize(graph.model, plan.choose_ranges(table), plan, "cpu").SerializeToString()
    batch = inputs(graph)
    expected = CpuSession(graph.model.SerializeToString()).run(batch)[0]
    assert snr(CpuSession(made).run(batch)[0], expected) > 25
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(made, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert snr(compiled(batch)[0], expected) > 25
    assert len(made) < 0.27 * len(graph.model.SerializeToString())
