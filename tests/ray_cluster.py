"""A real Ray cluster on this host: `ray start`, a head and a worker node with one processor each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.triton_server import free_ports

MEMORY = 400 * 2**20  # of the object store of each node
STARTING = 180  # seconds, on a busy machine


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `address` is what `--ray` takes."""

    address: str
    folder: Path
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start_node(self, *arguments: str) -> None:
        """Start a node with one processor; its processes are a session of their own, and end with it."""
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", "--num-cpus=1"]
        command += ["--disable-usage-stats", f"--object-store-memory={MEMORY}", "--node-ip-address=127.0.0.1"]
        log = self.folder / f"node{len(self.nodes)}.log"
        with log.open("wb") as output:
            node = subprocess.Popen(
                [*command, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.nodes.append(node)
        deadline = time.monotonic() + STARTING
        while b"Ray runtime started" not in log.read_bytes():
            assert node.poll() is None, log.read_text("utf-8", "replace")
            assert time.monotonic() < deadline, log.read_text("utf-8", "replace")
            time.sleep(0.2)

    def stop(self) -> None:
        for node in reversed(self.nodes):
            node.terminate()
        for node in self.nodes:
            with suppress(subprocess.TimeoutExpired):
                node.wait(20)
        ours = {node.pid for node in self.nodes}
        for pid, _ in processes():
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) in ours:
                    os.kill(pid, signal.SIGKILL)


def processes() -> list[tuple[int, str]]:
    """Every process of this host with its command line, which Ray sets to what a worker does."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                found.append((int(entry.name), line))
    return found


@contextmanager
def running() -> Iterator[Cluster]:
    """Yield a cluster of two nodes; every process of it is gone afterwards. Skips the test without Ray."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed: make .venv/.scale")
    port, client = free_ports(2)
    # Sockets lie below it, and their paths may have 107 characters.
    cluster = Cluster(f"127.0.0.1:{port}", Path(tempfile.mkdtemp(prefix="ray", dir="/tmp")))
    try:
        cluster.start_node(
            "--head",
            f"--port={port}",
            f"--ray-client-server-port={client}",
            f"--temp-dir={cluster.folder}",
            "--include-dashboard=false",
        )
        cluster.start_node(f"--address={cluster.address}")
        yield cluster
    finally:
        cluster.stop()
