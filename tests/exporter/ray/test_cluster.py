"""Calibration, the parity gate and serving on a real Ray cluster of two nodes, against one process.

Whatever connects to the cluster is a process of its own, as the command line is.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_export.runtime import open_session
from tests import parity_bundle, ray_cluster
from tests.tiny_bundle import ALL
from tests.triton_server import free_ports

pytestmark = pytest.mark.slow

IMAGES = 700


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(tmp_path_factory.mktemp("bundle") / "tiny", ALL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labeled crops in an archive."""
    file = tmp_path_factory.mktemp("data") / "data.npz"
    crops = parity_bundle.crops(IMAGES, seed=5)
    np.savez(file, images=crops, labels=np.arange(IMAGES) % 5)
    return file


@pytest.fixture(scope="module")
def cluster() -> Iterator[ray_cluster.Cluster]:
    with ray_cluster.running() as found:
        yield found


def run(*arguments: str | Path, program: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line, after `program`, which may change what it does."""
    code = f"{program or ''}\nfrom resnet_export.exporter.cli import main\nmain()"
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


@contextmanager
def killing(what: str, count: int) -> Iterator[list[int]]:
    """Kill `count` workers while they run the function `what`; yield the processes killed so far."""
    killed: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while len(killed) < count and not done.wait(0.02):
            for pid, line in ray_cluster.processes():
                if line.startswith(f"ray::{what}") and pid not in killed:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
                    break

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        done.set()
        thread.join()


def test_the_table_is_that_of_one_process_though_workers_are_killed(
    cluster: ray_cluster.Cluster, bundle: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ("calibrate", bundle, "--calib", data, "--calib-count", IMAGES, "--out")
    here = run(*map(str, arguments), tmp_path / "here")
    assert here.returncode == 0, here.stderr
    there = run(*map(str, arguments), tmp_path / "there", "--ray", cluster.address)
    assert there.returncode == 0, there.stderr
    assert (tmp_path / "there").read_bytes() == (tmp_path / "here").read_bytes()
    with killing("_observe", 2) as killed:
        again = run(*map(str, arguments), tmp_path / "again", "--ray", cluster.address)
    assert again.returncode == 0, again.stderr
    assert len(killed) == 2
    assert (tmp_path / "again").read_bytes() == (tmp_path / "here").read_bytes()


def test_the_report_is_that_of_one_process_though_workers_are_killed(
    cluster: ray_cluster.Cluster, bundle: Path, data: Path, tmp_path: Path
) -> None:
    arguments = ("parity", bundle, "--data", data, "--max-drop", "5", "--quiet", "--json")

    def report(name: str, *more: str) -> tuple[int, dict[str, object]]:
        done = run(*arguments, tmp_path / name, *more)
        assert done.returncode in (0, 1), done.stderr
        found = json.loads((tmp_path / name).read_bytes())
        del found["times"]
        return done.returncode, found

    here = report("here")
    assert report("there", "--ray", cluster.address) == here
    with killing("_answer", 2) as killed:
        assert report("again", "--ray", cluster.address) == here
    assert len(killed) == 2
    entry = here[1]["entries"][0]  # type: ignore[index]
    assert entry["checks"][1]["comparison"]["figures"]["images"] == IMAGES


SERVE = """
import sys
from ray import serve
from resnet_export.exporter.ray.cluster import connected
from resnet_export.exporter.ray.serve import app

address, port, bundle = sys.argv[1:]
with connected(address):
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    serve.run(app({"bundle": bundle, "min_replicas": "2", "max_replicas": "2", "cpus": "0.4"}), name="tiny")
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
"""


def test_serve_answers_as_the_local_session_while_a_replica_is_killed(
    cluster: ray_cluster.Cluster, bundle: Path
) -> None:
    files = []
    for crop in parity_bundle.crops(50, seed=9):
        file = io.BytesIO()
        Image.fromarray(crop).resize((40, 30)).save(file, "JPEG")
        files.append(file.getvalue())
    with open_session(bundle) as session:
        expected = session.classify(files)
    (port,) = free_ports(1)
    refused: list[Exception] = []

    def ask(number: int) -> None:
        deadline = time.monotonic() + 100
        while True:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/", files[number % len(files)], method="POST"
            )
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    found = json.loads(answer.read())["predictions"]
                break
            except (urllib.error.URLError, OSError) as error:  # of the replica that was killed: asked again
                refused.append(error)
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        wanted = expected[number % len(files)]
        assert [one["label"] for one in found] == [one.label for one in wanted]
        np.testing.assert_allclose(
            [one["probability"] for one in found], [one.probability for one in wanted], atol=1e-6
        )

    words = [cluster.address, str(port), str(bundle)]
    server = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SERVE, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        assert any("ready" in line for line in server.stdout)
        with ThreadPoolExecutor(8) as pool:
            running = [pool.submit(ask, number) for number in range(1000)]
            while sum(one.done() for one in running) < 200:
                time.sleep(0.01)
            replicas = [pid for pid, line in ray_cluster.processes() if line.startswith("ray::ServeReplica")]
            assert len(replicas) == 2
            os.kill(replicas[0], signal.SIGKILL)
            for one in running:
                one.result()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/", b"no image", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="400") as refusal:
            urllib.request.urlopen(request, timeout=20)
        with refusal.value as answer:
            assert "is not an image" in json.loads(answer.read())["error"]
    finally:
        with suppress(subprocess.TimeoutExpired):
            server.communicate("", timeout=30)
        server.kill()
        server.wait()


def test_a_cluster_of_other_versions_is_refused_before_any_work(
    cluster: ray_cluster.Cluster, bundle: Path, data: Path, tmp_path: Path
) -> None:
    program = (
        "from resnet_export.exporter.ray import cluster\n"
        "facts = cluster._facts() | {'onnxruntime': '1.0.0'}\n"
        "cluster._facts = lambda: facts\n"
    )
    out = tmp_path / "table.json"
    done = run("calibrate", bundle, "--calib", data, "--ray", cluster.address, "--out", out, program=program)
    assert done.returncode == 2
    assert "has onnxruntime 1." in done.stderr
    assert "and this host 1.0.0; install the same there" in done.stderr
    assert not out.exists()


def test_a_cluster_of_another_python_is_one_sentence(bundle: Path, data: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: make .venv/.scale")
    program = (
        "import ray\n"
        "from resnet_export.exporter.ray import cluster\n"
        "def refuse(**_):\n"
        "    raise RuntimeError('Version mismatch: The cluster was started with:\\n  Python: 3.12.1\\nThis process')\n"
        "ray.init, cluster._knock = refuse, lambda _: None\n"
    )
    done = run("parity", bundle, "--data", data, "--ray", "host:6379", program=program)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: the Ray cluster host:6379 runs other versions (Version mismatch")
    assert done.stderr.count("\n") == 1


def test_no_cluster_is_one_sentence(bundle: Path, data: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: make .venv/.scale")
    for address in (f"127.0.0.1:{free_ports(1)[0]}", "nonsense"):
        done = run("parity", bundle, "--data", data, "--ray", address)
        assert done.returncode == 2
        assert done.stderr.startswith(f"Error: no Ray cluster answers at {address} (")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
