"""fp32 ONNX → the graphs in lower precisions, one row for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from resnet_export.exporter.graph.graph_artifact import GraphArtifact, Lowered, Lowering
from resnet_export.exporter.graph.int8 import lower_to_int8
from resnet_export.exporter.graph.precision import TypedGraph, to_bf16, to_fp16
from resnet_export.exporter.graph.reuse import Earlier, stage_key, take_over
from resnet_export.exporter.graph.stage_check import check_stage
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.runtime.precision import Precision

__all__ = ["LOWERINGS", "lower"]


def lower(precision: Precision, task: Lowering, earlier: Earlier | None = None) -> Lowered:
    """Return the graphs of one precision: those of an `earlier` bundle where they were made from the very same."""
    key = stage_key(precision, task)
    return take_over(earlier, precision, key, task) or replace(LOWERINGS[precision](task), key=key)


def _lower_to_fp16(task: Lowering) -> Lowered:
    """Make the strongly typed fp16 graph; layers that leave fp16's range stay in fp32."""
    graph = task.fp32.graph
    return _typed(
        task, Precision.FP16, to_fp16(graph, scan_ranges(graph, task.photos.inputs(), task.progress))
    )


def _lower_to_bf16(task: Lowering) -> Lowered:
    """Make the strongly typed bf16 graph; bf16 has fp32's range, so that every layer fits."""
    return _typed(task, Precision.BF16, to_bf16(task.fp32.graph))


def _typed(task: Lowering, precision: Precision, typed: TypedGraph) -> Lowered:
    # Only measured here: the parity check holds it to its tolerance, with everything else.
    check = check_stage(
        typed.graph.model, task.reference, step=precision, batch=task.spec.batch, limit=math.inf
    )
    stages = {str(precision): check.logits}
    return Lowered((GraphArtifact(str(precision), precision, "any", typed.graph, stages, typed.excluded),))


LOWERINGS: Mapping[Precision, Callable[[Lowering], Lowered]] = {
    Precision.FP16: _lower_to_fp16,
    Precision.BF16: _lower_to_bf16,
    Precision.INT8: lower_to_int8,
}
"""Precision → the function that makes its graphs."""
