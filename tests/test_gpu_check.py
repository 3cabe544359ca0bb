"""`make gpu-check`: every cell ends in a result, whatever the host lacks. The checks themselves run on the CPU here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks import gpu_check
from benchmarks.gpu_check import CHECKS, Cell, cells, table
from resnet_export.runtime import open_session
from resnet_export.runtime.backends.routes import ROUTES
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.host import Gpu, HostFacts, Package
from tests.parity_bundle import write

BARE = HostFacts(system="linux", machine="x86_64", cpus=2, packages=(), gpu_note="there is no NVIDIA driver")
GPU = msgspec.structs.replace(
    BARE,
    gpus=(Gpu(index=0, name="a GPU", compute_capability="8.6", memory=1 << 33),),
    packages=(Package(module="onnxruntime", distribution="onnxruntime-gpu", version="1.31.1"),),
)
ROUTES_TO_GPUS = [route for route in ROUTES if route.device == "gpu"]


def test_without_a_gpu_every_cell_says_so() -> None:
    found = list(cells(BARE, None))
    assert len(found) == len(ROUTES_TO_GPUS) * len(Precision) * len(CHECKS)
    assert {one.outcome for one in found} == {"skipped: no GPU (there is no NVIDIA driver)"}
    assert table(found, BARE).count("no GPU (there is no NVIDIA driver) |") == len(found)


def test_a_cell_that_breaks_or_hangs_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write(tmp_path / "tiny")
    answers = iter([subprocess.TimeoutExpired("it", 60), (-11, ""), (0, "relative error 1e-3"), (2, "")])

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        answer = next(answers, (0, "fine"))
        if isinstance(answer, Exception):
            raise answer
        code, said = answer
        return subprocess.CompletedProcess(command, code, said, "it fell\n" if code else "")

    monkeypatch.setattr(gpu_check.subprocess, "run", run)
    found = [one for one in cells(GPU, bundle) if not one.outcome.startswith("skipped")]
    assert [one.outcome for one in found[:5]] == [
        "FAILED: no answer within 60 s",
        "FAILED: exit -11: it fell",
        "relative error 1e-3",
        "FAILED: exit 2: it fell",
        "fine",
    ]
    assert [one.failed for one in found[:5]] == [True, True, False, True, False]
    assert {one.route.module for one in found} == {"onnxruntime"}


@pytest.mark.parametrize("check", [name for name in CHECKS if name != "DLPack"])
def test_a_check_passes_a_sound_session_and_says_what_it_saw(check: str, tmp_path: Path) -> None:
    bundle = write(tmp_path / "tiny")
    with open_session(bundle, backend="onnxruntime", artifact="fp32") as session:
        said = CHECKS[check](session, bundle)
    assert not Cell(ROUTES_TO_GPUS[0], Precision.FP32, check, said).failed, said
    assert said


@pytest.mark.parametrize("check", ["golden", "CUDA graphs", "threads"])
def test_a_check_fails_a_session_whose_answers_are_wrong(check: str, tmp_path: Path) -> None:
    bundle = write(tmp_path / "tiny")
    rng = np.random.default_rng(0)
    with open_session(bundle, backend="onnxruntime", artifact="fp32") as session:

        class Wrong:
            choice = session.choice

            def run(self, batch: np.ndarray) -> np.ndarray:
                return session.run(batch) + rng.normal(scale=3.0, size=(len(batch), 1)).astype(np.float32)

        said = CHECKS[check](Wrong(), bundle)  # type: ignore[arg-type]
    assert Cell(ROUTES_TO_GPUS[0], Precision.FP32, check, said).failed


def test_the_command_runs_to_its_end_and_writes_its_table(tmp_path: Path) -> None:
    bundle = write(tmp_path / "tiny")
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check",
        str(bundle),
        "--out",
        str(tmp_path / "a" / "check.md"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "cells: " in done.stdout, done.stderr
    assert (tmp_path / "a" / "check.md").read_text(encoding="utf-8").startswith("# GPU check: ")
