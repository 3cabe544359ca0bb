"""Does this host turn an image file into the numbers that the export fed the network? Bit for bit.

Preprocessing that has drifted (another decoder, filter, crop, mean or channel order) feeds the reference and the
candidate alike: their logits agree, and accuracy is lost all the same. So the bundle holds an image file with
what the export made of it, and every check makes it again.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from resnet_export.runtime import preprocess
from resnet_export.runtime.bundle.golden import Sample
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import ImageError
from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.criteria.table import Evidence, Repeated, evaluate

PREPROCESSING = "preprocessing"
"""The name of the stage."""

CROP, NORMALIZE = "crop", "normalize"
"""The names of its criteria."""

_ADVICE = {
    CROP: "compare the manifest's resize, crop and interpolation, and this host's Pillow, with the export's",
    NORMALIZE: "compare the manifest's mean and std with the export's",
}


def check_preprocessing(sample: Sample, preprocessing: Preprocessing) -> tuple[Criterion, ...]:
    """Repeat the steps of the export on its sample, by what the manifest says and this host's libraries.

    `crop` counts the values of the recorded crop that decoding, resizing and cropping give otherwise;
    `normalize` those of the network's input, of the recorded crop and of each byte in each channel. Both have to
    be zero.
    """
    return evaluate(
        Evidence(crop=_crop(sample, preprocessing), normalized=_normalized(sample, preprocessing))
    )


def advice(criteria: Sequence[Criterion]) -> str:
    """Return what to do about those of `criteria` that do not hold, in one clause."""
    return " and ".join(_ADVICE[criterion.name] for criterion in criteria if not criterion.passed)


def _crop(sample: Sample, preprocessing: Preprocessing) -> Repeated:
    detail = "of the bundle's sample, once decoded, resized and cropped"
    found = None
    try:
        found = preprocess.load(sample.file, preprocessing, name="the bundle's sample")
    except ImageError as error:
        detail = " ".join(str(error).split())
    return Repeated(found, sample.crop, "crop", detail, _ADVICE[CROP])


def _normalized(sample: Sample, preprocessing: Preprocessing) -> Repeated:
    every = np.arange(256, dtype=np.uint8)[None, None, :, None].repeat(preprocessing.channels, axis=3)
    outside = msgspec.structs.replace(preprocessing, in_graph=False)
    found = [preprocess.to_input(images, outside).ravel() for images in (sample.crop[None], every)]
    channels = np.arange(preprocessing.channels)[:, None, None]
    expected = [sample.values[channels, sample.crop.transpose(2, 0, 1)].ravel(), sample.values.ravel()]
    return Repeated(
        np.concatenate(found),
        np.concatenate(expected),
        "normalized input",
        "of the bundle's sample and of each byte, once normalized",
        _ADVICE[NORMALIZE],
    )
