"""A graph that is about to become an artifact, between the step that made it and the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from resnet_export.exporter.graph.export import ExportedGraph
from resnet_export.runtime.bundle.manifest import ExcludedLayer
from resnet_export.runtime.precision import Precision


@dataclass(frozen=True)
class Draft:
    """One ONNX artifact in the making.

    `name` and `file` are those of the artifact; `graph` is what ships; `logits`, float32 [M, classes], are the
    graph's own on the golden images, on ONNX Runtime's CPU provider; `excluded` are the layers in a higher precision;
    `refusal` says why it may not be shipped, None where it may.
    """

    name: str
    file: str
    precision: Precision
    target: Literal["any", "cpu", "tensorrt"]
    graph: ExportedGraph
    logits: NDArray[np.float32]
    excluded: tuple[ExcludedLayer, ...] = ()
    refusal: str | None = None
