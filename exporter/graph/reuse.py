"""Graphs of an earlier bundle: where everything that they are made of is unchanged, they are not made again."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import onnx

from resnet_export.exporter.graph.graph_artifact import GraphArtifact, Lowered, Lowering
from resnet_export.exporter.graph.stage_check import check_stage
from resnet_export.exporter.spec import ExportSpec
from resnet_export.runtime.bundle.manifest import (
    REPORT_NAME,
    TABLE_NAME,
    Artifact,
    Manifest,
    read_artifact,
    read_file,
    read_manifest,
)
from resnet_export.runtime.errors import BundleError, IntegrityError, SchemaError
from resnet_export.runtime.parity.report.schema import decode_report
from resnet_export.runtime.precision import Precision

__all__ = ["Earlier", "open_earlier", "stage_key", "take_over"]


@dataclass(frozen=True, eq=False)
class Earlier:
    """A bundle that stands on disk, whose graphs may serve again."""

    bundle: Path
    manifest: Manifest


def open_earlier(spec: ExportSpec, out: Path, versions: dict[str, str]) -> Earlier | None:
    """Return the bundle that `spec.reuse` names, or the one that `spec.force` will replace; None where none serves.

    One that other versions of the packages in `versions` made does not. Raises what `read_manifest` does for a bundle
    that was named.
    """
    if spec.reuse is None and not (spec.force and out.is_dir()):
        return None
    bundle = spec.reuse or out
    try:
        manifest = read_manifest(bundle)
    except (BundleError, SchemaError, IntegrityError):
        if spec.reuse is not None:
            raise
        return None  # it is replaced, whatever it is
    return Earlier(bundle, manifest) if manifest.provenance.versions == versions else None


def stage_key(precision: Precision, task: Lowering) -> str:
    """Return the sha256 of everything that the graphs of one precision are made from, in hexadecimal.

    That is the fp32 graph, the images with their labels, and the options that the step reads.
    """
    spec, photos = task.spec, task.photos
    parts: dict[str, object] = {
        "graph": task.fp32_sha256,
        "precision": precision,
        "images": [photos.description.sha256, len(photos), photos.bundled],
        "labels": None if photos.labels is None else photos.labels.tolist(),
    }
    if precision is Precision.INT8:
        table = (
            None if spec.calib_table is None else hashlib.sha256(spec.calib_table.read_bytes()).hexdigest()
        )
        parts["search"] = {
            "table": table,
            "untrained": task.untrained,
            "activation": task.activation,
            "method": spec.calib_method,
            "max_drop": spec.max_drop,
            "exclude": spec.exclude,
            "improvements": [spec.equalize, spec.correct_bias, spec.round_weights],
        }
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def take_over(earlier: Earlier | None, precision: Precision, key: str, task: Lowering) -> Lowered | None:
    """Return the graphs of an earlier bundle if they were made from the same, `key`; they are checked again.

    None where they were not, or where a file of that bundle is not what its manifest says.
    """
    if earlier is None or earlier.manifest.provenance.stages.get(precision) != key:
        return None
    manifest = earlier.manifest
    try:
        graphs = tuple(
            _graph(earlier, artifact, task)
            for artifact in manifest.artifacts
            if artifact.kind == "onnx" and artifact.precision is precision
        )
        if precision is not Precision.INT8:
            return Lowered(graphs, key=key, reused=True)
        table, report = manifest.file(TABLE_NAME), manifest.file(REPORT_NAME)
        if table is None or report is None:
            return None
        files = {TABLE_NAME: read_artifact(earlier.bundle, table)}
        search = decode_report(read_artifact(earlier.bundle, report)).int8
    except (BundleError, IntegrityError, SchemaError):
        return None
    return Lowered(graphs, files, search, key=key, reused=True)


def _graph(earlier: Earlier, artifact: Artifact, task: Lowering) -> GraphArtifact:
    data = read_file(earlier.bundle, artifact.file, artifact.sha256)
    model = onnx.ModelProto.FromString(data)
    known = earlier.manifest.modules
    modules = {node.name: known[node.name] for node in model.graph.node if node.name in known}
    check = check_stage(model, task.reference, step=artifact.name, batch=task.spec.batch, limit=math.inf)
    return GraphArtifact(
        artifact.name,
        artifact.precision,
        artifact.target,
        replace(task.fp32.graph, model=model, modules=modules),
        {artifact.name: check.logits},
        artifact.excluded,
        artifact.refusal,
    )
