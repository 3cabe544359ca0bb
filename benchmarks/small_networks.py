"""Small trained networks of different temper, for benchmarks of INT8: minutes to train, kept in build/checkpoints.

`heavy_tailed` reads digits of so little contrast that they can hardly be seen; one picture in a hundred is taken in
full light and gives logits ten times as large, at the greatest fifty times the mean magnitude. So a handful of images
owns the energy of all logits. `squeeze_excitation` has gates, `depthwise` filters that see one channel.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.trained import CALIBRATION_IMAGES, CHECKPOINTS, Trained, exported
from resnet_export.exporter.models.resnet import build
from resnet_export.exporter.models.zoo import Architecture
from resnet_export.runtime.preprocess import normalize
from tests.digits import CLASSES, PREPROCESSING
from tests.trained import RESNET18, splits

_GRAY = 124  # about the mean that preprocessing subtracts
_DIM = 0.02, 0.04  # contrast of the many
_BRIGHT_SHARE = 0.01
_GLARE = 10.0  # how many times as large the logits of bright pictures are to be
_BATCH = 32

Batch = tuple[Tensor, Tensor]
SE10 = Architecture("seresnet10", "basic", (1, 1, 1, 1), se=True)


def heavy_tailed(seed: int) -> Trained:
    """A ResNet-18 whose logits are heavy-tailed, on a mixture of dim pictures and a few in full light."""
    train, test = splits(seed)
    rng = np.random.default_rng(seed)
    dim = _contrast(train.images, rng.uniform(*_DIM, len(train.images)))
    bright = _contrast(train.images, np.ones(len(train.images)))

    def fit(network: nn.Module) -> None:
        _fit(network, _batches(dim, train.labels, epochs=4), 4 * len(dim) // _BATCH)
        network.eval()  # statistics of dim pictures are kept
        optimizer = torch.optim.SGD(network.parameters(), lr=0.003, momentum=0.9)
        for _ in range(2):
            for pick in torch.randperm(len(dim)).split(_BATCH):
                few = pick[: _BATCH // 4]
                images = np.concatenate([dim[pick], bright[few]])
                logits = network(torch.from_numpy(normalize(images, PREPROCESSING)))
                labels = torch.from_numpy(train.labels)
                loss = _loss(logits[: len(pick)], labels[pick]) + _loss(
                    logits[len(pick) :] / _GLARE, labels[few]
                )
                _step(network, optimizer, loss)

    network = _trained("heavy-tailed", build(RESNET18, CLASSES), fit, seed)
    calibration, judged = (
        _mixed(images, seed) for images in (train.images[-CALIBRATION_IMAGES:], test.images)
    )
    return exported(network, calibration, judged, test.labels)


def squeeze_excitation(seed: int) -> Trained:
    """A ResNet of 10 layers with squeeze-and-excitation, on digits."""
    return _on_digits("squeeze-excitation", build(SE10, CLASSES), seed)


def depthwise(seed: int) -> Trained:
    """Six depthwise 3×3 convolutions, each followed by a 1×1 one, on digits."""
    widths = (32, 64, 128, 128, 256, 256, 256)
    layers: list[nn.Module] = [*_normalized(3, 32, 3, stride=2)]
    for index, (channels, out) in enumerate(itertools.pairwise(widths)):
        layers += _normalized(channels, channels, 3, stride=1 + index % 2, groups=channels)
        layers += _normalized(channels, out, 1)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES)]
    return _on_digits("depthwise", nn.Sequential(*layers), seed)


def _normalized(
    channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> Iterator[nn.Module]:
    yield nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    yield nn.BatchNorm2d(out)
    yield nn.ReLU()


def _on_digits(name: str, network: nn.Module, seed: int) -> Trained:
    train, test = splits(seed)
    steps = 6 * len(train.labels) // _BATCH
    network = _trained(
        name, network, lambda one: _fit(one, _batches(train.images, train.labels, epochs=6), steps), seed
    )
    return exported(network, train.images[-CALIBRATION_IMAGES:], test.images, test.labels)


def _trained(name: str, network: nn.Module, fit: Callable[[nn.Module], None], seed: int) -> nn.Module:
    """Fill `network` with parameters that `fit` finds, or found before: the file's name holds a hash of this module."""
    key = hashlib.sha256(repr((inspect.getsource(sys.modules[__name__]), torch.__version__, seed)).encode())
    path = CHECKPOINTS / f"{name}-{key.hexdigest()[:16]}.pth"
    if not path.exists():
        CHECKPOINTS.mkdir(parents=True, exist_ok=True)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for module in network.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                elif isinstance(module, nn.BatchNorm2d):
                    nn.init.ones_(module.weight)
            fit(network)
        torch.save(network.state_dict(), path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def _fit(network: nn.Module, batches: Iterator[Batch], steps: int) -> None:
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=steps, pct_start=0.2)
    for (images, labels), _ in zip(batches, range(steps), strict=False):
        _step(network, optimizer, _loss(network(images), labels))
        schedule.step()


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, label_smoothing=0.05)


def _batches(images: NDArray[np.uint8], labels: NDArray[np.int64], *, epochs: int) -> Iterator[Batch]:
    for _ in range(epochs):
        for pick in torch.randperm(len(labels)).split(_BATCH):
            yield torch.from_numpy(normalize(images[pick], PREPROCESSING)), torch.from_numpy(labels[pick])


def _mixed(images: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Dim pictures, and one in a hundred in full light."""
    rng = np.random.default_rng([seed, len(images)])
    contrasts = rng.uniform(*_DIM, len(images))
    contrasts[rng.permutation(len(images))[: round(_BRIGHT_SHARE * len(images))]] = 1.0
    return _contrast(images, contrasts)


def _contrast(images: NDArray[np.uint8], contrasts: NDArray[np.float64]) -> NDArray[np.uint8]:
    spread = (images.astype(np.float64) - _GRAY) * contrasts[:, None, None, None]
    return np.clip(_GRAY + spread, 0, 255).round().astype(np.uint8)
