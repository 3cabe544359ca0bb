"""Does this host turn an image file into the numbers that the export fed the network? Bit for bit.

Preprocessing that has drifted (another decoder, filter, crop, mean or channel order) feeds the reference and the
candidate alike: their logits agree, and accuracy is lost all the same. So the bundle holds an image file with
what the export made of it, and every check makes it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime import preprocess
from resnet_export.runtime.bundle.golden import Sample
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import ImageError
from resnet_export.runtime.parity.criteria.evaluate import Criterion, at_most

PREPROCESSING = "preprocessing"
"""The name of the stage."""

CROP, NORMALIZE = "crop", "normalize"
"""The names of its criteria."""

_COMPARE = {
    CROP: "compare the manifest's resize, crop and interpolation, and this host's Pillow, with the export's",
    NORMALIZE: "compare the manifest's mean and std with the export's",
}
_WHAT = {
    CROP: "of the bundle's sample, once decoded, resized and cropped",
    NORMALIZE: "of the bundle's sample and of each byte, once normalized",
}


def check_preprocessing(sample: Sample, preprocessing: Preprocessing) -> tuple[Criterion, ...]:
    """Repeat the steps of the export on its sample, by what the manifest says and this host's libraries.

    `crop` counts the values of the recorded crop that decoding, resizing and cropping give otherwise;
    `normalize` those of the network's input, of the recorded crop and of each byte in each channel. Both have to
    be zero.
    """
    return tuple(_criteria(sample, preprocessing))


def advice(criteria: Sequence[Criterion]) -> str:
    """Return what to do about those of `criteria` that do not hold, in one clause."""
    return " and ".join(_COMPARE[one.name] for one in criteria if not one.passed)


def _criteria(sample: Sample, preprocessing: Preprocessing) -> Iterator[Criterion]:
    try:
        crop = preprocess.load(sample.file, preprocessing, name="the bundle's sample")
    except ImageError as error:
        undone = at_most(CROP, None, 0, " ".join(str(error).split()))
        yield msgspec.structs.replace(undone, words="the crop cannot be made")
    else:
        yield _compared(CROP, crop, sample.crop)
    every = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(3, axis=3)
    outside = msgspec.structs.replace(preprocessing, in_graph=False)
    found = [preprocess.to_input(images, outside).ravel() for images in (sample.crop[None], every)]
    channels = np.arange(3)[:, None, None]
    expected = [sample.values[channels, sample.crop.transpose(2, 0, 1)].ravel(), sample.values.ravel()]
    yield _compared(NORMALIZE, np.concatenate(found), np.concatenate(expected))


def _compared(name: str, found: NDArray[np.generic], expected: NDArray[np.generic]) -> Criterion:
    if found.shape != expected.shape:
        shapes = f"has shape {list(found.shape)}, expected {list(expected.shape)}"
        criterion = at_most(name, None, 0, f"{_WHAT[name]}; {_COMPARE[name]}")
        return msgspec.structs.replace(criterion, words=f"the {name} {shapes}")
    distance = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    count = int((found != expected).sum())
    what = "crop" if name == CROP else "normalized input"
    words = f"{count} of {expected.size} values of the {what} differ, expected 0"
    detail = _WHAT[name]
    if count:
        detail += f", by {distance.max():.3g} at most; {_COMPARE[name]}"
    return msgspec.structs.replace(at_most(name, count, 0, detail), words=words)
