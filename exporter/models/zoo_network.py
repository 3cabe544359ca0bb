"""A network of the zoo, with the weights of a checkpoint, with published ones, or untrained."""

from __future__ import annotations

import torch
from torch import nn

from resnet_export.exporter.models.checkpoint import Checkpoint, load_weights
from resnet_export.exporter.models.classifier import Classifier
from resnet_export.exporter.models.hub import HubFolder
from resnet_export.exporter.models.labels import default_labels, read_labels
from resnet_export.exporter.models.metadata import choose_labels
from resnet_export.exporter.models.photographs import photographs
from resnet_export.exporter.models.preprocessing import assumed, choose_preprocessing, usual_preprocessing
from resnet_export.exporter.models.resnet import build, initialize
from resnet_export.exporter.models.weight_source import locate
from resnet_export.exporter.models.zoo import Architecture
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import ModelInfo, Preprocessing, WeightsInfo
from resnet_export.runtime.preprocess import normalize
from resnet_export.runtime.progress import Progress, silent

__all__ = ["load_zoo_network"]

# Batch statistics of an untrained network are measured at this size or the network's, whichever is smaller:
# half the cost of 224, and the features stay centered at 224.
_STATISTICS_SIZE = 160


def load_zoo_network(
    spec: ModelSpec, progress: Progress = silent, folder: HubFolder | None = None
) -> Classifier:
    """Build the network that `spec` describes, with its weights loaded or, without weights, seeded and untrained.

    `folder` is what `spec.weights` was found in, and says more of them.

    Raises RequestError when the request is inconsistent or its labels do not fit, and CheckpointError when the
    weights cannot be used.
    """
    source = locate(spec)
    if spec.labels is not None:
        read_labels(spec.labels, spec.num_classes)
    row = source.architecture
    if row is not None and source.file is None and source.published is None:
        return _untrained(spec, row, choose_preprocessing(spec, size=row.image_size), progress)
    choose_preprocessing(spec)  # refuse what cannot be before anything is read
    return _trained(spec, load_weights(spec, progress, folder))


def _untrained(
    spec: ModelSpec, architecture: Architecture, preprocessing: Preprocessing, progress: Progress
) -> Classifier:
    num_classes = architecture.num_classes if spec.num_classes is None else spec.num_classes
    labels = default_labels(num_classes) if spec.labels is None else read_labels(spec.labels, num_classes)
    height, width = (min(side, _STATISTICS_SIZE) for side in preprocessing.size)
    channels = preprocessing.channels
    # Not as requested: whatever the mean and standard deviation, a seed means the same network.
    images = normalize(photographs((height, width), channels), usual_preprocessing(channels))
    module = initialize(
        build(architecture, num_classes, channels), spec.seed, torch.from_numpy(images), progress
    )
    weights = WeightsInfo(source="untrained", name="untrained", seed=spec.seed)
    notice = (
        f"no weights were given: {architecture.name} is untrained (seed {spec.seed}), its predictions mean nothing; "
        f"give --weights with a checkpoint{' or --weights imagenet' if architecture.weights else ''}"
    )
    return Classifier(
        module=module,
        info=_describe(module, architecture, num_classes, weights),
        preprocessing=preprocessing,
        labels=labels,
        notices=(notice,),
    )


def _trained(spec: ModelSpec, checkpoint: Checkpoint) -> Classifier:
    architecture, num_classes = checkpoint.architecture, checkpoint.num_classes
    stated = checkpoint.stated
    preprocessing = choose_preprocessing(spec, stated, checkpoint.in_channels, architecture.image_size)
    notices = checkpoint.notices
    labels, said = choose_labels(spec, checkpoint.values, num_classes, ask=checkpoint.published is None)
    notices += said
    if checkpoint.published is None:
        notices += assumed(spec, preprocessing, stated)
    module = build(architecture, num_classes, checkpoint.in_channels)
    module.load_state_dict(checkpoint.state_dict, strict=True)
    return Classifier(
        module=module,
        info=_describe(module, architecture, num_classes, checkpoint.info),
        preprocessing=preprocessing,
        labels=labels,
        notices=notices,
    )


def _describe(
    module: nn.Module, architecture: Architecture, num_classes: int, weights: WeightsInfo
) -> ModelInfo:
    return ModelInfo(
        arch=architecture.name,
        num_classes=num_classes,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        weights=weights,
    )
