"""Class names: the bundled ones and a user's."""

from __future__ import annotations

import json
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


ANIMALS = ("ant", "bee", "cat", "dog, domestic", "elk")
SHUFFLED = (4, 0, 1, 3, 2)


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("separator", [" ", ": ", ":", ",", "\t", " = ", ";"])
def test_numbered_labels_are_put_in_order(separator: str, first: int, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"{index + first}{separator}{ANIMALS[index]}\n" for index in SHUFFLED))
    assert read_labels(path, 5) == ANIMALS


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ANIMALS),
        json.dumps({index: ANIMALS[index] for index in SHUFFLED}),
        json.dumps({ANIMALS[index]: index for index in SHUFFLED}),
        json.dumps({index: [f"n{index:08}", name] for index, name in enumerate(ANIMALS)}),
        json.dumps({"architecture": "resnet18", "id2label": dict(enumerate(ANIMALS))}),
        json.dumps({"names": ANIMALS, "nc": 5}, indent=2),
        "\ufeff" + repr(dict(enumerate(ANIMALS))),
        "{" + ",\n".join(f"{index}: {name!r}" for index, name in enumerate(ANIMALS)) + "}\n",
        repr(ANIMALS[:4])[:-1].replace("(", "[") + ", 'elk']",
    ],
)
@pytest.mark.parametrize("name", ["labels.txt", "labels.json"])
def test_labels_of_json_and_python_are_read(text: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / name, 5) == ANIMALS


@pytest.mark.parametrize(
    "rows",
    [
        ["index,name", '3,"dog, domestic"', "0,ant", "1,bee", "2,cat", "4,elk"],
        ["name;id", "elk;4", "dog, domestic;3", "cat;2", "bee;1", "ant;0"],
        ["0\tant", "1\tbee", "2\tcat", "3\tdog, domestic", "4\telk"],
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_labels_of_a_table_are_read(rows: list[str], end: str, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes(end.join(rows).encode())
    assert read_labels(tmp_path / "labels.csv", 5) == ANIMALS


def test_a_table_of_one_column_may_have_a_header(tmp_path: Path) -> None:
    for text in ("label\ncat\ndog\n", "cat\ndog\n"):
        (tmp_path / "labels.csv").write_text(text)
        assert read_labels(tmp_path / "labels.csv") == ("cat", "dog")
    (tmp_path / "labels.csv").write_text("a,b,c\n1,2,3\n")
    with pytest.raises(RequestError, match="a table of 3 columns"):
        read_labels(tmp_path / "labels.csv")


def test_names_that_begin_with_numbers_are_names(tmp_path: Path) -> None:
    for names in (["5 cents", "10 cents"], ["0", "1", "2"], ["3 cars", "cars"], ["1b", "0b"]):
        (tmp_path / "labels.txt").write_text("\n".join(names))
        assert read_labels(tmp_path / "labels.txt") == tuple(names)


def test_utf16_labels_with_a_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_bytes("Kätzchen\r\nHund\r\n".encode("utf-16"))
    assert read_labels(tmp_path / "labels.txt") == ("Kätzchen", "Hund")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\nb\x1b[31mred\nc\n", ("line 2 ", "U+001B")),
        ("\n\na\nb \x96 c\nd\n", ("line 4 ", "U+0096")),
        ("a\nb\n".encode("utf-16-le").decode("latin1"), ("line 1 ", "U+0000", "UTF-8")),
        ('["a", "b\\u0007"]', ("a label of", "U+0007")),
        ("a\n" + "b" * 1001, ("line 2 ", "1001 characters")),
        ("0: a\n2: b\n", ("0, 2", "expected each of 0 to 1 once")),
        ("0,a\n0,b\n", ("0, 0", "expected each of 0 to 1 once")),
        ('{"0": "a", "2": "b"}', ("does not number its 2 classes",)),
        ('{"a": "b"}', ("does not number its 1 classes",)),
        ("[1, 2]", ("a int where a label is expected",)),
        ('{"id2label": {"0": {"x": 1}}}', ("a dict where a label is expected",)),
    ],
)
def test_labels_that_cannot_be_are_refused_with_file_and_line(
    text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError) as caught:
        read_labels(path)
    for word in (*words, str(path)):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


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
