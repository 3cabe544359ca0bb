"""The ResNets that can be built, as data: one row a network, nothing else.

Sources of the rows:

- ResNet, plain, CIFAR ResNet: He et al. 2015, Deep Residual Learning (arXiv:1512.03385), tables 1 and 6.
- ResNet v2: He et al. 2016, Identity Mappings (arXiv:1603.05027). Wide ResNet: Zagoruyko and Komodakis 2016
  (arXiv:1605.07146). ResNeXt: Xie et al. 2017 (arXiv:1611.05431). SE: Hu et al. 2018 (arXiv:1709.01507).
  ResNet-D: He et al. 2018, Bag of Tricks (arXiv:1812.01187).
- Names and state-dict keys are torchvision's or timm's where they have the network. Accuracies, file names and
  preprocessing of published weights: torchvision 0.28, `torchvision/models/resnet.py`.
- What is counted rather than chosen (parameters, multiply-adds, activation memory) is in `data/zoo_facts.json`, written
  by `resnet_export.exporter.models.zoo_facts` from the exported graphs.
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

    Attributes:
        name: torchvision's or timm's where they have it.
        block: "basic" has two 3×3 convolutions, "bottleneck" 1×1, 3×3 and 1×1.
        layers: the number of blocks in each stage.
        preact: normalization and ReLU come before each convolution, not after (v2).
        width: channels of the first stage before `expansion`; each further stage doubles them.
        groups: of the 3×3 convolution of a bottleneck.
        group_width: channels of each such group in the first stage (64 in a plain bottleneck of one group).
        stem: "imagenet" is 7×7 with stride 2 and a max pool, "deep" three 3×3 instead of the 7×7 (ResNet-D),
            "cifar" one 3×3 with stride 1.
        shortcut: where the shape changes: a 1×1 convolution ("projection"), the same after an average pool ("pool",
            ResNet-D), zero channels ("pad", option A of the paper), or none anywhere ("none", a plain network).
        stride_in_1x1: a bottleneck strides in its first 1×1, as published in 2015 and in Caffe's, Keras's and MSRA's
            checkpoints, not in its 3×3. The state dict is the same, the logits are not.
        se: squeeze-and-excitation ends each block.
        image_size: height and width that the network was designed for.
        num_classes: of the data set that it was designed for.
        title: torchvision's name of the class of published weights, without "_Weights".
        weights: published ones, oldest first; the last is the default.
    """

    name: str
    block: Literal["basic", "bottleneck"]
    layers: tuple[int, ...]
    preact: bool = False
    width: int = 64
    groups: int = 1
    group_width: int = 64
    stem: Literal["imagenet", "deep", "cifar"] = "imagenet"
    shortcut: Literal["projection", "pool", "pad", "none"] = "projection"
    stride_in_1x1: bool = False
    se: bool = False
    image_size: int = 224
    num_classes: int = 1000
    title: str = ""
    weights: tuple[PublishedWeights, ...] = ()

    @property
    def expansion(self) -> int:
        """Output channels of a block for each channel of its width."""
        return 1 if self.block == "basic" else 4

    @property
    def features(self) -> int:
        """The number of channels that reach the classifier."""
        return (self.width << (len(self.layers) - 1)) * self.expansion


_TINY = {"stem": "cifar", "image_size": 32, "num_classes": 10}
_SMALL, _LARGE = (2, 2, 2, 2), (3, 4, 6, 3)
_LAYERS = {18: _SMALL, 34: _LARGE, 50: _LARGE, 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def _row(name: str, depth: int, *weights: PublishedWeights, title: str = "", **parts: object) -> Architecture:
    """A row with the blocks of the ImageNet ResNet of this depth."""
    block = "basic" if depth < 50 else "bottleneck"
    return Architecture(name, block, _LAYERS[depth], title=title, weights=weights, **parts)  # type: ignore[arg-type]


def _cifar(name: str, depth: int, **parts: object) -> Architecture:
    """A row of three stages with 6n + 2 layers in basic blocks, 9n + 2 in bottlenecks."""
    per_stage = 9 if parts.get("block", "basic") == "bottleneck" else 6
    whole = {"block": "basic", "layers": ((depth - 2) // per_stage,) * 3, "width": 16, **_TINY, **parts}
    return Architecture(name, **whole)  # type: ignore[arg-type]


def _v1(file: str, top1: float, top5: float, resize: int = 256) -> PublishedWeights:
    return PublishedWeights("IMAGENET1K_V1", file, top1, top5, resize)


def _v2(file: str, top1: float, top5: float) -> PublishedWeights:
    return PublishedWeights("IMAGENET1K_V2", file, top1, top5, resize=232)


_ARCHITECTURES = (
    _row("resnet18", 18, _v1("resnet18-f37072fd.pth", 69.758, 89.078), title="ResNet18"),
    _row("resnet34", 34, _v1("resnet34-b627a593.pth", 73.314, 91.420), title="ResNet34"),
    _row(
        "resnet50",
        50,
        _v1("resnet50-0676ba61.pth", 76.130, 92.862),
        _v2("resnet50-11ad3fa6.pth", 80.858, 95.434),
        title="ResNet50",
    ),
    _row(
        "resnet101",
        101,
        _v1("resnet101-63fe2227.pth", 77.374, 93.546),
        _v2("resnet101-cd907fc2.pth", 81.886, 95.780),
        title="ResNet101",
    ),
    _row(
        "resnet152",
        152,
        _v1("resnet152-394f9c45.pth", 78.312, 94.046),
        _v2("resnet152-f82ba261.pth", 82.284, 96.002),
        title="ResNet152",
    ),
    *(_row(f"resnet{depth}_v1", depth, stride_in_1x1=True) for depth in (50, 101, 152)),
    *(_row(f"plain{depth}", depth, shortcut="none") for depth in (18, 34)),
    *(_row(f"resnetv2_{depth}", depth, preact=True) for depth in (18, 34, 50, 101, 152)),
    _row(
        "resnext50_32x4d",
        50,
        _v1("resnext50_32x4d-7cdf4587.pth", 77.618, 93.698),
        _v2("resnext50_32x4d-1a0047aa.pth", 81.198, 95.340),
        title="ResNeXt50_32X4D",
        groups=32,
        group_width=4,
    ),
    _row(
        "resnext101_32x8d",
        101,
        _v1("resnext101_32x8d-8ba56ff5.pth", 79.312, 94.526),
        _v2("resnext101_32x8d-110c445d.pth", 82.834, 96.228),
        title="ResNeXt101_32X8D",
        groups=32,
        group_width=8,
    ),
    _row(
        "resnext101_64x4d",
        101,
        _v1("resnext101_64x4d-173b62eb.pth", 83.246, 96.454, resize=232),
        title="ResNeXt101_64X4D",
        groups=64,
        group_width=4,
    ),
    _row("resnext101_32x4d", 101, groups=32, group_width=4),
    _row(
        "wide_resnet50_2",
        50,
        _v1("wide_resnet50_2-95faca4d.pth", 78.468, 94.086),
        _v2("wide_resnet50_2-9ba9bcbe.pth", 81.602, 95.758),
        title="Wide_ResNet50_2",
        group_width=128,
    ),
    _row(
        "wide_resnet101_2",
        101,
        _v1("wide_resnet101_2-32ee1156.pth", 78.848, 94.284),
        _v2("wide_resnet101_2-d733dc28.pth", 82.510, 96.020),
        title="Wide_ResNet101_2",
        group_width=128,
    ),
    *(_row(f"seresnet{depth}", depth, se=True) for depth in (18, 34, 50, 101, 152)),
    _row("seresnext50_32x4d", 50, se=True, groups=32, group_width=4),
    _row("seresnext101_32x4d", 101, se=True, groups=32, group_width=4),
    _row("seresnext101_32x8d", 101, se=True, groups=32, group_width=8),
    _row("seresnext101_64x4d", 101, se=True, groups=64, group_width=4),
    *(_row(f"resnet{depth}d", depth, stem="deep", shortcut="pool") for depth in (18, 34, 50, 101, 152)),
    *(_cifar(f"resnet{depth}", depth, shortcut="pad") for depth in (20, 32, 44, 56, 110)),
    *(_cifar(f"cifar_resnet{depth}", depth) for depth in (20, 32, 44, 56, 110)),
    _cifar("resnetv2_110", 110, preact=True),
    _cifar("resnetv2_164", 164, preact=True, block="bottleneck"),
    _cifar("wide_resnet28_10", 26, preact=True, width=160),
)

ZOO: Mapping[str, Architecture] = MappingProxyType({row.name: row for row in _ARCHITECTURES})
"""Every architecture by name."""

_DEPTHS = tuple(_LAYERS)


def architecture(depth: int | None = None, arch: str | None = None) -> Architecture:
    """Return the architecture of this name, or the ImageNet ResNet of this depth; both may be given when they agree.

    Raises RequestError when neither is given, either is unknown, or the two disagree.
    """
    if depth is not None and depth not in _DEPTHS:
        raise RequestError(
            f"there is no ResNet of depth {depth}; choose one of {', '.join(map(str, _DEPTHS))}"
        )
    if arch is not None:
        if arch not in ZOO:
            raise RequestError(
                f"there is no architecture {arch!r}; choose one of {', '.join(ZOO)}, or name one of a library, such as "
                "timm:NAME or torchvision:NAME"
            )
        if depth is not None and not _has_depth(ZOO[arch], depth):
            raise RequestError(
                f"architecture {arch!r} does not have depth {depth}, which was asked for as well; give one of the two"
            )
        return ZOO[arch]
    if depth is None:
        raise RequestError("no architecture was named; give a depth, an architecture or a checkpoint")
    return ZOO[f"resnet{depth}"]


def _has_depth(row: Architecture, depth: int) -> bool:
    return row.layers == _LAYERS[depth] and row.block == ("basic" if depth < 50 else "bottleneck")
