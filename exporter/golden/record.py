"""The golden record: the eager model speaks once, and everything later is held to what it said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.golden.eager_tensors import eager_tensors
from resnet_export.exporter.golden.preprocessing_sample import record_sample
from resnet_export.exporter.graph.exported_graph import ExportedGraph, OnnxNetwork, serialize
from resnet_export.exporter.graph.graph_artifact import GraphArtifact
from resnet_export.exporter.graph.stage_check import (
    FP32_LIMIT,
    Network,
    Reference,
    record_reference,
    recorded,
)
from resnet_export.exporter.models.classifier import Classifier
from resnet_export.runtime.bundle.golden import EAGER, Golden, Sample
from resnet_export.runtime.bundle.manifest import LOGITS
from resnet_export.runtime.bundle.schema import PROBABILITIES
from resnet_export.runtime.prediction import ACTIVATIONS
from resnet_export.runtime.preprocess import normalize
from resnet_export.runtime.progress import Progress, silent

__all__ = ["GoldenRecord", "record_golden"]

_BATCH = 4


@dataclass(frozen=True, eq=False)
class GoldenRecord:
    """The golden images and what the eager network computes from them.

    Attributes:
        photos: the images.
        normalized: the images normalized, as graphs take them before preprocessing is in them.
        shipped: the images as finished graphs take them, with the same outputs; `normalized` where that is the same.
        sample: one image file and what preprocessing makes of it.
    """

    photos: Photos
    normalized: Reference
    shipped: Reference
    sample: Sample

    def with_outputs(self, network: Network, graph: ExportedGraph) -> tuple[GoldenRecord, tuple[str, ...]]:
        """Return the record with the further outputs of a float32 graph that takes normalized images, and notices.

        What the eager network computes is recorded; where it has no such tensor, or is an ONNX file, what ONNX Runtime
        computes from the graph is, which was held to the network's logits before. Probabilities are made from the
        network's own logits.
        """
        reference = self.normalized
        names = [str(value.name) for value in graph.model.graph.output]
        missing = [name for name in names if name not in reference.outputs]
        found = dict(reference.outputs)
        if PROBABILITIES in missing:
            writer = graph.model.graph.node[-1]
            activate = ACTIVATIONS["sigmoid" if writer.op_type == "Sigmoid" else "softmax"]
            found[PROBABILITIES] = activate(reference.logits).astype(np.float32)
        computed = _computed(graph, reference.images, [name for name in missing if name != PROBABILITIES])
        eager = (
            {}
            if isinstance(network, OnnxNetwork) or not computed
            else eager_tensors(network, reference.images, computed, FP32_LIMIT)
        )
        found |= computed | eager
        outputs = {name: found[name] for name in names}
        record = replace(
            self,
            normalized=replace(reference, outputs=outputs),
            shipped=replace(self.shipped, outputs=outputs),
        )
        if self.shipped is reference:
            record = replace(record, shipped=record.normalized)
        own = [name for name in computed if name not in eager]
        if not own or isinstance(network, OnnxNetwork):
            return record, ()
        return record, (
            f"the eager network computes no tensor that is {' or '.join(own)}: the fp32 graph's own, on ONNX Runtime, "
            f"{'is the reference of that output' if len(own) == 1 else 'are the references of those outputs'}",
        )

    def contents(self, graphs: Iterable[GraphArtifact]) -> Golden:
        """Return what `golden.npz` holds: the images, the sample, and the logits after every step."""
        stages = {EAGER: self.normalized.logits}
        for graph in graphs:
            stages |= graph.stages
        outputs = {name: values for name, values in self.normalized.outputs.items() if name != LOGITS}
        return Golden(self.photos.images, stages, self.sample, outputs)


def record_golden(net: Classifier, photos: Photos, progress: Progress = silent) -> GoldenRecord:
    """Run the eager network on the golden images. Raises what `record_reference` raises."""
    normalized = record_reference(net.module, normalize(photos.images, net.preprocessing), progress)
    in_graph = photos.preprocessing is not None and photos.preprocessing.in_graph
    shipped = Reference(photos.images, normalized.outputs) if in_graph else normalized
    return GoldenRecord(photos, normalized, shipped, record_sample(net.preprocessing))


def _computed(
    graph: ExportedGraph, images: NDArray[Any], names: Sequence[str]
) -> dict[str, NDArray[np.float32]]:
    """Run a graph on ONNX Runtime, and return the outputs of these names on as many images as are recorded."""
    if not names:
        return {}
    session = CpuSession(serialize(graph.model))
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
    for start in range(0, len(images), _BATCH):
        for name, values in zip(session.outputs, session.run(images[start : start + _BATCH]), strict=True):
            if name in parts:
                count = recorded(values[0].nbytes, len(images))
                parts[name].append(values[: max(0, count - start)])
    return {name: np.concatenate(values) for name, values in parts.items()}
