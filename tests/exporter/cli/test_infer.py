"""`resnet-export infer` takes images by whatever names them, and a bad one costs the others nothing."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from resnet_export.exporter.cli import cli
from resnet_export.runtime import open_session
from tests import tiny_bundle
from tests.tiny_bundle import LABELS

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `infer` on a tiny bundle, beside a folder of images of which two cannot be read."""
    monkeypatch.chdir(tmp_path)
    tiny_bundle.write(tmp_path / "bundle")
    images = tiny_bundle.images(12)
    for index, image in enumerate(images):
        path = tmp_path / "photos" / ("nested" if index % 2 else "") / f"{index:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (tmp_path / "photos" / "03-bad.jpg").write_bytes(b"no image")
    (tmp_path / "photos" / "README").write_text("not an image")

    def invoke(*arguments: object, stdin: bytes = b"") -> Result:
        options = ["infer", "bundle", "--threads", "1", "--backend", "onnxruntime", *map(str, arguments)]
        return CliRunner().invoke(cli, options, input=stdin)

    return invoke


GOOD = [f"photos/{index:02}.png" for index in range(0, 12, 2)] + [
    f"photos/nested/{index:02}.png" for index in range(1, 12, 2)
]
ALL = sorted([*GOOD, "photos/03-bad.jpg"])


def rows(result: Result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_folder_is_classified_with_all_in_it_and_what_failed_is_counted(run: Run) -> None:
    result = run("photos", "--format", "jsonl", "--top", 2)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "ran fp32 on onnxruntime (CPUExecutionProvider) in fp32",
        "1 of 13 images failed",
    ]
    found = {row["image"]: row for row in rows(result)}
    assert list(found) == ALL
    assert "'photos/03-bad.jpg' is not an image" in found.pop("photos/03-bad.jpg")["error"]
    with open_session("bundle", backend="onnxruntime", threads=1) as session:
        expected = session.classify(list(found), top=2)
    for row, best in zip(found.values(), expected, strict=True):
        assert [one["label"] for one in row["predictions"]] == [one.label for one in best]


@pytest.mark.parametrize(
    ("arguments", "stdin", "images"),
    [
        (GOOD[:2], b"", GOOD[:2]),
        (["photos/*.png"], b"", GOOD[:6]),
        (["photos/**/*.png"], b"", sorted(GOOD)),
        (["photos/n*"], b"", GOOD[6:]),
        (["photos/[01]?.png", "photos/nested"], b"", GOOD),
        (["-"], b"photos/00.png\r\n\nphotos/nested/01.png", [GOOD[0], GOOD[6]]),
        ([GOOD[3], "-"], b"photos/00.png\n", [GOOD[3], GOOD[0]]),
    ],
    ids=["files", "pattern", "nested", "folders", "several", "standard input", "both"],
)
def test_images_are_named_in_every_way_that_a_shell_knows(
    run: Run, arguments: list[str], stdin: bytes, images: list[str]
) -> None:
    result = run(*arguments, "--format", "jsonl", stdin=stdin)
    assert result.exit_code == 0, result.output
    assert [row["image"] for row in rows(result)] == images


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.txt", "photos/00.png 3\nphotos/02.png 4\n"),
        ("list.csv", "image,label\nphotos/00.png,3\nphotos/02.png,4\n"),
    ],
)
def test_a_list_file_names_images_beside_it(run: Run, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert [row["image"] for row in rows(run(name, "--format", "jsonl"))] == GOOD[:2]


def test_an_image_may_come_on_standard_input_itself(run: Run) -> None:
    for form, options in (("PNG", {}), ("JPEG", {"quality": 100}), ("BMP", {}), ("GIF", {})):
        file = io.BytesIO()
        Image.open(GOOD[0]).save(file, form, **options)
        (row,) = rows(run("-", "--format", "jsonl", stdin=file.getvalue()))
        assert row["image"] == "-"
        assert {one["label"] for one in row["predictions"]} == set(LABELS)


def test_csv_has_a_row_for_each_label_and_for_each_error(run: Run) -> None:
    result = run("photos/00.png", "photos/03-bad.jpg", "a,b.png", "--format", "csv", "--top", 2)
    table = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["image"], row["rank"]) for row in table] == [
        ("photos/00.png", "1"),
        ("photos/00.png", "2"),
        ("photos/03-bad.jpg", ""),
        ("a,b.png", ""),
    ]
    assert LABELS[int(table[0]["index"])] == table[0]["label"]
    assert float(table[0]["probability"]) > float(table[1]["probability"])
    assert [bool(row["error"]) for row in table] == [False, False, True, True]
    assert result.exit_code == 1


def test_json_holds_the_choice_and_every_image(run: Run) -> None:
    for options in (["--json"], ["--format", "json"]):
        found = json.loads(run("photos", *options).stdout)
        assert found["choice"]["backend"] == "onnxruntime"
        assert [image["image"] for image in found["images"]] == ALL


def test_text_says_what_failed_in_its_place(run: Run) -> None:
    lines = run("photos/00.png", "photos/03-bad.jpg", "--top", 1).stdout.splitlines()
    assert lines[0] == "photos/00.png"
    assert lines[2] == "photos/03-bad.jpg"
    assert lines[3].startswith("  failed: 'photos/03-bad.jpg' is not an image")


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        (["photos/*.gif"], b"", "'photos/*.gif' stands for no image"),
        (["bundle"], b"", "'bundle' stands for no image"),
        (["empty.txt"], b"", "'empty.txt' stands for no image"),
        (["-"], b"", "standard input names no images"),
        (["-", "-"], b"", "standard input can be read once"),
    ],
)
def test_arguments_that_stand_for_nothing_are_refused(
    run: Run, tmp_path: Path, arguments: list[str], stdin: bytes, expected: str
) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert result.stdout == ""


@pytest.mark.skipif(os.name != "posix", reason="names of files are bytes here")
def test_results_are_written_before_all_images_are_known(run: Run, tmp_path: Path) -> None:
    program = "from resnet_export.exporter.cli import main; main()"
    command = [sys.executable, "-c", program, "infer", "bundle", "-", "--format", "jsonl", "--threads", "1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        name = os.fsencode(tmp_path) + b"/\xff.png"
        os.link(GOOD[0], name)
        process.stdin.write(b"photos/00.png\n" * 20)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["image"] == "photos/00.png"
        process.stdin.write(name)
        process.stdin.close()
        last = process.stdout.read().splitlines()[-1]
    assert process.returncode == 0
    assert json.loads(last)["image"].endswith("\udcff.png")
