"""The layer report of an engine: what the builder made of each node, as a file in the bundle.

It is written when the engine is built (`exporter/engine/layers.py`) and read wherever the bundle is, with
nothing but the runtime installed. It answers one question above all: which layers did not get the precision
that was asked for, and why.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import Literal

import msgspec

from resnet_export.runtime.bundle.manifest import Artifact, Manifest, Struct, read_artifact
from resnet_export.runtime.errors import BundleError
from resnet_export.runtime.precision import Precision


class LayerInfo(Struct, frozen=True):
    """One layer of an engine.

    `nodes` are the names of the ONNX nodes that the builder fused into it; `inputs` and `outputs` the data
    types of its activations ("fp16", "int8", ...), the data that is convolved first; `weights` that of its
    weights, None for a layer without any; `tactic` the name of its kernel, as far as the builder tells.
    """

    name: str
    type: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: str | None = None
    tactic: str = ""


class Operator(Struct, frozen=True):
    """A convolution or matrix product of the ONNX graph, and the arithmetic that it got.

    `graph` is the precision that the typed graph gives it, None for a type that has no `Precision`; `engine` the one
    of the layer that computes it, None when no layer names the node; `reason` says why `engine` is not what was asked
    for, None when it is.
    """

    node: str
    op: str
    graph: Precision | None
    engine: Precision | None
    layer: str | None
    reason: str | None = None


class LayerReport(Struct, frozen=True):
    """All layers of one engine. `source` says where they come from: the inspector of the loaded engine, or
    the log of the build where there is no GPU to load it. `asked` is the precision of the artifact.
    `undescribed` says why there are no layers, where a version of TensorRT describes them in a way not known here.
    """

    asked: Precision
    source: Literal["inspector", "build log"]
    layers: tuple[LayerInfo, ...]
    operators: tuple[Operator, ...]
    undescribed: str | None = None

    def convolutions(self) -> dict[Precision | None, int]:
        """Count the graph's convolutions by the precision that the engine computes them in."""
        return dict(Counter(operator.engine for operator in self.operators if operator.op == "Conv"))

    def shortfalls(self) -> tuple[Operator, ...]:
        """The operators that did not get the precision asked for."""
        return tuple(operator for operator in self.operators if operator.reason is not None)


def summary(report: LayerReport) -> tuple[str, ...]:
    """Return the report in a few sentences: the account of the convolutions, then every shortfall with its
    reason.
    """
    if report.undescribed is not None:
        return (f"the layers of this engine are not described: {report.undescribed}",)
    counts = report.convolutions()
    total = sum(counts.values())
    unknown = counts.pop(None, 0)
    lines = [
        f"{total - unknown} of {total} convolutions accounted for ({len(report.layers)} layers, from the "
        f"{report.source})"
    ]
    lines += [
        f"{count} of {total} convolutions compute in {precision}" for precision, count in counts.items()
    ]
    layers = {layer.name: layer for layer in report.layers}
    quantized = [
        layers[operator.layer]
        for operator in report.operators
        if operator.op == "Conv" and operator.engine is Precision.INT8 and operator.layer is not None
    ]
    written = sum("int8" in layer.outputs for layer in quantized)
    if quantized and written < len(quantized):
        lines.append(
            f"{len(quantized) - written} of {len(quantized)} int8 convolutions write a wider type; "
            "separate kernels requantize it"
        )
    lines += [
        f"{operator.node} ({operator.op}) computes in {operator.engine or 'unknown precision'}, not in "
        f"{report.asked}: {operator.reason}"
        for operator in report.shortfalls()
    ]
    return tuple(lines)


TABLE_HEADER = ("layer", "ONNX nodes", "type", "inputs", "outputs", "tactic")


def table(report: LayerReport) -> list[tuple[str, ...]]:
    """Return one row of text per layer, under `TABLE_HEADER`."""
    return [
        (
            layer.name,
            " ".join(layer.nodes),
            layer.type,
            " ".join(layer.inputs),
            " ".join(layer.outputs),
            layer.tactic,
        )
        for layer in report.layers
    ]


def read_reports(
    bundle: str | os.PathLike[str], manifest: Manifest
) -> tuple[tuple[Artifact, LayerReport], ...]:
    """Return the engines of a bundle that have a layer report, with it. Raises IntegrityError, BundleError."""
    found = []
    for artifact in manifest.artifacts:
        file = manifest.file(artifact.engine.layers or "") if artifact.engine else None
        if file is not None:
            found.append((artifact, decode_report(read_artifact(bundle, file))))
    return tuple(found)


def encode_report(report: LayerReport) -> bytes:
    """Return the bytes of a layer report file: indented JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"


def decode_report(data: bytes) -> LayerReport:
    """Parse and validate a layer report file. Raises BundleError."""
    try:
        return msgspec.json.decode(data, type=LayerReport)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"the layer report cannot be read ({error}); build the engine again") from error
