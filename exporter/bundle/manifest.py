"""The manifest of a new bundle, from what the steps of the line returned."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata

from resnet_export.exporter.graph.export import INPUT, OPSET, OUTPUT
from resnet_export.exporter.graph.facts import count_graph
from resnet_export.exporter.graph.graph_artifact import Draft
from resnet_export.exporter.models.classifier import Network
from resnet_export.exporter.spec import ExportSpec
from resnet_export.runtime.bundle.manifest import (
    SCHEMA_VERSION,
    Artifact,
    FileInfo,
    GoldenInfo,
    Manifest,
    Preprocessing,
    Provenance,
    TensorSpec,
)
from resnet_export.runtime.parity.criteria.tolerances import Tolerances

# The packages whose versions decide what comes out of an export.
_MAKERS = ("resnet-export", "torch", "onnx", "onnxscript", "onnxsim", "onnxruntime", "numpy", "pillow")


def describe(
    network: Network,
    spec: ExportSpec,
    preprocessing: Preprocessing,
    artifacts: Sequence[tuple[Draft, FileInfo]],
    golden: GoldenInfo,
    notices: Sequence[str],
) -> Manifest:
    """Return the manifest of the bundle that holds `artifacts` and `golden`; the first artifact is fp32."""
    graph = artifacts[0][0].graph
    facts = count_graph(graph.model)
    modules: dict[str, str] = {}
    for draft, _ in artifacts:
        modules |= draft.graph.modules
    return Manifest(
        schema=SCHEMA_VERSION,
        model=network.info,
        graph=facts,
        input=_input(preprocessing),
        output=TensorSpec(name=OUTPUT, dtype="float32", layout="NC", shape=("N", network.info.num_classes)),
        batch=spec.batch,
        preprocessing=preprocessing,
        labels=network.labels,
        tolerances=Tolerances.shipped(
            untrained=network.info.weights.source == "untrained", layers_in_series=facts.layers_in_series
        ).by_name(),
        artifacts=tuple(_artifact(draft, file) for draft, file in artifacts),
        golden=golden,
        modules=modules,
        provenance=Provenance(
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            versions=_versions(),
            exporter=graph.exporter,
            opset=OPSET,
            notices=tuple(notices),
        ),
    )


def _input(preprocessing: Preprocessing) -> TensorSpec:
    side = preprocessing.crop
    if preprocessing.in_graph:
        return TensorSpec(name=INPUT, dtype="uint8", layout="NHWC", shape=("N", side, side, 3))
    return TensorSpec(name=INPUT, dtype="float32", layout="NCHW", shape=("N", 3, side, side))


def _artifact(draft: Draft, file: FileInfo) -> Artifact:
    return Artifact(
        name=draft.name,
        file=file.file,
        kind="onnx",
        precision=draft.precision,
        target=draft.target,
        bytes=file.bytes,
        sha256=file.sha256,
        excluded=draft.excluded,
        refusal=draft.refusal,
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in _MAKERS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # onnxruntime under its GPU build's name
            if name == "onnxruntime":
                found["onnxruntime-gpu"] = metadata.version("onnxruntime-gpu")
    return found
