"""Run the instrumented copies, and say at which layer an artifact leaves the fp32 graph.

from resnet_export.exporter.debug.layerwise import compare_artifacts

for found in compare_artifacts("resnet50", ["fp16", "int8"]):
    print(found.sentence)
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
from numpy.typing import NDArray

from resnet_export.calibration.improve.channel_scaling import rescale
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.table import decode_table
from resnet_export.calibration.quantize.plan import Equalization
from resnet_export.exporter.debug.debug_graph import Instrumented, What, instrumented
from resnet_export.exporter.debug.node_matching import Missing
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import TABLE_NAME, Artifact, Manifest, read_artifact, read_manifest
from resnet_export.runtime.errors import DatasetError, DependencyError, ExportError, RequestError
from resnet_export.runtime.parity.attribution.layers import (
    ErrorSums,
    LayerFigure,
    LayerSums,
    Layerwise,
    coarseness_limit,
    first_divergence,
    layer_figure,
    snr_db,
    summary,
)
from resnet_export.runtime.parity.report.schema import Entry
from resnet_export.runtime.precision import PRECISIONS, Precision
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.progress import Progress, silent

__all__ = ["compare_artifacts", "compare_layers", "diagnose"]

_BACKEND, _PROVIDER = "onnxruntime", "CPUExecutionProvider"
_BATCH = (
    4  # as fast as any larger one; ResNet-50's int8 graph at 224 pixels peaks at 1.5 GB, and 2.5 GB with 8
)


def compare_artifacts(
    bundle: str | os.PathLike[str],
    artifacts: Collection[str] | None = None,
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> tuple[Layerwise, ...]:
    """Compare the layers of artifacts with those of the bundle's fp32 graph, on its golden images.

    Of an engine the graph that it was built from is measured. The graph of an equalized int8 artifact is compared
    with the fp32 graph under the same equalization, which `calibration.json` holds.

    Args:
        artifacts: their names; None means all graphs but the fp32 one.
        threads: of ONNX Runtime; None: one for each processor.

    Raises:
        RequestError: an artifact does not exist, or is the fp32 graph.
        BundleError: the bundle cannot be read.
        ExportError: a graph is not one of resnet-export's, or ONNX Runtime refuses it.
        DependencyError: ONNX Runtime is not installed.
    """
    manifest = read_manifest(bundle)
    chosen = choose(manifest, artifacts)
    source = _Source(bundle, manifest, read_golden(bundle).images, threads, progress)
    return tuple(source.compare(one) for one in chosen)


def choose(manifest: Manifest, artifacts: Collection[str] | None) -> tuple[Artifact, ...]:
    """Return the artifacts called so, each once, or all graphs but the fp32 one. Raises RequestError."""
    fp32 = _fp32(manifest)
    if artifacts is None:
        return tuple(one for one in manifest.artifacts if one.kind == "onnx" and one != fp32)
    known = {one.name: one for one in manifest.artifacts}
    for name in artifacts:
        if name not in known:
            raise RequestError(f"there is no artifact {name!r} in the bundle; it has {', '.join(known)}")
        if _graph_of(manifest, known[name]) == fp32:
            raise RequestError(
                f"the layers of {name!r} are what those of other artifacts are compared with; name another artifact"
            )
    return tuple(known[name] for name in dict.fromkeys(artifacts))


def diagnose(
    bundle: str | os.PathLike[str],
    entries: Sequence[Entry],
    artifacts: Collection[str],
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> tuple[tuple[Layerwise, ...], tuple[str, ...]]:
    """Return the layers of `artifacts`, which failed in `entries`, and notes on what could not be compared.

    Where the fp32 graph itself is outside tolerance, the layers at which it and a sound artifact part are its own.
    """
    if not artifacts:
        return (), ()
    manifest = read_manifest(bundle)
    source = _Source(bundle, manifest, read_golden(bundle).images, threads, progress)
    layerwise: list[Layerwise] = []
    notes: list[str] = []
    for name in artifacts:
        artifact = manifest.artifact(name)
        try:
            if _graph_of(manifest, artifact) == _fp32(manifest):
                layerwise.append(source.compare_fp32(entries, artifact))
            else:
                layerwise.append(source.compare(artifact, notes=_elsewhere(entries, name)))
        except (ExportError, RequestError, DependencyError) as error:
            notes.append(f"the layers of {name} were not compared: {error}")
    return tuple(layerwise), tuple(notes)


def _elsewhere(entries: Sequence[Entry], name: str) -> tuple[str, ...]:
    """Return the remark that an artifact fails only where its layers are not measured."""
    entries = [entry for entry in entries if entry.artifact == name]
    if not any(entry.passed and entry.provider == _PROVIDER for entry in entries):
        return ()
    failed = ", ".join(dict.fromkeys(entry.backend for entry in entries if not entry.passed))
    return (f"it fails on {failed} and not on {_BACKEND}, where its layers were measured",)


@dataclass(frozen=True)
class _Source:
    """One bundle, and the images to look at its layers with: uint8 [N, H, W, 3]."""

    bundle: str | os.PathLike[str]
    manifest: Manifest
    images: NDArray[np.uint8]
    threads: int | None
    progress: Progress

    def compare(self, artifact: Artifact, name: str | None = None, notes: tuple[str, ...] = ()) -> Layerwise:
        """Compare one artifact, under its own name or `name`."""
        graph = _graph_of(self.manifest, artifact)
        if graph != artifact:
            notes += (
                f"measured in {graph.name}, the graph that the engine was built from, and not in the engine",
            )
        return compare_layers(
            self._reference(graph),
            self._load(graph),
            self.progress(self._batches(), f"layers of {artifact.name}", -(-len(self.images) // _BATCH)),
            name=name or artifact.name,
            precision=graph.precision,
            modules=self.manifest.modules,
            threads=self.threads,
            notes=notes,
        )

    def compare_fp32(self, entries: Sequence[Entry], artifact: Artifact) -> Layerwise:
        """Compare the fp32 graph, which is outside tolerance, with the best artifact that is not."""
        passing = {entry.artifact for entry in entries if entry.passed}
        if artifact.name in passing:
            raise ExportError("the graph itself is sound, since another backend runs it within tolerance")
        passing -= {entry.artifact for entry in entries if not entry.passed}
        sound = [one for one in self.manifest.artifacts if one.name in passing and one.kind == "onnx"]
        if not sound:
            raise ExportError("no other artifact is within tolerance, with which it could be compared")
        best = min(sound, key=lambda one: list(PRECISIONS).index(one.precision))
        note = f"seen from {best.name}, which is within tolerance: what diverges is the fp32 graph"
        return self.compare(best, artifact.name, (note,))

    def _batches(self) -> Iterator[NDArray[Any]]:
        for start in range(0, len(self.images), _BATCH):
            yield to_input(self.images[start : start + _BATCH], self.manifest.preprocessing)

    def _reference(self, graph: Artifact) -> onnx.ModelProto:
        reference = self._load(_fp32(self.manifest))
        if graph.precision is not Precision.INT8:
            return reference
        table = self.manifest.file(TABLE_NAME)
        if table is None:
            return reference
        factors = decode_table(read_artifact(self.bundle, table)).equalization
        if not factors:
            return reference
        return rescale(
            reference, (Equalization(one.producers, one.consumers, one.array()) for one in factors)
        )

    def _load(self, artifact: Artifact) -> onnx.ModelProto:
        try:
            return onnx.load_from_string(read_artifact(self.bundle, artifact))
        except DecodeError as error:
            raise ExportError(f"{artifact.file} is not an ONNX graph ({error}); export it again") from error


def _fp32(manifest: Manifest) -> Artifact:
    return next(one for one in manifest.artifacts if one.kind == "onnx" and one.precision is Precision.FP32)


def _graph_of(manifest: Manifest, artifact: Artifact) -> Artifact:
    """Return the artifact whose graph it is: an engine's is the one that it was built from."""
    return artifact if artifact.engine is None else manifest.artifact(artifact.engine.source)


def compare_layers(
    reference: onnx.ModelProto,
    artifact: onnx.ModelProto,
    batches: Iterable[NDArray[Any]],
    *,
    name: str = "artifact",
    precision: Precision = Precision.FP32,
    modules: Mapping[str, str] | None = None,
    threads: int | None = None,
    notes: Sequence[str] = (),
) -> Layerwise:
    """Measure every layer of `artifact` against `reference`, the fp32 graph, on ONNX Runtime's CPU provider.

    Args:
        reference, artifact: graphs of resnet-export's, whose nodes are named alike, with one input and one output.
        batches: network inputs in the layout and dtype of both graphs' input, each with N ≥ 1 images.
        name, precision: of the artifact, for the report.
        modules: node name → path of its `nn.Module`, of either graph.
        threads: of ONNX Runtime; None: one for each processor.
        notes: remarks that the result carries.

    Raises:
        ExportError: the graphs are of different networks or operator sets, or ONNX Runtime refuses one.
        DatasetError: there are no images.
        DependencyError: ONNX Runtime is not installed.
    """
    copy = instrumented(reference, artifact)
    session = CpuSession(copy.model.SerializeToString(), threads=threads)
    plain = CpuSession(artifact.SerializeToString(), threads=threads)
    sums: dict[tuple[str, What], ErrorSums] = {}
    perturbation = ErrorSums()
    images = 0
    for batch in batches:
        found = dict(zip(session.outputs, session.run(batch), strict=True))
        perturbation += ErrorSums.of(found[copy.logits], plain.run(batch)[0])
        for one in copy.measures:
            product = None if one.product is None else found[one.product]
            part = ErrorSums.of_images(found[one.error], found[one.signal], product)
            sums[one.node, one.what] = sums.get((one.node, one.what), ErrorSums()) + part
        images += len(batch)
    if not images:
        raise DatasetError("there are no images to compare layers on; give at least one")
    layers = tuple(_figures(copy, sums, modules or {}))
    return Layerwise(
        artifact=name,
        backend=_BACKEND,
        provider=_PROVIDER,
        precision=precision,
        images=images,
        first=first_divergence(layers),
        layers=layers,
        unpaired=copy.pairing.unpaired,
        perturbation_db=snr_db(perturbation.relative_error),
        notes=tuple(notes),
        sentence=summary(name, layers),
    )


def _figures(
    copy: Instrumented, sums: Mapping[tuple[str, What], ErrorSums], modules: Mapping[str, str]
) -> Iterator[LayerFigure]:
    """Yield the layers in the order of the artifact's graph, and each missing one where it should stand."""
    missing = copy.pairing.missing
    measured = {
        layer.node: LayerSums(*(sums.get((layer.node, what)) for what in ("own", "in_place", "halved")))
        for layer in copy.pairing.layers
    }
    coarse = coarseness_limit(measured.values())
    yield from (_missing(one, copy, sums, modules) for one in missing if one.after is None)
    for layer in copy.pairing.layers:
        yield layer_figure(
            layer.node,
            modules.get(layer.node, modules.get(layer.origin)),
            layer.op,
            layer.kind,
            measured[layer.node],
            coarse=coarse,
            remark=copy.remarks.get(layer.node, ""),
        )
        yield from (_missing(one, copy, sums, modules) for one in missing if one.after == layer.node)


def _missing(
    missing: Missing,
    copy: Instrumented,
    sums: Mapping[tuple[str, What], ErrorSums],
    modules: Mapping[str, str],
) -> LayerFigure:
    return layer_figure(
        missing.node,
        modules.get(missing.node),
        missing.op,
        "fp32",
        LayerSums(own=sums.get((missing.node, "own"))),
        missing=True,
        remark=copy.remarks.get(missing.node, ""),
    )
