"""A session reaches for nothing else: no network, no telemetry, no change of a file outside the cache folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny_bundle
from tests.tiny_bundle import FP32

PROGRAM = """
import sys
import numpy as np
from resnet_export.runtime import open_session

for backend in ("onnxruntime", "openvino"):
    with open_session(sys.argv[1], backend=backend, artifact="fp32") as session:
        session.run(np.zeros((2, *session.manifest.input.shape[1:]), np.float32))
        session.submit(np.zeros((20, 20, 3), np.uint8)).result()
print(*(name for name in sys.modules if name.split(".")[0] == "openvino_telemetry"))
"""
# What changes a file system, or asks for a way out of this machine.
CALLS = (
    "socket,connect,sendto,sendmsg,bind,open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,"
    "symlink,symlinkat,link,linkat,mknod,mknodat,truncate"
)


def environment(home: Path) -> dict[str, str]:
    """That of a user whose home folder is empty, and who has switched nothing off."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "ORT_", "CI"))}
    return kept | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle.write(tmp_path / "bundle", (FP32,))


def test_a_session_writes_nothing_to_the_home_folder_and_loads_no_telemetry(
    bundle: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    before = sorted(path.name for path in bundle.iterdir())
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, bundle],
        env=environment(home),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
    outside = {path.relative_to(home).parts[:2] for path in home.rglob("*")} - {(".cache",)}
    assert outside <= {(".cache", "resnet-export")}
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_a_session_opens_no_socket_and_changes_no_file(bundle: Path, tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace (Debian: apt-get install strace)")
    home, log = tmp_path / "home", tmp_path / "calls"
    home.mkdir()
    command = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={CALLS}"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("strace is not allowed to trace here")
    subprocess.run([*command, sys.executable, "-c", PROGRAM, bundle], env=environment(home), check=True)
    calls = [line.split(maxsplit=1)[1] for line in log.read_text(errors="replace").splitlines()]
    assert any("libonnxruntime" in call or "onnxruntime_pybind11_state" in call for call in calls)
    reading = re.compile(r"open(at)?\(.*O_RDONLY[^)]*\)|.*\"/dev/(null|tty)\"|(---|\+\+\+) ")
    cache = (f'"{home}/.cache"', f'"{home}/.cache/resnet-export')
    changing = [call for call in calls if not reading.match(call)]
    assert [call for call in changing if not any(folder in call for folder in cache)] == []
