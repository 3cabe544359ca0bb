"""A trained network whose predictions hang on everything that can go wrong, and labeled images to judge it by.

The digit to be read is red; a paler digit of any class lies over it in blue, and green is their mean. Whoever swaps the
channels reads the wrong one. The images are larger than the network's input, so that they are resized and cropped.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from resnet_export.exporter.models import resnet
from resnet_export.exporter.models.zoo import ZOO, Architecture
from tests import digits
from tests.digits import SIZE, Digits

RESIZE = 46  # what an export takes the shorter side to for a crop of 40
SOURCE = 64
TEST_IMAGES = 1000
CALIBRATION_IMAGES = 128
_BLUE = 0.6

# The smallest network of the family with bottlenecks: one block in each stage.
BOTTLENECK14 = Architecture("bottleneck14", "bottleneck", (1, 1, 1, 1))
RESNET18 = ZOO["resnet18"]


Splits = Callable[[int], tuple[Digits, Digits]]


@functools.cache
def splits(seed: int = 0) -> tuple[Digits, Digits]:
    """Return the training split and `TEST_IMAGES` held-out images, uint8 [N, SIZE, SIZE, 3], with their labels."""
    return overlaid(digits.digits(TEST_IMAGES, seed), seed)


@dataclass(frozen=True)
class Task:
    """What a network is to learn: `splits(seed)` returns the training split and the held-out one."""

    title: str
    splits: Splits
    epochs: int


DIGITS = Task("digits", splits, epochs=4)


def sources(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return pictures, uint8 [N, SOURCE, SOURCE, 3], that resizing to RESIZE and cropping turn into about `images`."""
    border = (RESIZE - SIZE) // 2
    padded = np.pad(images, ((0, 0), (border, border), (border, border), (0, 0)))
    return np.stack(
        [
            np.asarray(Image.fromarray(picture).resize((SOURCE, SOURCE), Image.Resampling.BICUBIC))
            for picture in padded
        ]
    )


def checkpoint(
    folder: Path, architecture: Architecture = RESNET18, seed: int = 0, task: Task = DIGITS
) -> Path:
    """Return a file with the state dict of the trained network, trained now unless `folder` has it.

    Its name holds a hash of everything that training depends on.
    """
    code = "".join(map(inspect.getsource, (resnet, digits, task.splits, overlaid, _overlaid)))
    versions = [version(name) for name in ("torch", "scikit-learn", "pillow", "numpy")]
    key = hashlib.sha256(repr((code, versions, architecture, seed, task.epochs)).encode()).hexdigest()[:16]
    path = folder / f"{architecture.name}-{key}.pth"
    with FileLock(path.with_suffix(".lock")):  # tests run in several processes
        if not path.exists():
            network = digits.train_network(architecture, task.splits(seed)[0], seed, task.epochs)
            unfinished = path.with_suffix(".part")
            torch.save(network.state_dict(), unfinished)
            unfinished.replace(path)
    return path


def overlaid(parts: tuple[Digits, Digits], seed: int) -> tuple[Digits, Digits]:
    """Color the gray images of both splits: each in red, another in blue."""
    rng = np.random.default_rng(seed)
    train, test = parts
    return _overlaid(train, rng), _overlaid(test, rng)


def _overlaid(split: Digits, rng: np.random.Generator) -> Digits:
    red = split.images[..., 0].astype(np.float32)
    blue = _BLUE * red[rng.permutation(len(red))]
    images = np.stack([red, (red + blue) / 2, blue], axis=-1)
    return Digits(images.round().astype(np.uint8), split.labels)
