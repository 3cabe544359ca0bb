"""Evidence of the preprocessing: one image file, and what the export made of it."""

from __future__ import annotations

import io
from importlib.resources import files

import numpy as np

from resnet_export.runtime.bundle.golden import Sample
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import decode, load, normalize

__all__ = ["record_sample"]

# Fine fur on an even ground, nothing symmetric, and three colors that no channel swap leaves alone.
_PHOTOGRAPH = "cat.jpg"
_EXIF_ORIENTATION, _QUARTER_TURN = 0x0112, 6

# The shorter side, as a multiple of what it is resized to, and the longer one's as a multiple of that: neither whole
# numbers nor near 1, so that the filter, its antialiasing, truncation and the crop's offsets all leave their mark.
_SHRINK, _ASPECT = 1.37, 1.19


def record_sample(preprocessing: Preprocessing) -> Sample:
    """Preprocess a bundled photograph as the eager network's inputs are, and return it with the results.

    It is stored as a PNG, whose decoding is exact, lying on its side, with an EXIF orientation that says so.
    """
    from PIL import Image

    path = files("resnet_export.exporter") / "data" / "photos" / _PHOTOGRAPH
    resize = preprocessing.resize
    height, width = (resize, resize) if isinstance(resize, int) else resize
    size = (round(round(width * _SHRINK) * _ASPECT), round(height * _SHRINK))
    upright = decode(path.read_bytes()).resize(size, Image.Resampling.BICUBIC)
    if preprocessing.channels == 4:  # an alpha that resizing has to weigh colors by
        upright.putalpha(upright.convert("L"))
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = _QUARTER_TURN
    buffer = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(buffer, "PNG", exif=exif)
    every = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(preprocessing.channels, axis=3)
    return Sample(
        file=buffer.getvalue(),
        crop=load(buffer.getvalue(), preprocessing),
        values=normalize(every, preprocessing)[0, :, 0, :],
    )
