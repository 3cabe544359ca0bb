"""Fashion-MNIST: a task at which a small trained network errs about once in ten, unlike scikit-learn's digits.

60,000 gray pictures of clothes for training and 10,000 others for judging (Xiao, Rasul, Vollgraf 2017, MIT licence).
The four IDX files are in Debian's package dataset-fashion-mnist and in the authors' repository. As with the digits of
the test suite, the picture to be told is red and a paler other one lies over it in blue.
"""

from __future__ import annotations

import functools
import gzip
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.trained import CALIBRATION_IMAGES, CHECKPOINTS, Trained, exported
from resnet_export.exporter.models.resnet import build
from tests.digits import CLASSES, SIZE, Digits
from tests.trained import RESNET18, Task, checkpoint, overlaid

IDX_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts them."""

TRAINED_ON = 20_000  # of the 60,000: more would take longer and change little
_EPOCHS = 4
_SIDE = 28


def fashion(folder: Path) -> Task:
    """Return the task whose IDX files lie in `folder`."""

    @functools.cache
    def splits(seed: int) -> tuple[Digits, Digits]:
        train, test = _read(folder, "train"), _read(folder, "t10k")
        pick = np.random.default_rng(seed).permutation(len(train.labels))[:TRAINED_ON]
        return overlaid((Digits(train.images[pick], train.labels[pick]), test), seed)

    return Task("clothes", splits, _EPOCHS)


def clothes(folder: Path, seed: int) -> Trained:
    """A ResNet-18 that errs on one picture of clothes in ten, with 2,000 test images; IDX files lie in `folder`."""
    task = fashion(folder)
    train, test = task.splits(seed)
    network = build(RESNET18, CLASSES)
    network.load_state_dict(torch.load(checkpoint(CHECKPOINTS, seed=seed, task=task), weights_only=True))
    few = slice(None, 2000)
    return exported(network, train.images[:CALIBRATION_IMAGES], test.images[few], test.labels[few])


def _read(folder: Path, part: str) -> Digits:
    # http://yann.lecun.com/exdb/mnist defines IDX: a header of 16 bytes before images, of 8 before labels.
    images, labels = (
        np.frombuffer(gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes()), np.uint8)
        for kind in ("images-idx3", "labels-idx1")
    )
    pictures = images[16:].reshape(-1, _SIDE, _SIDE)
    return Digits(np.stack([_render(picture) for picture in pictures]), labels[8:].astype(np.int64))


def _render(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(picture).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB"))
