"""How the network's input is made from an image: what the request says, or what the weights were evaluated with."""

from __future__ import annotations

import math
from collections.abc import Sequence

from resnet_export.exporter.models.stated import Stated
from resnet_export.exporter.spec import ModelSpec, Size
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.bundle.schema import CHANNELS
from resnet_export.runtime.errors import RequestError

# torchvision evaluates so unless the weights say otherwise.
_RESIZE, _CROP = 256, 224
_RGB = 3

NOTHING = Stated()
_ASKED = ("resize", "interpolation", "mean", "std")

_KINDS = {1: "grayscale", 3: "RGB", 4: "RGBA"}


def usual_preprocessing(channels: int) -> Preprocessing:
    """Return what is assumed where nothing is known: ImageNet's for RGB, and 0.5 for grayscale and RGBA."""
    if channels == _RGB:
        return Preprocessing(resize=_RESIZE, crop=_CROP)
    half = (0.5,) * channels
    return Preprocessing(resize=_RESIZE, crop=_CROP, mean=half, std=half)


def choose_preprocessing(
    spec: ModelSpec, stated: Stated = NOTHING, channels: int | None = None, size: Size = _CROP
) -> Preprocessing:
    """Return the preprocessing of a bundle.

    The crop is the image size. What the request leaves open is what the source states, and what neither says is
    ImageNet's usual: the shorter side in the ratio 256 to 224 to the crop, bilinear, ImageNet's mean and standard
    deviation. For an oblong crop nothing is usual: the image is squashed to it. For grayscale and RGBA, mean and
    standard deviation are 0.5.

    Args:
        spec: the request.
        stated: what the source says of its images.
        channels: the network's input channels, where its weights say so; they are held to `spec.input_channels`.
        size: height and width that the network was designed for, where neither the request nor the source has any.

    Raises RequestError for values that cannot be.
    """
    count = _channels(spec, channels)
    stated = stated.for_channels(count)
    crop = _collapsed(spec.image_size or stated.crop or size)
    resize = spec.resize or stated.resize_to(crop)
    if resize is None:
        resize = round(crop * _RESIZE / _CROP) if isinstance(crop, int) else crop
    usual = usual_preprocessing(count)
    chosen = Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=spec.interpolation or stated.interpolation or usual.interpolation,
        mean=_per_channel(spec.mean or stated.mean or usual.mean, count, "mean"),
        std=_per_channel(spec.std or stated.std or usual.std, count, "standard deviation"),
    )
    _check_sizes(chosen)
    if not all(0 <= value <= 1 for value in chosen.mean):
        raise RequestError(
            f"the mean is {_numbers(chosen.mean)}, expected numbers from 0 to 1, as fractions of 255; divide yours by "
            "255"
        )
    if not all(0 < value <= 1 for value in chosen.std):
        raise RequestError(
            f"the standard deviation is {_numbers(chosen.std)}, expected numbers above 0 and up to 1, as fractions of "
            "255; divide yours by 255"
        )
    return chosen


def assumed(spec: ModelSpec, chosen: Preprocessing, stated: Stated = NOTHING) -> tuple[str, ...]:
    """Return the notice of where the preprocessing is from, and what of it was guessed; then what was not used.

    Nothing is said where the request says it.
    """
    stated = stated.for_channels(chosen.channels)
    given = [name for name in _ASKED if getattr(spec, name) is not None]
    used = [name for name in stated.says if name not in given and getattr(spec, name) is None]
    guessed = [name for name in _ASKED if name not in given and name not in used]
    usual = "ImageNet's" if chosen.channels == _RGB and isinstance(chosen.crop, int) else "the usual"
    if used:
        guess = f"; it does not say {_named(guessed)}, {usual} is assumed" if guessed else ""
        asked = f"; {_named(given)} as asked for" if given else ""
        return (
            f"preprocessing as {stated.whose} says: {chosen.words}{asked}{guess}",
            *stated.remarks,
        )
    if given:
        return stated.remarks
    whose = usual if usual == "ImageNet's" else "this"
    return (
        f"the checkpoint does not say what its images are like, {whose} preprocessing is assumed: {chosen.words}; "
        "if it was trained otherwise, give --resize, --interpolation, --mean or --std",
        *stated.remarks,
    )


def _named(options: Sequence[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in options)


def _channels(spec: ModelSpec, channels: int | None) -> int:
    asked = spec.input_channels
    if asked is not None and channels is not None and asked != channels:
        raise RequestError(
            f"the network has {channels} input channels, but --input-channels is {asked}; leave it out"
        )
    given = next(
        (len(values) for values in (spec.mean, spec.std) if values is not None and len(values) > 1), _RGB
    )
    count = channels or asked or (given if given in CHANNELS else _RGB)
    if count not in CHANNELS:
        known = ", ".join(f"{number} ({kind})" for number, kind in _KINDS.items())
        raise RequestError(f"the network has {count} input channels, and images are decoded to {known}")
    return count


def _per_channel(values: tuple[float, ...], count: int, what: str) -> tuple[float, ...]:
    if len(values) not in (1, count):
        raise RequestError(
            f"the {what} is {_numbers(values)}, and the network has {count} input channel{'s' if count > 1 else ''} "
            f"({_KINDS[count]}); give one number for each, or one for all"
        )
    return values if len(values) == count else values * count


def _check_sizes(chosen: Preprocessing) -> None:
    if isinstance(chosen.resize, int):
        fits, least = max(chosen.size) <= chosen.resize, str(max(chosen.size))
        resized = f"the shorter side is to be resized to {chosen.resize} pixels"
    else:
        (height, width), (rows, columns) = chosen.resize, chosen.size
        fits, least = rows <= height and columns <= width, f"{rows}x{columns}"
        resized = f"the image is to be squashed to {height} × {width} pixels"
    if not fits:
        crop = chosen.crop if isinstance(chosen.crop, int) else f"{chosen.size[0]} × {chosen.size[1]}"
        raise RequestError(
            f"{resized} and cropped to {crop}, which it does not have; give --resize {least} or more"
        )


def _collapsed(size: Size) -> Size:
    """Return the side alone for a square."""
    return size[0] if not isinstance(size, int) and size[0] == size[1] else size


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" if math.isfinite(value) else str(value) for value in values)
