"""Batch statistics for a network that was never trained: those of real images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["measure_batch_statistics"]


def measure_batch_statistics(network: nn.Module, images: Tensor) -> None:
    """Set the running statistics of every batch normalization to those of `images`, layer by layer, in one pass.

    Without them the activations of a deep network that was only initialized die out or explode (the logits of an
    EfficientNet-B0 are 1e-15), and nothing is left that a precision could be measured on. Everything else stays: the
    evaluation mode, and the random parameters.

    Args:
        network: any, in evaluation mode; changed in place.
        images: normalized float32 [N, C, H, W], N ≥ 2, not all alike.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average: after one batch, that batch's own statistics
        norm.training = True
    try:
        with torch.no_grad():
            network(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False
