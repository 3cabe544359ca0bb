"""The manifest of a new bundle, from what the steps of the line returned."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata

import msgspec

from resnet_export.exporter.graph.facts import count_graph
from resnet_export.exporter.graph.graph_artifact import GraphArtifact
from resnet_export.exporter.models.classifier import Classifier
from resnet_export.runtime.bundle.golden import Golden
from resnet_export.runtime.bundle.manifest import (
    SCHEMA_VERSION,
    Artifact,
    BatchRange,
    FileInfo,
    GoldenInfo,
    Manifest,
    Preprocessing,
    Provenance,
    TensorSpec,
)
from resnet_export.runtime.parity.criteria.tolerances import Tolerances
from resnet_export.runtime.parity.report.schema import ParityReport

__all__ = ["Contents", "artifact_of", "describe", "golden_info", "maker_versions"]

# The packages whose versions decide what comes out of an export: distribution name → module.
_MAKERS = {
    "resnet-export": "resnet_export",
    "torch": "torch",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxsim": "onnxsim",
    "onnxruntime": "onnxruntime",
    "numpy": "numpy",
    "pillow": "PIL",
}


@dataclass(frozen=True, eq=False)
class Contents:
    """Everything that the manifest of a new bundle is made from.

    `graphs` begins with fp32; `artifacts` are those of the graphs and of the engines. `stages` maps the precisions of
    further graphs to the hash of what they were made from.
    """

    net: Classifier
    batch: BatchRange
    preprocessing: Preprocessing
    outputs: tuple[TensorSpec, ...]
    graphs: tuple[GraphArtifact, ...]
    artifacts: tuple[Artifact, ...]
    golden: GoldenInfo
    notices: tuple[str, ...]
    created: datetime
    stages: Mapping[str, str]


def describe(contents: Contents, report: ParityReport | None = None) -> Manifest:
    """Return the manifest, with the verdicts of the parity check in it once there is a `report`."""
    net, fp32 = contents.net, contents.graphs[0].graph
    facts = count_graph(fp32.model)
    modules: dict[str, str] = {}
    for graph in contents.graphs:
        modules |= graph.graph.modules
    artifacts = contents.artifacts
    if report is not None:
        artifacts = tuple(
            msgspec.structs.replace(artifact, parity=report.verdicts(artifact.name)) for artifact in artifacts
        )
    return Manifest(
        schema=SCHEMA_VERSION,
        model=net.info,
        graph=facts,
        input=contents.preprocessing.input_spec,
        outputs=contents.outputs,
        batch=contents.batch,
        preprocessing=contents.preprocessing,
        labels=net.labels,
        tolerances=Tolerances.shipped(
            untrained=net.info.weights.source == "untrained", layers_in_series=facts.layers_in_series
        ).by_name(),
        artifacts=artifacts,
        golden=contents.golden,
        modules=modules,
        provenance=Provenance(
            created=contents.created.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            versions=maker_versions(),
            exporter=fp32.exporter,
            opset=fp32.opset,
            notices=contents.notices,
            stages=dict(contents.stages),
        ),
    )


def artifact_of(graph: GraphArtifact, file: FileInfo) -> Artifact:
    """Return the artifact of a graph that was written to `file`."""
    return Artifact(
        name=graph.name,
        file=file.file,
        kind="onnx",
        precision=graph.precision,
        target=graph.target,
        bytes=file.bytes,
        sha256=file.sha256,
        excluded=graph.excluded,
        refusal=graph.refusal,
    )


def golden_info(file: FileInfo, golden: Golden, *, bundled: bool) -> GoldenInfo:
    """Return what the manifest says of the golden outputs, which were written to `file`."""
    return GoldenInfo(
        file=file.file,
        bytes=file.bytes,
        sha256=file.sha256,
        count=len(golden.images),
        source="bundled" if bundled else "calibration",
        stages=tuple(sorted(golden.logits)),
        outputs={name: len(golden.outputs[name]) for name in sorted(golden.outputs)},
        sample_bytes=None if golden.sample is None else len(golden.sample.file),
    )


def maker_versions() -> dict[str, str]:
    """Return package → version of what took part.

    One module comes under many distribution names (onnxruntime-gpu, -directml, -openvino, conda's); where the usual
    one is not installed, the module's own version counts. A package that tells none is left out.
    """
    found = {}
    for name, module in _MAKERS.items():
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            version = getattr(sys.modules.get(module), "__version__", None)
            if isinstance(version, str):
                found[name] = version
    return found
