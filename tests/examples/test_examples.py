"""Every example runs as its first lines say, on a bundle that takes a millisecond."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_export.exporter.graph.stage_check import record_reference
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import normalize, prepare
from tests import tiny_bundle
from tests.runtime.test_served_model import OTHER_LABELS, swap, write
from tests.tiny_bundle import LABELS

EXAMPLES = Path(__file__).parents[2] / "examples"
TIMEOUT = 60


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for index, image in enumerate(tiny_bundle.images(10)):
        path = folder / f"day{index % 2}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def run(example: str, *arguments: object, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, EXAMPLES / example, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)


def best(bundle: Path, images: list[object]) -> list[str]:
    with open_session(bundle) as session:
        return [row[0].label for row in session.classify(images, top=1)]


@pytest.mark.slow
def test_train_digits_leaves_a_checkpoint_that_says_what_it_is_and_labeled_images(tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLES / "train_digits.py", tmp_path], check=True, timeout=600)
    net = load_classifier(ModelSpec(weights=str(tmp_path / "resnet20.pth")))
    assert net.info.arch == "resnet20"
    assert net.labels == tuple("0123456789")
    assert net.preprocessing == Preprocessing(resize=32, crop=32, mean=(0.3,) * 3, std=(0.35,) * 3)
    files = sorted((tmp_path / "val").glob("*/*.png"))
    images = [prepare(Image.open(file).convert("RGB"), net.preprocessing) for file in files]
    logits = record_reference(net.module, normalize(np.stack(images), net.preprocessing)).logits
    right = logits.argmax(axis=1) == [int(file.parent.name) for file in files]
    assert len(files) == 450
    assert right.mean() >= 0.95


def test_classify_prints_labels_and_what_ran(bundle: Path, photos: Path) -> None:
    images = sorted(photos.rglob("*.png"))[:2]
    done = run("classify.py", bundle, *images)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith(".png")] == list(map(str, images))
    assert done.stdout.splitlines()[-1].startswith("ran fp32 on ")


CV2 = """
import numpy, time
class VideoCapture:
    def __init__(self, source):
        assert source == 0
        self.left = 8
    def read(self):
        time.sleep(0.02)
        self.left -= 1
        return (True, numpy.load({frame!r})) if self.left >= 0 else (False, None)
    def release(self):
        pass
"""


def test_camera_classifies_bgr_frames_as_they_come(bundle: Path, tmp_path: Path) -> None:
    rgb = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
    np.save(tmp_path / "frame.npy", rgb[:, :, ::-1])
    (tmp_path / "cv2.py").write_text(CV2.format(frame=str(tmp_path / "frame.npy")))
    done = run("camera.py", bundle, path=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    *labels, summary = done.stdout.splitlines()
    assert labels
    assert {line.split("%  ")[1] for line in labels} == set(best(bundle, [rgb]))
    assert summary.startswith(f"classified {len(labels)} of 8 frames with fp32 on ")


def test_batch_job_writes_a_row_for_each_image_and_lists_what_failed(
    bundle: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    done = run("batch_job.py", bundle, photos, tmp_path / "out.csv")
    assert done.returncode == 1
    assert "failed: " in done.stderr
    assert "broken.jpg" in done.stderr
    assert done.stdout.startswith("10 of 11 images with ")
    images = sorted(photos.rglob("*.png"))
    with (tmp_path / "out.csv").open(newline="") as file:
        found = {row["image"]: row["label"] for row in csv.DictReader(file)}
    names = [str(path.relative_to(photos)) for path in images]
    assert found == dict(zip(names, best(bundle, images), strict=True))


@pytest.fixture
def service(bundle: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--app-dir", EXAMPLES, "service:app", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--log-level", "warning"],
        env=os.environ | {"BUNDLE": str(bundle)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + TIMEOUT
            while True:
                try:
                    urllib.request.urlopen(f"{address}/health").close()
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    assert process.poll() is None, process.stderr.read()
                    time.sleep(0.05)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode in (0, -signal.SIGTERM)  # uvicorn raises the signal again when it has ended
    assert errors == ""


def post(address: str, body: bytes, query: str = "") -> tuple[int, object]:
    try:
        with urllib.request.urlopen(f"{address}/classify{query}", body, TIMEOUT) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["detail"]


def test_service_answers_concurrent_clients_and_follows_its_bundle(
    service: str, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    files = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    expected = best(bundle, [io.BytesIO(file) for file in files])
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda file: post(service, file, "?top=2"), files * 4))
        assert [status for status, _ in answers] == [200] * 40
        assert [found[0]["label"] for _, found in answers] == expected * 4
        assert post(service, b"no image")[0] == 415
        assert post(service, files[0], "?top=0") == (422, "top is 0, expected a number from 1 on")
        swap(bundle, write(tmp_path / "new", other=True))
        deadline = time.monotonic() + TIMEOUT
        seen: set[str] = set()
        while not seen & set(OTHER_LABELS):
            assert time.monotonic() < deadline
            answers = list(clients.map(lambda file: post(service, file, "?top=1"), files))
            assert {status for status, _ in answers} == {200}
            seen = {found[0]["label"] for _, found in answers}
            assert seen <= {*LABELS, *OTHER_LABELS}
    with urllib.request.urlopen(f"{service}/health") as answer:
        assert json.load(answer)["classes"] == len(LABELS)
