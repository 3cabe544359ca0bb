"""A real trained network, small enough to train inside the test suite: ResNet-18 on scikit-learn's digits.

The images are 8×8 scans of handwritten digits (UCI Optical Recognition of Handwritten Digits). They are enlarged
to RGB; a quarter of them is held out, and seeded small shifts and rotations of the held-out ones make up the
number of test images. Nothing derived from a held-out scan is trained on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from resnet_export.exporter.models.resnet import ResNet, build
from resnet_export.exporter.models.zoo import Architecture
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import normalize

SIZE = 40
CLASSES = 10
PREPROCESSING = Preprocessing(resize=SIZE, crop=SIZE)
_BATCH = 32


@dataclass(frozen=True)
class Digits:
    """uint8 images [N, SIZE, SIZE, 3] and int64 labels [N] of one split."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def _render(scan: NDArray[np.float64], rng: np.random.Generator | None) -> NDArray[np.uint8]:
    """One 8×8 scan with values 0 to 16 → uint8 [SIZE, SIZE, 3], shifted and turned a little when `rng` is given."""
    image = Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    if rng is not None:
        shift = rng.integers(-2, 3, size=2)
        image = image.rotate(
            float(rng.uniform(-10, 10)), Image.Resampling.BILINEAR, translate=(int(shift[0]), int(shift[1]))
        )
    return np.asarray(image.convert("RGB"))


def digits(held_out: int = 1024, seed: int = 0) -> tuple[Digits, Digits]:
    """Return the training split (each scan as it is and once moved) and `held_out` test images."""
    data = load_digits()
    train_x, test_x, train_y, test_y = train_test_split(
        data.images, data.target, test_size=0.25, random_state=seed, stratify=data.target
    )
    rng = np.random.default_rng(seed)
    copies = 2
    train = Digits(
        np.stack([_render(scan, rng if copy else None) for copy in range(copies) for scan in train_x]),
        np.tile(train_y, copies).astype(np.int64),
    )
    test_images = [_render(scan, None) for scan in test_x]
    picks = rng.integers(0, len(test_x), size=max(0, held_out - len(test_x)))
    test_images += [_render(test_x[pick], rng) for pick in picks]
    labels = np.concatenate([test_y, test_y[picks]]).astype(np.int64)
    return train, Digits(np.stack(test_images)[:held_out], labels[:held_out])


def train_network(architecture: Architecture, train: Digits, seed: int, epochs: int) -> ResNet:
    """Train a network of this architecture on the split; the same seed gives the same network, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(architecture, CLASSES)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
        network.train().to(memory_format=torch.channels_last)
        images = torch.from_numpy(normalize(train.images, PREPROCESSING)).contiguous(
            memory_format=torch.channels_last
        )
        labels = torch.from_numpy(train.labels)
        steps = epochs * (len(labels) // _BATCH)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.05, total_steps=steps, pct_start=0.2
        )
        for _ in range(epochs):
            order = torch.randperm(len(labels))
            for start in range(0, len(order) - _BATCH + 1, _BATCH):
                pick = order[start : start + _BATCH]
                optimizer.zero_grad()
                loss: Tensor = nn.functional.cross_entropy(
                    network(images[pick]), labels[pick], label_smoothing=0.05
                )
                loss.backward()
                optimizer.step()
                schedule.step()
    return network.eval().to(memory_format=torch.contiguous_format)
