"""The bundled photographs: real images for golden outputs and batch statistics.

`data/photos/PROVENANCE.md` says where each comes from and under which licence.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import decode, prepare

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["bundled_photos", "open_photographs", "photographs"]


def photographs(size: int) -> NDArray[np.uint8]:
    """Return every bundled photograph, whole, in the order of its file name: uint8 [N, size, size, 3], RGB."""
    square = Preprocessing(resize=size, crop=size)
    return np.stack([prepare(image, square) for image in open_photographs()])


def bundled_photos(preprocessing: Preprocessing) -> Photos:
    """Return every bundled photograph, whole, as `photographs` does, for graphs with this preprocessing."""
    return Photos.of(photographs(preprocessing.crop), preprocessing, kind="bundled")


def open_photographs() -> list[Image]:
    """Return every bundled photograph, decoded, in the order of its file name."""
    folder = files("resnet_export.exporter") / "data" / "photos"
    paths = sorted(
        (path for path in folder.iterdir() if path.name.endswith(".jpg")), key=lambda path: path.name
    )
    return [decode(path.read_bytes(), name=path.name) for path in paths]
