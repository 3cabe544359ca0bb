"""A real tritonserver as a process: the one of the wheel nvidia-pytriton, with its python backend, on the CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

STARTING = 180  # seconds, on a busy machine


def environment() -> Path:
    """The virtual environment of the server: its wheel, and this package. Skips the test where it is missing.

    It is one of its own, since the python backend of that wheel was built for numpy 1.
    """
    found = Path(sys.prefix) / "tritonserver"
    if not (found / "bin/python").exists():
        pytest.skip("tritonserver is not installed: make .venv/.scale")
    return found


def installed() -> Path:
    """The folder of the server in its wheel."""
    return next(environment().glob("lib/python3*/site-packages")) / "pytriton/tritonserver"


def stand_in(folder: Path, backend: str) -> None:
    """Give the server that will run in `folder` a library for `backend`: that of the python backend."""
    home = folder / "backends" / backend
    home.mkdir(parents=True)
    for file in (installed() / "backends/python").iterdir():
        (home / file.name.replace("triton_python.", f"triton_{backend}.")).symlink_to(file)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Server:
    """A running tritonserver. Its log is a file; `http` and `grpc` are host:port."""

    repository: Path
    folder: Path
    arguments: tuple[str, ...] = ()
    ports: list[int] = field(default_factory=lambda: free_ports(2))
    process: subprocess.Popen[bytes] | None = None

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.ports[0]}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.ports[1]}"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text("utf-8", "replace")

    def start(self, *, wait: bool = True) -> None:
        home = environment()
        root = installed()
        packages = root.parent.parent
        backends = self.folder / "backends" / "python"
        program = root / "bin/tritonserver"
        stub = (
            root
            / f"python_backend_stubs/{sys.version_info.major}.{sys.version_info.minor}/triton_python_backend_stub"
        )
        if not backends.is_dir():  # the backend wants the stub of its Python's version beside it
            backends.mkdir(parents=True)
            for file in (*(root / "backends/python").iterdir(), stub):
                if file.is_file():
                    (backends / file.name).symlink_to(file)
        for file in (program, stub):
            file.chmod(0o755)
        libraries = (
            packages / "nvidia_pytriton.libs",
            Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib"),
        )
        variables = os.environ | {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
            # As activating the virtual environment does: the stub takes the packages of the python3 on the path.
            "PATH": os.pathsep.join([str(home / "bin"), os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
        }
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    program,
                    f"--model-repository={self.repository}",
                    f"--backend-directory={self.folder / 'backends'}",
                    "--http-address=127.0.0.1",
                    "--grpc-address=127.0.0.1",
                    f"--http-port={self.ports[0]}",
                    f"--grpc-port={self.ports[1]}",
                    "--allow-metrics=false",
                    *self.arguments,
                ],
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if wait:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + STARTING
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log[-3000:]
            try:
                with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.2)
        pytest.fail(f"the server is not ready after {STARTING} s:\n{self.log[-3000:]}")

    def kill(self) -> None:
        """End the server and its python backends at once, as a crash of the host would."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)


@contextmanager
def running(repository: Path, folder: Path, *arguments: str) -> Iterator[Server]:
    """Yield a server that is ready; it is gone afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    server = Server(repository, folder, arguments)
    server.start()
    try:
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.kill()
