"""The architectures that can be exported, as data.

Layers per stage: He et al. 2015, Deep Residual Learning (arXiv:1512.03385), table 1. Parameters,
multiply-adds, accuracies, file names and preprocessing: torchvision 0.28, `torchvision/models/resnet.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from resnet_export.runtime.errors import RequestError

__all__ = ["ZOO", "Architecture", "PublishedWeights", "architecture"]

_HOST = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class PublishedWeights:
    """One set of trained ImageNet parameters, as torchvision publishes it.

    `file` ends in the first eight hex digits of its own sha256. `top1` and `top5` are percentages on the
    ImageNet-1K validation set with the shorter side resized to `resize` and a central crop of `crop` pixels.
    """

    name: str
    file: str
    top1: float
    top5: float
    resize: int
    crop: int = 224

    @property
    def url(self) -> str:
        """Where the file is downloaded from."""
        return _HOST + self.file

    @property
    def sha256_prefix(self) -> str:
        """The first hex digits of the file's sha256."""
        return self.file.removesuffix(".pth").rpartition("-")[2]


@dataclass(frozen=True)
class Architecture:
    """One network of the family.

    `layers` is the number of blocks in each stage; `parameters` and `gmacs` (10⁹ multiply-adds for one
    224 × 224 image) are those of the 1000-class network. `weights` is oldest first: the last is the default.
    """

    name: str
    depth: int
    block: Literal["basic", "bottleneck"]
    layers: tuple[int, int, int, int]
    parameters: int
    gmacs: float
    title: str
    weights: tuple[PublishedWeights, ...]

    @property
    def blocks(self) -> int:
        """The number of residual blocks."""
        return sum(self.layers)

    @property
    def features(self) -> int:
        """The number of channels that reach the classifier."""
        return 512 if self.block == "basic" else 2048


def _v1(file: str, top1: float, top5: float) -> PublishedWeights:
    return PublishedWeights("IMAGENET1K_V1", file, top1, top5, resize=256)


def _v2(file: str, top1: float, top5: float) -> PublishedWeights:
    return PublishedWeights("IMAGENET1K_V2", file, top1, top5, resize=232)


_ARCHITECTURES = (
    Architecture(
        name="resnet18",
        depth=18,
        block="basic",
        layers=(2, 2, 2, 2),
        parameters=11_689_512,
        gmacs=1.814,
        title="ResNet18",
        weights=(_v1("resnet18-f37072fd.pth", 69.758, 89.078),),
    ),
    Architecture(
        name="resnet34",
        depth=34,
        block="basic",
        layers=(3, 4, 6, 3),
        parameters=21_797_672,
        gmacs=3.664,
        title="ResNet34",
        weights=(_v1("resnet34-b627a593.pth", 73.314, 91.420),),
    ),
    Architecture(
        name="resnet50",
        depth=50,
        block="bottleneck",
        layers=(3, 4, 6, 3),
        parameters=25_557_032,
        gmacs=4.089,
        title="ResNet50",
        weights=(
            _v1("resnet50-0676ba61.pth", 76.130, 92.862),
            _v2("resnet50-11ad3fa6.pth", 80.858, 95.434),
        ),
    ),
    Architecture(
        name="resnet101",
        depth=101,
        block="bottleneck",
        layers=(3, 4, 23, 3),
        parameters=44_549_160,
        gmacs=7.801,
        title="ResNet101",
        weights=(
            _v1("resnet101-63fe2227.pth", 77.374, 93.546),
            _v2("resnet101-cd907fc2.pth", 81.886, 95.780),
        ),
    ),
    Architecture(
        name="resnet152",
        depth=152,
        block="bottleneck",
        layers=(3, 8, 36, 3),
        parameters=60_192_808,
        gmacs=11.514,
        title="ResNet152",
        weights=(
            _v1("resnet152-394f9c45.pth", 78.312, 94.046),
            _v2("resnet152-f82ba261.pth", 82.284, 96.002),
        ),
    ),
)

ZOO: Mapping[str, Architecture] = MappingProxyType({one.name: one for one in _ARCHITECTURES})
"""Every architecture by name, shallowest first."""


def architecture(depth: int | None = None, arch: str | None = None) -> Architecture:
    """Return the architecture that has this depth, this name, or both.

    Raises RequestError when neither is given, either is unknown, or the two disagree.
    """
    if arch is not None:
        if arch not in ZOO:
            raise RequestError(f"there is no architecture {arch!r}; choose one of {', '.join(ZOO)}")
        if depth is not None and ZOO[arch].depth != depth:
            raise RequestError(
                f"architecture {arch!r} has depth {ZOO[arch].depth}, but depth {depth} was asked for; give one"
            )
        return ZOO[arch]
    if depth is None:
        raise RequestError("no architecture was named; give a depth, an architecture or a checkpoint")
    for one in ZOO.values():
        if one.depth == depth:
            return one
    depths = ", ".join(str(one.depth) for one in ZOO.values())
    raise RequestError(f"there is no ResNet of depth {depth}; choose one of {depths}")
