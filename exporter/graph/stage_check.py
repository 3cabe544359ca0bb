"""Does a graph still compute what the eager network computes? Asked after every step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.progress import Progress, silent

__all__ = ["FP32_LIMIT", "Probe", "StageError", "compare", "eager_probe", "relative_error", "serialize"]

FP32_LIMIT = 1e-4
"""The relative error that float32 graphs are held to. Reordered sums alone give 1e-6 to 1e-5."""

_EAGER_BATCH = 16


@dataclass(frozen=True, eq=False)
class Probe:
    """Images and what the eager network makes of them.

    `images` are in the layout and dtype of the graph's input, [M, 3, H, W] float32 normalized or [M, H, W, 3]
    uint8; `logits` are float32 [M, classes].
    """

    images: NDArray[Any]
    logits: NDArray[np.float32]

    def rows(self, start: int, count: int) -> NDArray[np.intp]:
        """Return `count` row numbers from `start` on, beginning again after the last.

        The rows of a batch do not depend on each other, so a batch larger than the probe repeats images and
        needs no further eager run.
        """
        return np.arange(start, start + count) % len(self.images)


@dataclass(frozen=True, eq=False)
class StageError:
    """How far one step's graph is from the eager network.

    `relative` holds ‖a−b‖/‖b‖ over all logits for each batch size; `logits` are the graph's own, float32
    [M, classes], on the images of `probe`; `sha256` is that of the graph's serialized form.
    """

    step: str
    limit: float
    relative: Mapping[int, float]
    sha256: str
    logits: NDArray[np.float32] = field(repr=False)
    probe: Probe = field(repr=False)

    @property
    def worst(self) -> float:
        """The largest relative error over the batch sizes."""
        return max(self.relative.values())


def eager_probe(network: nn.Module, images: NDArray[np.float32], progress: Progress = silent) -> Probe:
    """Run `network` in evaluation mode on `images`, normalized float32 [M, 3, H, W], and return both.

    Raises ExportError when a logit is infinite or NaN: there is nothing then that a graph could be compared with.
    """
    parts = []
    with torch.inference_mode():
        for start in progress(range(0, len(images), _EAGER_BATCH), "Eager reference"):
            batch = torch.from_numpy(images[start : start + _EAGER_BATCH])
            # The layout of the memory changes no value and saves a third of the time.
            parts.append(network(batch.contiguous(memory_format=torch.channels_last)).numpy())
    logits = np.concatenate(parts)
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        raise ExportError(
            f"the eager network's logits are infinite or NaN on {len(broken)} of {len(logits)} real images: an "
            "activation leaves float32's range; check the checkpoint and its normalization statistics"
        )
    return Probe(images, logits)


def serialize(model: onnx.ModelProto) -> bytes:
    """Return the model's bytes: the same model gives the same bytes in every process."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def relative_error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return ‖found − expected‖ / ‖expected‖ over all elements."""
    expected = expected.astype(np.float64)
    difference = float(np.linalg.norm(found.astype(np.float64) - expected))
    return difference / max(float(np.linalg.norm(expected)), 1e-30)


def compare(
    model: onnx.ModelProto,
    probe: Probe,
    *,
    step: str,
    batch: BatchRange,
    limit: float = FP32_LIMIT,
    known: StageError | None = None,
) -> StageError:
    """Compare a graph with the probe, at batch sizes 1, 3 and the maximum, on ONNX Runtime's CPU provider.

    Every image of the probe runs once at the maximum size; 1 and 3 catch a batch axis that was silently fixed
    or baked into a Reshape. A graph with the very bytes of `known` has its figures, and does not run again on
    the same probe.

    Raises:
        ExportError: an output is further away than `limit`, has another shape, or ONNX Runtime refuses.
        DependencyError: ONNX Runtime is not installed.
    """
    data = serialize(model)
    sha256 = hashlib.sha256(data).hexdigest()
    if (
        known is not None
        and known.sha256 == sha256
        and known.probe is probe
        and batch.max in known.relative
        and known.worst <= limit
    ):
        return replace(known, step=step, limit=limit)
    session = CpuSession(data)
    del data
    relative: dict[int, float] = {}
    parts: list[NDArray[np.float32]] = []
    slices = [(0, 1), (1, 3), *((start, batch.max) for start in range(0, len(probe.images), batch.max))]
    for start, count in slices:
        rows = probe.rows(start, count)
        found = session.run(probe.images[rows])[0]
        expected = probe.logits[rows]
        if found.shape != expected.shape:
            raise ExportError(
                f"step {step!r} gives logits of shape {list(found.shape)} at batch {count}, "
                f"the eager network {list(expected.shape)}"
            )
        error = relative_error(found, expected)
        if not error <= limit:  # also true of NaN
            raise ExportError(
                f"step {step!r} differs from the eager network at batch {count}: relative error {error:.2g}, "
                f"where {limit:.2g} is allowed"
            )
        relative[count] = max(error, relative.get(count, 0.0))
        parts.append(found)
    logits = np.concatenate(parts[2:])[: len(probe.images)]
    return StageError(step, limit, relative, sha256, logits, probe)
