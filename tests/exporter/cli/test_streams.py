"""Whatever becomes of standard output and error, the exit status and the files are those of the verdict."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_export.exporter.cli.progress import show_progress
from resnet_export.runtime.progress import silent
from tests import parity_bundle
from tests.tiny_bundle import FP32

pytestmark = pytest.mark.skipif(os.name != "posix", reason="redirections are a shell's")

_MAIN = "from resnet_export.exporter.cli import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, and with limits that nothing keeps."""
    home = tmp_path_factory.mktemp("streams")
    parity_bundle.write(home / "bundle", [FP32], trained=True)
    (home / "tight.json").write_text('{"fp32": {"centered_cosine": 1, "relative_error": 0}}')
    return home


def shell(
    folder: Path, redirection: str, *arguments: str, code: str = _MAIN, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in `folder`, with a shell's `redirection` behind it."""
    command = ["sh", "-c", f'"$0" "$@" {redirection}', sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | variables)


PARITY = ("parity", "bundle", "--backend", "onnxruntime", "--no-layers")


@pytest.mark.parametrize(("limits", "status"), [((), 0), (("--tolerance", "tight.json"), 1)])
def test_a_reader_that_went_away_changes_neither_the_status_nor_the_report(
    folder: Path, limits: tuple[str, ...], status: int
) -> None:
    # No reader at all: the write end of a pipe whose other end is closed.
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", _MAIN, *PARITY, *limits, "--json", "r.json"]
    done = subprocess.run(command, cwd=folder, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (status, "")
    assert json.loads((folder / "r.json").read_bytes())["verdict"]["exit_code"] == status


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams_take_nothing_away_but_what_is_printed(folder: Path, closed: str) -> None:
    (folder / "r.json").unlink(missing_ok=True)
    done = shell(folder, closed, *PARITY, "--json", "r.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert ("PASSED" in done.stdout) == (closed == "2>&-")
    assert json.loads((folder / "r.json").read_bytes())["verdict"]["status"] == "passed"


def test_no_file_takes_the_place_of_a_closed_stream(folder: Path) -> None:
    # Libraries write their messages to file number 2, whatever it is.
    code = """
import sys
from resnet_export.exporter.cli.process import open_streams
open_streams()
print("lost", file=sys.stderr, flush=True)
print(open("tight.json").fileno() > 2, sys.stderr.isatty())
"""
    assert shell(folder, "2>&-", code=code).stdout == "True False\n"


def test_without_standard_error_there_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    with show_progress(quiet=False) as progress:
        assert progress is not silent
    monkeypatch.setattr(sys, "stderr", None)
    with show_progress(quiet=False) as progress:
        assert progress is silent


def test_characters_that_the_terminal_cannot_show_are_replaced(folder: Path) -> None:
    done = shell(folder, "", *PARITY, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr
    assert "?100.0)" in done.stdout
    done = shell(folder, "", "parity", "→", PYTHONIOENCODING="latin-1")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ? is not a bundle")


def test_a_report_on_standard_output_and_the_table_stand_one_after_the_other(folder: Path) -> None:
    (folder / "log").write_text("first\n")
    done = shell(folder, ">> log", *PARITY, "--markdown", "/dev/stdout")
    assert done.returncode == 0, done.stderr
    text = (folder / "log").read_text()
    assert text.startswith("first\n")
    assert text.endswith("all within tolerance.\n")
    assert text.count("all within tolerance") == 2


def test_a_full_standard_output_is_named(folder: Path) -> None:
    done = shell(folder, "> /dev/full", "models")
    assert (done.returncode, done.stderr) == (2, "Error: standard output: No space left on device\n")


def test_a_large_image_that_is_used_is_no_reason_for_a_warning(folder: Path) -> None:
    Image.fromarray(np.zeros((15, 30, 3), np.uint8)).save(folder / "large.png")
    code = f"from PIL import Image; Image.MAX_IMAGE_PIXELS = 300; {_MAIN}"
    done = shell(folder, "", "infer", "bundle", "large.png", "--json", code=code)
    assert done.returncode == 0
    assert done.stderr == ""
