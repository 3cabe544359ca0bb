"""Batch normalizations of a network that was never trained: with the statistics of real images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["initialize_normalizations"]

_SHIFT = 0.5


def initialize_normalizations(network: nn.Module, images: Tensor) -> None:
    """Give every batch normalization the statistics of `images`, layer by layer, in one pass, and a shift of 0.5.

    Without statistics the activations of a deep network that was only initialized die out or explode (the logits of an
    EfficientNet-B0 are 1e-15). With them alone, errors grow with every layer: normalized values around the kink of a
    nonlinearity multiply small differences (Yang et al. 2019, "A Mean Field Theory of Batch Normalization",
    arXiv:1902.08129), and fp16 would cost that network 8 % of its logits, with the shift 0.5 %. Either way nothing
    would be left to measure a precision on. Everything else stays: the evaluation mode, and the random parameters.

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
            for norm in norms:
                if norm.affine:
                    norm.bias.fill_(_SHIFT)
            network(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.training = False
