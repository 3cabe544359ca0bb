"""From the names that people's checkpoints have to those of the reference network.

A scheme is a row: patterns that rewrite the core of a name, whatever prefix a wrapper left before it. The prefix of
most tensors is the network's; tensors without it are the classifier or belong to something else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

__all__ = ["SCHEMES", "Scheme", "Translation", "translate"]

Rewrite = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Scheme:
    """One way to name the tensors of a ResNet.

    Attributes:
        title: whose names they are.
        rules: pattern of a whole core name, and what the reference calls it; the first that fits decides.
        stride_in_1x1: checkpoints with these names have the stride in the first 1×1 convolution.
    """

    title: str
    rules: tuple[tuple[str, Rewrite], ...]
    stride_in_1x1: bool = False

    @property
    def compiled(self) -> tuple[tuple[re.Pattern[str], Rewrite], ...]:
        """The rules, to be matched against the end of a name that begins with it or behind a dot."""
        return _compile(self.rules)


@cache
def _compile(rules: tuple[tuple[str, Rewrite], ...]) -> tuple[tuple[re.Pattern[str], Rewrite], ...]:
    return tuple((re.compile(rf"(?P<prefix>(?:.*?\.)??){pattern}"), to) for pattern, to in rules)


_LEAF = r"(?P<leaf>weight|bias|running_mean|running_var|num_batches_tracked)"
_KERAS_LEAVES = {
    "kernel": "kernel",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _keras(match: re.Match[str]) -> str:
    stage, block, part, kind = int(match["stage"]) - 1, int(match["block"]) - 1, match["part"], match["kind"]
    leaf = _KERAS_LEAVES.get(match["leaf"], match["leaf"])
    if part == "0":
        return f"layer{stage}.{block}.downsample.{'1' if kind == 'bn' else '0'}.{leaf}"
    return f"layer{stage}.{block}.{kind}{part}.{leaf}"


def _keras_stem(match: re.Match[str]) -> str:
    leaf = _KERAS_LEAVES.get(match["leaf"], match["leaf"])
    return f"{match['kind']}1.{leaf}"


def _transformers(match: re.Match[str]) -> str:
    kind = {"convolution": "conv", "normalization": "bn"}[match["kind"]]
    head = f"layer{int(match['stage']) + 1}.{match['block']}"
    if match["part"] == "shortcut":
        return f"{head}.downsample.{0 if kind == 'conv' else 1}.{match['leaf']}"
    return f"{head}.{kind}{int(match['part'].split('.')[1]) + 1}.{match['leaf']}"


def _children(match: re.Match[str]) -> str:
    return f"layer{int(match['stage']) - 3}.{match['rest']}"


def _detectron(match: re.Match[str]) -> str:
    head = f"layer{int(match['stage']) - 1}.{match['block']}"
    norm, leaf = match["norm"] is not None, match["leaf"]
    if match["part"] == "shortcut":
        return f"{head}.downsample.{1 if norm else 0}.{leaf}"
    return f"{head}.{'bn' if norm else 'conv'}{match['part'][-1]}.{leaf}"


def _wide(match: re.Match[str]) -> str:
    part = {"bn": "norm", "conv": "conv"}.get(match["part"][:-1])
    name = "downsample.conv" if part is None else f"{part}{match['part'][-1]}"
    return f"stages.{int(match['stage']) - 1}.blocks.{match['block']}.{name}.{match['leaf']}"


_KERAS_LEAF = r"(?P<leaf>[a-z_]+?)(?::0)?"
_BLOCK = r"layer(?P<stage>\d)\.(?P<block>\d+)\."
_SHORTCUT = r"(?:shortcut|downsample|skip|projection)"
# What torch.compile, FSDP and activation checkpointing leave in the middle of a name.
_TRANSPARENT = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})

SCHEMES = (
    Scheme(
        "torchvision, timm, mmpretrain",
        (
            (
                rf"{_BLOCK}(?:se|se_module)\.fc(?P<part>[12])\.{_LEAF}",
                r"layer\g<stage>.\g<block>.se.fc\g<part>.\g<leaf>",
            ),
            (
                rf"{_BLOCK}(?:se|se_module)\.fc\.(?P<part>[02])\.{_LEAF}",
                lambda m: f"layer{m['stage']}.{m['block']}.se.fc{int(m['part']) // 2 + 1}.{m['leaf']}",
            ),
            (
                rf"{_BLOCK}{_SHORTCUT}\.(?P<part>\d)\.{_LEAF}",
                r"layer\g<stage>.\g<block>.downsample.\g<part>.\g<leaf>",
            ),
            (rf"{_BLOCK}{_SHORTCUT}\.conv\.{_LEAF}", r"layer\g<stage>.\g<block>.downsample.0.\g<leaf>"),
            (
                rf"{_BLOCK}{_SHORTCUT}\.(?:bn|norm)\.{_LEAF}",
                r"layer\g<stage>.\g<block>.downsample.1.\g<leaf>",
            ),
            (rf"{_BLOCK}(?P<rest>.+)", r"layer\g<stage>.\g<block>.\g<rest>"),
            # mmpretrain's deep stem (ResNetV1d) is one Sequential; its last normalization is the reference's bn1.
            (rf"stem\.7\.{_LEAF}", r"bn1.\g<leaf>"),
            (rf"stem\.(?P<part>[01346])\.{_LEAF}", r"conv1.\g<part>.\g<leaf>"),
            (rf"conv1\.(?P<part>\d)\.{_LEAF}", r"conv1.\g<part>.\g<leaf>"),
            (rf"(?P<part>conv1|bn1)\.{_LEAF}", r"\g<part>.\g<leaf>"),
        ),
    ),
    Scheme(
        "transformers' ResNetForImageClassification",
        (
            (rf"(?:resnet\.)?embedder\.embedder\.convolution\.{_LEAF}", r"conv1.\g<leaf>"),
            (rf"(?:resnet\.)?embedder\.embedder\.normalization\.{_LEAF}", r"bn1.\g<leaf>"),
            (
                r"(?:resnet\.)?encoder\.stages\.(?P<stage>\d)\.layers\.(?P<block>\d+)\."
                rf"(?P<part>shortcut|layer\.\d)\.(?P<kind>convolution|normalization)\.{_LEAF}",
                _transformers,
            ),
        ),
    ),
    Scheme(
        "Keras",
        (
            (
                r"(?:conv(?P<stage>[2-5])_block(?P<block>\d+)_(?P<part>[0-3])_(?P<kind>conv|bn))"
                rf"(?:[./]conv\d_block\d+_\d_(?:conv|bn))?[./]{_KERAS_LEAF}",
                _keras,
            ),
            (rf"conv1_(?P<kind>conv|bn)(?:[./]conv1_(?:conv|bn))?[./]{_KERAS_LEAF}", _keras_stem),
        ),
        stride_in_1x1=True,
    ),
    Scheme(
        "Detectron2",
        (
            (rf"stem\.conv1\.norm\.{_LEAF}", r"bn1.\g<leaf>"),
            (rf"stem\.conv1\.{_LEAF}", r"conv1.\g<leaf>"),
            (
                rf"res(?P<stage>[2-5])\.(?P<block>\d+)\.(?P<part>shortcut|conv[1-3])\.(?P<norm>norm\.)?{_LEAF}",
                _detectron,
            ),
        ),
        stride_in_1x1=True,
    ),
    Scheme(
        "torch.nn.Sequential(*network.children())",
        (
            # First: a shortcut's own tensors end like those of the stem, "5.0.downsample.0.weight".
            (r"(?P<stage>[4-7])\.(?P<rest>\d+\.(?:conv|bn|downsample|se).+)", _children),
            (rf"0\.{_LEAF}", r"conv1.\g<leaf>"),
            (rf"1\.{_LEAF}", r"bn1.\g<leaf>"),
        ),
    ),
    Scheme(
        "timm's pre-activation ResNet",
        (
            (rf"stem\.conv\.{_LEAF}", r"stem.conv.\g<leaf>"),
            (
                rf"stages\.(?P<stage>\d)\.blocks\.(?P<block>\d+)\.(?P<part>(?:norm|conv)\d|downsample\.conv)\.{_LEAF}",
                r"stages.\g<stage>.blocks.\g<block>.\g<part>.\g<leaf>",
            ),
            (rf"norm\.{_LEAF}", r"norm.\g<leaf>"),
        ),
    ),
    Scheme(
        "Wide ResNets of CIFAR",
        (
            (
                r"block(?P<stage>[1-3])\.layer\.(?P<block>\d+)\."
                rf"(?P<part>bn[12]|conv[12]|conv_?[sS]hortcut)\.{_LEAF}",
                _wide,
            ),
            (rf"conv1\.{_LEAF}", r"stem.conv.\g<leaf>"),
            (rf"bn1\.{_LEAF}", r"norm.\g<leaf>"),
        ),
    ),
)
"""Naming schemes, the most usual first."""


@dataclass(frozen=True)
class Translation:
    """Names of a checkpoint under one scheme and one prefix.

    Attributes:
        scheme: whose names they are.
        prefix: what stands before each, "" or ending in a dot.
        names: the reference's name of each tensor that has one → its name in the file.
        others: names in the file that the scheme says nothing of, or that stand outside the prefix.
    """

    scheme: Scheme
    prefix: str
    names: Mapping[str, str]
    others: tuple[str, ...]


def translate(found: Iterable[str]) -> list[Translation]:
    """Return the translations of `found` that name the most tensors, best first; several where prefixes tie.

    A name that two tensors would get ("module.conv1" beside "conv1") stays with the prefix that has more.
    """
    results = []
    found = tuple(found)
    for scheme in SCHEMES:
        by_prefix: dict[str, dict[str, str]] = {}
        for key in found:
            plain = _uncompiled(key)
            for pattern, to in scheme.compiled:
                match = pattern.fullmatch(plain)
                if match is not None:
                    name = to(match) if callable(to) else match.expand(to)
                    by_prefix.setdefault(match["prefix"], {}).setdefault(name, key)
                    break
        sizes = Counter({prefix: len(names) for prefix, names in by_prefix.items()})
        for prefix, size in sizes.most_common():
            if size == sizes.most_common(1)[0][1]:
                taken = set(by_prefix[prefix].values())
                others = tuple(key for key in found if key not in taken)
                results.append(Translation(scheme, prefix, by_prefix[prefix], others))
    return sorted(results, key=lambda one: -len(one.names))


def _uncompiled(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _TRANSPARENT)
