"""Does a graph still compute what the eager network computes? Asked after every step."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.graph.exported_graph import OnnxNetwork, serialize
from resnet_export.runtime.bundle.manifest import LOGITS, BatchRange, TensorSpec
from resnet_export.runtime.bundle.schema import OUTPUT_LAYOUTS
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.parity.measure.metrics import relative_error
from resnet_export.runtime.progress import Progress, silent

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "FP32_LIMIT",
    "Network",
    "Reference",
    "StageCheck",
    "check_stage",
    "record_reference",
    "recorded",
]

FP32_LIMIT = 1e-4
"""The relative error that float32 graphs are held to. Reordered sums alone give 1e-6 to 1e-5."""

Network: TypeAlias = "nn.Module | OnnxNetwork"
"""What a graph is compared with: an eager network of torch, or an ONNX file."""

_EAGER_BATCH = 16

_RECORDED_BYTES = 8 * 2**20
"""What one further output may take in a bundle: the maps of 20 images would take more than the graphs."""


def recorded(size: int, images: int) -> int:
    """Return on how many of `images` images an output of `size` bytes each is recorded: as fit, at least one."""
    return max(1, min(images, _RECORDED_BYTES // size))


@dataclass(frozen=True, eq=False)
class Reference:
    """Images and what the eager network computes from them.

    `images` are in the layout and dtype of the graph's input, [M, 3, H, W] float32 normalized or [M, H, W, 3]
    uint8; `outputs` are float32 by name: "logits" [M, classes] the first, every further one [K, …] of the first K
    images (`recorded`).
    """

    images: NDArray[Any]
    outputs: Mapping[str, NDArray[np.float32]]

    @property
    def logits(self) -> NDArray[np.float32]:
        """The logits, float32 [M, classes]."""
        return self.outputs[LOGITS]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """What the manifest says of the outputs."""
        return tuple(
            TensorSpec(
                name=name,
                dtype="float32",
                layout=OUTPUT_LAYOUTS[values.ndim],
                shape=("N", *values.shape[1:]),
            )
            for name, values in self.outputs.items()
        )

    def rows(self, start: int, count: int) -> NDArray[np.intp]:
        """Return `count` row numbers from `start` on, beginning again after the last.

        The rows of a batch do not depend on each other, so a batch larger than the reference repeats images and
        needs no further eager run.
        """
        return np.arange(start, start + count) % len(self.images)


@dataclass(frozen=True, eq=False)
class StageCheck:
    """How far one step's graph is from the eager network.

    `relative` holds ‖a−b‖/‖b‖ for each batch size, that of the worst output; `logits` are the graph's own, float32
    [M, classes], on the images of `reference`; `sha256` is that of the graph's serialized form.
    """

    step: str
    limit: float
    relative: Mapping[int, float]
    sha256: str
    logits: NDArray[np.float32] = field(repr=False)
    reference: Reference = field(repr=False)

    @property
    def worst(self) -> float:
        """The largest relative error over the batch sizes."""
        return max(self.relative.values())


def record_reference(network: Network, images: NDArray[np.float32], progress: Progress = silent) -> Reference:
    """Run `network` in evaluation mode on `images`, normalized float32 [M, 3, H, W], and return both.

    The network returns the logits [N, classes], or a dictionary of float outputs [N, …] with "logits" first. Raises
    ExportError for anything else, and when a value is infinite or NaN: there is nothing then that a graph could be
    compared with.
    """
    parts: dict[str, list[NDArray[np.float32]]] = {}
    run = network.runner() if isinstance(network, OnnxNetwork) else _eager(network)
    for start in progress(range(0, len(images), _EAGER_BATCH), "Eager reference"):
        for name, values in run(images[start : start + _EAGER_BATCH]).items():
            count = len(images) if name == LOGITS else recorded(values[0].nbytes, len(images))
            parts.setdefault(name, []).append(values[: max(0, count - start)])
    outputs = {name: np.concatenate(batches) for name, batches in parts.items()}
    for name, values in outputs.items():
        broken = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if len(broken):
            raise ExportError(
                f"the eager network's {name} are infinite or NaN on {len(broken)} of {len(values)} real images: an "
                "activation leaves float32's range; check the checkpoint and its normalization statistics"
            )
    return Reference(images, outputs)


def _eager(network: nn.Module) -> Callable[[NDArray[np.float32]], dict[str, NDArray[Any]]]:
    import torch

    def run(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            # The layout of the memory changes no value and saves a third of the time.
            batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
            found = _named(network(batch))
        return {name: tensor.contiguous().numpy() for name, tensor in found.items()}

    return run


def _named(found: object) -> dict[str, Any]:
    from torch import Tensor

    outputs: dict[str, Any] = found if isinstance(found, dict) else {LOGITS: found}
    wrong = [
        name
        for name, value in outputs.items()
        if not isinstance(value, Tensor) or value.ndim not in OUTPUT_LAYOUTS or name == "input"
    ]
    if wrong or next(iter(outputs), None) != LOGITS or outputs[LOGITS].ndim != 2:
        raise ExportError(
            f"the network returns {_words(found)}, expected logits [N, classes], or a dictionary of tensors of 2 to 4 "
            f"axes with {LOGITS!r} first; wrap it in a module that returns one of them"
        )
    return outputs


def _words(found: object) -> str:
    if hasattr(found, "shape"):
        return f"a tensor of shape {list(found.shape)}"
    if isinstance(found, dict):
        return f"a dictionary with {', '.join(map(repr, found)) or 'nothing'} in it"
    return f"a {type(found).__name__}"


def check_stage(
    model: onnx.ModelProto,
    reference: Reference,
    *,
    step: str,
    batch: BatchRange,
    limit: float = FP32_LIMIT,
    known: StageCheck | None = None,
) -> StageCheck:
    """Compare every output of a graph with the reference, at batch sizes 1, 3 and the maximum, on ONNX Runtime's CPU
    provider.

    Every image of the reference runs once at the maximum size; 1 and 3 catch a batch axis that was silently fixed
    or baked into a Reshape. A graph with the very bytes of `known` has its figures, and does not run again on
    the same images.

    Raises:
        ExportError: an output is further away than `limit`, has another shape, or ONNX Runtime refuses.
        DependencyError: ONNX Runtime is not installed.
    """
    data = serialize(model)
    sha256 = hashlib.sha256(data).hexdigest()
    if (
        known is not None
        and known.sha256 == sha256
        and known.reference is reference
        and batch.max in known.relative
        and known.worst <= limit
    ):
        return replace(known, step=step, limit=limit)
    session = CpuSession(data)
    del data
    relative: dict[int, float] = {}
    parts: list[NDArray[np.float32]] = []
    images = reference.images
    slices = [(0, 1), (1, 3), *((start, batch.max) for start in range(0, len(images), batch.max))]
    for start, count in slices:
        rows = reference.rows(start, count)
        outputs = session.run(images[rows])
        for found, (name, values) in zip(outputs, reference.outputs.items(), strict=True):
            if found.shape != (count, *values.shape[1:]):
                raise ExportError(
                    f"step {step!r} gives {name} of shape {list(found.shape)} at batch {count}, "
                    f"the eager network {[count, *values.shape[1:]]}"
                )
            recorded_rows = np.flatnonzero(rows < len(values))
            error = relative_error(found[recorded_rows], values[rows[recorded_rows]])
            error = math.inf if error is None else error
            if error > limit:
                raise ExportError(
                    f"step {step!r} differs from the eager network at batch {count}: relative error {error:.2g}, "
                    f"where {limit:.2g} is allowed for {name!r}"
                )
            relative[count] = max(error, relative.get(count, 0.0))
        parts.append(outputs[0])
    logits = np.concatenate(parts[2:])[: len(images)]
    return StageCheck(step, limit, relative, sha256, logits, reference)
