"""The trained network that INT8 benchmarks judge by, and how its logits are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.graph.export import simplify, to_onnx
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.stage_check import record_reference
from resnet_export.exporter.models.resnet import ResNet, build
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.preprocess import normalize
from tests.digits import CLASSES, PREPROCESSING
from tests.trained import RESNET18, checkpoint, splits

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]

CALIBRATION_IMAGES = 256
CHECKPOINTS = Path("build/checkpoints")
_BATCH = 64


@dataclass(frozen=True)
class Trained:
    """A network that knows digits or clothes: its graph, images to calibrate on, and held-out images.

    `calibration` and `images` are normalized float32 [N, 3, H, W]; `logits` are the float32 graph's on `images`.
    """

    graph: ExportedGraph
    calibration: NDArray[np.float32]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]

    @property
    def model(self) -> onnx.ModelProto:
        return self.graph.model


def trained_resnet18(seed: int = 0, change: Callable[[ResNet], ResNet] | None = None) -> Trained:
    """Train the network that the test suite trains (once: build/ keeps it), let `change` change it, and export it."""
    train, test = splits(seed)
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    network = build(RESNET18, CLASSES)
    network.load_state_dict(torch.load(checkpoint(CHECKPOINTS, seed=seed), weights_only=True))
    if change is not None:
        network = change(network)
    return exported(network, train.images[-CALIBRATION_IMAGES:], test.images, test.labels)


def exported(
    network: nn.Module, calibration: NDArray[np.uint8], judged: NDArray[np.uint8], labels: NDArray[np.int64]
) -> Trained:
    """Export a network of digits with crops to calibrate on and labeled ones to judge by."""
    images = normalize(judged, PREPROCESSING)
    reference = record_reference(network, images[:4])
    graph, _ = to_onnx(network, batch=BatchRange(min=1, opt=4, max=64), reference=reference)
    graph = simplify(graph)
    session = CpuSession(graph.model.SerializeToString())
    logits = batched(lambda batch: session.run(batch)[0], images)
    return Trained(graph, normalize(calibration, PREPROCESSING), images, labels, logits)


def batched(run: Run, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits of all images."""
    return np.concatenate([run(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)])


def snr(run: Run, trained: Trained) -> float:
    """Return the logits' signal-to-noise ratio against the float32 graph over the held-out images, in dB."""
    return decibels(batched(run, trained.images), trained.logits)


def decibels(logits: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    noise = np.square(logits.astype(np.float64) - reference).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / noise))


def open_openvino(model: bytes | str, *, threads: int = 2) -> Run:
    """Return a function that runs an ONNX graph (its bytes) or an OpenVINO file (its path) in f32 on OpenVINO."""
    request = openvino_request(model, threads=threads)
    # The request reuses the memory of its output.
    return lambda batch: np.array(request.infer({0: batch})[0])


def openvino_request(model: bytes | str, *, threads: int = 2) -> Any:
    """Return OpenVINO's request for an ONNX graph (its bytes) or an OpenVINO file (its path), computed in f32."""
    import openvino

    core = openvino.Core()
    read = core.read_model(model) if isinstance(model, str) else core.read_model(model, b"")
    options = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    return core.compile_model(read, "CPU", options).create_infer_request()
