"""The bundled photographs and their provenance."""

from __future__ import annotations

import re
from importlib.resources import files

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from resnet_export.exporter.models.photographs import photographs

FOLDER = files("resnet_export.exporter") / "data" / "photos"
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.name.endswith(".jpg"))


def _provenance() -> dict[str, list[str]]:
    """File → source, author, licence, link, box."""
    text = (FOLDER / "PROVENANCE.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if ".jpg |" in line
    ]
    return {row[0]: row[1:] for row in rows if row[0].endswith(".jpg")}


def _box(text: str) -> tuple[int, int, int, int]:
    left, top, right, bottom = map(int, text.split(","))
    return left, top, right, bottom


def test_there_are_at_least_32_and_they_are_small() -> None:
    assert len(NAMES) >= 32
    assert sum(len((FOLDER / name).read_bytes()) for name in NAMES) < 1_500_000


def test_every_photograph_has_a_free_licence_and_an_author() -> None:
    provenance = _provenance()
    assert sorted(provenance) == NAMES
    for source, author, licence, link, box in provenance.values():
        assert source
        assert author
        assert licence in {"CC BY 2.0", "CC BY 4.0", "CC0", "public domain"}
        assert link
        left, top, right, bottom = _box(box)
        assert right - left == bottom - top > 0


def test_crops_of_one_source_do_not_overlap() -> None:
    boxes: dict[str, list[tuple[int, int, int, int]]] = {}
    for source, *_, box in _provenance().values():
        boxes.setdefault(source, []).append(_box(box))
    for cut in boxes.values():
        for index, one in enumerate(cut):
            for other in cut[index + 1 :]:
                apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
                assert apart, (one, other)


@pytest.mark.parametrize("source", ["china.jpg", "flower.jpg"])
def test_provenance_tells_the_box_that_was_cut(source: str) -> None:
    (name, (*_, box)), *others = [
        (name, row) for name, row in _provenance().items() if re.search(rf"`{source}`", row[0])
    ]
    assert not others
    with Image.open(str(FOLDER / name)) as file:
        excluded = np.asarray(file).astype(float)
    original = Image.fromarray(load_sample_image(source))
    again = original.resize(excluded.shape[:2], Image.Resampling.LANCZOS, box=_box(box))
    assert np.abs(excluded - np.asarray(again)).mean() < 4  # of 255: what JPEG costs


def test_photographs_come_whole_at_any_size() -> None:
    images = photographs(48)
    assert images.dtype == np.uint8
    assert images.shape == (len(NAMES), 48, 48, 3)
    assert len({image.tobytes() for image in images}) == len(NAMES)
    with Image.open(str(FOLDER / NAMES[0])) as file:
        expected = np.asarray(file.resize((48, 48), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(images[0], expected)


def test_photographs_are_colour_pictures_with_content() -> None:
    for name, image in zip(NAMES, photographs(64).astype(float), strict=True):
        assert image.std() > 15, name
        assert np.abs(image - image.mean(axis=-1, keepdims=True)).mean() > 1, name
