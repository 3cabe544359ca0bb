"""From an nn.Module at hand to a Classifier: any network that turns images into logits."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from resnet_export.exporter.models.classifier import Classifier
from resnet_export.exporter.models.metadata import choose_labels
from resnet_export.exporter.models.preprocessing import NOTHING, assumed, choose_preprocessing
from resnet_export.exporter.models.stated import Stated
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import LOGITS, ModelInfo, WeightsInfo
from resnet_export.runtime.errors import RequestError

__all__ = ["load_module"]

# What torch puts around a network and that computes nothing itself.
_WRAPPERS = ("OptimizedModule", "DataParallel", "DistributedDataParallel")


def load_module(
    spec: ModelSpec, stated: Stated = NOTHING, values: Mapping[str, Any] = MappingProxyType({})
) -> Classifier:
    """Return the classifier that `spec.module` is: a copy in float32, on the CPU, in evaluation mode.

    `stated` and `values` are what its source says of its images, and beside its weights.

    The module takes normalized images float32 [N, C, H, W], and returns logits [N, classes], or a dictionary of float
    outputs with "logits" first. A module that has no `forward` of its own, as a training loop's may have none,
    stands for the one module that it holds. Raises RequestError when it is none of these, or the request contradicts
    it.
    """
    preprocessing = choose_preprocessing(spec, stated)
    side = preprocessing.crop
    height, width = (side, side) if isinstance(side, int) else side
    example = torch.zeros(2, preprocessing.channels, height, width)
    network = _evaluated(spec.module)
    try:
        with torch.inference_mode():
            try:
                found = network(example)
            except NotImplementedError:  # what nn.Module.forward raises where nobody defined it
                network = _wrapped(network)
                found = network(example)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"the module {type(spec.module).__name__} does not run on images of shape {list(example.shape)} "
            f"({type(error).__name__}: {str(error).partition(chr(10))[0] or 'no message'}); give image_size or "
            "input_channels, or a module that takes [N, C, H, W]"
        ) from error
    logits = found.get(LOGITS) if isinstance(found, dict) else found
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(example):
        shape = f"shape {list(logits.shape)}" if isinstance(logits, torch.Tensor) else type(found).__name__
        raise RequestError(
            f"the module {type(spec.module).__name__} returns {shape}, expected logits [N, classes], or a dictionary "
            f"with {LOGITS!r}; wrap it in a module that returns one of them"
        )
    classes = logits.shape[1]
    if spec.num_classes not in (None, classes):
        raise RequestError(
            f"the module has {classes} classes, but {spec.num_classes} were asked for; leave it out"
        )
    labels, said = choose_labels(spec, values, classes, ask=False)
    name = type(network).__name__
    return Classifier(
        module=network,
        info=ModelInfo(
            arch=name.lower(),
            num_classes=classes,
            parameters=max(1, sum(parameter.numel() for parameter in network.parameters())),
            weights=WeightsInfo(source="module", name=name, sha256=_sha256(network)),
        ),
        preprocessing=preprocessing,
        labels=labels,
        notices=(*said, *assumed(spec, preprocessing, stated)),
    )


def _evaluated(module: object) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise RequestError(f"the model is a {type(module).__name__}, expected a ModelSpec or an nn.Module")
    while type(module).__name__ in _WRAPPERS:
        module = next(module.children())
    # What torch.nn.utils.weight_norm computed last is part of a graph of gradients, and cannot be copied as such.
    computed = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    ]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on its own programs
            network = copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})
    except Exception as error:
        raise RequestError(
            f"the module {type(module).__name__} cannot be copied ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}); give the network alone, without what its training holds"
        ) from error
    return network.to(device="cpu", dtype=torch.float32).eval().requires_grad_(False)


def _wrapped(module: nn.Module) -> nn.Module:
    """Return the one module that a module without a `forward` of its own holds, besides losses and metrics."""
    held = [child for child in module.children() if any(True for _ in child.parameters())]
    if len(held) != 1:
        raise RequestError(
            f"{type(module).__name__} has no forward, and holds {len(held)} modules with parameters, expected one; "
            "give the network itself"
        )
    return held[0]


def _sha256(network: nn.Module) -> str:
    """Return the hash of the names and values of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
