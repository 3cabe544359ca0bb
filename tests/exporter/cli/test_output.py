"""Files that a command writes: none of them costs the user another, and none is left half written."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from resnet_export.exporter import report as html
from resnet_export.exporter.cli import cli
from resnet_export.exporter.cli.output import check_outputs, write_output
from resnet_export.runtime.errors import RequestError
from tests import parity_bundle
from tests.parity_bundle import crops
from tests.tiny_bundle import FP32

Run = Callable[..., Result]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs links, pipes and devices")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one file of each kind that a command reads."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for name in ("bundle/model.onnx", "photos/cats/1.jpg", "elsewhere/2.jpg", "elsewhere/3.jpg", "data.npz"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "photos" / "2.jpg").symlink_to("../elsewhere/2.jpg")
    (tmp_path / "list.txt").write_text("elsewhere/3.jpg 1\n")
    return tmp_path


@pytest.mark.parametrize(
    "output",
    [
        "bundle/model.onnx",
        "bundle/report.json",
        "./photos/../bundle/new",
        "photos/cats/1.jpg",
        "photos/new.html",
        "data.npz",
        "list.txt",
        "photos/2.jpg",
        "elsewhere/2.jpg",
        "elsewhere/3.jpg",
    ],
)
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("linked", [False, True], ids=["by itself", "by a link"])
def test_an_output_that_is_an_input_is_refused(output: str, linked: bool) -> None:
    path = Path(output)
    if linked:
        path = Path("link")
        path.symlink_to(output)
    inputs = {
        "BUNDLE": Path("bundle"),
        "--data": Path("photos"),
        "--list": Path("list.txt"),
        "--npz": Path("data.npz"),
        "--weights": None,
    }
    with pytest.raises(RequestError, match=r"^--json .*(BUNDLE|--data|--list|--npz) names.*; name a"):
        check_outputs({"--json": path, "--html": None}, inputs)
    check_outputs({"--json": Path("elsewhere/new"), "--html": Path("bundle.html")}, inputs)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("other", ["r", "./r", "photos/../r", "link"])
def test_two_outputs_with_one_file_are_refused(other: str) -> None:
    Path("link").symlink_to("r")
    outputs = {"--json": Path("r"), "--html": Path(other)}
    for _ in range(2):
        with pytest.raises(RequestError, match="--json and --html both write r; give each"):
            check_outputs(outputs, {})
        Path("r").write_text("an old report")
    check_outputs({"--json": Path("r"), "--html": Path("s")}, {})
    check_outputs({"--json": Path("/dev/null"), "--html": Path("/dev/null")}, {"--data": Path("/dev/null")})


@pytest.mark.usefixtures("here")
def test_what_cannot_be_written_is_found_out_beforehand() -> None:
    Path("dangling").symlink_to("nowhere/report")
    Path("loop").symlink_to("loop")
    Path("new").symlink_to("elsewhere/report")
    for name, words in {
        "dangling": "the folder .*nowhere is missing",
        "loop": "symbolic links",
        "loop/report": "symbolic links|is missing",
        "nowhere/report": "the folder nowhere is missing; create it",
        "data.npz/report": "is missing",
        "x" * 300: "name too long",
        "-": "--json - .*; name a file, or /dev/stdout",
    }.items():
        with pytest.raises(RequestError, match=words):
            check_outputs({"--json": Path(name)}, {})
    check_outputs({"--json": Path("new")}, {})


@pytest.mark.usefixtures("here")
def test_a_report_replaces_what_stands_at_the_end_of_links_and_keeps_its_mode() -> None:
    old = Path("elsewhere/report")
    old.write_text("old")
    old.chmod(0o640)
    Path("link").symlink_to(old)
    with old.open() as reader:
        write_output(Path("link"), b"new")
        assert reader.read() == "old"
    assert Path("link").is_symlink()
    assert old.read_text() == "new"
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    write_output(Path("fresh"), b"new")
    assert Path("fresh").read_text() == "new"
    assert {path.name for path in Path("elsewhere").iterdir()} == {"2.jpg", "3.jpg", "report"}


@pytest.mark.usefixtures("here")
def test_an_old_report_survives_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    Path("elsewhere/report").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RequestError, match=r"elsewhere/report cannot be written \(No space left"):
        write_output(Path("elsewhere/report"), b"new")
    assert Path("elsewhere/report").read_text() == "old"
    assert {path.name for path in Path("elsewhere").iterdir()} == {"2.jpg", "3.jpg", "report"}


@pytest.mark.usefixtures("here")
def test_where_a_folder_takes_no_new_file_the_old_one_is_written_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mounted(path: Path, target: Path) -> None:
        raise OSError(16, "Device or resource busy")

    Path("report").write_text("old")
    monkeypatch.setattr(Path, "replace", mounted)
    write_output(Path("report"), b"new")
    assert Path("report").read_text() == "new"


@pytest.mark.usefixtures("here")
def test_devices_and_pipes_take_the_bytes_themselves() -> None:
    write_output(Path("/dev/null"), b"report")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(RequestError, match=r"^/dev/full cannot be written \(No space left"):
        write_output(Path("/dev/full"), b"report")
    os.mkfifo("pipe")
    Path("link").symlink_to("pipe")
    for name in ("pipe", "link"):
        got: list[bytes] = []
        reader = threading.Thread(target=lambda got=got: got.append(Path("pipe").read_bytes()))
        reader.start()
        write_output(Path(name), b"report")
        reader.join()
        assert got == [b"report"]
    assert Path("pipe").is_fifo()


# In the commands


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `parity` on a sound bundle in the current folder."""
    monkeypatch.chdir(tmp_path)
    parity_bundle.write(tmp_path / "bundle", [FP32], trained=True)
    arguments = ["parity", "bundle", "--backend", "onnxruntime"]
    return lambda *more: CliRunner().invoke(cli, [*arguments, *map(str, more)])


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("option", ["--json", "--junit", "--markdown", "--html"])
def test_no_report_of_parity_overwrites_what_it_reads(run: Run, option: str) -> None:
    Path("photos").mkdir()
    Image.fromarray(crops(1)[0]).save("photos/p0.jpg")
    for name in ("t.json", "ck.pth"):
        Path(name).write_text("precious")
    for arguments in (
        (option, "bundle/manifest.json"),
        (option, "bundle/new"),
        ("--data", "photos", option, "photos/p0.jpg"),
        ("--tolerance", "t.json", option, "t.json"),
        ("--weights", "ck.pth", option, "./ck.pth"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2, result.output
        assert result.stdout == ""
        assert result.stderr.startswith(f"Error: {option} ")
    assert run(option, "r", "--json" if option != "--json" else "--html", "./r").exit_code == 2
    assert Path("t.json").read_text() == "precious"


def test_calibrate_writes_its_table_beside_its_inputs_and_not_into_them(run: Run) -> None:
    del run
    Path("photos").mkdir()
    for out in ("bundle/calibration.json", "photos/calibration.json"):
        result = CliRunner().invoke(cli, ["calibrate", "bundle", "--calib", "photos", "--out", out])
        assert result.exit_code == 2
        assert "where no other files belong" in result.stderr


def test_build_keeps_its_messages_outside_the_bundle(run: Run) -> None:
    del run
    result = CliRunner().invoke(cli, ["build", "bundle", "--log-folder", "bundle/logs"])
    assert result.exit_code == 2
    assert "--log-folder bundle/logs lies in the folder that BUNDLE names" in result.stderr
    assert not Path("bundle/logs").exists()


def test_no_report_is_written_unless_all_can_be_made(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise RequestError("the page cannot be made")

    monkeypatch.setattr(html, "render", fail)
    result = run("--json", "r.json", "--html", "r.html")
    assert result.exit_code == 2
    assert not Path("r.json").exists()


@pytest.mark.parametrize("quiet", [(), ("--quiet",)])
def test_a_check_of_nothing_says_so_on_standard_error(run: Run, quiet: tuple[str, ...]) -> None:
    result = run("--artifact", "fp32", "--backend", "tensorrt", "--json", "r.json", *quiet)
    assert result.exit_code == 2, result.output
    sentence = json.loads(Path("r.json").read_bytes())["verdict"]["sentence"]
    assert "tensorrt" in sentence
    assert result.stderr.splitlines() == [sentence]
