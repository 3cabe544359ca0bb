"""A terminal shows that a command is alive; a log gets one line for each step."""

from __future__ import annotations

import io
import sys

import pytest

from resnet_export.exporter.cli.progress import show_progress
from resnet_export.runtime.progress import STEPS


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_one_line_for_each_step_and_none_for_the_loops_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with show_progress(quiet=False) as progress:
        step = progress(["calibrating", "checking"], STEPS, 2)
        for _ in step:
            assert list(progress([1, 2, 3], "images")) == [1, 2, 3]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["step 1/2: calibrating", "step 2/2: checking"]


def test_a_first_step_that_fails_says_nothing_beside_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(quiet=False) as progress:
        next(progress(["calibrating"], STEPS, 1))
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_the_step_and_the_loop_in_it_and_is_clean_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with show_progress(quiet=False) as progress:
        for _ in progress(["calibrating"], STEPS, 1):
            assert list(progress(range(3), "images", 3)) == [0, 1, 2]
    shown = screen.getvalue()
    assert "step 1/1: calibrating" in shown
    assert shown.endswith("\x1b[2K") or "\x1b[2K" in shown.rpartition("calibrating")[2]


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(quiet=True) as progress:
        assert list(progress(["calibrating"], STEPS, 1)) == ["calibrating"]
    assert capsys.readouterr().err == ""
