"""Hard-to-quantize networks, made from a healthy one without a change of what it computes.

Strong training recipes leave networks whose channels differ by orders of magnitude, whose range a few outlier
channels decide, and whose weights are hidden beneath large constants. In floating point none of that matters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resnet_export.exporter.models.resnet import Block, ResNet


@dataclass(frozen=True)
class Group:
    """Normalizations that write the same channels, and the layers that read them."""

    writers: tuple[nn.BatchNorm2d, ...]
    readers: tuple[nn.Conv2d | nn.Linear, ...]


def groups(network: ResNet) -> Iterator[Group]:
    """Yield every set of channels that can be rescaled without changing the function: inside blocks, and streams."""
    writers, readers = [network.bn1], []
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            assert isinstance(block, Block)
            readers.append(block.conv1)
            if block.downsample is not None:
                readers.append(block.downsample[0])
                yield Group(tuple(writers), tuple(readers))
                writers, readers = [block.downsample[1]], []
            writers.append(block.last_norm)
            inner = [(block.bn1, block.conv2)]
            if block.depth == 3:
                inner.append((block.bn2, block.conv3))
            for norm, conv in inner:
                yield Group((norm,), (conv,))
    yield Group(tuple(writers), (*readers, network.fc))


def rescaled(network: ResNet, factors: Sequence[Tensor]) -> ResNet:
    """Return the network with each group's channels multiplied by float32 [channels] factors, and divided again."""
    changed = copy.deepcopy(network)
    with torch.no_grad():
        for group, factor in zip(groups(changed), factors, strict=True):
            for norm in group.writers:
                norm.weight *= factor
                norm.bias *= factor
            for layer in group.readers:
                layer.weight /= factor.reshape(1, -1, *[1] * (layer.weight.ndim - 2))
    return changed


def with_badly_scaled_channels(network: ResNet, spread: float = 2.0, seed: int = 0) -> ResNet:
    """Return the same function with log-normal channel scales: at `spread` 2 they are a thousand times apart."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [group.writers[0].num_features for group in groups(network)]
    return rescaled(network, [torch.exp(spread * torch.randn(size, generator=generator)) for size in sizes])


def with_outliers(network: ResNet, times: float = 300.0, share: float = 0.02, seed: int = 0) -> ResNet:
    """Return the same function, a `share` of every tensor's channels (at least one) being `times` as large."""
    generator = torch.Generator().manual_seed(seed)
    factors = []
    for group in groups(network):
        size = group.writers[0].num_features
        chosen = torch.randperm(size, generator=generator)[: max(1, round(share * size))]
        factors.append(torch.ones(size).index_fill_(0, chosen, times))
    return rescaled(network, factors)


def with_hidden_weights(network: ResNet, times: float, *, streams: bool = False) -> ResNet:
    """Return a network in which one weight of every filter is `times` as large as any other, and does nothing.

    The first channel of every tensor inside a block is made constant, the weight that reads it in the middle of each
    kernel huge, and the normalization behind takes the product away. What the other weights do is lost to INT8,
    whose step the huge one decides, and equalization can only share the loss with the activations. (The
    channel's own contribution is gone; what remains is as exact as before in floating point.)

    With `streams` the same is done to what the blocks add up, so that no convolution but the first is spared.
    """
    changed = copy.deepcopy(network)
    with torch.no_grad():
        if streams:
            _make_constant(changed.bn1, 1.0)
        for stage in (changed.layer1, changed.layer2, changed.layer3, changed.layer4):
            for block in stage:
                assert isinstance(block, Block)
                if streams:
                    _hide(block.conv1, block.bn1, times)
                    _make_constant(block.last_norm, 0.0)
                    if block.downsample is not None:
                        _hide(block.downsample[0], block.downsample[1], times)
                        _make_constant(block.downsample[1], 1.0)
                _make_constant(block.bn1, 1.0)
                _hide(block.conv2, block.bn2, times)
                if block.depth == 3:
                    _make_constant(block.bn2, 1.0)
                    _hide(block.conv3, block.bn3, times)
    return changed


def _make_constant(norm: nn.BatchNorm2d, value: float) -> None:
    norm.weight[0], norm.bias[0] = 0.0, value


def _hide(conv: nn.Conv2d, behind: nn.BatchNorm2d, times: float) -> None:
    """Let every filter add a huge multiple of its first input, which is 1 everywhere, and take it away again."""
    huge = times * conv.weight.abs().amax()
    middle = conv.weight.shape[2] // 2
    conv.weight[:, 0] = 0.0
    conv.weight[:, 0, middle, middle] = huge
    assert behind.running_mean is not None
    behind.running_mean += huge
