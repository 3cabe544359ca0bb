"""The last step before a graph is written: types for its tensors, facts about its origin, and the checker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import msgspec
import onnx
from onnx.external_data_helper import uses_external_data

from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.exporter.graph.exported_graph import ExportedGraph, serialize
from resnet_export.runtime.bundle.manifest import ModelInfo, Preprocessing
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.precision import Precision

__all__ = ["NAMES", "finish", "named"]

_PRODUCER = "resnet-export"

NAMES = "names"
"""The key of the classes' names, a Python dictionary of index → label, as readers of Ultralytics look for it."""


def finish(
    graph: ExportedGraph,
    *,
    info: ModelInfo,
    labels: Sequence[str],
    preprocessing: Preprocessing,
    precision: Precision,
) -> ExportedGraph:
    """Return the graph as it is shipped: one self-contained, described and checked ModelProto.

    `metadata_props` gets the architecture, the number of classes, the origin of the weights, the
    preprocessing as JSON, and the precision, so that the file explains itself outside its bundle; and what readers of
    Ultralytics look for: `names` (a Python dictionary of index → label), `task`, `imgsz`, `stride` and `batch`. Nothing
    in it depends on time, place or process: the same graph gives the same bytes.

    Raises ExportError when data lies outside the file, or when the ONNX checker or its strict shape inference
    finds a fault.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    if outside := [tensor.name for tensor in model.graph.initializer if uses_external_data(tensor)]:
        raise ExportError(
            f"tensor {outside[0]!r} is stored outside the graph; a graph must hold its own data"
        )
    model.producer_name = _PRODUCER
    model.producer_version = _version()
    model.graph.name = info.arch
    del model.metadata_props[:]
    for key, value in _facts(info, labels, preprocessing, precision).items():
        model.metadata_props.add(key=key, value=value)
    try:
        types = infer_types(model)
        outer = {value.name for value in (*model.graph.input, *model.graph.output)}
        del model.graph.value_info[:]
        model.graph.value_info.extend(
            types[name] for node in model.graph.node for name in node.output if name not in outer
        )
        onnx.checker.check_model(serialize(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the ONNX checker refuses the {precision} graph: {error}") from error
    return replace(graph, model=model)


def named(model: onnx.ModelProto, labels: Sequence[str]) -> onnx.ModelProto:
    """Return a finished graph with other names for its classes."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for entry in copy.metadata_props:
        if entry.key == NAMES:
            entry.value = repr(dict(enumerate(labels)))
    return copy


def _facts(
    info: ModelInfo, labels: Sequence[str], preprocessing: Preprocessing, precision: Precision
) -> Mapping[str, str]:
    weights = info.weights
    origin = {"weights.sha256": weights.sha256, "weights.seed": weights.seed}
    return {
        "architecture": info.arch,
        "classes": str(info.num_classes),
        "weights": f"{weights.source}: {weights.name}",
        **{key: str(value) for key, value in origin.items() if value is not None},
        "preprocessing": msgspec.json.encode(preprocessing).decode(),
        "precision": str(precision),
        NAMES: repr(dict(enumerate(labels))),
        "task": "classify",
        "imgsz": repr(list(preprocessing.size)),
        "stride": "1",  # the size is fixed: nothing is to be rounded to a multiple
        "batch": "1",
    }


def _version() -> str:
    try:
        return version(_PRODUCER)
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
