"""The bundled photographs: real images for golden outputs and batch statistics.

`data/photos/PROVENANCE.md` says where each comes from and under which licence.
"""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.exporter.spec import Size
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import decode, prepare

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["bundled_photos", "open_photographs", "photographs"]


def photographs(size: Size, channels: int = 3) -> NDArray[np.uint8]:
    """Return every bundled photograph in the order of its file name: uint8 [N, H, W, channels].

    They are square, and whole where `size` is; for an oblong `size` their upper and lower or left and right parts go.
    """
    longer = size if isinstance(size, int) else max(size)
    one = (0.5,) * channels
    whole = Preprocessing(resize=longer, crop=size, mean=one, std=one)
    return np.stack([prepare(image, whole) for image in open_photographs(channels)])


def bundled_photos(preprocessing: Preprocessing) -> Photos:
    """Return every bundled photograph, as `photographs` does, for graphs with this preprocessing."""
    return Photos.of(photographs(preprocessing.size, preprocessing.channels), preprocessing, kind="bundled")


def open_photographs(channels: int = 3) -> list[Image]:
    """Return every bundled photograph, decoded, in the order of its file name."""
    folder = files("resnet_export.exporter") / "data" / "photos"
    paths = sorted(
        (path for path in folder.iterdir() if path.name.endswith(".jpg")), key=lambda path: path.name
    )
    return [decode(path.read_bytes(), channels=channels, name=path.name) for path in paths]
