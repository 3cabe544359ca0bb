"""Importing engines: without a home folder, without telemetry, and what is said where it fails."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from resnet_export.exporter.cli import cli
from resnet_export.runtime.backends.libraries import import_library
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.parity.check import run_parity
from tests.parity_bundle import write
from tests.tiny_bundle import FP32

ENGINES = ("onnxruntime", "openvino")
OPEN = """
import sys, warnings
warnings.simplefilter("error")
from resnet_export.runtime import open_session
import numpy as np
for backend in ("onnxruntime", "openvino"):
    with open_session(sys.argv[1], backend=backend) as session:
        session.run(np.zeros((1, *session.manifest.input.shape[1:]), np.float32))
print(sorted(name for name in sys.modules if "telemetry" in name.lower() and "openvino." not in name))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bundles") / "tiny", (FP32,))


def unlisted_user() -> list[str]:
    """Return the command that runs another as a user without an entry in passwd; skip where that is not allowed."""
    command = ["unshare", "--user", "--map-user=12345"]
    if shutil.which("unshare") is None or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("unshare cannot make a user namespace here")
    return command


def homeless(tmp_path: Path, home: str) -> dict[str, str]:
    """Return the environment of a process whose HOME is not there, empty, missing on disk or not writable."""
    env = {name: value for name, value in os.environ.items() if name not in ("HOME", "ORT_DISABLE_TELEMETRY")}
    if home == "read-only":
        (tmp_path / "home").mkdir(mode=0o500)
    return {
        "unset": env,
        "empty": env | {"HOME": ""},
        "missing": env | {"HOME": "/nonexistent"},
        "read-only": env | {"HOME": str(tmp_path / "home")},
    }[home]


@pytest.mark.parametrize(
    "home",
    ["unset", *(pytest.param(home, marks=pytest.mark.slow) for home in ("empty", "missing", "read-only"))],
)
def test_both_engines_open_a_bundle_without_a_home_folder(bundle: Path, tmp_path: Path, home: str) -> None:
    done = subprocess.run(
        [*unlisted_user(), sys.executable, "-c", OPEN, bundle],
        env=homeless(tmp_path, home),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["[]"]


@pytest.mark.parametrize("command", ["parity", "inspect"])
def test_the_gate_and_inspect_find_both_engines_usable_without_a_home_folder(
    bundle: Path, tmp_path: Path, command: str
) -> None:
    resnet_export = Path(sys.executable).with_name("resnet-export")
    done = subprocess.run(
        [*unlisted_user(), resnet_export, command, bundle],
        env=homeless(tmp_path, "unset"),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for engine in ENGINES:
        assert engine in done.stdout
    assert "cannot be imported" not in done.stdout


@pytest.fixture(params=ENGINES)
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the engines, installed in a way that its import fails."""
    real: Callable[..., object] = importlib.import_module
    module: str = request.param

    def fail(name: str, *rest: str) -> object:
        if name == module:
            raise OSError("libtbb.so.12: cannot open shared object file")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", fail)
    return module


def test_what_cannot_be_imported_is_skipped_with_its_reason_and_never_outside_tolerance(
    bundle: Path, broken: str
) -> None:
    report = run_parity(bundle, threads=1)
    assert report.exit_code == 0
    assert broken not in {entry.backend for entry in report.entries}
    reasons = {skip.reason for skip in report.skipped if skip.backend == broken and skip.precision == "fp32"}
    assert any(
        f"{broken} is installed but cannot be imported: libtbb.so.12: cannot open" in reason
        for reason in reasons
    )


def test_the_gate_without_a_single_engine_is_no_failure_of_the_artifacts(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, *_: str) -> object:
        raise ImportError("DLL load failed")

    monkeypatch.setattr(importlib, "import_module", fail)
    report = run_parity(bundle, threads=1)
    assert (report.exit_code, report.verdict.status, report.entries) == (2, "unverified", ())


def test_inspect_gives_the_same_reason(bundle: Path, broken: str) -> None:
    found = CliRunner().invoke(cli, ["inspect", str(bundle)])
    assert found.exit_code == 0
    lines = [line for line in found.stdout.splitlines() if f"on {broken}" in line]
    assert any("cannot be imported: libtbb.so.12" in line for line in lines), found.stdout


def test_a_package_that_is_not_there_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match=r"^onnxruntime is not installed$"):
        import_library("onnxruntime")


def test_the_switch_that_a_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_library("onnxruntime")
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
