"""The reference network: every row of the zoo, with the state-dict keys and numerics of torchvision or timm.

Rows with normalization after the convolutions have torchvision's keys (`layer1.0.conv1`, `fc`), with timm's for
squeeze-and-excitation and the deep stem; pre-activation rows have timm's (`stages.0.blocks.0.conv1`, `head.fc`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from resnet_export.exporter.models.zoo import Architecture
from resnet_export.runtime.progress import Progress, silent

__all__ = ["Block", "PreActBlock", "PreActResNet", "ResNet", "build", "construct", "initialize"]

# What an untrained classifier answers: _TARGET, shrunk to about half of it by _RIDGE (in units of the mean energy of a
# feature vector), for the photograph of a class, and noise of standard deviation _BACKGROUND for the others. The
# largest of 1000 such noises is about 3.2 deviations, so that most crops are recognized by a wide margin.
_TARGET = 16.0
_RIDGE = 0.3
_BACKGROUND = 0.5


def _conv(channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)


def _convolutions(row: Architecture, channels: int, width: int, stride: int) -> list[nn.Conv2d]:
    """The convolutions of a block, [N, channels, H, W] → [N, width · expansion, H/stride, W/stride]."""
    out = width * row.expansion
    if row.block == "basic":
        return [_conv(channels, out, 3, stride), _conv(out, out, 3)]
    inner = width * row.group_width // 64 * row.groups
    first, second = (stride, 1) if row.stride_in_1x1 else (1, stride)
    return [
        _conv(channels, inner, 1, first),
        _conv(inner, inner, 3, second, row.groups),
        _conv(inner, out, 1),
    ]


class SqueezeExcitation(nn.Module):
    """Channels scaled by a gate that sees their means (arXiv:1709.01507): [N, C, H, W] → the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, (channels // 16 + 4) // 8 * 8)  # timm: a sixteenth, to the nearest multiple of 8
        self.fc1 = nn.Conv2d(channels, inner, 1)
        self.fc2 = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(functional.relu(self.fc1(x.mean((2, 3), keepdim=True))))
        result: Tensor = x * gate.sigmoid()
        return result


class Block(nn.Module):
    """Convolutions, each normalized, plus a shortcut: [N, C, H, W] → [N, width · expansion, H/stride, W/stride]."""

    def __init__(self, row: Architecture, channels: int, width: int, stride: int) -> None:
        super().__init__()
        convolutions = _convolutions(row, channels, width, stride)
        self.out = width * row.expansion
        self.depth, self.stride, self.shortcut = len(convolutions), stride, row.shortcut
        for index, conv in enumerate(convolutions, 1):
            setattr(self, f"conv{index}", conv)
            setattr(self, f"bn{index}", nn.BatchNorm2d(conv.out_channels))
        self.relu = nn.ReLU(inplace=True)
        self.se = SqueezeExcitation(self.out) if row.se else None
        changes = channels != self.out or stride != 1
        self.downsample = _projection(row, channels, self.out, stride) if changes else None

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalization whose output is added to the shortcut."""
        norm: nn.BatchNorm2d = getattr(self, f"bn{self.depth}")
        return norm

    def damp(self, gain: float) -> None:
        """Scale what the block adds to its shortcut from variance 1 to `gain`².

        Without a shortcut each convolution becomes the identity plus `gain` times itself (arXiv:1706.00388).
        """
        if self.shortcut != "none":
            self.last_norm.weight.data.fill_(gain)
            return
        for index in range(1, self.depth + 1):
            weight = getattr(self, f"conv{index}").weight.data
            copies = max(1, len(weight) // weight.shape[1])
            weight.mul_(gain).add_(nn.init.dirac_(torch.empty_like(weight), copies))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        for index in range(1, self.depth + 1):
            x = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(x))
            x = self.relu(x) if index < self.depth else x
        if self.se is not None:
            x = self.se(x)
        if self.shortcut == "pad" and shortcut.shape[1] != self.out:
            border = (self.out - shortcut.shape[1]) // 2
            thinned = shortcut[:, :, :: self.stride, :: self.stride]
            shortcut = functional.pad(thinned, (0, 0, 0, 0, border, border))
        result: Tensor = self.relu(x if self.shortcut == "none" else x + shortcut)
        return result


def _projection(row: Architecture, channels: int, out: int, stride: int) -> nn.Sequential | None:
    if row.shortcut in ("pad", "none"):
        return None
    if row.shortcut == "projection":
        return nn.Sequential(_conv(channels, out, 1, stride), nn.BatchNorm2d(out))
    pool = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, _conv(channels, out, 1), nn.BatchNorm2d(out))


class PreActBlock(nn.Module):
    """Normalization and ReLU before each convolution: [N, C, H, W] → [N, width · expansion, H/stride, W/stride]."""

    def __init__(self, row: Architecture, channels: int, width: int, stride: int) -> None:
        super().__init__()
        convolutions = _convolutions(row, channels, width, stride)
        self.depth = len(convolutions)
        for index, conv in enumerate(convolutions, 1):
            setattr(self, f"norm{index}", nn.BatchNorm2d(conv.in_channels))
            setattr(self, f"conv{index}", conv)
        out = width * row.expansion
        projection: OrderedDict[str, nn.Module] = OrderedDict(conv=_conv(channels, out, 1, stride))
        self.downsample = nn.Sequential(projection) if channels != out or stride != 1 else None

    def damp(self, gain: float) -> None:
        """Scale what the block adds to its shortcut by `gain`."""
        getattr(self, f"conv{self.depth}").weight.data.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        for index in range(1, self.depth + 1):
            x = functional.relu(getattr(self, f"norm{index}")(x))
            if index == 1 and self.downsample is not None:
                shortcut = self.downsample(x)
            x = getattr(self, f"conv{index}")(x)
        return x + shortcut


def _stages(
    row: Architecture, block: type[Block] | type[PreActBlock], channels: int
) -> Iterator[list[nn.Module]]:
    for index, count in enumerate(row.layers):
        width = row.width * 2**index
        stage: list[nn.Module] = []
        for position in range(count):
            stage.append(block(row, channels, width, 2 if index and not position else 1))
            channels = width * row.expansion
        yield stage


def _stem_width(row: Architecture) -> int:
    return 16 if row.stem == "cifar" else 64


def _stem_conv(row: Architecture, in_channels: int) -> nn.Module:
    """[N, in_channels, H, W] → [N, 64, H/2, W/2], or [N, 16, H, W] of a CIFAR network."""
    if row.stem == "cifar":
        return _conv(in_channels, 16, 3)
    if row.stem == "imagenet":
        return _conv(in_channels, 64, 7, 2)
    return nn.Sequential(
        *(_conv(in_channels, 32, 3, 2), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
        *(_conv(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU(inplace=True)),
        _conv(32, 64, 3),
    )


def _stem_pool(row: Architecture) -> nn.Module:
    return nn.Identity() if row.stem == "cifar" else nn.MaxPool2d(kernel_size=3, stride=2, padding=1)


class ResNet(nn.Module):
    """Normalized images, float32 [N, C, H, W] → logits, float32 [N, classes]."""

    def __init__(self, row: Architecture, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = _stem_conv(row, in_channels)
        self.bn1 = nn.BatchNorm2d(_stem_width(row))
        self.relu = nn.ReLU(inplace=True)
        if row.stem != "cifar":
            self.maxpool = _stem_pool(row)
        for index, blocks in enumerate(_stages(row, Block, _stem_width(row)), 1):
            setattr(self, f"layer{index}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(row.features, num_classes)

    @property
    def classifier(self) -> nn.Linear:
        """The last layer."""
        return self.fc

    def stages(self) -> list[nn.Sequential]:
        """The stages, in order."""
        return [module for name, module in self.named_children() if name.startswith("layer")]  # type: ignore[misc]

    def steps(self) -> list[nn.Module]:
        """The modules that turn an image into [N, features, 1, 1] when called one after the other."""
        stem = [self.conv1, self.bn1, self.relu, *([self.maxpool] if hasattr(self, "maxpool") else [])]
        return [*stem, *(block for stage in self.stages() for block in stage), self.avgpool]

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        if hasattr(self, "maxpool"):
            x = self.maxpool(x)
        # Called as modules: the TorchScript exporter names nodes after what was called.
        for stage in self.stages():
            x = stage(x)
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


class _Stage(nn.Module):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.blocks(x)
        return result


class _Head(nn.Module):
    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Conv2d(features, num_classes, 1)


class PreActResNet(nn.Module):
    """Normalized images, float32 [N, C, H, W] → logits, float32 [N, classes]; the classifier is a 1×1 convolution."""

    def __init__(self, row: Architecture, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=_stem_conv(row, in_channels), pool=_stem_pool(row)))
        self.stages = nn.Sequential(*map(_Stage, _stages(row, PreActBlock, _stem_width(row))))
        self.norm = nn.BatchNorm2d(row.features)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.head = _Head(row.features, num_classes)

    @property
    def classifier(self) -> nn.Conv2d:
        """The last layer."""
        return self.head.fc

    def steps(self) -> list[nn.Module]:
        """The modules that turn an image into [N, features, 1, 1] when called one after the other."""
        blocks = [
            block for stage in self.stages.children() for block in stage.get_submodule("blocks").children()
        ]
        return [self.stem, *blocks, self.norm, self.relu, self.avgpool]

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.relu(self.norm(self.stages(self.stem(x)))))
        logits: Tensor = self.head.fc(x).flatten(1)
        return logits


Network = ResNet | PreActResNet
"""What `build` returns."""


def construct(row: Architecture, num_classes: int, in_channels: int = 3) -> Network:
    """Return the network on the meta device: names and shapes, no values, and no random number drawn."""
    with torch.device("meta"):
        network = (PreActResNet if row.preact else ResNet)(row, num_classes, in_channels)
    return network.eval()


def build(row: Architecture, num_classes: int | None = None, in_channels: int = 3) -> Network:
    """Return the network in eval mode with every parameter zero, to be filled by `load_state_dict` or `initialize`.

    `num_classes` defaults to the row's. No time is spent on an initialization that would be overwritten.
    """
    network = construct(row, row.num_classes if num_classes is None else num_classes, in_channels)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return network


def initialize(network: Network, seed: int, images: Tensor, progress: Progress = silent) -> Network:
    """Fill `network` in place with seeded parameters that are numerically sane at every depth, and return it.

    - Convolutions: He et al. 2015, Delving Deep into Rectifiers (arXiv:1502.01852), equation 14 over fan-out.
    - What a block adds to its shortcut is scaled by 1/√(number of blocks), through the gain of its last
      normalization or, with pre-activation, its last convolution: the variance of the residual sum stays bounded and
      rounding errors do not grow with depth. Every other gain is 1, every bias 0.
    - Batch statistics are those of `images`, layer by layer, from one forward pass.
    - Classifier: the ridge regression onto the features of `images` in which each image stands for a class
      drawn by `seed`, plus Gaussian noise for every class. A purely random classifier answers natural images
      with a few classes by razor-thin margins, and agreement between two precisions then measures noise.

    Args:
        network: any network of `build`; it is left in eval mode.
        seed: decides every random number. The global random state is neither read nor changed.
        images: normalized float32 [K, C, H, W], at least two and not all alike.
        progress: told how many blocks have their statistics.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
        blocks = [module for module in network.modules() if isinstance(module, Block | PreActBlock)]
        for block in blocks:
            block.damp(1 / math.sqrt(len(blocks)))
        _fit_classifier(network.classifier, _measure(network, images, progress), generator)
    return network.eval()


def _measure(network: Network, images: Tensor, progress: Progress) -> Tensor:
    """Set the running statistics to those of `images`; return the features, float32 [K, features]."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a cumulative average: after one batch, that batch's own statistics
    network.train()
    x = images.contiguous(memory_format=torch.channels_last)
    for step in progress(network.steps(), "batch statistics"):
        x = step(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return x.flatten(1)


def _fit_classifier(classifier: nn.Linear | nn.Conv2d, features: Tensor, generator: torch.Generator) -> None:
    """Ridge regression of one-hot targets in its dual form, X'(XX' + λ)⁻¹Y with K × K systems only."""
    classes, count = len(classifier.weight), len(features)
    mean = features.double().mean(0)
    x = features.double() - mean  # [K, features]
    energy = x.square().sum() / count
    dual = torch.linalg.solve(x @ x.T + _RIDGE * energy * torch.eye(count), x)
    owner = torch.randperm(classes, generator=generator).repeat(-(-count // classes))[:count]
    weight = torch.randn(classes, features.shape[1], generator=generator).double()
    weight *= _BACKGROUND / energy.sqrt()
    weight.index_add_(0, owner, _TARGET * dual)
    classifier.weight.copy_(weight.reshape(classifier.weight.shape))
    classifier.bias.copy_(-weight @ mean)  # type: ignore[union-attr]
