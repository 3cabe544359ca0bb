"""Class names: the bundled ones and a user's."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from resnet_export.exporter.models.labels import default_labels, imagenet_labels, read_labels
from resnet_export.runtime.errors import RequestError


def test_imagenet_labels_are_torchvisions(torchvision: ModuleType) -> None:
    theirs = torchvision.models.ResNet50_Weights.DEFAULT.meta["categories"]
    assert imagenet_labels() == tuple(theirs)


def test_a_thousand_classes_get_imagenets_names_and_others_numbers() -> None:
    assert default_labels(1000)[0] == "tench"
    assert default_labels(3) == ("class 0", "class 1", "class 2")


@pytest.mark.parametrize(
    "data",
    [b"cat\ndog\n", b"cat\r\ndog\r\n", b"\xef\xbb\xbfcat\ndog", b" cat \ndog\n\n\n"],
    ids=["unix", "windows", "byte order mark", "padding"],
)
def test_labels_are_read_one_a_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    assert read_labels(path, 2) == ("cat", "dog")


def test_labels_keep_characters_that_only_some_readers_take_for_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes("Kätzchen 猫\u2028x\nb\n".encode())
    assert read_labels(path) == ("Kätzchen 猫\u2028x", "b")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"cat\ndog\n", ("2 labels", "3 classes")),
        (b"", ("0 labels", "3 classes")),
        (b"cat\n\ndog\n", ("line 2", "empty")),
        (b"cat\n\xff\n", ("UTF-8", "byte 4")),
    ],
    ids=["too few", "empty file", "gap", "not text"],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, data: bytes, words: tuple[str, ...]) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(data)
    with pytest.raises(RequestError) as caught:
        read_labels(path, 3)
    for word in (*words, str(path)):
        assert word in str(caught.value)


def test_a_missing_labels_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="No such file"):
        read_labels(tmp_path / "none.txt", 3)
    with pytest.raises(RequestError, match="directory"):
        read_labels(tmp_path, 3)
