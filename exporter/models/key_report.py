"""Whether named tensors fit an architecture, and which architecture they are of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch

from resnet_export.exporter.models.resnet import ResNet
from resnet_export.exporter.models.zoo import ZOO, Architecture

__all__ = ["KeyReport", "Shapes", "compare", "describe_structure", "infer"]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

# Counts training steps; inference does not read it, and checkpoints older than PyTorch 0.4.1 lack it.
_OPTIONAL = ".num_batches_tracked"
_BLOCK = re.compile(r"layer([1-4])\.(\d{1,4})\.")
_SHOWN = 4


@dataclass(frozen=True)
class KeyReport:
    """How a state dict differs from the one that the network expects; empty when it fits.

    `missing` and `unexpected` are names; `mis_shaped` are sentences: "fc.weight is [10, 512], expected [1000, 512]".
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mis_shaped: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether nothing differs."""
        return not (self.missing or self.unexpected or self.mis_shaped)

    def __str__(self) -> str:
        parts = {"missing": self.missing, "unexpected": self.unexpected, "mis-shaped": self.mis_shaped}
        return "; ".join(f"{len(keys)} {kind} ({_some(keys)})" for kind, keys in parts.items() if keys)


def compare(found: Shapes, architecture: Architecture, num_classes: int) -> KeyReport:
    """Compare the shapes of a state dict with those that `architecture` needs for `num_classes` classes."""
    with torch.device("meta"):
        network = ResNet(architecture, num_classes)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return KeyReport(
        missing=tuple(name for name in expected if name not in found and not name.endswith(_OPTIONAL)),
        unexpected=tuple(name for name in found if name not in expected),
        mis_shaped=tuple(
            f"{name} is {list(found[name])}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and found[name] != shape
        ),
    )


def infer(found: Shapes) -> Architecture | None:
    """Return the architecture with the same kind of block and number of blocks in each stage, if there is one."""
    for architecture in ZOO.values():
        if (architecture.block, architecture.layers) == _structure(found):
            return architecture
    return None


def describe_structure(found: Shapes) -> str:
    """Say what `infer` saw, for an error message."""
    block, layers = _structure(found)
    return f"{'no' if block is None else block} blocks, {'-'.join(map(str, layers))} in the four stages"


def _structure(found: Shapes) -> tuple[str | None, tuple[int, ...]]:
    layers = [0, 0, 0, 0]
    for match in filter(None, map(_BLOCK.match, found)):
        stage = int(match[1]) - 1
        layers[stage] = max(layers[stage], int(match[2]) + 1)
    convolutions = [f"layer1.0.conv{index}.weight" in found for index in (1, 2, 3)]
    block = "bottleneck" if convolutions[2] else "basic" if convolutions[1] else None
    return block, tuple(layers)


def _some(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:_SHOWN]) + (", …" if len(keys) > _SHOWN else "")
