"""The golden record: the eager model speaks once, and everything later is held to what it said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.exporter.golden.preprocessing_sample import record_sample
from resnet_export.exporter.graph.graph_artifact import GraphArtifact
from resnet_export.exporter.graph.stage_check import Reference, record_reference
from resnet_export.exporter.models.classifier import Classifier
from resnet_export.runtime.bundle.golden import EAGER, Golden, Sample
from resnet_export.runtime.bundle.manifest import LOGITS
from resnet_export.runtime.preprocess import normalize
from resnet_export.runtime.progress import Progress, silent

__all__ = ["GoldenRecord", "record_golden"]


_BYTES = 8 * 2**20
"""What one further output may take in a bundle: the maps of 20 images would take more than the graphs."""


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

    def contents(self, graphs: Iterable[GraphArtifact]) -> Golden:
        """Return what `golden.npz` holds: the images, the sample, and the logits after every step."""
        stages = {EAGER: self.normalized.logits}
        for graph in graphs:
            stages |= graph.stages
        further = {name: values for name, values in self.normalized.outputs.items() if name != LOGITS}
        outputs = {name: values[: _recorded(values)] for name, values in further.items()}
        return Golden(self.photos.images, stages, self.sample, outputs)


def record_golden(net: Classifier, photos: Photos, progress: Progress = silent) -> GoldenRecord:
    """Run the eager network on the golden images. Raises what `record_reference` raises."""
    normalized = record_reference(net.module, normalize(photos.images, net.preprocessing), progress)
    in_graph = photos.preprocessing is not None and photos.preprocessing.in_graph
    shipped = Reference(photos.images, normalized.outputs) if in_graph else normalized
    return GoldenRecord(photos, normalized, shipped, record_sample(net.preprocessing))


def _recorded(values: NDArray[np.float32]) -> int:
    """Return how many images of a further output [N, …] a bundle holds: as many as fit, at least one."""
    return max(1, min(len(values), _BYTES // int(values[0].nbytes)))
