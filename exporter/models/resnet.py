"""The eager reference network: torchvision's state-dict keys, torchvision's numerics, nothing else.

He et al. 2015, Deep Residual Learning for Image Recognition (arXiv:1512.03385), with the stride of a
bottleneck in its 3×3 convolution rather than its first 1×1, as torchvision and NVIDIA's "v1.5" have it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from resnet_export.exporter.models.zoo import Architecture
from resnet_export.runtime.progress import Progress, silent

__all__ = ["BasicBlock", "Bottleneck", "ResNet", "build", "initialize"]

# What an untrained classifier answers: _TARGET, shrunk to about half of it by _RIDGE (in units of the mean energy of a
# feature vector), for the photograph of a class, and noise of standard deviation _BACKGROUND for the others. The
# largest of 1000 such noises is about 3.2 deviations, so that most crops are recognized by a wide margin.
_TARGET = 16.0
_RIDGE = 0.3
_BACKGROUND = 0.5


def _conv3x3(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel_size=3, stride=stride, padding=1, bias=False)


def _conv1x1(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel_size=1, stride=stride, bias=False)


def _projection(channels: int, out: int, stride: int) -> nn.Sequential | None:
    """The shortcut where shape changes (option B of section 3.3); identity elsewhere."""
    if channels == out and stride == 1:
        return None
    return nn.Sequential(_conv1x1(channels, out, stride), nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut: [N, C, H, W] → [N, width, H/stride, W/stride]."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(channels, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalization whose output is added to the shortcut."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        result: Tensor = self.relu(x + shortcut)
        return result


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions and a shortcut: [N, C, H, W] → [N, 4·width, H/stride, W/stride]."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = _conv1x1(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv1x1(width, out)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(channels, out, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalization whose output is added to the shortcut."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        result: Tensor = self.relu(x + shortcut)
        return result


class ResNet(nn.Module):
    """Normalized RGB, float32 [N, 3, H, W] → logits, float32 [N, classes]."""

    def __init__(self, architecture: Architecture, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        block = BasicBlock if architecture.block == "basic" else Bottleneck
        self.conv1 = nn.Conv2d(in_channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        e = block.expansion
        self.layer1 = _stage(block, 64, 64, architecture.layers[0], stride=1)
        self.layer2 = _stage(block, 64 * e, 128, architecture.layers[1], stride=2)
        self.layer3 = _stage(block, 128 * e, 256, architecture.layers[2], stride=2)
        self.layer4 = _stage(block, 256 * e, 512, architecture.layers[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(512 * e, num_classes)

    def steps(self) -> list[nn.Module]:
        """The modules that turn [N, 3, H, W] into [N, features, 1, 1] when called one after the other."""
        stem = [self.conv1, self.bn1, self.relu, self.maxpool]  # [N, 64, H/4, W/4]
        return [*stem, *self.layer1, *self.layer2, *self.layer3, *self.layer4, self.avgpool]

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))  # [N, 64, H/2, W/2]
        x = self.maxpool(x)  # [N, 64, H/4, W/4]
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)  # [N, features, H/32, W/32]
        x = torch.flatten(self.avgpool(x), 1)  # [N, features]
        logits: Tensor = self.fc(x)
        return logits


def _stage(
    block: type[BasicBlock | Bottleneck], channels: int, width: int, blocks: int, stride: int
) -> nn.Sequential:
    out = width * block.expansion
    return nn.Sequential(
        block(channels, width, stride), *(block(out, width, stride=1) for _ in range(blocks - 1))
    )


def build(architecture: Architecture, num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """Return the network in eval mode with every parameter zero, to be filled by `load_state_dict` or `initialize`.

    No random number is drawn, and no time spent on an initialization that would be overwritten.
    """
    with torch.device("meta"):
        network = ResNet(architecture, num_classes, in_channels)
    network.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return network.eval()


def initialize(network: ResNet, seed: int, images: Tensor, progress: Progress = silent) -> ResNet:
    """Fill `network` in place with seeded parameters that are numerically sane at every depth, and return it.

    - Convolutions: He et al. 2015, Delving Deep into Rectifiers (arXiv:1502.01852), equation 14 over fan-out.
    - The last normalization of each block has gain 1/√(number of blocks), so that the variance of the residual
      sum stays bounded and rounding errors do not grow with depth; every other gain is 1, every bias 0.
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
        blocks = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
        for block in blocks:
            block.last_norm.weight.fill_(1 / math.sqrt(len(blocks)))
        _fit_classifier(network.fc, _measure(network, images, progress), generator)
    return network.eval()


def _measure(network: ResNet, images: Tensor, progress: Progress) -> Tensor:
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


def _fit_classifier(classifier: nn.Linear, features: Tensor, generator: torch.Generator) -> None:
    """Ridge regression of one-hot targets in its dual form, X'(XX' + λ)⁻¹Y with K × K systems only."""
    classes, count = classifier.out_features, len(features)
    mean = features.double().mean(0)
    x = features.double() - mean  # [K, features]
    energy = x.square().sum() / count
    dual = torch.linalg.solve(x @ x.T + _RIDGE * energy * torch.eye(count), x)
    owner = torch.randperm(classes, generator=generator).repeat(-(-count // classes))[:count]
    weight = torch.randn(classes, classifier.in_features, generator=generator).double()
    weight *= _BACKGROUND / energy.sqrt()
    weight.index_add_(0, owner, _TARGET * dual)
    classifier.weight.copy_(weight)
    classifier.bias.copy_(-weight @ mean)
