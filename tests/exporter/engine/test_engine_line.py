"""Engines from the graphs that this project really makes: exported, typed and quantized by its own steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from numpy.typing import NDArray

from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.quantize.plan import Exclusion, QuantPlan, default_exclusions
from resnet_export.calibration.quantize.qdq import origins, quantize
from resnet_export.exporter.engine.builder import Engine, build_engine
from resnet_export.exporter.graph.exported_graph import ExportedGraph, serialize
from resnet_export.exporter.graph.precision import TypedGraph, to_fp16
from resnet_export.exporter.graph.preprocessing import bake_preprocessing
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import to_input
from tests.exported import PREPROCESSING, exported_resnet18


def graph_of(*, uint8: bool) -> tuple[ExportedGraph, NDArray[Any]]:
    """The small ResNet-18 and one batch for it."""
    exported = exported_resnet18()
    preprocessing = msgspec.structs.replace(PREPROCESSING, in_graph=uint8)
    graph = bake_preprocessing(exported.graph, preprocessing) if uint8 else exported.graph
    return graph, to_input(exported.crops, preprocessing)


def fp16(graph: ExportedGraph, batch: NDArray[Any], _: Mapping[str, Exclusion]) -> TypedGraph:
    return to_fp16(graph, scan_ranges(graph, [batch]))


def int8(graph: ExportedGraph, batch: NDArray[Any], excluded: Mapping[str, Exclusion]) -> TypedGraph:
    plan = QuantPlan(method="minmax", excluded=excluded)
    table = calibrate(graph.model, [batch], methods=("minmax",), threads=1)
    model = quantize(graph.model, plan.choose_ranges(table), plan, "tensorrt")
    modules = {node: graph.modules[origin] for node, origin in origins(model).items()}
    typed = to_fp16(replace(graph, model=model, modules=modules), scan_ranges(graph, [batch]))
    return replace(typed, excluded=(*typed.excluded, *plan.excluded_layers("tensorrt", graph.modules)))


def engine_of(typed: TypedGraph, precision: Precision) -> Engine:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    return build_engine(
        serialize(typed.graph.model),
        variant="tensorrt_rtx",
        targets=("8.6", "8.9"),
        profiles=(BatchRange(),),
        precision=precision,
        source="model",
        excluded=typed.excluded,
    )


@pytest.mark.parametrize("uint8", [False, True], ids=["float32", "uint8"])
@pytest.mark.parametrize(
    ("make", "precision"), [(fp16, Precision.FP16), (int8, Precision.INT8)], ids=["fp16", "int8"]
)
def test_an_exported_network_becomes_an_engine_with_every_convolution_in_its_precision(
    make: Callable[..., TypedGraph], precision: Precision, uint8: bool
) -> None:
    graph, batch = graph_of(uint8=uint8)
    excluded = default_exclusions(graph.model)
    engine = engine_of(make(graph, batch, excluded), precision)
    assert engine.report.convolutions() == {precision: 20}
    # What the plan keeps is reported with the plan's reason, and nothing else falls short.
    reasons = [plan.reason for plan in excluded.values()] if precision is Precision.INT8 else []
    assert [operator.reason for operator in engine.report.shortfalls()] == reasons


def test_with_nothing_kept_every_convolution_reads_int8() -> None:
    graph, batch = graph_of(uint8=False)
    engine = engine_of(int8(graph, batch, {}), Precision.INT8)
    assert engine.report.convolutions() == {Precision.INT8: 20}
    inputs = {layer.name: layer.inputs[0] for layer in engine.report.layers if layer.inputs}
    for operator in engine.report.operators:
        assert operator.layer is not None
        if operator.op == "Conv":
            assert inputs[operator.layer] == "int8"
