"""From a ModelSpec's weights to a complete, checked, float32 state dict: all of it fits, or none is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnet_export.exporter.models.download import fetch
from resnet_export.exporter.models.hub import HubFolder
from resnet_export.exporter.models.key_map import read_key_map
from resnet_export.exporter.models.key_report import Match, recognize
from resnet_export.exporter.models.metadata import architecture_name
from resnet_export.exporter.models.parametrizations import plain_weights
from resnet_export.exporter.models.state_dict import choose_set, read_checkpoint, require_dense
from resnet_export.exporter.models.stated import Stated, stated_by
from resnet_export.exporter.models.weight_source import held_still, locate, printable, sha256_of
from resnet_export.exporter.models.zoo import Architecture, PublishedWeights
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import WeightsInfo
from resnet_export.runtime.errors import CheckpointError, RequestError
from resnet_export.runtime.progress import Progress, silent

__all__ = ["Checkpoint", "load_weights", "read_weights", "weights_info"]

_NORM_EPSILON = 1e-5  # of nn.BatchNorm2d


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Parameters that fit `architecture` with `num_classes` classes, under the reference network's names.

    `state_dict` is complete, and float32 apart from the step counters. `published` is set for torchvision's
    own weights; it knows the preprocessing that they were evaluated with. `values` are what stands beside the tensors.
    """

    state_dict: Mapping[str, Tensor]
    architecture: Architecture
    num_classes: int
    info: WeightsInfo
    published: PublishedWeights | None = None
    notices: tuple[str, ...] = ()
    in_channels: int = 3
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stated(self) -> Stated:
        """What is known of the images that the weights were made for."""
        if self.published is None:
            return stated_by(self.values)
        return Stated("torchvision's weights", crop=self.published.crop, resize=self.published.resize)


def load_weights(spec: ModelSpec, progress: Progress = silent, folder: HubFolder | None = None) -> Checkpoint:
    """Load what `spec.weights` names: a checkpoint file, "imagenet", or a torchvision weight name.

    `folder` is what the file was found in, and says more of it.

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
    with held_still(path):
        sha256 = _hash(path, source.published)
        tensors, values, notices, prefix = read_weights(path, spec)
        values = {**(folder.values if folder is not None else {}), **values}
        match = recognize(
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            path=path,
            prefix=prefix,
            asked=source.architecture,
            named=None if source.published is not None else architecture_name(values),
        )
        if spec.num_classes not in (None, match.num_classes):
            raise CheckpointError(
                f"the classifier in {path} has {match.num_classes} classes, but {spec.num_classes} were asked for; "
                f"leave the number out, or give a checkpoint with {spec.num_classes} classes"
            )
        state_dict = _convert(tensors, match, path)
    if source.published is None:
        info = weights_info(path, sha256, folder)
    else:
        name = f"{match.row.title}_Weights.{source.published.name}"
        info = WeightsInfo(source="torchvision", name=name, sha256=sha256)
    return Checkpoint(
        state_dict=state_dict,
        architecture=match.row,
        num_classes=match.num_classes,
        info=info,
        published=source.published,
        notices=(*notices, *match.notices),
        in_channels=match.in_channels,
        values=values,
    )


def read_weights(
    path: Path, spec: ModelSpec
) -> tuple[dict[str, Tensor], Mapping[str, Any], tuple[str, ...], str]:
    """Return plain weights by the file's names, the values beside them, notices, and the prefix that was asked for."""
    file = read_checkpoint(path)
    chosen, notices, prefix = choose_set(file, path, spec.checkpoint_key)
    tensors, said = plain_weights(require_dense(chosen.tensors, path))
    if spec.key_map is not None:
        tensors = read_key_map(spec.key_map).rename(tensors, path)
    return tensors, file.values, (*notices, *said), prefix


def weights_info(path: Path, sha256: str, folder: HubFolder | None = None) -> WeightsInfo:
    """Return what a manifest says of a file of weights, which may stand in a folder of the hub's form."""
    if folder is None:
        return WeightsInfo(source="file", name=printable(path.name), sha256=sha256)
    if folder.revision is None:
        return WeightsInfo(source="file", name=printable(f"{folder.name}/{path.name}"), sha256=sha256)
    return WeightsInfo(source="hub", name=folder.name, sha256=sha256, revision=folder.revision)


def _hash(path: Path, published: PublishedWeights | None) -> str:
    sha256 = sha256_of(path)
    if published is not None and not sha256.startswith(published.sha256_prefix):
        raise CheckpointError(
            f"{path} has sha256 {sha256[:8]}…, expected {published.sha256_prefix}…; delete it, and it will be "
            "downloaded again"
        )
    return sha256


def _convert(tensors: Mapping[str, Tensor], match: Match, path: Path) -> dict[str, Tensor]:
    """Return the state dict of the reference network: kernels transposed, biases of convolutions in their norms."""
    values: dict[str, Tensor] = {}
    for name, key in match.names.items():
        if name.endswith("num_batches_tracked"):
            values[name] = tensors[key].to(torch.int64).reshape(())
            continue
        value = _float32(tensors[key], key, path)
        if name.endswith(".running_var") and (value < 0).any():
            raise CheckpointError(
                f"{key} in {path} has negative variances; the file is damaged: give another checkpoint"
            )
        if name.endswith(".kernel"):
            name, value = name.removesuffix("kernel") + "weight", value.permute(3, 2, 0, 1)
        elif "kernel" in key:
            value = value.T  # a Keras Dense is [features, classes]
        values[name] = value
    with torch.no_grad():
        for conv, norm in match.biased.items():
            bias = values.pop(f"{conv}.bias")
            if match.folded:
                values |= {
                    f"{norm}.weight": torch.ones_like(bias),
                    f"{norm}.bias": bias,
                    f"{norm}.running_mean": torch.zeros_like(bias),
                    f"{norm}.running_var": torch.full_like(bias, 1 - _NORM_EPSILON),
                }
            else:
                values[f"{norm}.running_mean"] = values[f"{norm}.running_mean"] - bias
    weight, _ = match.head
    if match.row.preact:
        values[weight] = values[weight].reshape(match.num_classes, -1, 1, 1)
    else:
        values[weight] = values[weight].flatten(1)
    for name in [name for name in values if name.endswith(".running_var")]:
        values.setdefault(name.removesuffix("running_var") + "num_batches_tracked", torch.tensor(0))
    # Copied, since they may be mapped from the file, which training may write to again.
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in values.items()}


def _float32(tensor: Tensor, name: str, path: Path) -> Tensor:
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
    return value
