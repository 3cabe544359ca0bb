"""The golden outputs that travel with a bundle: real images, the logits of every stage on them, and a sample.

`golden.npz` is a zip archive of .npy arrays (NEP 1), stored without compression: `images`, uint8
[N, H, W, C], cropped and not normalized; for every stage `logits.<stage>`, float32 [N, classes]; for every further
output `<output>.eager`, float32 [M, …] of the first M images; and, in `sample.*`, an image file with what the export's
preprocessing made of it. With them parity, preprocessing included, can be checked on a device that has no torch.
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.manifest import Manifest, read_artifact, read_stable
from resnet_export.runtime.bundle.schema import CHANNELS
from resnet_export.runtime.errors import IntegrityError

EAGER: Final = "eager"
_IMAGES: Final = "images"
_LOGITS: Final = "logits."
_FILE, _CROP, _VALUES = "sample.file", "sample.crop", "sample.values"
_BYTE_VALUES: Final = 256


@dataclass(frozen=True)
class Sample:
    """What the preprocessing of the export did, step by step, so that every reader can check its own.

    Attributes:
        file: the bytes of a PNG, which is lossless; it carries an EXIF orientation.
        crop: uint8 [H, W, C], what decoding, resizing and cropping make of it.
        values: float32 [C, 256], what normalization makes of each byte in each channel.
    """

    file: bytes
    crop: NDArray[np.uint8]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class Golden:
    """Inputs and reference outputs.

    Attributes:
        images: uint8 [N, H, W, C], as `preprocess` crops them.
        logits: stage → float32 [N, classes]; the eager model's are under "eager". All arrays are read-only.
        sample: evidence of the preprocessing, None in bundles that were written without it.
        outputs: name → float32 [M, …], the eager model's further outputs on the first M ≤ N images.
    """

    images: NDArray[np.uint8]
    logits: Mapping[str, NDArray[np.float32]]
    sample: Sample | None = None
    outputs: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


def encode_golden(golden: Golden) -> bytes:
    """Return the bytes of `golden.npz`: the same for the same arrays, whenever and wherever they are made.

    Raises ValueError for arrays of another dtype or shape than `Golden` documents.
    """
    images = golden.images
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in CHANNELS or not len(images):
        raise ValueError(f"golden images are {images.dtype} {images.shape}, expected uint8 (N, H, W, C)")
    if EAGER not in golden.logits:
        raise ValueError(
            f"golden logits have the stages {', '.join(golden.logits)}, expected {EAGER} among them"
        )
    classes = golden.logits[EAGER].shape[-1]
    for stage, logits in golden.logits.items():
        if logits.dtype != np.float32 or logits.shape != (len(images), classes):
            raise ValueError(
                f"golden logits of {stage} are {logits.dtype} {logits.shape}, "
                f"expected float32 ({len(images)}, {classes})"
            )
    for name, values in golden.outputs.items():
        if values.dtype != np.float32 or values.ndim < 2 or not 1 <= len(values) <= len(images):
            raise ValueError(
                f"golden {name} are {values.dtype} {values.shape}, expected float32 (1 to {len(images)}, …)"
            )
    sample = golden.sample
    if sample is not None and not (
        sample.file
        and sample.crop.dtype == np.uint8
        and sample.crop.shape == images.shape[1:]
        and sample.values.dtype == np.float32
        and sample.values.shape == (images.shape[-1], _BYTE_VALUES)
    ):
        raise ValueError(
            f"the sample has {len(sample.file)} bytes, a crop {sample.crop.dtype} {sample.crop.shape} and values "
            f"{sample.values.dtype} {sample.values.shape}, expected some, uint8 {images.shape[1:]} and float32 "
            f"({images.shape[-1]}, {_BYTE_VALUES})"
        )
    buffer = io.BytesIO()
    # numpy gives every member the same time stamp, 1980-01-01.
    arrays: dict[str, NDArray[Any]] = {_IMAGES: np.ascontiguousarray(images)}
    arrays |= {_LOGITS + stage: np.ascontiguousarray(golden.logits[stage]) for stage in sorted(golden.logits)}
    arrays |= {
        f"{name}.{EAGER}": np.ascontiguousarray(golden.outputs[name]) for name in sorted(golden.outputs)
    }
    if sample is not None:
        arrays |= {
            _FILE: np.frombuffer(sample.file, np.uint8),
            _CROP: np.ascontiguousarray(sample.crop),
            _VALUES: np.ascontiguousarray(sample.values),
        }
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def read_golden(bundle: str | os.PathLike[str]) -> Golden:
    """Read the golden outputs of a bundle: hash first, then exactly the arrays that the manifest announces.

    Raises BundleError, SchemaError or IntegrityError.
    """

    def load(manifest: Manifest) -> Golden:
        data = read_artifact(bundle, manifest.golden)
        try:
            return _decode(data, manifest)
        except (
            ValueError,
            KeyError,
            EOFError,
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise IntegrityError(
                f"{manifest.golden.file!r} is not what the manifest says: {error}; export the bundle again"
            ) from error

    return read_stable(bundle, load)


def _decode(data: bytes, manifest: Manifest) -> Golden:
    count, crop = manifest.golden.count, manifest.preprocessing.crop_shape
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        outputs = {
            name: (recorded, *manifest.output(name).rest)
            for name, recorded in manifest.golden.outputs.items()
        }
        expected = {_IMAGES, *(_LOGITS + stage for stage in manifest.golden.stages)}
        expected |= {f"{name}.{EAGER}" for name in outputs}
        if manifest.golden.sample_bytes is not None:
            expected |= {_FILE, _CROP, _VALUES}
        found = {name.removesuffix(".npy") for name in archive.namelist()}
        if found != expected or len(archive.namelist()) != len(expected):
            raise ValueError(f"it holds {', '.join(sorted(found))}, expected {', '.join(sorted(expected))}")
        return Golden(
            images=_member(archive, _IMAGES, np.dtype(np.uint8), (count, *crop)),
            logits={
                stage: _member(
                    archive, _LOGITS + stage, np.dtype(np.float32), (count, manifest.model.num_classes)
                )
                for stage in manifest.golden.stages
            },
            outputs={
                name: _member(archive, f"{name}.{EAGER}", np.dtype(np.float32), shape)
                for name, shape in outputs.items()
            },
            sample=_sample(archive, manifest),
        )


def _sample(archive: zipfile.ZipFile, manifest: Manifest) -> Sample | None:
    size, crop = manifest.golden.sample_bytes, manifest.preprocessing.crop_shape
    if size is None:
        return None
    return Sample(
        file=_member(archive, _FILE, np.dtype(np.uint8), (size,)).tobytes(),
        crop=_member(archive, _CROP, np.dtype(np.uint8), crop),
        values=_member(archive, _VALUES, np.dtype(np.float32), (crop[2], _BYTE_VALUES)),
    )


def _member(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return one array, refused before anything is allocated for it unless its header says what is expected."""
    info = archive.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed, expected it stored")
    content = archive.read(info)
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"{name} has .npy version {version}, expected (1, 0)")
    header = np.lib.format.read_array_header_1_0(stream)
    if header != (shape, False, dtype):
        raise ValueError(f"{name} is {header[2]} {header[0]}, expected {dtype} {shape} in C order")
    if len(content) - stream.tell() != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} holds {len(content) - stream.tell()} bytes of data, not what {shape} takes")
    return np.frombuffer(content, dtype, offset=stream.tell()).reshape(shape)
