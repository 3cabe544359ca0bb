"""What happens to files while a session has them open, and where nothing can be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from resnet_export.exporter.bundle.staging import staging
from resnet_export.runtime import Session, open_session
from resnet_export.runtime.bundle.manifest import read_manifest
from resnet_export.runtime.errors import BundleError
from tests import parity_bundle, tiny_bundle
from tests.tiny_bundle import FP32

BACKENDS = ("onnxruntime", "openvino")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def opened(bundle: Path, backend: str = "onnxruntime") -> Session:
    return open_session(bundle, backend=backend, artifact="fp32", device="cpu", threads=1)


def logits(session: Session) -> NDArray[np.float32]:
    return session.run(np.ones((2, *session.manifest.input.shape[1:]), np.float32))


def other_network(folder: Path) -> Path:
    """The same bundle with other weights."""
    return parity_bundle.write(folder, (FP32,), graphs={"fp32": tiny_bundle.graph(FP32, seed=7)})


# While a session is open


def deleted(bundle: Path) -> None:
    shutil.rmtree(bundle)


def emptied(bundle: Path) -> None:
    for file in bundle.iterdir():
        file.write_bytes(b"")  # in place: what is still mapped from it would end the process


def overwritten(bundle: Path) -> None:
    for file in bundle.iterdir():
        with file.open("r+b") as stream:
            stream.write(bytes(1000))


def exchanged(bundle: Path) -> None:
    other = other_network(bundle.with_name("other"))
    bundle.rename(bundle.with_name("gone"))
    other.rename(bundle)


@every_backend
@pytest.mark.parametrize("change", [deleted, emptied, overwritten, exchanged])
def test_an_open_session_does_not_notice_what_happens_to_its_files(
    tmp_path: Path, backend: str, change: Callable[[Path], None]
) -> None:
    bundle = parity_bundle.write(tmp_path / "bundle", (FP32,))
    picture = np.full((20, 20, 3), 90, np.uint8)
    with opened(bundle, backend) as session:
        expected, labels = logits(session), session.classify([picture])
        change(bundle)
        np.testing.assert_array_equal(logits(session), expected)
        assert session.classify([picture]) == labels
        assert session.submit(picture).result() == labels[0]


# While a session opens


def test_sessions_opened_during_a_hundred_replacements_are_of_one_version(tmp_path: Path) -> None:
    versions = [parity_bundle.write(tmp_path / "a", (FP32,)), other_network(tmp_path / "b")]
    expected = []
    for version in versions:
        with opened(version) as session:
            expected.append(logits(session))
    assert not np.array_equal(*expected)
    out = tmp_path / "out"
    shutil.copytree(versions[0], out)

    def replace() -> None:
        for turn in range(100):
            source = versions[(turn + 1) % 2]
            with staging(out, force=True) as stage:
                for file in source.iterdir():
                    if file.name != "manifest.json":
                        stage.write(file.name, file.read_bytes())
                stage.commit(read_manifest(source))

    writer = threading.Thread(target=replace)
    writer.start()
    seen = set()
    while writer.is_alive():
        with opened(out) as session:
            seen.add([np.array_equal(logits(session), version) for version in expected].index(True))
    writer.join()
    assert seen == {0, 1}


def test_a_bundle_that_disappears_before_its_artifact_is_read_is_a_bundle_error(tmp_path: Path) -> None:
    bundle = parity_bundle.write(tmp_path / "bundle", (FP32,))
    (bundle / "model.fp32.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.fp32\.onnx"):
        opened(bundle)


# Where nothing can be written


def in_a_namespace(*mounts: str) -> list[str]:
    """Return the beginning of a command that runs the rest with these mounts, which nobody else sees."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    script = "; ".join((*mounts, 'exec "$@"'))
    if (
        shutil.which("unshare") is None
        or subprocess.run([*command, script, "sh", "true"], capture_output=True).returncode
    ):
        pytest.skip("unshare cannot mount here")
    return [*command, script, "sh"]


def read_only(folder: Path) -> str:
    return f"mount --bind '{folder}' '{folder}'; mount -o remount,bind,ro '{folder}'"


EVERYTHING = """
import sys
import numpy as np
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.manifest import verify_bundle
from resnet_export.runtime.parity.check import run_parity

try:
    open(sys.argv[1] + "/written", "w")
except OSError as error:
    print(error.strerror)
verify_bundle(sys.argv[1])
for backend in ("onnxruntime", "openvino"):
    with open_session(sys.argv[1], backend=backend, artifact="fp32") as session:
        session.classify([np.zeros((20, 20, 3), np.uint8)])
print(run_parity(sys.argv[1], threads=1).verdict.status)
"""


def test_a_bundle_on_a_read_only_disk_is_run_and_checked(tmp_path: Path) -> None:
    bundle, home = parity_bundle.write(tmp_path / "bundle", (FP32,)), tmp_path / "home"
    home.mkdir()
    command = in_a_namespace(read_only(bundle), read_only(home))
    done = subprocess.run(
        [*command, sys.executable, "-c", EVERYTHING, bundle],
        env=os.environ | {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("\n") == ["Read-only file system", "passed", ""]


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [0, 200, 1500])
def test_an_export_to_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, kilobytes: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    # Of 4 KiB each: the mount itself takes one block.
    mount = f"mount -t tmpfs -o size={kilobytes + 4}k tmpfs '{disk}'"
    resnet_export = Path(sys.executable).with_name("resnet-export")
    script = (
        f"'{resnet_export}' --arch resnet20 --engine none --quiet --out '{disk}/bundle' || echo status $?; "
        f"ls -A '{disk}'"
    )
    done = subprocess.run([*in_a_namespace(mount), "sh", "-c", script], capture_output=True, text=True)
    assert done.stdout == "status 2\n"
    errors = [line for line in done.stderr.splitlines() if not line.startswith("Note: ")]
    assert len(errors) == 1
    assert errors[0].startswith("Error: ")
    assert "free" in errors[0]
