"""fp32 ONNX → the two INT8 graphs: one laid out for TensorRT and typed, one for CPU engines."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from resnet_export.calibration.data.inputs import Feed
from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.table import read_table
from resnet_export.calibration.quantize.placement import Target
from resnet_export.calibration.quantize.qdq import origins
from resnet_export.calibration.search.evaluate import Limits
from resnet_export.calibration.search.search import Int8Plan, SearchSpec, plan_from_table, plan_int8
from resnet_export.exporter.graph.export import ExportedGraph
from resnet_export.exporter.graph.facts import count_graph
from resnet_export.exporter.graph.graph_artifact import Draft
from resnet_export.exporter.graph.precision import to_fp16
from resnet_export.exporter.graph.stage_check import Probe, compare
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.exporter.spec import ExportSpec
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.criteria.tolerances import Tolerances
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.progress import Progress

TABLE = "calibration.json"

_NAMES: Mapping[Target, str] = {"tensorrt": "int8.tensorrt", "cpu": "int8.cpu"}


def find_plan(
    fp32: Draft,
    spec: ExportSpec,
    photos: Photos,
    *,
    untrained: bool,
    progress: Progress,
) -> Int8Plan:
    """Return how the network is to be quantized: searched for on the user's images, or from a table alone.

    Raises RequestError for a table of another graph, with both hashes, and for a layer in `exclude` that is not
    there; what `calibration.search.plan_int8` raises besides.
    """
    model = fp32.graph.model
    search = SearchSpec(
        method=spec.calib_method,
        exclude=spec.exclude,
        limits=Limits(
            Tolerances.shipped(untrained=untrained, layers_in_series=count_graph(model).layers_in_series),
            spec.max_drop,
        ),
        equalize=spec.equalize,
        correct_bias=spec.correct_bias,
        round_weights=spec.round_weights,
    )
    table = None if spec.calib_table is None else read_table(spec.calib_table)
    if not photos.bundled:
        feed = Feed(photos.batches, len(photos))
        return plan_int8(model, feed, search, table=table, progress=progress)
    if table is None:
        raise RequestError(
            "there are no calibration images and no calibration table; give calib or calib_table"
        )
    return plan_from_table(model, table, search)


def to_int8(
    fp32: Draft,
    int8: Int8Plan,
    batches: Iterable[NDArray[Any]],
    shipped: Probe,
    spec: ExportSpec,
    progress: Progress,
) -> list[Draft]:
    """Emit both graphs from one plan. `batches` are images as the graph takes them, for fp16's ranges."""
    # Equalization moved the ranges: those of the exported graph say nothing about fp16 here.
    graph = replace(fp32.graph, model=int8.model)
    spans = scan_ranges(graph, batches, progress)
    typed = to_fp16(_quantized(graph, int8, "tensorrt"), spans)
    graphs: dict[Target, ExportedGraph] = {
        "tensorrt": typed.graph,
        "cpu": _quantized(graph, int8, "cpu"),
    }
    excluded = {target: int8.plan.kept_layers(target, graph.modules) for target in graphs}
    excluded["tensorrt"] += typed.excluded
    return [
        Draft(
            _NAMES[target],
            f"model.{_NAMES[target]}.onnx",
            Precision.INT8,
            target,
            one,
            # Measured here and judged with everything else by the parity check.
            compare(one.model, shipped, step=_NAMES[target], batch=spec.batch, limit=math.inf).logits,
            excluded[target],
            int8.findings.refusal(target),
        )
        for target, one in graphs.items()
    ]


def _quantized(graph: ExportedGraph, int8: Int8Plan, target: Target) -> ExportedGraph:
    model = int8.graph(target)
    modules = {name: graph.modules[origin] for name, origin in origins(model).items()}
    return replace(graph, model=model, modules=modules)
