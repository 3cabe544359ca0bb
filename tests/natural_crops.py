"""Crops of the bundled photographs, as many as wanted: what tests and benchmarks show to untrained networks."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling, Transpose

from resnet_export.exporter.models.photographs import open_photographs

# Random resized crops as in Szegedy et al. 2014 (arXiv:1409.4842), section 6, but not below a quarter of the
# area: the photographs are crops already.
_AREA = (0.25, 1.0)
_ASPECT = (3 / 4, 4 / 3)


def natural_crops(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Return seeded random resized crops of the photographs, half of them mirrored: uint8 [count, size, size, 3].

    Every photograph is used equally often, give or take one; the same arguments give the same bytes.
    """
    rng = np.random.default_rng(seed)
    images = open_photographs()
    rounds = math.ceil(count / len(images))
    order = [index for _ in range(rounds) for index in rng.permutation(len(images))][:count]
    crops = np.empty((count, size, size, 3), np.uint8)
    for crop, index in zip(crops, order, strict=True):
        crop[:] = _random_crop(images[index], size, rng)
    return crops


def _random_crop(image: Image, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    area = image.width * image.height * rng.uniform(*_AREA)
    stretch = math.exp(rng.uniform(*np.log(_ASPECT)) / 2)
    width = min(image.width, max(1, round(math.sqrt(area) * stretch)))
    height = min(image.height, max(1, round(math.sqrt(area) / stretch)))
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    box = (left, top, left + width, top + height)
    cut = image.resize((size, size), Resampling.BILINEAR, box=box)
    return np.asarray(cut.transpose(Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut)
