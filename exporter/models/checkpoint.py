"""From a ModelSpec's weights to a complete, checked, float32 state dict: all of it fits, or none is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from resnet_export.exporter.models.download import fetch
from resnet_export.exporter.models.key_report import Shapes, compare, describe_structure, infer
from resnet_export.exporter.models.state_dict import read_state_dict
from resnet_export.exporter.models.weight_source import locate, sha256_of
from resnet_export.exporter.models.zoo import Architecture, PublishedWeights
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import WeightsInfo
from resnet_export.runtime.errors import CheckpointError, KeyMismatchError, RequestError
from resnet_export.runtime.progress import Progress, silent

__all__ = ["Checkpoint", "load_weights"]


@dataclass(frozen=True)
class Checkpoint:
    """Parameters that fit `architecture` with `num_classes` classes, under torchvision's names.

    `state_dict` is complete, and float32 apart from the step counters. `published` is set for torchvision's
    own weights; it knows the preprocessing that they were evaluated with.
    """

    state_dict: Mapping[str, Tensor]
    architecture: Architecture
    num_classes: int
    info: WeightsInfo
    published: PublishedWeights | None = None
    notices: tuple[str, ...] = ()


def load_weights(spec: ModelSpec, progress: Progress = silent) -> Checkpoint:
    """Load what `spec.weights` names: a checkpoint file, "imagenet", or a torchvision weight name.

    Raises RequestError when the request contradicts itself, CheckpointError when the weights cannot be had, read
    or trusted, or are of another architecture or number of classes than asked for, and KeyMismatchError,
    which lists every key, when they fit no network.
    """
    source = locate(spec)
    if source.published is not None:
        path = fetch(source.published, progress)
    elif source.file is not None:
        path = source.file
    else:
        raise RequestError("no weights were named; give a checkpoint file or 'imagenet'")
    sha256 = _hash(path, source.published)
    read = read_state_dict(path)
    shapes: Shapes = {name: tuple(tensor.shape) for name, tensor in read.tensors.items()}
    architecture = _identify(shapes, source.architecture, path)
    num_classes = _count_classes(shapes, spec.num_classes, path)
    report = compare(shapes, architecture, num_classes)
    if not report.fits:
        raise KeyMismatchError(
            f"{path} does not fit {architecture.name} with {num_classes} classes: {report}; "
            "give a checkpoint of that network, with torchvision's names",
            missing=report.missing,
            unexpected=report.unexpected,
            mis_shaped=report.mis_shaped,
        )
    if source.published is None:
        info = WeightsInfo(source="file", name=path.name, sha256=sha256)
    else:
        name = f"{architecture.title}_Weights.{source.published.name}"
        info = WeightsInfo(source="torchvision", name=name, sha256=sha256)
    return Checkpoint(
        state_dict=_to_float32(read.tensors, path),
        architecture=architecture,
        num_classes=num_classes,
        info=info,
        published=source.published,
        notices=read.notices,
    )


def _hash(path: Path, published: PublishedWeights | None) -> str:
    sha256 = sha256_of(path)
    if published is not None and not sha256.startswith(published.sha256_prefix):
        raise CheckpointError(
            f"{path} has sha256 {sha256[:8]}…, expected {published.sha256_prefix}…; delete it, and it will be "
            "downloaded again"
        )
    return sha256


def _identify(shapes: Shapes, asked: Architecture | None, path: Path) -> Architecture:
    found = infer(shapes)
    if asked is None:
        if found is None:
            raise CheckpointError(
                f"{path} is of no known architecture ({len(shapes)} tensors; {describe_structure(shapes)}); "
                "give a ResNet checkpoint with torchvision's names"
            )
        return found
    if found is not None and found != asked:
        raise CheckpointError(
            f"{path} holds {found.name}, but {asked.name} was asked for; leave the architecture out, or "
            f"give a checkpoint of {asked.name}"
        )
    return asked


def _count_classes(shapes: Shapes, asked: int | None, path: Path) -> int:
    shape = shapes.get("fc.weight", ())
    if len(shape) != 2 or shape[0] < 1:
        # No classifier: the comparison of all keys will say so, against what it should have been.
        return asked or 1000
    if asked is not None and asked != shape[0]:
        raise CheckpointError(
            f"the classifier in {path} has {shape[0]} classes, but {asked} were asked for; leave the number "
            f"out, or give a checkpoint with {asked} classes"
        )
    return shape[0]


def _to_float32(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".num_batches_tracked"):
            result[name] = tensor.to(torch.int64)
            continue
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{name} in {path} is {tensor.dtype}, expected floating point; save the float model"
            )
        value = tensor.to(torch.float32)
        if not torch.isfinite(value).all():
            raise CheckpointError(
                f"{name} in {path} has values that are NaN, infinite or beyond float32; the training diverged "
                "or the file is damaged: give another checkpoint"
            )
        if name.endswith(".running_var") and (value < 0).any():
            raise CheckpointError(
                f"{name} in {path} has negative variances; the file is damaged: give another checkpoint"
            )
        result[name] = value
    for name in tensors:
        if name.endswith(".running_var"):
            counter = name.removesuffix("running_var") + "num_batches_tracked"
            result.setdefault(counter, torch.tensor(0))
    return result
