"""fp32 ONNX → the two INT8 graphs: one laid out for TensorRT and typed, one for CPU engines."""

from __future__ import annotations

import math
from dataclasses import replace

from resnet_export.calibration.observe.table import encode_table, read_table
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.qdq import origins
from resnet_export.calibration.search.evaluate import Limits
from resnet_export.calibration.search.search import Int8Plan, SearchSpec, plan_from_table, plan_int8
from resnet_export.exporter.graph.bounds import bound_ranges
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.facts import count_graph
from resnet_export.exporter.graph.graph_artifact import GraphArtifact, Lowered, Lowering
from resnet_export.exporter.graph.precision import TypedGraph, to_fp16
from resnet_export.exporter.graph.stage_check import check_stage
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.runtime.bundle.manifest import TABLE_NAME
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.criteria.tolerances import Tolerances
from resnet_export.runtime.precision import Precision


def lower_to_int8(task: Lowering) -> Lowered:
    """Search for a plan, and emit the graphs of both targets from it.

    Raises RequestError for a table of another graph, with both hashes, and for a layer in `exclude` that is not
    there; what `calibration.search.plan_int8` raises besides.
    """
    fp32, reference = task.fp32, task.reference
    int8 = _find_plan(task)
    graph = replace(fp32.graph, model=int8.model)
    made = []
    for target, row in TARGETS.items():
        name = f"int8.{target}"
        emitted, excluded = _quantized(graph, int8, target), int8.plan.excluded_layers(target, graph.modules)
        if row.float_precision is Precision.FP16:
            typed = _typed(emitted, graph, int8, task)
            emitted, excluded = typed.graph, excluded + typed.excluded
        # Only measured here: the parity check holds it to its tolerance, with everything else.
        check = check_stage(emitted.model, reference, step=name, batch=task.spec.batch, limit=math.inf)
        made.append(
            GraphArtifact(
                name,
                Precision.INT8,
                target,
                emitted,
                {name: check.logits},
                excluded,
                int8.report.refusal(target),
            )
        )
    return Lowered(tuple(made), {TABLE_NAME: encode_table(int8.table)}, int8.report, {"int8": int8.times})


def _typed(emitted: ExportedGraph, graph: ExportedGraph, int8: Int8Plan, task: Lowering) -> TypedGraph:
    """Return a Q/DQ graph typed as fp16 around its integers.

    The images are run again only where the bounds of the tensors between the integers do not fit into fp16: what occurs
    may, and equalization moved the ranges that were scanned for other graphs.
    """
    observed = {name: (entry.low, entry.high) for name, entry in int8.table.tensors.items()}
    bounds = bound_ranges(emitted.model, observed)
    if bounds is not None:
        typed = to_fp16(emitted, bounds)
        if not typed.excluded:
            return typed
    return to_fp16(emitted, scan_ranges(graph, task.photos.inputs(), task.progress))


def _find_plan(task: Lowering) -> Int8Plan:
    """Return how the network is to be quantized: searched for on the user's images, or from a table alone."""
    model, spec, photos = task.fp32.graph.model, task.spec, task.photos
    search = SearchSpec(
        method=spec.calib_method,
        exclude=spec.exclude,
        limits=Limits(
            Tolerances.shipped(
                untrained=task.untrained, layers_in_series=count_graph(model).layers_in_series
            ),
            spec.max_drop,
            task.activation,
        ),
        equalize=spec.equalize,
        correct_bias=spec.correct_bias,
        round_weights=spec.round_weights,
    )
    table = None if spec.calib_table is None else read_table(spec.calib_table)
    if not photos.bundled:
        return plan_int8(model, photos, search, table=table, progress=task.progress)
    if table is None:
        raise RequestError(
            "there are no calibration images and no calibration table; give calib or calib_table"
        )
    return plan_from_table(model, table, search)


def _quantized(graph: ExportedGraph, int8: Int8Plan, target: TargetName) -> ExportedGraph:
    model = int8.graph(target)
    modules = {name: graph.modules[origin] for name, origin in origins(model).items()}
    return replace(graph, model=model, modules=modules)
