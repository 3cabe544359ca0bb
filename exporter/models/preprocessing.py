"""How the network's input is made from an image: what the request says, or what the weights were evaluated with."""

from __future__ import annotations

import math

from resnet_export.exporter.models.zoo import PublishedWeights
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import RequestError

# torchvision evaluates so unless the weights say otherwise.
_USUAL = Preprocessing(resize=256, crop=224)


def choose_preprocessing(spec: ModelSpec, published: PublishedWeights | None) -> Preprocessing:
    """Return the preprocessing of a bundle.

    The crop is the image size. What the request leaves open is that of the published weights, or else ImageNet's usual:
    the shorter side in the ratio 256 to 224 to the crop, bilinear, ImageNet's mean and standard deviation. Raises
    RequestError for values that cannot be.
    """
    resize, crop = (_USUAL.resize, _USUAL.crop) if published is None else (published.resize, published.crop)
    chosen = Preprocessing(
        resize=round(spec.image_size * resize / crop) if spec.resize is None else spec.resize,
        crop=spec.image_size,
        interpolation=_USUAL.interpolation if spec.interpolation is None else spec.interpolation,
        mean=_USUAL.mean if spec.mean is None else spec.mean,
        std=_USUAL.std if spec.std is None else spec.std,
    )
    if chosen.resize < chosen.crop:
        raise RequestError(
            f"the shorter side is to be resized to {chosen.resize} pixels and cropped to {chosen.crop}, which it does "
            f"not have; give --resize {chosen.crop} or more"
        )
    if len(chosen.mean) != 3 or not all(0 <= value <= 1 for value in chosen.mean):
        raise RequestError(
            f"the mean is {_numbers(chosen.mean)}, expected three numbers from 0 to 1, for red, green and blue as "
            "fractions of 255; divide yours by 255"
        )
    if len(chosen.std) != 3 or not all(0 < value <= 1 for value in chosen.std):
        raise RequestError(
            f"the standard deviation is {_numbers(chosen.std)}, expected three numbers above 0 and up to 1, for red, "
            "green and blue as fractions of 255; divide yours by 255"
        )
    return chosen


def assumed(spec: ModelSpec, chosen: Preprocessing) -> tuple[str, ...]:
    """Return the notice that a checkpoint's preprocessing was guessed, if the request says nothing of it."""
    if any(given is not None for given in (spec.resize, spec.interpolation, spec.mean, spec.std)):
        return ()
    return (
        f"the checkpoint does not say what its images are like, ImageNet's preprocessing is assumed: {chosen.words}; "
        "if it was trained otherwise, give --resize, --interpolation, --mean or --std",
    )


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" if math.isfinite(value) else str(value) for value in values)
