"""`resnet-export parity` with data that cannot be judged by: status 2, one sentence, and no work done first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from resnet_export.exporter.cli import cli
from resnet_export.runtime.parity import check as gate

CLASSES = 1000
Make = Callable[[Path], Path]


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 70, 80, 3), dtype=np.uint8)


def save(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures()):
        Image.fromarray(picture).save(folder / f"{i}.png")
    return folder


def archive(**arrays: np.ndarray) -> Make:
    def make(folder: Path) -> Path:
        np.savez(folder / "data.npz", **arrays)
        return folder / "data.npz"

    return make


def empty(folder: Path) -> Path:
    (folder / "photos").mkdir()
    return folder / "photos"


def notes(folder: Path) -> Path:
    (empty(folder) / "notes.txt").write_text("no images here")
    return folder / "photos"


def strange_classes(folder: Path) -> Path:
    for name in ("apples", "pears"):
        save(folder / "photos" / name)
    return folder / "photos"


def half_labelled(folder: Path) -> Path:
    save(folder / "photos")
    (folder / "list.txt").write_text("photos/0.png\t3\nphotos/1.png\n")
    return folder / "list.txt"


def unlabeled(folder: Path) -> Path:
    return save(folder / "photos")


def unreadable(folder: Path) -> Path:
    empty(folder)
    for i in range(3):
        (folder / "photos" / f"{i}.png").write_bytes(b"no picture")
    return folder / "photos"


@pytest.fixture
def run(resnet18_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run the command in an empty folder; a session that is opened fails the test."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a run was started before the request was found to be wrong")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gate, "check_golden", opened)
    return lambda *arguments: CliRunner().invoke(cli, ["parity", str(resnet18_bundle), *map(str, arguments)])


def assert_refused(result: Result, *expected: str) -> None:
    assert result.exit_code == 2, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, result.stderr
    assert "defect of resnet-export" not in errors[0]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    for text in expected:
        assert text in errors[0]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        pytest.param(empty, "photos", id="an empty folder"),
        pytest.param(notes, "photos", id="a folder without images"),
        pytest.param(unreadable, "cannot be read", id="images that are none"),
        pytest.param(archive(images=pictures(0)), "no images", id="an archive without images"),
        pytest.param(archive(labels=np.arange(3)), "expected `images`", id="labels alone"),
        pytest.param(archive(images=pictures(), labels=np.arange(2)), "labels", id="too few labels"),
        pytest.param(
            archive(images=pictures(), labels=np.ones(3)), "expected integers", id="labels that are floats"
        ),
        pytest.param(
            archive(images=pictures(), labels=np.array([0, 1, CLASSES])), "1000", id="a label too large"
        ),
        pytest.param(archive(images=pictures(), labels=np.array([0, -1, 2])), "-1", id="a negative label"),
        pytest.param(strange_classes, "apples", id="class folders of other classes"),
        pytest.param(half_labelled, "label all of them or none", id="labels for some"),
    ],
)
def test_data_that_cannot_be_judged_by_is_refused(
    run: Callable[..., Result], tmp_path: Path, make: Make, expected: str
) -> None:
    assert_refused(run("--data", make(tmp_path)), expected)


def test_a_limit_on_accuracy_needs_labels(run: Callable[..., Result], tmp_path: Path) -> None:
    assert_refused(run("--data", unlabeled(tmp_path), "--max-drop", 0.5), "have no labels")
    assert_refused(run("--max-drop", 0.5), "without data")


def test_data_that_is_not_there_is_refused(run: Callable[..., Result]) -> None:
    assert_refused(run("--data", "nowhere"), "nowhere")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--artifact", "int4"), "no artifact 'int4'; it has fp32, fp16"),
        (("--backend", "tflite"), "there is no backend 'tflite'"),
    ],
)
def test_an_artifact_or_backend_that_does_not_exist_is_refused_beside_those_that_do(
    run: Callable[..., Result], options: tuple[str, ...], expected: str
) -> None:
    assert_refused(run(*options), expected)


@pytest.mark.parametrize("kind", ["json", "junit", "markdown"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    run: Callable[..., Result], kind: str
) -> None:
    assert_refused(run(f"--{kind}", "no/such/folder/report"), "no/such/folder")
