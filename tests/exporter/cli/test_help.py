"""Every command explains itself with the base install, and says what it needs when it needs more."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from resnet_export.exporter.cli.group import COMMANDS

# Whatever is installed and neither Python's, ours, nor a base dependency (with what that depends on) is hidden.
_BASE_ONLY = """
import sys
from importlib.abc import MetaPathFinder
ALLOWED = {*sys.stdlib_module_names, "resnet_export", "__editable___resnet_export_0_1_0_finder", "numpy",
            "msgspec", "PIL", "click", "rich", "pygments", "filelock"}
class Hidden(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: find(name, *rest) if name.partition(".")[0] in ALLOWED else None
from resnet_export.exporter.cli import main
main()
"""


def run_base_install(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that has the base dependencies alone."""
    command = [sys.executable, "-c", _BASE_ONLY, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_needs_nothing_but_the_base_install(command: str) -> None:
    done = run_base_install(*command.split(), "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: resnet-export")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["build", "bundle"], "resnet-export[build]"),
        (["calibrate", "bundle", "--calib", "photos"], "resnet-export[build,cpu]"),
    ],
    ids=["build", "calibrate"],
)
def test_a_command_that_needs_more_names_what_is_missing_and_its_extra(
    arguments: list[str], extra: str, tmp_path: Path
) -> None:
    done = run_base_install(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "onnx" in line
    assert f"pip install '{extra}'" in line


def test_the_extra_for_building_on_a_device_brings_no_torch() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [name.partition(">")[0] for name in project["optional-dependencies"]["build"]] == [
        "onnx",
        "tomli-w",
    ]


def test_building_imports_neither_torch_nor_what_calibration_needs() -> None:
    code = (
        "import sys, resnet_export.exporter.engine.build, resnet_export.exporter.cli.build\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "onnx" in loaded
    assert not loaded & {"torch", "onnxruntime", "onnxscript", "onnx_ir", "scipy", "tensorrt", "tensorrt_rtx"}
