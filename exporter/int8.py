"""fp32 ONNX → the two INT8 graphs: one laid out for TensorRT and typed, one for CPU engines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from resnet_export.calibration.calibrate import calibrate
from resnet_export.calibration.fingerprint import graph_hash
from resnet_export.calibration.layout import Target
from resnet_export.calibration.plan import Kept, QuantPlan, default_kept
from resnet_export.calibration.qdq import origins, quantize
from resnet_export.calibration.ranges import Range
from resnet_export.calibration.table import CalibrationTable, read_table, require_graph
from resnet_export.calibration.topology import Topology
from resnet_export.exporter.draft import Draft
from resnet_export.exporter.graph import ExportedGraph
from resnet_export.exporter.precision import to_fp16
from resnet_export.exporter.ranges import Span
from resnet_export.exporter.spec import ExportSpec
from resnet_export.exporter.stage_check import Probe, compare
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.manifest import Precision
from resnet_export.runtime.progress import Progress

TABLE = "calibration.json"

_NAMES: Mapping[Target, str] = {"tensorrt": "int8", "cpu": "int8.cpu"}


def find_table(
    fp32: Draft,
    spec: ExportSpec,
    batches: Callable[[], Iterator[NDArray[Any]]],
    total: int | None,
    progress: Progress,
) -> CalibrationTable:
    """Return the user's table, or one that is calibrated now.

    Raises RequestError for a table of another graph, with both hashes.
    """
    model = fp32.graph.model
    if spec.calib_table is not None:
        table = read_table(spec.calib_table)
        require_graph(table, graph=graph_hash(model))
        return table
    return calibrate(model, batches(), methods=(spec.calib_method,), total=total, progress=progress)


def make_plan(fp32: Draft, spec: ExportSpec) -> QuantPlan:
    """Return what is to be quantized. Raises RequestError when `--keep-fp16` names a layer that is not there."""
    model = fp32.graph.model
    if spec.keep_fp16 == "none":
        kept: Mapping[str, Kept] = {}
    elif spec.keep_fp16 == "auto":
        kept = default_kept(model)
    else:
        layers = [layer.name for layer in Topology(model).layers]
        unknown = [name for name in spec.keep_fp16 if name not in layers]
        if unknown:
            raise RequestError(
                f"--keep-fp16 names {unknown[0]!r}, which this network does not have; its layers are "
                f"{', '.join(layers)}"
            )
        kept = {name: Kept(reason="kept by request") for name in spec.keep_fp16}
    return QuantPlan(method=spec.calib_method, kept=kept)


def to_int8(
    fp32: Draft,
    table: CalibrationTable,
    plan: QuantPlan,
    spans: Mapping[str, Span],
    shipped: Probe,
    spec: ExportSpec,
) -> list[Draft]:
    """Emit both graphs from one table and one plan; `spans` are the ranges that fp16 typing needs."""
    ranges = plan.choose_ranges(table)
    modules = fp32.graph.modules
    typed = to_fp16(_quantized(fp32.graph, ranges, plan, "tensorrt"), spans)
    graphs: dict[Target, ExportedGraph] = {
        "tensorrt": typed.graph,
        "cpu": _quantized(fp32.graph, ranges, plan, "cpu"),
    }
    kept = {target: plan.kept_layers(target, modules) for target in graphs}
    kept["tensorrt"] += typed.kept
    return [
        Draft(
            _NAMES[target],
            f"model.{_NAMES[target]}.onnx",
            Precision.INT8,
            target,
            graph,
            # Measured here and judged with everything else by the parity check.
            compare(graph.model, shipped, step=_NAMES[target], batch=spec.batch, limit=math.inf).logits,
            kept[target],
        )
        for target, graph in graphs.items()
    ]


def _quantized(
    graph: ExportedGraph, ranges: Mapping[str, Range], plan: QuantPlan, target: Target
) -> ExportedGraph:
    model = quantize(graph.model, ranges, plan, target)
    modules = {name: graph.modules[origin] for name, origin in origins(model).items()}
    return replace(graph, model=model, modules=modules)
