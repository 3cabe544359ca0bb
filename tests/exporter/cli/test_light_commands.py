"""The commands that only read a bundle work where neither torch nor onnx is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from resnet_export.exporter.models.zoo import ZOO

# An import of a name that is None in sys.modules fails as if the package were missing.
_HIDE = """
import sys
for name in ("torch", "onnx", "onnxscript", "onnxsim", "safetensors"):
    sys.modules[name] = None
from resnet_export.exporter.cli import main
main()
"""


def run_without_torch(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process in which torch and onnx cannot be imported."""
    command = [sys.executable, "-c", _HIDE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_models_lists_the_zoo() -> None:
    done = run_without_torch("models", "--json")
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)] == list(ZOO)
    assert all(row["multiply_adds"] > 0 for row in json.loads(done.stdout))


def test_inspect_shows_the_bundle_and_what_would_run(resnet18_bundle: Path) -> None:
    done = run_without_torch("inspect", resnet18_bundle)
    assert done.returncode == 0, done.stderr
    assert "would run fp32 on " in done.stdout


def test_inspect_prints_json_that_names_the_choice(resnet18_bundle: Path) -> None:
    done = run_without_torch("inspect", resnet18_bundle, "--json", "--backend", "onnxruntime")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["manifest"]["model"]["arch"] == "resnet18"
    assert found["resolution"]["choice"]["backend"] == "onnxruntime"


def test_infer_prints_labels_of_photographs(resnet18_bundle: Path, photograph_files: list[Path]) -> None:
    done = run_without_torch("infer", resnet18_bundle, *photograph_files, "--top", 3, "--json")
    assert done.returncode == 0, done.stderr
    images = json.loads(done.stdout)["images"]
    assert [image["image"] for image in images] == [str(path) for path in photograph_files]
    assert all(len(image["predictions"]) == 3 for image in images)


def test_parity_passes_a_fresh_bundle(resnet18_bundle: Path) -> None:
    done = run_without_torch("parity", resnet18_bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def test_an_export_names_the_packages_that_are_missing(tmp_path: Path) -> None:
    done = run_without_torch("--depth", "18", "--out", tmp_path / "bundle")
    assert done.returncode == 2
    assert "torch" in done.stderr
    assert "resnet-export[export]" in done.stderr
