from __future__ import annotations

import io
import os
import struct
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.bundle.schema import CHANNELS, Interpolation
from resnet_export.runtime.errors import ImageError
from resnet_export.runtime.preprocess import ColorOrderWarning, decode, load, normalize, prepare, to_input

# (width, height)
SIZES = (
    (1, 1),
    (1, 2),
    (3, 2),
    (17, 301),
    (100, 150),
    (224, 224),
    (223, 225),
    (255, 256),
    (256, 255),
    (256, 256),
    (257, 256),
    (640, 427),
    (511, 1023),
)
# What `convert("RGB")` turns into RGB without loss, so that torchvision is the oracle.
MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "LAB", "HSV")


@pytest.fixture(scope="session")
def evaluation_transform(torchvision: ModuleType) -> Callable[[Preprocessing], Any]:
    """torchvision's evaluation transform up to the crop."""
    from torchvision import transforms

    def build(preprocessing: Preprocessing) -> Any:
        mode = transforms.InterpolationMode(preprocessing.interpolation)
        return transforms.Compose(
            [transforms.Resize(preprocessing.resize, mode), transforms.CenterCrop(preprocessing.size)]
        )

    return build


def noise(*shape: int, seed: int = 0, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def replaced(channels: int, **settings: Any) -> Preprocessing:
    """Preprocessing of so many channels."""
    half = (0.5,) * channels
    return Preprocessing(**{"mean": half, "std": half} | settings)


def noise_image(mode: str, size: tuple[int, int]) -> Image.Image:
    color = Image.fromarray(noise(size[1], size[0], 4), "RGBA")
    if mode == "RGBX":
        return Image.merge("RGBX", color.split())
    if mode == "PA":
        return color.convert("P").convert("PA")
    if mode == "P":
        indexed = color.convert("RGB").quantize(16)
        indexed.info["transparency"] = bytes(range(0, 256, 16))
        return indexed
    if mode in {"LAB", "HSV", "YCbCr", "CMYK"}:
        return color.convert("RGB").convert(mode)
    return color.convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, color: int, rows: np.ndarray) -> bytes:
    """A PNG file written by hand: Pillow cannot write 16-bit color, or a header without its pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = b"".join(b"\0" + row.astype(rows.dtype.newbyteorder(">")).tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def tiff(width: int, height: int, bits: int, photometric: int, data: bytes) -> bytes:
    """An uncompressed little-endian grayscale TIFF written by hand: Pillow cannot write these variants."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 8 + 2 + 12 * 9 + 4, 277: 1}
    tags |= {278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


# Equal to torchvision


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_mode_and_size_gives_the_bytes_of_torchvision(
    size: tuple[int, int], evaluation_transform: Callable[[Preprocessing], Any]
) -> None:
    preprocessing = Preprocessing()
    reference = evaluation_transform(preprocessing)
    for mode in MODES:
        image = noise_image(mode, size)
        plain = image.copy()
        plain.info = {}  # Pillow warns about a palette's transparency, which changes no color
        expected = np.asarray(reference(plain.convert("RGB")))
        assert np.array_equal(load(image, preprocessing), expected), mode


@pytest.mark.parametrize(
    ("size", "preprocessing"),
    [((3, 5000), Preprocessing()), ((5000, 3), Preprocessing(resize=72, crop=64, interpolation="bicubic"))],
)
def test_a_sliver_gives_the_bytes_of_torchvision(
    size: tuple[int, int],
    preprocessing: Preprocessing,
    evaluation_transform: Callable[[Preprocessing], Any],
) -> None:
    image = noise_image("RGB", size)
    assert np.array_equal(
        prepare(image, preprocessing), np.asarray(evaluation_transform(preprocessing)(image))
    )


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_photographs_give_the_bytes_and_the_floats_of_torchvision(
    interpolation: Any, photograph_files: list[Path], evaluation_transform: Callable[[Preprocessing], Any]
) -> None:
    from torchvision import transforms

    preprocessing = Preprocessing(interpolation=interpolation)
    crop = evaluation_transform(preprocessing)
    to_tensor = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(preprocessing.mean, preprocessing.std)]
    )
    bundled = sorted(Path(str(files("resnet_export.exporter") / "data" / "photos")).glob("*.jpg"))
    assert len(bundled) >= 32
    for photo in photograph_files + bundled:
        with Image.open(photo) as image:
            expected = crop(image.convert("RGB"))
        ours = load(photo, preprocessing)
        assert np.array_equal(ours, np.asarray(expected))
        floats = normalize(ours[None], preprocessing)[0]
        assert np.array_equal(floats.view(np.uint32), to_tensor(expected).numpy().view(np.uint32))


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resize=st.integers(1, 80) | st.tuples(st.integers(1, 80), st.integers(1, 80)),
    crop=st.integers(1, 80) | st.tuples(st.integers(1, 80), st.integers(1, 80)),
    interpolation=st.sampled_from(get_args(Interpolation)),
    channels=st.sampled_from(list(CHANNELS)),
    seed=st.integers(0, 9),
)
def test_any_size_resize_crop_filter_and_channels_give_the_bytes_of_torchvision(
    width: int,
    height: int,
    resize: Any,
    crop: Any,
    interpolation: Any,
    channels: int,
    seed: int,
    evaluation_transform: Callable[[Preprocessing], Any],
) -> None:
    preprocessing = replaced(channels, resize=resize, crop=crop, interpolation=interpolation)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    image = Image.fromarray(noise(height, width, 4, seed=seed)).convert(mode)
    expected = np.asarray(evaluation_transform(preprocessing)(image))
    crop = prepare(image, preprocessing)
    assert crop.shape == preprocessing.crop_shape
    assert np.array_equal(crop, expected.reshape(crop.shape))


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_every_mode_is_decoded_as_pillow_converts_it(channels: int, mode: str) -> None:
    for name in MODES:
        image = noise_image(name, (23, 17))
        if (
            name == "RGBX" and mode == "RGBA"
        ):  # Pillow would make the fourth band of such an image opaque alpha
            expected = np.stack([np.asarray(band) for band in image.split()], axis=-1)
        elif name == "LAB":  # Pillow has no direct way
            expected = np.asarray(image.convert("RGB").convert(mode))
        else:
            plain = image.copy()
            if mode == "L":
                plain.info = {}
            expected = np.asarray(plain.convert(mode))
        found = decode(image, channels=channels)
        assert found.mode == mode, name
        assert np.array_equal(found, expected), name


def test_grayscale_is_torchvisions(torchvision: ModuleType, photograph_files: list[Path]) -> None:
    from torchvision import transforms

    preprocessing = replaced(1, resize=40, crop=(24, 32))
    reference = transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize(40),
            transforms.CenterCrop((24, 32)),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    for photo in photograph_files:
        with Image.open(photo) as image:
            expected = reference(image.convert("RGB")).numpy()
        ours = to_input(load(photo, preprocessing)[None], preprocessing)[0]
        assert ours.shape == (1, 24, 32)
        assert np.array_equal(ours, expected)


def test_samples_of_more_than_8_bits_keep_their_high_byte_in_every_mode() -> None:
    samples = noise(5, 7, dtype=np.uint16)
    data = png(7, 5, 16, 0, samples)
    assert np.array_equal(decode(data, channels=1), samples >> 8)
    rgba = np.asarray(decode(data, channels=4))
    assert np.array_equal(rgba[..., 1], samples >> 8)
    assert (rgba[..., 3] == 255).all()


def test_a_fourth_band_that_is_not_alpha_is_refused_rather_than_dropped() -> None:
    bands = [Image.fromarray(band) for band in noise(4, 5, 6)]
    data = encoded(Image.merge("RGBX", bands), "TIFF")
    with pytest.raises(ImageError, match="fourth band that is not declared as alpha"):
        decode(data, channels=4)
    assert decode(data).mode == "RGB"
    declared = encoded(Image.merge("RGBA", bands), "TIFF")
    assert np.array_equal(decode(declared, channels=4), Image.merge("RGBA", bands))


@settings(max_examples=50, deadline=None)
@given(
    channels=st.sampled_from(list(CHANNELS)),
    data=st.data(),
)
def test_normalized_values_are_torchvisions_bit_for_bit(
    channels: int, data: st.DataObject, torchvision: ModuleType
) -> None:
    from torchvision import transforms

    mean = data.draw(st.tuples(*[st.floats(0, 1, width=32)] * channels))
    std = data.draw(st.tuples(*[st.floats(0.0625, 1, width=32)] * channels))
    pixels = np.arange(256, dtype=np.uint8).repeat(channels).reshape(16, 16, channels)
    reference = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])
    ours = normalize(np.stack([pixels, pixels[::-1]]), Preprocessing(mean=mean, std=std))
    assert ours.shape == (2, channels, 16, 16)
    assert ours.dtype == np.float32
    assert ours.flags.c_contiguous
    for image, expected in zip(ours, (pixels, pixels[::-1].copy()), strict=True):
        assert np.array_equal(image.view(np.uint32), reference(expected).numpy().view(np.uint32))


# Sources


def test_a_path_its_bytes_an_open_image_and_an_array_give_the_same_crop(photograph_files: list[Path]) -> None:
    photo, preprocessing = photograph_files[0], Preprocessing()
    expected = load(photo, preprocessing)
    with Image.open(photo) as image:
        array = np.asarray(image)
        sources = [str(photo), photo.read_bytes(), memoryview(photo.read_bytes()), image, array]
        for source in sources:
            assert np.array_equal(load(source, preprocessing), expected)  # type: ignore[arg-type]
    assert expected.flags.writeable


def test_an_image_comes_through_a_pipe(tmp_path: Path, photograph_files: list[Path]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(photograph_files[0].read_bytes()))
    writer.start()
    image = decode(pipe)
    writer.join()
    assert np.array_equal(image, decode(photograph_files[0]))


def test_an_image_that_is_passed_in_is_left_as_it_is() -> None:
    image = noise_image("P", (20, 10))
    before = image.tobytes(), image.getpalette("RGB"), dict(image.info)
    decode(image)
    assert (image.tobytes(), image.getpalette("RGB"), dict(image.info)) == before
    assert image.mode == "P"


def test_gray_and_rgba_arrays_are_decoded() -> None:
    gray, rgba = noise(5, 7), noise(5, 7, 4)
    for array in (gray, gray[..., None]):
        assert np.array_equal(decode(array), np.repeat(gray[..., None], 3, axis=2))
        assert np.array_equal(decode(array, channels=1), gray)
    assert np.array_equal(decode(rgba), rgba[..., :3])
    assert np.array_equal(decode(rgba, channels=4), rgba)
    assert np.array_equal(decode(rgba[::2, ::-1]), rgba[::2, ::-1, :3])  # strided


@pytest.mark.parametrize("channels", CHANNELS)
def test_opencvs_frames_are_taken_in_their_order(channels: int) -> None:
    for bands in (3, 4):
        rgb = noise(5, 7, bands)
        bgr = rgb[..., [2, 1, 0, 3][:bands]]
        expected = decode(rgb, channels=channels, color="rgb")
        assert np.array_equal(decode(bgr, channels=channels, color="bgr"), expected)
    gray = noise(5, 7)
    assert np.array_equal(decode(gray, color="bgr"), decode(gray))


def test_the_order_of_an_array_is_asked_for_where_opencv_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))
    frame = noise(5, 7, 3)
    with pytest.warns(ColorOrderWarning, match="color='bgr'"):
        silent = decode(frame)
    # Warnings are errors: what says its order, or has none, is not warned of.
    assert np.array_equal(silent, decode(frame, color="rgb"))
    decode(frame, color="bgr")
    decode(noise(5, 7))
    decode(encoded(Image.fromarray(frame), "PNG"))
    decode(Image.fromarray(frame))


def test_the_order_of_files_and_pil_images_is_their_own(photograph_files: list[Path]) -> None:
    expected = decode(photograph_files[0])
    assert np.array_equal(decode(photograph_files[0], color="bgr"), expected)
    assert np.array_equal(decode(expected, color="bgr"), expected)
    with pytest.raises(ImageError, match="color is 'BGR', expected 'rgb', or 'bgr' for OpenCV's frames"):
        decode(expected, color="BGR")  # type: ignore[arg-type]


def test_opened_files_are_read_from_their_start_and_left_open(photograph_files: list[Path]) -> None:
    photo = photograph_files[0]
    expected = np.asarray(decode(photo))
    written = io.BytesIO()
    written.write(photo.read_bytes())  # stands at its end
    with photo.open("rb") as file, tempfile.SpooledTemporaryFile() as upload:
        upload.write(photo.read_bytes())
        for source in (io.BytesIO(photo.read_bytes()), written, file, upload, photo.open("rb", buffering=0)):
            for _ in range(2):
                assert np.array_equal(np.asarray(decode(source)), expected)
            assert not source.closed
        source.close()


def test_a_stream_that_cannot_be_rewound_is_read_from_where_it_stands(photograph_files: list[Path]) -> None:
    class Body:
        """What a web framework hands over."""

        def read(self) -> bytes:
            return photograph_files[0].read_bytes()

    assert np.array_equal(decode(Body()), decode(photograph_files[0]))


def test_opened_files_that_give_no_bytes_are_refused_in_a_sentence(tmp_path: Path) -> None:
    class Upload:
        """As ASGI frameworks have them."""

        async def read(self) -> bytes:
            return b""

    (tmp_path / "x.jpg").write_text("text")
    closed = (tmp_path / "x.jpg").open("rb")
    closed.close()
    with (tmp_path / "x.jpg").open() as text:
        for source, message in (
            (text, "x.jpg' was opened as text; open it in binary mode, 'rb'"),
            (io.StringIO("x"), "was opened as text"),
            (closed, "cannot be read .*closed file.*; give an open binary file"),
            (io.BytesIO(), "is empty; give an image file"),
            (Upload(), "reads a coroutine, expected bytes; await its read"),
        ):
            with pytest.raises(ImageError, match=message):
                decode(source)  # type: ignore[arg-type]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    for form in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
        red, green, blue = np.asarray(decode(data))[4, 4]
        assert (red > 240, green < 15, blue < 15) == (True, True, True), form


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(form: str, orientation: int) -> None:
    stored = noise(6, 9, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(Image.fromarray(stored), form, exif=exif, **options)
    # Exif 2.32, figure 8: what the stored rows and columns are, seen upright.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).transpose(1, 0, 2),
        8: np.rot90(stored),
    }[orientation]
    image = decode(data)
    assert np.array_equal(image, upright)
    assert np.array_equal(decode(image), upright)
    with Image.open(io.BytesIO(data)) as opened:
        assert np.array_equal(decode(opened), upright)
        assert np.array_equal(ImageOps.exif_transpose(opened), upright)


def test_a_damaged_exif_block_leaves_the_picture_as_stored() -> None:
    stored = noise(6, 9, 3)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    whole = exif.tobytes()
    for damaged in (b"Exif\0\0", b"Exif\0\0garbage", whole[:20], whole[:12] + b"\xff" * 20):
        data = encoded(Image.fromarray(stored), "PNG", exif=damaged)
        assert np.array_equal(decode(data), stored)


# Files of other kinds

HEIC = b"\0\0\0\x18ftyp" + b"heic" + b"\0\0\0\0" + b"mif1heic" + bytes(200)


@pytest.mark.parametrize("orientation", [1, 6])
def test_photographs_of_phones_are_read_where_pillow_heif_is_installed(orientation: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    stored = Image.fromarray(noise(6, 8, 3)).resize((64, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    pillow_heif.from_pillow(stored).save(file, quality=100, chroma=444, exif=exif.tobytes())
    found = np.asarray(decode(file.getvalue()), int)
    expected = np.asarray(stored if orientation == 1 else stored.transpose(Image.Transpose.ROTATE_270), int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 3


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1"])
def test_what_reads_photographs_of_phones_is_named_where_it_is_missing(
    brand: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resnet_export.runtime.preprocess._open_heif", lambda: False)
    with pytest.raises(
        ImageError, match=r"is a HEIC image, which takes pillow-heif to read; run: pip install"
    ):
        decode(HEIC.replace(b"heic", brand, 1))


def test_avif_is_not_taken_for_heic() -> None:
    data = encoded(Image.fromarray(noise(48, 64, 3)), "AVIF")
    assert decode(data).size == (64, 48)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>", "an HTML page"),
        (b"<html><body>404", "an HTML page"),
        (b"<svg xmlns='x'/>", "an SVG drawing"),
        (bytes(128) + b"DICM" + bytes(99), "a DICOM file"),
        (b"PK\x03\x04" + bytes(99), "a zip archive"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:", "a Git LFS pointer"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2mp41" + bytes(99), "a video"),
        (b"GIF8 or not", "not an image, or its header is damaged"),
    ],
)
def test_files_of_other_kinds_are_called_what_they_are(data: bytes, kind: str) -> None:
    with pytest.raises(ImageError, match=rf"x.jpg is {kind}.*; give a JPEG, PNG") as caught:
        decode(data, name="x.jpg")
    assert "\n" not in str(caught.value)


# More than eight bits, and other color models


def test_16_bit_gray_is_scaled_as_pillow_scales_16_bit_colour() -> None:
    samples = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    color = png(256, 256, 16, 2, np.repeat(samples, 3, axis=1))
    expected = np.asarray(decode(color))
    with Image.open(io.BytesIO(color)) as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), expected)
    pgm = b"P5 256 256 65535\n" + samples.astype(">u2").tobytes()
    files = {
        "PNG": png(256, 256, 16, 0, samples),
        "TIFF": encoded(Image.fromarray(samples), "TIFF"),
        "big-endian TIFF": encoded(
            Image.frombytes("I;16B", (256, 256), samples.astype(">u2").tobytes()), "TIFF"
        ),
        "PGM": pgm,
    }
    for form, data in files.items():
        assert np.array_equal(decode(data), expected), form
    for mode in ("I;16", "I;16L", "I;16B", "I;16N"):
        order = ">u2" if mode == "I;16B" else "<u2" if mode != "I;16N" else "=u2"
        image = Image.frombytes(mode, (256, 256), samples.astype(order).tobytes())
        assert np.array_equal(decode(image), expected), mode
    assert np.array_equal(decode(Image.fromarray(samples.astype(np.int32))), expected)
    assert len(np.unique(expected)) == 256


def test_a_dark_16_bit_file_is_not_brightened() -> None:
    samples = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for data in (png(16, 16, 16, 0, samples), b"P5 16 16 65535\n" + samples.astype(">u2").tobytes()):
        assert not np.asarray(decode(data)).any()


def test_16_bit_gray_with_alpha_keeps_its_grey() -> None:
    samples = noise(4, 6, dtype=np.uint16)
    data = png(6, 4, 16, 4, np.stack([samples, noise(4, 6, seed=1, dtype=np.uint16)], -1).reshape(4, 12))
    assert np.array_equal(np.asarray(decode(data))[..., 0], samples >> 8)


def test_12_bit_and_min_is_white_tiff_files_use_their_whole_range() -> None:
    samples = (np.arange(64, dtype=np.uint16) * 65).reshape(8, 8)  # 0 … 4095
    pairs = samples.reshape(-1, 2).astype(np.uint32)
    packed = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    twelve = decode(tiff(8, 8, 12, 1, packed))
    assert np.array_equal(np.asarray(twelve)[..., 0], samples >> 4)
    inverted = decode(tiff(8, 8, 16, 0, (samples * 16).astype("<u2").tobytes()))
    assert np.array_equal(np.asarray(inverted)[..., 0], 255 - (samples >> 4))


def test_integer_and_float_images_are_scaled_by_their_range() -> None:
    byte = np.arange(256).reshape(16, 16)
    expected = np.repeat(byte[..., None], 3, axis=2)
    assert np.array_equal(decode(Image.fromarray(byte.astype(np.int32))), expected)
    assert np.array_equal(decode(Image.fromarray(byte.astype(np.float32))), expected)
    assert np.array_equal(decode(Image.fromarray((byte / 255).astype(np.float32))), expected)


@pytest.mark.parametrize("worst", [-1.0, 256.0, float("nan"), float("inf")])
def test_float_samples_without_a_usual_meaning_are_refused(worst: float) -> None:
    with pytest.raises(ImageError, match=r"expected 0 to 1 or 0 to 255; convert it to 8-bit RGB first$"):
        decode(Image.fromarray(np.array([[0.5, worst]], np.float32)))


@pytest.mark.parametrize("worst", [-1, 65536])
def test_integer_samples_outside_16_bits_are_refused(worst: int) -> None:
    with pytest.raises(ImageError, match="expected 0 to 65535"):
        decode(Image.fromarray(np.array([[5, worst]], np.int32)))


@pytest.mark.parametrize("form", ["JPEG", "TIFF"])
def test_cmyk_files_keep_their_colours(form: str) -> None:
    colors = {
        "red": (0, 255, 255, 0),
        "green": (255, 0, 255, 0),
        "black": (0, 0, 0, 255),
        "white": (0, 0, 0, 0),
    }
    for name, ink in colors.items():
        # Pillow writes JPEG as Adobe does, inverted, and TIFF not.
        data = encoded(Image.new("CMYK", (16, 16), ink), form)
        expected = {"green": (0, 255, 0)}.get(name) or Image.new("RGB", (1, 1), name).getpixel((0, 0))
        assert np.abs(np.asarray(decode(data), int) - expected).max() <= 2, name


def test_alpha_is_dropped_and_not_blended() -> None:
    for image in (
        Image.new("RGBA", (4, 4), (200, 100, 50, 0)),
        Image.new("RGBa", (4, 4), (200, 100, 50, 255)),
    ):
        assert np.asarray(decode(image))[0, 0].tolist() == [200, 100, 50]
    premultiplied = Image.new("LA", (4, 4), (200, 255)).convert("La")
    assert np.asarray(decode(premultiplied))[0, 0].tolist() == [200, 200, 200]


# Bad input


def bad_files() -> dict[str, bytes | None]:
    """File name → content; None is no file."""
    photo = encoded(Image.fromarray(noise(64, 64, 3)), "JPEG", quality=90)
    picture = encoded(Image.fromarray(noise(64, 64, 3)), "PNG")
    return {
        "missing.jpg": None,
        "empty.jpg": b"",
        "one.jpg": b"\xff",
        "text.jpg": b"this is no image\n" * 40,
        "truncated.jpg": photo[: len(photo) // 2],
        "header.jpg": photo[:30],
        "truncated.png": picture[: len(picture) // 2],
        "flipped.png": picture[:60] + bytes([picture[60] ^ 255]) + picture[61:],
        "gigapixel.png": png(40000, 40000, 8, 2, np.zeros((1, 3), np.uint8)),
        "array.npy": b"\x93NUMPY\x01\x00" + bytes(100),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    }


def test_each_bad_file_is_refused_in_one_sentence_that_names_it(tmp_path: Path) -> None:
    for name, content in bad_files().items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
            with pytest.raises(ImageError):
                decode(content)
        with pytest.raises(ImageError) as caught:
            load(path, Preprocessing())
        message = str(caught.value)
        assert name in message
        assert "\n" not in message
        assert "; " in message
        assert "BytesIO" not in message
    for path in (tmp_path, Path()):
        with pytest.raises(ImageError, match="directory"):
            decode(path)
    with pytest.raises(ImageError, match="null"):
        decode("a\0b.jpg")


def test_a_gigapixel_image_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    data = png(40000, 40000, 8, 2, np.zeros((1, 3), np.uint8))
    with pytest.raises(ImageError, match="too large to decode"):
        decode(data)
    # Also where the application has switched Pillow's own guard off.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("decoded"))
    with pytest.raises(ImageError, match="40000×40000, more than 268435456 pixels"):
        decode(data)


def test_an_image_too_elongated_to_resize_is_refused() -> None:
    with pytest.raises(
        ImageError, match=r"1×5000, which has more than 268435456 pixels .* resized to 256; crop"
    ):
        load(np.zeros((5000, 1, 3), np.uint8), Preprocessing())


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_damaged_file_gives_a_picture_or_an_image_error(data: st.DataObject) -> None:
    form = data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"]))
    content = bytearray(encoded(Image.fromarray(noise(24, 32, 3)), form))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    try:
        image = decode(bytes(content))
    except ImageError:
        return
    assert image.mode == "RGB"


FLOATS = np.linspace(0, 1, 60, dtype=np.float32).reshape(4, 5, 3)


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (FLOATS, r"values are from 0 to 1: give \(image \* 255\)\.round\(\)\.astype\(np\.uint8\)"),
        (FLOATS * 255, r"give image\.round\(\)\.astype\(np\.uint8\)"),
        (FLOATS * 4 - 2, "values are from -2 to 2: give the image as it was before normalization"),
        (FLOATS * np.nan, "as it was before normalization"),
        (FLOATS.transpose(2, 0, 1), r"channels first: give image\.transpose\(1, 2, 0\), as uint8"),
        (noise(3, 4, 5), r"channels first: give image\.transpose\(1, 2, 0\)$"),
        (noise(1, 4, 5), "channels first"),
        (noise(2, 4, 5, 3), "give the images of the batch one by one"),
        (noise(5, 4, 2), "rows first and channels last"),
        (noise(5), "rows first and channels last"),
        (noise(4, 5, 3, dtype=np.uint16), "values are from .*: scale them to 0 to 255 first"),
        (noise(4, 5, 3).astype(np.int64), r"give image\.astype\(np\.uint8\)"),
        (noise(4, 5) > 99, r"give image\.astype\(np\.uint8\) \* 255"),
        (noise(4, 5).astype(object), "convert it to 8 bits"),
        (noise(0, 4, 3), "has no pixels"),
        (np.zeros((0, 4, 3), np.float32), "convert it to 8 bits"),
    ],
)
def test_an_array_of_another_kind_is_refused_with_what_makes_it_an_image(
    array: np.ndarray, advice: str
) -> None:
    with pytest.raises(ImageError, match=advice) as caught:
        load(array, Preprocessing(), name="image 7")
    assert str(caught.value).startswith("image 7 ")
    assert "\n" not in str(caught.value)


def test_values_that_are_not_images_are_refused_with_what_is_expected() -> None:
    import torch

    values: list[tuple[Any, str]] = [
        (torch.zeros(3, 50, 60, dtype=torch.uint8), r"uint8 \[3, 50, 60\], .*channels first"),
        (torch.zeros(50, 60, 3), r"float32 \[50, 60, 3\], .*astype"),
        (torch.zeros(50, 60, 3, device="meta"), "torch.Tensor, .*numpy.asarray"),
        (noise(4, 5, 3).tolist(), "type list, .*numpy.array"),
        (None, "type NoneType, expected a path, bytes, an open file, a PIL image or a numpy array"),
        (7, "type int, expected a path"),
    ]
    for value, message in values:
        with pytest.raises(ImageError, match=message):
            load(value, Preprocessing())


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_only_the_networks_mode_is_prepared(channels: int, mode: str) -> None:
    with pytest.raises(ImageError, match=rf"mode LA, expected {mode}; pass it through decode\(\) first$"):
        prepare(Image.new("LA", (4, 4)), replaced(channels))


# Network input


def test_the_crop_goes_in_as_it_is_when_the_graph_normalizes() -> None:
    images = noise(2, 8, 8, 3)
    raw = to_input(images[:, ::-1], Preprocessing(in_graph=True))
    assert raw.dtype == np.uint8
    assert raw.flags.c_contiguous
    assert np.array_equal(raw, images[:, ::-1])
    floats = to_input(images, Preprocessing())
    assert np.array_equal(floats, normalize(images, Preprocessing()))


@pytest.mark.parametrize("in_graph", [False, True])
def test_a_batch_of_another_shape_or_dtype_is_refused(in_graph: bool) -> None:
    preprocessing = Preprocessing(in_graph=in_graph)
    for images in (noise(8, 8, 3), noise(2, 3, 8, 8), np.zeros((2, 8, 8, 3), np.float32)):
        with pytest.raises(ImageError, match=r"expected uint8 \[N, H, W, 3\]$"):
            to_input(images, preprocessing)
