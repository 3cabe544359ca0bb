"""The sample in a bundle shows every drift of the preprocessing, bit for bit."""

from __future__ import annotations

import io
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import pytest
from PIL import Image

from resnet_export.exporter.golden.preprocessing_sample import record_sample
from resnet_export.runtime import preprocess
from resnet_export.runtime.bundle.golden import Golden, Sample, encode_golden, read_golden
from resnet_export.runtime.bundle.manifest import Preprocessing, read_manifest
from resnet_export.runtime.parity.criteria.table import describe
from resnet_export.runtime.parity.preprocessing_check import check_preprocessing

PLAIN = Preprocessing(resize=73, crop=64)


@pytest.fixture(scope="module")
def sample() -> Sample:
    return record_sample(PLAIN)


def broken(sample: Sample, preprocessing: Preprocessing = PLAIN) -> list[str]:
    return [
        criterion.name for criterion in check_preprocessing(sample, preprocessing) if not criterion.passed
    ]


@pytest.mark.parametrize("in_graph", [False, True])
def test_the_preprocessing_that_made_the_sample_passes(sample: Sample, in_graph: bool) -> None:
    assert broken(sample, msgspec.structs.replace(PLAIN, in_graph=in_graph)) == []


def test_torchvision_passes_in_its_place(sample: Sample, torchvision: object) -> None:
    from torchvision.transforms import functional as f

    with Image.open(io.BytesIO(sample.file)) as stored:
        upright = stored.transpose(Image.Transpose.ROTATE_270)  # what EXIF orientation 6 asks for
    crop = f.center_crop(f.resize(upright, PLAIN.resize), PLAIN.crop)
    assert np.array_equal(np.asarray(crop), sample.crop)
    tensor = f.normalize(f.to_tensor(crop), PLAIN.mean, PLAIN.std).numpy()
    channels = np.arange(3)[:, None, None]
    assert np.array_equal(tensor, sample.values[channels, sample.crop.transpose(2, 0, 1)])


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"mean": (0.485, 0.456, 0.4061)}, ["normalize"]),
        ({"std": (0.229, 0.224, 0.2251)}, ["normalize"]),
        ({"mean": (0.406, 0.456, 0.485)}, ["normalize"]),
        ({"resize": 74}, ["crop"]),
        ({"interpolation": "bicubic"}, ["crop"]),
        ({"crop": 63}, ["crop"]),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else None,
)
def test_a_changed_value_in_the_manifest_is_found(
    sample: Sample, change: dict[str, object], names: list[str]
) -> None:
    assert broken(sample, msgspec.structs.replace(PLAIN, **change)) == names


def test_an_orientation_that_is_ignored_a_crop_off_by_one_and_swapped_channels_are_found(
    sample: Sample,
) -> None:
    def bgr(image: Image.Image, *_: object) -> Image.Image:
        return Image.merge("RGB", image.split()[::-1])

    for name, wrong in (
        ("_upright", lambda image, _: image),
        ("_crop_offset", lambda length, crop: round((length - crop) / 2) + 1),
        ("_convert", bgr),
    ):
        with mock.patch.object(preprocess, name, wrong):
            assert broken(sample) == ["crop"], name


def test_one_bit_of_one_value_is_found_and_counted(sample: Sample) -> None:
    crop = sample.crop.copy()
    crop[3, 5, 1] ^= 1
    found, _ = check_preprocessing(Sample(sample.file, crop, sample.values), PLAIN)
    assert (found.passed, found.value) == (False, 1)
    assert describe(found) == "1 of 12288 values of the crop differ, expected 0"
    assert "by 1 at most" in found.detail
    assert "Pillow" in found.detail
    values = sample.values.copy()
    values[2, 17] = np.nextafter(values[2, 17], np.float32(9))
    assert broken(Sample(sample.file, sample.crop, values)) == ["normalize"]


def test_a_sample_that_cannot_be_decoded_fails_with_the_reason(sample: Sample) -> None:
    crop, _ = check_preprocessing(Sample(b"no image", sample.crop, sample.values), PLAIN)
    assert not crop.passed
    assert "sample is not an image" in crop.detail


@pytest.mark.parametrize("size", [32, 224])
def test_the_sample_depends_on_nothing_but_the_preprocessing(size: int) -> None:
    preprocessing = Preprocessing(resize=round(size * 8 / 7), crop=size)
    first, second = record_sample(preprocessing), record_sample(preprocessing)
    images = np.zeros((1, size, size, 3), np.uint8)
    logits = {"eager": np.zeros((1, 2), np.float32)}
    assert encode_golden(Golden(images, logits, first)) == encode_golden(Golden(images, logits, second))
    assert first.crop.std() > 20
    assert len(np.unique(first.crop)) > 100


def test_an_exported_bundle_holds_a_sample_that_passes(resnet18_bundle: Path) -> None:
    golden = read_golden(resnet18_bundle)
    assert golden.sample is not None
    assert broken(golden.sample, read_manifest(resnet18_bundle).preprocessing) == []
