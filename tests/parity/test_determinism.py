"""The same bundle and data give the same report in every process, but for its times."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.natural_crops import natural_crops

COMMAND = (sys.executable, "-c", "from resnet_export.exporter.cli import main; main()", "parity")


def test_two_fresh_processes_write_the_same_report_but_for_its_times(
    resnet18_bundle: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, images=natural_crops(24, 72, seed=3), labels=np.arange(24) * 40)
    found = []
    for seed in ("1", "2"):
        report = tmp_path / f"report{seed}.json"
        options = ("--data", data.name, "--limit", "20", "--json", report.name, "--quiet")
        finished = subprocess.run(
            [*COMMAND, str(resnet18_bundle), *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        found.append(json.loads(report.read_text()))
    first, second = found
    assert {"started", "seconds", "running"} <= first.pop("times").keys() == second.pop("times").keys()
    assert first["entries"][0]["checks"][-1]["comparison"]["figures"]["images"] == 20
    assert json.dumps(first) == json.dumps(second)  # in the same order, too
