"""From an image, in whatever form, to the network's input: decode, resize, crop, normalize.

Everything after decoding equals torchvision's evaluation transform on PIL images
(Resize(shorter side) → CenterCrop → ToTensor → Normalize) bit for bit. Decoding follows the same convention,
`PIL.Image.open(file).convert("RGB")`, and departs from it only where that loses the picture:

- EXIF (and XMP) orientation is applied, because cameras store what the sensor saw.
- 16-bit greyscale keeps its high byte, as Pillow does for 16-bit RGB; `convert` would clip it to white.
  `I` and `F` images are scaled by their range, see `_wide_to_grey`.

And it keeps the convention elsewhere, because networks are trained with it:

- Alpha is dropped, not blended: the color stored under a transparent pixel is what the network sees.
- ICC profiles are ignored; CMYK is converted by Pillow's formula, after Pillow has undone Adobe's inversion.
- Of an animation or a multi-page file, the first frame is taken.
- JPEG's reduced-size decoding (`draft`) is never used, since it changes the bytes.
"""

from __future__ import annotations

import io
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MAX_PIXELS", "ImageSource", "decode", "load", "normalize", "prepare", "to_input"]

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image | NDArray[np.uint8]"

MAX_PIXELS = 2**28
"""The largest image, as stored or as resized before the crop: 1 GiB at Pillow's four bytes a pixel. Pillow's
own guard (`PIL.Image.MAX_IMAGE_PIXELS`, by default a warning from 89 and an error from 179 million stored
pixels) holds beside it."""

# What photographs and data sets come in. EPS is left out on purpose: Pillow hands it to Ghostscript, which
# is an interpreter. HEIF counts where the application has registered a plugin for it.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC = 258, 262
_EXIF_ORIENTATION = 0x0112


def load(source: ImageSource, preprocessing: Preprocessing, *, name: str | None = None) -> NDArray[np.uint8]:
    """Decode `source` and cut the network's crop from it: uint8 [crop, crop, 3], RGB.

    `name` is what error messages call the image; by default its path. Raises ImageError.
    """
    name = name or _describe(source)
    return prepare(decode(source, name=name), preprocessing, name=name)


def decode(source: ImageSource, *, name: str | None = None) -> Image:
    """Return the picture in `source` as an upright RGB image.

    Args:
        source: a path; the bytes of an image file; a PIL image of any mode; or a uint8 array [H, W] (gray),
            [H, W, 3] (RGB) or [H, W, 4] (RGBA).
        name: what error messages call the image; by default its path.

    Raises:
        ImageError: there is no such file, it is no image in a known format, it is damaged, or it has more
            than `MAX_PIXELS` pixels, which is checked on the header before anything is decoded.
    """
    from PIL import Image

    name = name or _describe(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, name)
    if isinstance(source, np.ndarray):
        return _to_rgb(_from_array(source, name), name)
    if isinstance(source, bytes | bytearray | memoryview):
        with io.BytesIO(source) as file:
            return _decode_file(file, name)
    try:
        with Path(source).open("rb") as file:
            return _decode_file(file, name)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be read ({reason}); give the path of an image file") from error


def prepare(image: Image, preprocessing: Preprocessing, *, name: str = "the image") -> NDArray[np.uint8]:
    """Resize the shorter side and cut the central square: uint8 [crop, crop, 3].

    The same arithmetic as torchvision's `Resize` (the long side is truncated) and `CenterCrop` (offsets round
    half to even; a picture smaller than the crop is padded with black), on Pillow's antialiased filters.

    Args:
        image: an RGB image, as `decode` returns it.
        preprocessing: sizes and filter.
        name: what error messages call the image.

    Raises:
        ImageError: the image is not RGB, or so elongated that it would have more than `MAX_PIXELS` pixels
            after resizing.
    """
    from PIL import Image

    if image.mode != "RGB":
        raise ImageError(f"{name} has mode {image.mode}, expected RGB; pass it through decode() first")
    width, height = _resized(image.size, preprocessing.resize)
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {image.width}×{image.height}, which has more than {MAX_PIXELS} pixels once its "
            f"shorter side is resized to {preprocessing.resize}; crop it first"
        )
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    if image.size != (width, height):
        image = image.resize((width, height), filters[preprocessing.interpolation])
    crop = preprocessing.crop
    left, top = _crop_offset(width, crop), _crop_offset(height, crop)
    # Outside the picture Pillow's crop is black, so that this also pads.
    return np.array(image.crop((left, top, left + crop, top + crop)))


def normalize(images: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return (images / 255 - mean) / std: uint8 [N, H, W, 3] to contiguous float32 [N, 3, H, W].

    Every step is rounded to float32 in the order of torchvision's ToTensor and Normalize, so that the floats
    are the same bits. Raises ImageError for another shape or dtype.
    """
    _check_batch(images)
    mean = np.array(preprocessing.mean, np.float32).reshape(3, 1, 1)
    std = np.array(preprocessing.std, np.float32).reshape(3, 1, 1)
    result = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    result /= np.float32(255)
    result -= mean
    result /= std
    return result


def to_input(
    images: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Turn crops, uint8 [N, H, W, 3], into what the artifacts take.

    That is the crops themselves (contiguous) when normalization is in the graph, else `normalize(images)`.
    Raises ImageError for another shape or dtype.
    """
    if not preprocessing.in_graph:
        return normalize(images, preprocessing)
    _check_batch(images)
    return np.ascontiguousarray(images)


def _describe(source: ImageSource) -> str:
    if isinstance(source, str | os.PathLike):
        return repr(os.fspath(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the image in memory ({len(source)} bytes)"
    if isinstance(source, np.ndarray):
        return "the image array"
    filename = getattr(source, "filename", "")
    return repr(filename) if filename else "the image"


def _decode_file(file: BinaryIO, name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not file.seekable():  # a pipe
        file = io.BytesIO(file.read())
    if not file.read(1):
        raise ImageError(f"{name} is empty; give an image file")
    formats = (*_FORMATS, "HEIF") if "HEIF" in Image.OPEN else _FORMATS
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        known = ", ".join(formats[:-1]) + f" or {formats[-1]}"
        raise ImageError(f"{name} is no image, or its header is damaged; give a {known} file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} is too large to decode ({_reason(error)}); scale it down first") from error
    except Exception as error:  # A parser that meets a damaged file raises whatever it stumbles over.
        raise ImageError(f"{name} cannot be decoded ({_reason(error)}); replace the file") from error
    return _to_rgb(image, name)


def _to_rgb(image: Image, name: str) -> Image:
    """Return the first frame of `image`, decoded, in RGB and upright; `image` itself is left as it is."""
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name} is too large to decode ({image.width}×{image.height}, more than {MAX_PIXELS} pixels); "
            "scale it down first"
        )
    if not image.width or not image.height:
        raise ImageError(f"{name} has no pixels; give an image of at least 1×1")
    try:
        image.load()
        return _upright(_convert(image, name), _orientation(image))
    except ImageError:
        raise
    except Exception as error:  # A decoder that meets a damaged file raises whatever it stumbles over.
        raise ImageError(f"{name} cannot be decoded ({_reason(error)}); replace the file") from error


def _convert(image: Image, name: str) -> Image:
    if image.mode == "RGB":
        return image
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _wide_to_grey(image, name).convert("RGB")
    if image.mode == "La":  # Pillow converts premultiplied gray to RGB only by way of LA.
        return image.convert("LA").convert("RGB")
    if "transparency" in image.info:  # It goes anyway, and Pillow warns about keeping a palette's.
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB")


def _wide_to_grey(image: Image, name: str) -> Image:
    """Scale samples of more than 8 bits to 8: mode L.

    `I;16` keeps the high byte (of a 12-bit TIFF, the high 8 of 12 bits). `I` means 16-bit samples in the
    files that have no wider ones (PGM, PNG), and otherwise what its range says: up to 255 as it is, up to
    65535 as 16-bit. `F` in [0, 1] is scaled by 255, in [0, 255] truncated as Pillow does. Any other range has
    no usual meaning, and is refused.
    """
    from PIL import Image

    samples = np.asarray(image)
    low, high = samples.min(), samples.max()
    if image.mode == "F":
        if not (low >= 0 and high <= 255):  # also when one is NaN
            raise ImageError(
                f"{name} has float samples from {low:g} to {high:g}, expected 0 to 1 or 0 to 255; "
                "convert it to 8-bit RGB first"
            )
        return Image.fromarray((np.rint(samples * 255) if high <= 1 else samples).astype(np.uint8))
    if low < 0 or high > 65535:
        raise ImageError(
            f"{name} has integer samples from {low} to {high}, expected 0 to 65535; "
            "convert it to 8-bit RGB first"
        )
    if image.mode == "I" and image.format not in {"PPM", "PNG"} and high <= 255:
        return Image.fromarray(samples.astype(np.uint8))
    tags = getattr(image, "tag_v2", {})
    bits = 12 if tags.get(_TIFF_BITS_PER_SAMPLE) == (12,) else 16
    grey = (samples >> (bits - 8)).astype(np.uint8)
    # Pillow inverts min-is-white TIFF files of up to 8 bits, not those of 16.
    return Image.fromarray(255 - grey if tags.get(_TIFF_PHOTOMETRIC) == 0 else grey)


def _orientation(image: Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none or the EXIF block is damaged.

    Damaged blocks are common in photographs that are otherwise fine, ImageNet's among them.
    """
    damage = (SyntaxError, ValueError, TypeError, LookupError, AttributeError, OSError, struct.error, Warning)
    with suppress(*damage):
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    return 1


def _upright(image: Image, orientation: int) -> Image:
    """Undo EXIF orientation (Exif 2.32, tag 0x0112).

    Pillow's `exif_transpose` also writes the EXIF block anew, and fails where a damaged tag cannot be
    written.
    """
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    if orientation not in turns:
        return image
    upright = image.transpose(turns[orientation])
    upright.info = {}  # Without its EXIF, or a second decode() would turn it again.
    return upright


def _from_array(array: NDArray[np.uint8], name: str) -> Image:
    from PIL import Image

    picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in {3, 4})
    if array.dtype != np.uint8 or not picture:
        raise ImageError(
            f"{name} is {array.dtype} {list(array.shape)}, expected uint8 [H, W], [H, W, 3] or [H, W, 4]"
        )
    if not array.size:
        raise ImageError(f"{name} has no pixels; give an image of at least 1×1")
    return Image.fromarray(array)


def _resized(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """Return (width, height) with the shorter side at `shorter` and the longer one truncated."""
    width, height = size
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _crop_offset(length: int, crop: int) -> int:
    """Return where the central `crop` pixels start; negative where padding has to come first."""
    if crop > length:
        return -((crop - length) // 2)
    return round((length - crop) / 2)


def _check_batch(images: NDArray[np.uint8]) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ImageError(f"the images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, 3]")


def _reason(error: Exception) -> str:
    """Return the first line of what an exception says, or its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
