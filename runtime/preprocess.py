"""From an image, in whatever form, to the network's input: decode, resize, crop, normalize.

Everything after decoding equals torchvision's evaluation transform on PIL images
(Resize → CenterCrop → ToTensor → Normalize) bit for bit. Decoding follows the same convention,
`PIL.Image.open(file).convert(…)` to "L", "RGB" or "RGBA", as the network has 1, 3 or 4 input channels, and diverges
from it only where that loses the picture:

- EXIF (and XMP) orientation is applied, because cameras store what the sensor saw.
- 16-bit grayscale keeps its high byte, as Pillow does for 16-bit RGB; `convert` would clip it to white.
  `I` and `F` images are scaled by their range, see `_wide_to_gray`.

And it keeps the convention elsewhere, because networks are trained with it:

- For networks without alpha it is dropped, not blended: the color stored under a transparent pixel is what the network
  sees. For networks with alpha (4 channels) an image without it is opaque, and resizing weighs colors by alpha.
- ICC profiles are ignored; CMYK is converted by Pillow's formula, after Pillow has undone Adobe's inversion.
- Of an animation or a multi-page file, the first frame is taken.
- JPEG's reduced-size decoding (`draft`) is never used, since it changes the bytes.
"""

from __future__ import annotations

import importlib
import io
import math
import os
import struct
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "MAX_PIXELS",
    "ColorOrder",
    "ColorOrderWarning",
    "ImageFile",
    "ImageSource",
    "decode",
    "is_one_image",
    "load",
    "normalize",
    "prepare",
    "to_input",
]


class ImageFile(Protocol):
    """An image file opened in binary mode, or an `io.BytesIO`; read from its start, and left open."""

    def read(self) -> bytes:
        """Return the bytes of the file."""
        ...


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | ImageFile | Image | NDArray[np.uint8]"
)

ColorOrder: TypeAlias = Literal["rgb", "bgr"]
"""The order of the channels in an array of 3 or 4: "bgr" for OpenCV's frames (alpha, if any, comes last in both)."""

MAX_PIXELS = 2**28
"""The largest image, as stored or as resized before the crop: 1 GiB at Pillow's four bytes a pixel. Pillow's
own guard (`PIL.Image.MAX_IMAGE_PIXELS`, by default a warning from 89 and an error from 179 million stored
pixels) holds beside it."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels


class ColorOrderWarning(UserWarning):
    """An array is taken as RGB without its caller having said so, in a process that has loaded OpenCV."""


# What photographs and data sets come in. EPS is left out on purpose: Pillow hands it to Ghostscript, which
# is an interpreter. HEIF counts where pillow-heif is installed.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")

_TIFF_BITS_PER_SAMPLE, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES_PER_PIXEL = 258, 262, 277
_EXIF_ORIENTATION = 0x0112

_HOST_MEMORY = (1, 3)  # DLDeviceType: kDLCPU and kDLCUDAHost


# What else people hand over, by how it starts.
_OTHER_FORMATS = {
    b"%PDF": "a PDF document",
    b"%!PS": "a PostScript file",
    b"<!DOCTYPE": "an HTML page",
    b"<!doctype": "an HTML page",
    b"<html": "an HTML page",
    b"<svg": "an SVG drawing",
    b"<?xml": "an XML file",
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\xff\x0a": "a JPEG XL image",
    b"\0\0\0\x0cJXL ": "a JPEG XL image",
    b"8BPS": "a Photoshop document",
    b"SIMPLE  =": "a FITS file",
    b"version https://git-lfs": "a Git LFS pointer, without the file that it stands for",
}
_DICOM = (128, b"DICM")
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEAD = 512  # bytes that tell a format


def load(
    source: ImageSource,
    preprocessing: Preprocessing,
    *,
    color: ColorOrder | None = None,
    name: str | None = None,
) -> NDArray[np.uint8]:
    """Decode `source` and cut the network's crop from it: uint8 [H, W, C], as `preprocessing` says.

    Args:
        source: the image, see `decode`.
        preprocessing: channels, sizes and filter.
        color: the order of the channels where `source` is an array, see `decode`.
        name: what error messages call the image; by default its path.

    Raises ImageError.
    """
    name = name or _describe(source)
    return prepare(
        decode(source, channels=preprocessing.channels, color=color, name=name), preprocessing, name=name
    )


def is_one_image(value: object) -> bool:
    """Tell whether `value` is an image where several are expected: one in any form, or an array of less than 4 axes."""
    if isinstance(value, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(value, "read"):
        return True
    shape = getattr(value, "shape", None) if hasattr(value, "__dlpack__") else None
    return shape is not None and len(shape) < 4


def decode(
    source: ImageSource, *, channels: int = 3, color: ColorOrder | None = None, name: str | None = None
) -> Image:
    """Return the picture in `source` as an upright image.

    Args:
        source: a path; the bytes of an image file; such a file opened in binary mode, or an `io.BytesIO`; a PIL image
            of any mode; or an array, uint8 [H, W] or [H, W, 1] (grayscale), [H, W, 3] or [H, W, 4] (color, and alpha),
            of NumPy or of whatever speaks DLPack and lies in host memory.
        channels: 1 for a grayscale image (PIL's mode L), 3 for RGB, 4 for RGBA.
        color: the order of an array's channels, "rgb" or "bgr". **OpenCV's frames are BGR**, and nothing in an array
            says so. None is "rgb", with a ColorOrderWarning where OpenCV is loaded. Files and PIL images know their
            order, and are not affected.
        name: what error messages call the image; by default its path.

    Raises:
        ImageError: there is no such file, it is not an image in a known format, it is damaged, it has more than
            `MAX_PIXELS` pixels, which is checked on the header before anything is decoded, or the array is of another
            dtype or layout; or another `color` than these.
    """
    from PIL import Image

    name = name or _describe(source)
    mode = _MODES[channels]
    if color not in (None, "rgb", "bgr"):
        raise ImageError(f"color is {color!r}, expected 'rgb', or 'bgr' for OpenCV's frames")
    if isinstance(source, Image.Image):
        return _to_mode(source, mode, name)
    array = _host_array(source)
    if array is not None:
        return _to_mode(_from_array(array, color, name), mode, name)
    if isinstance(source, bytes | bytearray | memoryview):
        with io.BytesIO(source) as file:
            return _decode_file(file, mode, name)
    if hasattr(source, "read"):
        with io.BytesIO(_read(source, name)) as file:
            return _decode_file(file, mode, name)
    if not isinstance(source, str | os.PathLike):
        raise ImageError(_not_an_image(source, name))
    try:
        with Path(source).open("rb") as file:
            return _decode_file(file, mode, name)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name} cannot be read ({reason}); give the path of an image file") from error


def prepare(image: Image, preprocessing: Preprocessing, *, name: str = "the image") -> NDArray[np.uint8]:
    """Resize and cut the center: uint8 [H, W, C].

    The same arithmetic as torchvision's `Resize` (of the shorter side, the long one truncated, or of both sides) and
    `CenterCrop` (offsets round half to even; a picture smaller than the crop is padded with zeros), on Pillow's
    filters.

    Args:
        image: an image of as many channels as the network has, as `decode` returns it.
        preprocessing: channels, sizes and filter.
        name: what error messages call the image.

    Raises:
        ImageError: the image is of another mode, or so elongated that it would have more than `MAX_PIXELS` pixels
            after resizing.
    """
    from PIL import Image

    mode = _MODES[preprocessing.channels]
    if image.mode != mode:
        raise ImageError(f"{name} has mode {image.mode}, expected {mode}; pass it through decode() first")
    size = _resized(image.size, preprocessing.resize)
    if math.prod(size) > MAX_PIXELS:
        raise ImageError(
            f"{name} is {image.width}×{image.height}, which has more than {MAX_PIXELS} pixels once its "
            f"shorter side is resized to {preprocessing.resize}; crop it first"
        )
    if image.size != size:
        image = image.resize(size, Image.Resampling[preprocessing.interpolation.upper()])
    height, width = preprocessing.size
    left, top = _crop_offset(image.width, width), _crop_offset(image.height, height)
    # Outside the picture Pillow's crop is zero, so that this also pads.
    crop = np.array(image.crop((left, top, left + width, top + height)))
    return crop.reshape(preprocessing.crop_shape)


def normalize(images: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return (images / 255 - mean) / std: uint8 [N, H, W, C] to contiguous float32 [N, C, H, W].

    Every step is rounded to float32 in the order of torchvision's ToTensor and Normalize, so that the floats
    are the same bits. Raises ImageError for another shape or dtype.
    """
    _check_batch(images, preprocessing)
    mean = np.array(preprocessing.mean, np.float32).reshape(-1, 1, 1)
    std = np.array(preprocessing.std, np.float32).reshape(-1, 1, 1)
    result = images.transpose(0, 3, 1, 2).astype(np.float32, order="C")
    result /= np.float32(255)
    result -= mean
    result /= std
    return result


def to_input(
    images: NDArray[np.uint8], preprocessing: Preprocessing
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Turn crops, uint8 [N, H, W, C], into what the artifacts take.

    That is the crops themselves (contiguous) when normalization is in the graph, else `normalize(images)`.
    Raises ImageError for another shape or dtype.
    """
    if not preprocessing.in_graph:
        return normalize(images, preprocessing)
    _check_batch(images, preprocessing)
    return np.ascontiguousarray(images)


def _describe(source: ImageSource) -> str:
    if isinstance(source, str | os.PathLike):
        return repr(os.fspath(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return f"the image in memory ({len(source)} bytes)"
    if isinstance(source, np.ndarray):
        return "the image array"
    filename = getattr(source, "name", None) if hasattr(source, "read") else None
    if isinstance(filename, str):  # a descriptor's number says nothing
        return repr(filename)
    filename = getattr(source, "filename", "")
    return repr(filename) if filename else "the image"


def _read(file: Any, name: str) -> bytes:
    """Return all bytes of an opened file, as Pillow reads it: from its start, if it can be rewound."""
    try:
        with suppress(AttributeError, io.UnsupportedOperation):
            file.seek(0)
        data = file.read()
    except Exception as error:  # An object of a stranger raises whatever it likes; a closed file, ValueError.
        raise ImageError(f"{name} cannot be read ({_reason(error)}); give an open binary file") from error
    if isinstance(data, str):
        raise ImageError(f"{name} was opened as text; open it in binary mode, 'rb'")
    if not isinstance(data, bytes | bytearray | memoryview):
        close = getattr(
            data, "close", None
        )  # of a coroutine, which would else complain that nobody awaited it
        if callable(close):
            close()
        raise ImageError(
            f"{name} reads a {type(data).__name__}, expected bytes; await its read(), and give what that returns"
        )
    return bytes(data)


def _decode_file(file: BinaryIO, mode: str, name: str) -> Image:
    from PIL import Image, UnidentifiedImageError

    if not file.seekable():  # a pipe
        file = io.BytesIO(file.read())
    head = file.read(_HEAD)
    if not head:
        raise ImageError(f"{name} is empty; give an image file")
    heif = _is_heif(head)
    if heif and not _open_heif():
        raise ImageError(
            f"{name} is a HEIC image, which takes pillow-heif to read; run: pip install 'resnet-export[heif]', or "
            "convert it to JPEG"
        )
    formats = (*_FORMATS, "HEIF") if "HEIF" in Image.OPEN else _FORMATS
    try:
        image = Image.open(file, formats=formats)
    except UnidentifiedImageError as error:
        known = ", ".join(formats[:-1]) + f" or {formats[-1]}"
        raise ImageError(f"{name} is {_what(head)}; give a {known} file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{name} is too large to decode ({_reason(error)}); scale it down first") from error
    except Exception as error:  # A parser that meets a damaged file raises whatever it stumbles over.
        raise ImageError(f"{name} cannot be decoded ({_reason(error)}); replace the file") from error
    return _to_mode(image, mode, name)


def _is_heif(head: bytes) -> bool:
    """Whether a file starts like a HEIF image (ISO/IEC 23008-12) that is not an AVIF one."""
    if head[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[start : start + 4] for start in range(16, length, 4))}
    return bool(brands & _HEIF_BRANDS) or (head[8:12] in {b"mif1", b"msf1"} and b"avif" not in brands)


def _open_heif() -> bool:
    """Whether Pillow reads HEIF: pillow-heif is registered where it is installed."""
    from PIL import Image

    if "HEIF" not in Image.OPEN:
        with suppress(ImportError):
            importlib.import_module("pillow_heif").register_heif_opener()
    return "HEIF" in Image.OPEN


def _what(head: bytes) -> str:
    """Return what a file that is not an image, or not one that is read here, seems to be."""
    start, mark = _DICOM
    if head[start:].startswith(mark):
        return "a DICOM file, and not an image as cameras write them"
    if head[4:8] == b"ftyp":
        return "a video, or an image in a format that is not read"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for beginning, kind in _OTHER_FORMATS.items():
        if head.startswith(beginning) or text.startswith(beginning):
            return f"{kind}, and not an image that is read"
    return "not an image, or its header is damaged"


def _to_mode(image: Image, mode: str, name: str) -> Image:
    """Return the first frame of `image`, decoded, in `mode` and upright; `image` itself is left as it is."""
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{name} is too large to decode ({image.width}×{image.height}, more than {MAX_PIXELS} pixels); "
            "scale it down first"
        )
    if not image.width or not image.height:
        raise ImageError(f"{name} has no pixels; give an image of at least 1×1")
    try:
        image.load()
        return _upright(_convert(image, mode, name), _orientation(image))
    except ImageError:
        raise
    except Exception as error:  # A decoder that meets a damaged file raises whatever it stumbles over.
        raise ImageError(f"{name} cannot be decoded ({_reason(error)}); replace the file") from error


def _convert(image: Image, mode: str, name: str) -> Image:
    from PIL import Image as pillow

    if image.mode == mode:
        return image
    if image.mode in {"I", "F"} or image.mode.startswith("I;16"):
        return _wide_to_gray(image, name).convert(mode)
    if image.mode == "La":  # Pillow converts premultiplied gray only by way of LA.
        image = image.convert("LA")
    if mode == "RGBA":
        if image.mode == "RGBX":
            return pillow.frombytes("RGBA", image.size, image.tobytes())
        if image.mode == "RGB" and getattr(image, "tag_v2", {}).get(_TIFF_SAMPLES_PER_PIXEL) == 4:
            raise ImageError(
                f"{name} has a fourth band that is not declared as alpha, which Pillow does not read; save it as RGBA, "
                "or give the array"
            )
        return image.convert("RGBA")
    if "transparency" in image.info:  # It goes anyway, and Pillow warns about keeping a palette's.
        image = image.copy()
        del image.info["transparency"]
    return (image.convert("RGB") if image.mode == "LAB" else image).convert(mode)


def _wide_to_gray(image: Image, name: str) -> Image:
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
    gray = (samples >> (bits - 8)).astype(np.uint8)
    # Pillow inverts min-is-white TIFF files of up to 8 bits, not those of 16.
    return Image.fromarray(255 - gray if tags.get(_TIFF_PHOTOMETRIC) == 0 else gray)


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


def _host_array(source: object) -> NDArray[Any] | None:
    """Return an array in host memory, NumPy's or any that speaks DLPack, as NumPy's; None for everything else."""
    if isinstance(source, np.ndarray):
        return source
    try:
        device, _ = source.__dlpack_device__()  # type: ignore[attr-defined]
        return np.from_dlpack(source) if device in _HOST_MEMORY else None  # type: ignore[arg-type]
    except (AttributeError, BufferError, RuntimeError, TypeError, ValueError):
        return None  # no such protocol, or a dtype or state that it cannot express


def _from_array(array: NDArray[np.uint8], color: ColorOrder | None, name: str) -> Image:
    from PIL import Image

    if array.dtype != np.uint8 or not _is_picture(array):
        raise ImageError(_not_a_picture(array, name))
    if not array.size:
        raise ImageError(f"{name} has no pixels; give an image of at least 1×1")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3:
        if color is None and "cv2" in sys.modules:
            warnings.warn(
                "an array of 3 or 4 channels is taken as RGB, and OpenCV, which is loaded, gives BGR; say color='bgr' "
                "for its frames, color='rgb' for other arrays",
                ColorOrderWarning,
                stacklevel=2,
            )
        if color == "bgr":
            array = array[:, :, [2, 1, 0, 3][: array.shape[2]]]
    return Image.fromarray(np.ascontiguousarray(array))


def _is_picture(array: NDArray[Any]) -> bool:
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _MODES)


def _not_a_picture(array: NDArray[Any], name: str) -> str:
    """Say what an array is instead of an image, and what makes it one."""
    found = f"{name} is {array.dtype} {list(array.shape)}, expected uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
    if array.ndim == 4:
        return f"{found}; give the images of the batch one by one, as list(images) does"
    if array.ndim == 3 and not _is_picture(array) and array.shape[0] in _MODES:
        return f"{found}; it has its channels first: give image.transpose(1, 2, 0)" + (
            "" if array.dtype == np.uint8 else ", as uint8"
        )
    if not _is_picture(array):
        return f"{found}; give an image, rows first and channels last"
    if array.dtype == bool:
        return f"{found}; give image.astype(np.uint8) * 255"
    if array.dtype.kind not in "fiu" or not array.size:
        return f"{found}; convert it to 8 bits"
    low, high = array.min(), array.max()
    if array.dtype.kind == "f":
        if low >= 0 and high <= 1:
            return f"{found}; its values are from {low:g} to {high:g}: give (image * 255).round().astype(np.uint8)"
        if not (low >= 0 and high <= 255):  # also when one is NaN
            return f"{found}; its values are from {low:g} to {high:g}: give the image as it was before normalization"
        return f"{found}; give image.round().astype(np.uint8)"
    if low >= 0 and high <= 255:
        return f"{found}; give image.astype(np.uint8)"
    return f"{found}; its values are from {low} to {high}: scale them to 0 to 255 first"


def _not_an_image(source: Any, name: str) -> str:
    """Say what a value of another type is, and what an image is given as."""
    kind = f"{type(source).__module__}.{type(source).__qualname__}".removeprefix("builtins.")
    found = f"{name} is of type {kind}, expected a path, bytes, an open file, a PIL image or a numpy array"
    shape = getattr(source, "shape", None)
    if shape is not None and hasattr(source, "__dlpack__"):
        first = len(shape) == 3 and shape[0] in _MODES and shape[2] not in _MODES
        axes = ", channels last" if first else ""
        return f"{found}; give the array on the CPU as numpy.asarray(image), uint8{axes}"
    if isinstance(source, list | tuple):
        return f"{found}; give numpy.array(image, numpy.uint8), or the images one by one"
    return f"{found}; give one of these"


def _resized(size: tuple[int, int], resize: int | tuple[int, ...]) -> tuple[int, int]:
    """Return (width, height): both as `resize` (height, width) says, or the shorter side so, the longer truncated."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def _crop_offset(length: int, crop: int) -> int:
    """Return where the central `crop` pixels start; negative where padding has to come first."""
    if crop > length:
        return -((crop - length) // 2)
    return round((length - crop) / 2)


def _check_batch(images: NDArray[np.uint8], preprocessing: Preprocessing) -> None:
    channels = preprocessing.channels
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != channels:
        raise ImageError(
            f"the images are {images.dtype} {list(images.shape)}, expected uint8 [N, H, W, {channels}]"
        )


def _reason(error: Exception) -> str:
    """Return the first line of what an exception says, or its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__
