"""Running batches on an opened backend: the checks before, the pieces in between, the labels after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.protocol import Backend, DeviceBackend
from resnet_export.runtime.bundle.manifest import BatchRange, Manifest, TensorSpec
from resnet_export.runtime.errors import BackendError, RequestError
from resnet_export.runtime.open_calls import Gate
from resnet_export.runtime.prediction import Prediction, best
from resnet_export.runtime.preprocess import to_input


@dataclass(frozen=True)
class Request:
    """One decoded image, uint8 [crop, crop, 3], and how many labels it wants."""

    crop: NDArray[np.uint8]
    top: int


@dataclass(frozen=True)
class Runner:
    """The part of a session that runs batches, without the part that its user holds.

    Raises RequestError, BackendError and SessionClosedError, as `Session` documents.
    """

    manifest: Manifest
    backend: Backend
    gate: Gate

    def run(self, batch: np.ndarray) -> NDArray[np.float32]:
        """Return the logits, float32 [N, classes], of a batch that has yet to be checked."""
        _check_batch(batch, self.manifest.input)
        with self.gate:
            limits = self.backend.batch
            if limits is None or limits.min <= len(batch) <= limits.max:
                logits = self.backend.run(np.ascontiguousarray(batch))
            else:
                logits = self._run_pieces(batch, limits)
        expected = (len(batch), self.manifest.model.num_classes)
        if logits.shape != expected:
            raise BackendError(
                f"the artifact returned logits {list(logits.shape)}, expected {list(expected)}; "
                "export the bundle again"
            )
        return logits

    def run_on_device(self, batch: Any) -> Any:
        """Return the logits, on the GPU, of a batch that lies there."""
        with self.gate:
            if not isinstance(self.backend, DeviceBackend):
                raise RequestError(
                    f"{self.backend.provider} takes arrays in host memory only; use run(), or an engine with "
                    "backend='tensorrt'"
                )
            return self.backend.run_on_device(batch)

    def classify(self, requests: list[Request]) -> list[list[Prediction]]:
        """Return the labels of each image, run as one batch."""
        crops = np.stack([request.crop for request in requests])
        logits = self.run(to_input(crops, self.manifest.preprocessing))
        return [
            best(row, self.manifest.labels, request.top)
            for row, request in zip(logits, requests, strict=True)
        ]

    def _run_pieces(self, batch: np.ndarray, limits: BatchRange) -> NDArray[np.float32]:
        parts = []
        for start in range(0, len(batch), limits.max):
            piece = batch[start : start + limits.max]
            missing = max(limits.min - len(piece), 0)
            # Images do not influence each other, so any image will do to reach the smallest batch.
            filled = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
            parts.append(self.backend.run(filled)[: len(piece)])
        return np.concatenate(parts)


def _check_batch(batch: Any, spec: TensorSpec) -> None:
    if not isinstance(batch, np.ndarray):
        raise RequestError(
            f"the batch is a {type(batch).__name__}, expected a numpy array {describe(spec)}; use numpy.asarray"
        )
    if batch.dtype != spec.dtype or batch.ndim != len(spec.shape) or batch.shape[1:] != spec.shape[1:]:
        raise RequestError(
            f"the batch is {batch.dtype} {list(batch.shape)}, expected {describe(spec)} ({spec.layout}); "
            "Session.classify makes such a batch from images of any size"
        )
    if len(batch) == 0:
        raise RequestError(f"the batch is empty, expected {describe(spec)} with N from 1 on")


def describe(spec: TensorSpec) -> str:
    """Return "float32 [N, 3, 224, 224]"."""
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"
