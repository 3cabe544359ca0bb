"""The bundled photographs: real images for golden outputs, batch statistics and agreement figures.

`data/photos/PROVENANCE.md` says where each comes from and under which licence.
"""

from __future__ import annotations

import math
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import decode, prepare

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["bundled_photos", "natural_crops", "photographs"]

# Random resized crops as in Szegedy et al. 2014 (arXiv:1409.4842), section 6, but not below a quarter of the
# area: the photographs are crops already.
_AREA = (0.25, 1.0)
_ASPECT = (3 / 4, 4 / 3)


def photographs(size: int) -> NDArray[np.uint8]:
    """Return every bundled photograph, whole, in the order of its file name: uint8 [N, size, size, 3], RGB."""
    square = Preprocessing(resize=size, crop=size)
    return np.stack([prepare(image, square) for image in _open()])


def bundled_photos(preprocessing: Preprocessing) -> Photos:
    """Return every bundled photograph, whole, as `photographs` does, for graphs with this preprocessing."""
    return Photos.of(photographs(preprocessing.crop), preprocessing, kind="bundled")


def natural_crops(count: int, size: int, seed: int) -> NDArray[np.uint8]:
    """Return seeded random resized crops of the photographs, half of them mirrored: uint8 [count, size, size, 3].

    Every photograph is used equally often, give or take one; the same arguments give the same bytes.
    """
    rng = np.random.default_rng(seed)
    images = _open()
    rounds = math.ceil(count / len(images))
    order = [index for _ in range(rounds) for index in rng.permutation(len(images))][:count]
    crops = np.empty((count, size, size, 3), np.uint8)
    for crop, index in zip(crops, order, strict=True):
        crop[:] = _random_crop(images[index], size, rng)
    return crops


def _open() -> list[Image]:
    folder = files("resnet_export.exporter") / "data" / "photos"
    paths = sorted(
        (path for path in folder.iterdir() if path.name.endswith(".jpg")), key=lambda path: path.name
    )
    return [decode(path.read_bytes(), name=path.name) for path in paths]


def _random_crop(image: Image, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    from PIL.Image import Resampling, Transpose

    area = image.width * image.height * rng.uniform(*_AREA)
    stretch = math.exp(rng.uniform(*np.log(_ASPECT)) / 2)
    width = min(image.width, max(1, round(math.sqrt(area) * stretch)))
    height = min(image.height, max(1, round(math.sqrt(area) / stretch)))
    left = int(rng.integers(image.width - width + 1))
    top = int(rng.integers(image.height - height + 1))
    box = (left, top, left + width, top + height)
    cut = image.resize((size, size), Resampling.BILINEAR, box=box)
    return np.asarray(cut.transpose(Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else cut)
