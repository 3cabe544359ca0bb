"""A graph that is about to become an artifact, and what stands around the step that makes it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.exporter.graph.exported_graph import ExportedGraph, serialize
from resnet_export.exporter.graph.stage_check import Reference
from resnet_export.exporter.spec import ExportSpec
from resnet_export.runtime.bundle.manifest import ExcludedLayer
from resnet_export.runtime.bundle.schema import Activation
from resnet_export.runtime.parity.report.search_report import SearchReport
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.progress import Progress, silent

__all__ = ["GraphArtifact", "Lowered", "Lowering"]


@dataclass(frozen=True, eq=False)
class GraphArtifact:
    """One ONNX artifact before it is written.

    Attributes:
        name: of the artifact.
        graph: what ships.
        stages: step → the logits on the golden images after it, float32 [M, classes], on ONNX Runtime's CPU provider:
            the artifact's own under its name, and those of the steps that led to it.
        excluded: the layers in a higher precision.
        refusal: why it may not be shipped, None where it may.
    """

    name: str
    precision: Precision
    target: Literal["any", "cpu", "tensorrt"]
    graph: ExportedGraph
    stages: Mapping[str, NDArray[np.float32]]
    excluded: tuple[ExcludedLayer, ...] = ()
    refusal: str | None = None

    @property
    def file(self) -> str:
        """The artifact's file in the bundle: `model.<name>.onnx`, that of fp32 `model.onnx`."""
        return "model.onnx" if self.precision is Precision.FP32 else f"model.{self.name}.onnx"


@dataclass(frozen=True, eq=False)
class Lowering:
    """What graphs of a lower precision are made from.

    Attributes:
        fp32: the finished fp32 graph.
        photos: images to calibrate and scan ranges on.
        reference: golden images as the finished graph takes them, and the eager network's outputs.
        untrained: whether the weights are random, which loosens what INT8 is held to.
        activation: what makes probabilities of the logits.
    """

    fp32: GraphArtifact
    photos: Photos
    reference: Reference
    spec: ExportSpec
    untrained: bool
    activation: Activation = "softmax"
    progress: Progress = silent

    @cached_property
    def fp32_sha256(self) -> str:
        """The hash of the fp32 graph, in hexadecimal: every precision is known by it."""
        return hashlib.sha256(serialize(self.fp32.graph.model)).hexdigest()


@dataclass(frozen=True, eq=False)
class Lowered:
    """The graphs of one precision, and what was learned on the way.

    Attributes:
        graphs: one for each target.
        files: further files of the bundle, such as the calibration table.
        search: the report of the search that decided on the graphs, None where nothing was searched for.
        times: what the search took; differs from run to run.
        key: the hash of everything that they are made from (`reuse.stage_key`).
        reused: whether they are an earlier bundle's.
    """

    graphs: tuple[GraphArtifact, ...]
    files: Mapping[str, bytes] = field(default_factory=dict)
    search: SearchReport | None = None
    times: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    reused: bool = False
