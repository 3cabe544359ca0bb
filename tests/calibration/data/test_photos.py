from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from resnet_export.calibration.data import photos as module
from resnet_export.calibration.data.dataset import DatasetWarning, open_dataset
from resnet_export.calibration.data.photos import Photos, check_for_calibration, load_photos
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import DatasetError
from resnet_export.runtime.preprocess import load, to_input

SMALL = Preprocessing(resize=20, crop=16)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 24, 28, 3), np.uint8)


def save_images(folder: Path, images: np.ndarray) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03}.png" for number in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_photos_are_what_a_pass_over_the_data_set_gives(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=pictures(21), labels=np.arange(21) % 3)
    dataset = open_dataset(tmp_path / "data.npz", preprocessing=SMALL, limit=17, seed=2)
    photos = load_photos(dataset)
    expected = list(dataset.batches(8))
    assert np.array_equal(photos.images, np.concatenate([batch.images for batch in expected]))
    assert photos.names == dataset.names
    assert photos.labels is not None
    assert dataset.labels is not None
    assert photos.labels.dtype == np.int64
    assert photos.labels.tolist() == dataset.labels.tolist()
    assert photos.description == dataset.describe()
    for (inputs, labels), batch in zip(photos.batches(8), expected, strict=True):
        assert np.array_equal(inputs, to_input(batch.images, SMALL))
        assert labels is not None
        assert batch.labels is not None
        assert labels.tolist() == batch.labels.tolist()


def test_each_image_is_decoded_once_however_often_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_images(tmp_path, pictures(9))
    decoded = []

    def counting(source: Path, preprocessing: Preprocessing) -> np.ndarray:
        decoded.append(source)
        return load(source, preprocessing)

    monkeypatch.setattr("resnet_export.runtime.preprocess.load", counting)
    photos = load_photos(open_dataset(tmp_path, preprocessing=SMALL))
    rest, held = photos.split(3)
    for part in (photos, rest, held, photos.sample(4), photos.draw(5, seed=0)):
        for _ in range(2):
            list(part.batches(2))
    assert len(decoded) == len(set(decoded)) == 9


def test_nobody_can_write_into_photos(tmp_path: Path) -> None:
    array = pictures(8)
    np.savez(tmp_path / "data.npz", images=array)
    loaded = load_photos(open_dataset(tmp_path / "data.npz", preprocessing=SMALL))
    for photos in (loaded, Photos.of(array, SMALL), *loaded.split(3), loaded.draw(2, seed=1)):
        with pytest.raises(ValueError, match="read-only"):
            photos.images[0] = 0
    array[0] = 0  # what photos were made of stays its owner's


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 60), part=st.integers(0, 60), size=st.integers(1, 9))
def test_a_split_loses_no_image_and_is_spread_evenly(count: int, part: int, size: int) -> None:
    part = min(part, count)
    photos = Photos.of(np.arange(count)[:, None], None, labels=np.arange(count))
    rest, drawn = photos.split(part)
    assert sorted([*rest.images[:, 0], *drawn.images[:, 0]]) == list(range(count))
    assert (len(rest), len(drawn)) == (count - part, part)
    positions = drawn.images[:, 0]
    for index, position in enumerate(positions):  # each from its own share of the order
        assert index * count / part <= position + 0.5 <= (index + 1) * count / part + 0.5
    assert photos.sample(part).names == (drawn.names if part < count else photos.names)
    for one in (rest, drawn):
        assert one.labels is not None
        assert one.labels.tolist() == one.images[:, 0].tolist()
        assert one.names == tuple(f"images[{index}]" for index in one.images[:, 0])
        assert [len(inputs) for inputs in one.inputs(size)] == [
            min(size, len(one) - start) for start in range(0, len(one), size)
        ]


def test_a_draw_is_that_of_the_data_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=pictures(40), labels=np.arange(40) % 4)
    photos = load_photos(open_dataset(tmp_path / "data.npz", preprocessing=SMALL))
    for seed in range(3):
        drawn = open_dataset(tmp_path / "data.npz", preprocessing=SMALL, limit=11, seed=seed)
        assert photos.draw(11, seed).names == drawn.names
    assert photos.draw(99, seed=0).names == photos.names


@pytest.mark.parametrize("bad", [0, 3, 6])
def test_unreadable_images_are_not_counted(bad: int, tmp_path: Path) -> None:
    paths = save_images(tmp_path, pictures(7))
    paths[bad].write_bytes(b"no image")
    with pytest.warns(DatasetWarning, match="1 of 7 images"):
        photos = load_photos(open_dataset(tmp_path, preprocessing=SMALL))
    assert (len(photos), photos.description.count, photos.description.skipped) == (6, 6, 1)
    assert photos.description.first_skipped == paths[bad].name
    assert photos.names == tuple(path.name for path in paths if path != paths[bad])
    assert np.array_equal(photos.images, [load(path, SMALL) for path in paths if path != paths[bad]])


def test_photos_in_memory_hash_as_those_of_a_data_set_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=pictures(5))
    photos = load_photos(open_dataset(tmp_path / "data.npz", preprocessing=SMALL))
    assert Photos.of(photos.images, SMALL).description.sha256 == photos.description.sha256


def test_normalization_in_the_graph_leaves_the_crops_as_they_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=pictures(5))
    raw = Preprocessing(resize=20, crop=16, in_graph=True)
    dataset = open_dataset(tmp_path / "data.npz", preprocessing=SMALL)
    for photos in (load_photos(dataset, raw), load_photos(dataset).with_preprocessing(raw)):
        assert np.array_equal(np.concatenate(list(photos.inputs(2))), photos.images)


# Fit for calibration


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pictures(1), "has a single image; calibrate on at least 2"),
        (np.repeat(pictures(1), 9, axis=0), "only one picture in 9 images"),
        (np.full((5, 24, 28, 3), 77, np.uint8), "has 5 images, each of a single color"),
        (
            np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(24 * 28 * 3).reshape(5, 24, 28, 3),
            "has 5 images",
        ),
        (np.concatenate([pictures(1), np.zeros((3, 24, 28, 3), np.uint8)]), "only one picture in 4 images"),
    ],
    ids=["single", "copies", "constant", "constant but different", "one among constant ones"],
)
def test_images_that_no_range_can_be_measured_on_are_refused(images: np.ndarray, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        check_for_calibration(images, "memory")


def test_two_different_photographs_are_enough() -> None:
    check_for_calibration(pictures(2), "memory")


# Larger than memory


def test_photos_beyond_the_limit_lie_in_a_temporary_file_that_goes_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "data.npz", images=pictures(12))
    dataset = open_dataset(tmp_path / "data.npz", preprocessing=SMALL)
    expected = load_photos(dataset)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(module, "MAX_IN_MEMORY", 5 * 16 * 16 * 3)
    mapped = load_photos(dataset)
    rest, held = mapped.split(2)
    assert isinstance(mapped.images, np.memmap)
    assert isinstance(rest.images, np.memmap)
    assert not isinstance(held.images, np.memmap)
    for part, other in zip((mapped, rest, held), (expected, *expected.split(2)), strict=True):
        assert np.array_equal(part.images, other.images)
    assert list(folder.iterdir()) == []
    before = _mappings(folder)
    del mapped, rest, part
    gc.collect()
    assert (before, _mappings(folder)) == (2, 0)


def _mappings(folder: Path) -> int:
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_photos_that_the_disk_has_no_room_for_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "data.npz", images=pictures(12))
    monkeypatch.setattr(module, "MAX_IN_MEMORY", 1)

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DatasetError, match=r"12 images take .* has no room \(No space left .* TMPDIR"):
        load_photos(open_dataset(tmp_path / "data.npz", preprocessing=SMALL))
