"""`--val`: what the finished bundle is held to, decided before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_export.exporter.parity.validation import validation_spec
from resnet_export.exporter.request import check_request
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import DatasetError, RequestError

SMALL = Preprocessing(resize=32, crop=32)
LABELS = ("cat", "dog")


def pictures(folder: Path, *names: str) -> Path:
    draw = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    return folder


def test_labeled_images_decide_the_budget_as_accuracy(tmp_path: Path) -> None:
    val = pictures(tmp_path / "val", "cat/a.png", "dog/b.png")
    spec = validation_spec(ExportSpec(val=val, max_drop=0.5), SMALL, LABELS)
    assert (spec.data, spec.max_drop, spec.min_agreement) == (str(val), 0.5, None)


def test_images_without_labels_decide_it_as_agreement(tmp_path: Path) -> None:
    val = pictures(tmp_path / "val", "a.png", "b.png")
    spec = validation_spec(ExportSpec(val=val, max_drop=0.5), SMALL, LABELS)
    assert (spec.max_drop, spec.min_agreement) == (None, 99.5)


def test_without_a_budget_the_images_are_compared_all_the_same(tmp_path: Path) -> None:
    val = pictures(tmp_path / "val", "a.png", "b.png")
    spec = validation_spec(ExportSpec(val=val), SMALL, LABELS)
    assert (spec.data, spec.max_drop, spec.min_agreement) == (str(val), None, None)


@pytest.mark.parametrize("how", ["the same folder", "a link", "a list"])
def test_an_image_that_calibration_sees_too_is_refused(tmp_path: Path, how: str) -> None:
    calib = pictures(tmp_path / "calib", "a.png", "b.png")
    val = calib
    if how == "a link":
        val = pictures(tmp_path / "val", "c.png")
        (val / "d.png").symlink_to(calib / "a.png")
    elif how == "a list":
        val = tmp_path / "val.txt"
        val.write_text("calib/b.png\n")
    with pytest.raises(RequestError, match=r"in --calib .* too, .*give others"):
        validation_spec(ExportSpec(calib=calib, val=val), SMALL, LABELS)


def test_labels_that_the_network_has_not_are_refused_before_any_work(tmp_path: Path) -> None:
    val = tmp_path / "val.txt"
    pictures(tmp_path, "a.png")
    val.write_text("a.png 7\n")
    with pytest.raises(DatasetError):
        validation_spec(ExportSpec(val=val), SMALL, LABELS)


def test_validation_images_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"the validation images .* do not exist"):
        check_request(ModelSpec(depth=18), ExportSpec(val=tmp_path / "none"))


def test_a_budget_needs_something_that_it_is_measured_on(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="give --int8, or --val"):
        check_request(ModelSpec(depth=18), ExportSpec(max_drop=0.5))
    check_request(ModelSpec(depth=18), ExportSpec(max_drop=0.5, val=tmp_path))
