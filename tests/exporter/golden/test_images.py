"""The images that an export looks at, and what their folders say of the classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_export.exporter.golden.images import names_of_folders
from resnet_export.exporter.pipeline import prepare
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.errors import DatasetError


def folders(root: Path, *names: str) -> Path:
    """Return `root` with a picture in each of these folders."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(root / name / "a.png")
    return root


def test_class_folders_name_the_classes_where_no_labels_are_given(tmp_path: Path) -> None:
    photos = folders(tmp_path / "photos", "dog", "cat", "__MACOSX")
    model = ModelSpec(depth=18, num_classes=2, image_size=64)
    job = prepare(model, ExportSpec(calib=photos), tmp_path / "out")
    assert job.net.labels == ("cat", "dog")
    assert any(
        "photos' name the classes, in alphabetical order ('cat' = 0)" in one for one in job.net.notices
    )
    (tmp_path / "labels.txt").write_text("dog\ncat\n")
    given = ModelSpec(depth=18, num_classes=2, image_size=64, labels=tmp_path / "labels.txt")
    assert prepare(given, ExportSpec(calib=photos), tmp_path / "out").net.labels == ("dog", "cat")


@pytest.mark.parametrize(
    ("names", "classes"), [(("cat", "dog"), 3), (("cat", "1"), 2), (("cat", "b\x1bd"), 2), ((), 2)]
)
def test_folders_that_do_not_name_the_classes_are_left_alone(
    names: tuple[str, ...], classes: int, tmp_path: Path
) -> None:
    assert names_of_folders(folders(tmp_path / "photos", *names), classes) is None


def test_an_archive_has_no_class_folders_and_parts_of_a_data_set_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((2, 8, 8, 3), np.uint8))
    assert names_of_folders(tmp_path / "images.npz", 2) is None
    with pytest.raises(DatasetError, match="parts of a data set"):
        names_of_folders(folders(tmp_path / "data", "train/cat", "val/cat"), 2)
