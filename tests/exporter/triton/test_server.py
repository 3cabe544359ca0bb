"""A real tritonserver, started here on the CPU, against the local session: answers, load, crashes, shutdown."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from google.protobuf import text_format
from numpy.typing import NDArray
from PIL import Image
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from resnet_export.exporter.triton.repository import write_repository
from resnet_export.exporter.triton.spec import TritonSpec
from resnet_export.runtime import open_session
from resnet_export.runtime.prediction import Prediction
from resnet_export.runtime.preprocess import to_input
from tests import parity_bundle, triton_bundle, triton_server
from tests.tiny_bundle import FP32

pytestmark = pytest.mark.slow

CLIENTS, REQUESTS = 32, 10_000
WRONG = 1e-6  # logits of one image differ by rounding between batches


def jpeg(crop: NDArray[np.uint8]) -> bytes:
    """An image file that is larger than the network's input, so that resizing takes part."""
    file = io.BytesIO()
    Image.fromarray(crop).resize((40, 28)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return parity_bundle.write(tmp_path_factory.mktemp("bundle") / "tiny", [FP32])


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    return [jpeg(crop) for crop in parity_bundle.crops(64)]


@pytest.fixture(scope="module")
def expected(bundle: Path, files: list[bytes]) -> list[list[Prediction]]:
    with open_session(bundle) as session:
        return session.classify(files)


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[triton_server.Server]:
    folder = tmp_path_factory.mktemp("triton")
    write_repository(bundle, folder / "models")
    with triton_server.running(folder / "models", folder / "server") as server:
        yield server


def ask(module: Any, client: Any, images: list[bytes], model: str = "tiny") -> Any:
    value = module.InferInput("image", [len(images), 1], "BYTES")
    value.set_data_from_numpy(np.array([[image] for image in images], np.object_))
    return client.infer(model, [value])


def check(found: Any, expected: list[list[Prediction]]) -> None:
    labels, probabilities = found.as_numpy("label"), found.as_numpy("probability")
    for row, numbers, wanted in zip(labels, probabilities, expected, strict=True):
        assert [label.decode() for label in row] == [one.label for one in wanted]
        np.testing.assert_allclose(numbers, [one.probability for one in wanted], rtol=0, atol=WRONG)


@pytest.mark.parametrize("module", [over_http, over_grpc], ids=["http", "grpc"])
def test_the_ensemble_answers_as_the_local_session(
    server: triton_server.Server, files: list[bytes], expected: list[list[Prediction]], module: Any
) -> None:
    with module.InferenceServerClient(server.http if module is over_http else server.grpc) as client:
        check(ask(module, client, files[:8]), expected[:8])


def test_one_bad_image_never_costs_the_others(
    server: triton_server.Server, files: list[bytes], expected: list[list[Prediction]]
) -> None:
    def one(number: int) -> None:
        with over_http.InferenceServerClient(server.http) as client:
            if number % 4 == 0:
                with pytest.raises(InferenceServerException, match="image 0 is not an image"):
                    ask(over_http, client, [b"not an image"])
            else:
                check(ask(over_http, client, [files[number]]), [expected[number]])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(64)))


def test_ten_thousand_requests_from_thirty_two_clients_are_answered_as_locally(
    server: triton_server.Server, files: list[bytes], expected: list[list[Prediction]]
) -> None:
    numbers = iter(range(REQUESTS))
    lock, answered = threading.Lock(), []

    def client() -> None:
        count = 0
        with over_grpc.InferenceServerClient(server.grpc) as connection:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    break
                place = number % len(files)
                check(ask(over_grpc, connection, [files[place]]), [expected[place]])
                count += 1
        answered.append(count)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for done in [pool.submit(client) for _ in range(CLIENTS)]:
            done.result()
    assert sum(answered) == REQUESTS


def test_killed_and_started_again_it_answers_the_same(
    bundle: Path, tmp_path: Path, files: list[bytes], expected: list[list[Prediction]]
) -> None:
    write_repository(bundle, tmp_path / "models")
    with triton_server.running(tmp_path / "models", tmp_path / "server") as server:
        stop, failures, answers = threading.Event(), [], []

        def client() -> None:
            while not stop.is_set():
                try:
                    with over_grpc.InferenceServerClient(server.grpc) as connection:
                        check(ask(over_grpc, connection, [files[0]]), [expected[0]])
                        answers.append(time.monotonic())
                except (
                    InferenceServerException
                ) as error:  # refused while nobody listens; never a wrong answer
                    failures.append(str(error))
                    time.sleep(0.1)

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(client) for _ in range(4)]
            while len(answers) < 20:
                time.sleep(0.05)
            server.kill()
            server.start()
            back = time.monotonic()
            while not [at for at in answers if at > back]:
                time.sleep(0.05)
            stop.set()
            for one in running:
                one.result()
        assert failures


@pytest.mark.parametrize("model", ["tiny_python", "tiny"])
def test_sigterm_drains(
    bundle: Path,
    tmp_path: Path,
    files: list[bytes],
    expected: list[list[Prediction]],
    model: str,
) -> None:
    """What waits in a model's queue is answered, and the server ends by itself with status 0.

    An ensemble starts no further step while the server stops: what is between two is refused, to be sent again.
    """
    # A long queue delay and a batch that never fills: the requests are waiting when the signal comes.
    write_repository(bundle, tmp_path / "models", TritonSpec(max_queue_delay=3_000_000))
    crops = parity_bundle.crops(2)
    with open_session(bundle) as session:
        inputs = to_input(crops, session.manifest.preprocessing)
        wanted = session.run(inputs)
    with triton_server.running(tmp_path / "models", tmp_path / "server") as server:
        started = threading.Barrier(3)

        def client(number: int) -> None:
            with over_grpc.InferenceServerClient(server.grpc) as connection:
                assert connection.is_server_ready()
                started.wait()
                if model == "tiny":
                    with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*Server is stopping"):
                        ask(over_grpc, connection, [files[number]])
                    return
                value = over_grpc.InferInput("input", [1, *inputs.shape[1:]], "FP32")
                value.set_data_from_numpy(inputs[number : number + 1])
                found = connection.infer(model, [value]).as_numpy("logits")
                np.testing.assert_allclose(found[0], wanted[number], rtol=0, atol=WRONG)

        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(client, number) for number in range(2)]
            started.wait()
            time.sleep(1)
            assert not any(one.done() for one in running)
            server.terminate()
            for one in running:
                one.result()
        assert server.process is not None
        assert server.process.wait(60) == 0


def test_a_new_bundle_is_served_as_the_next_version_without_a_restart(tmp_path: Path) -> None:
    out = tmp_path / "models"
    write_repository(parity_bundle.write(tmp_path / "tiny", [FP32]), out)
    with (
        triton_server.running(
            out, tmp_path / "server", "--model-control-mode=poll", "--repository-poll-secs=1"
        ) as server,
        over_http.InferenceServerClient(server.http) as client,
    ):
        assert client.get_model_metadata("tiny_python")["versions"] == ["1"]
        again = parity_bundle.write(tmp_path / "tiny", [FP32], trained=True)
        second = write_repository(again, out)
        deadline = time.monotonic() + 60
        while client.get_model_metadata("tiny_python")["versions"] != ["2"] and time.monotonic() < deadline:
            time.sleep(0.2)
        found = client.get_model_config("tiny_python")["parameters"]
        assert found["bundle_sha256.2"]["string_value"] == second.bundle_sha256


BACKENDS = ("python", "onnxruntime", "openvino", "tensorrt")


def reasons(server: triton_server.Server) -> dict[str, str]:
    with over_http.InferenceServerClient(server.http) as client:
        return {
            one["name"]: one.get("reason", one.get("state", "not polled"))
            for one in client.get_model_repository_index()
        }


def test_configurations_for_backends_that_are_not_here_are_parsed(tmp_path: Path) -> None:
    """The server refuses them for the missing backend alone; a wrong configuration it refuses before."""
    bundle = triton_bundle.write(tmp_path / "tiny")
    models = write_repository(bundle, tmp_path / "models", TritonSpec(backends=BACKENDS)).models
    for backend in BACKENDS[1:]:
        source = next(one for one in models if f"_{backend}" in one)
        text = (tmp_path / "models" / source / "config.pbtxt").read_text()
        config = text_format.Parse(text, pb.ModelConfig())
        config.name = f"wrong_size_{backend}"
        config.dynamic_batching.preferred_batch_size.append(config.max_batch_size + 1)
        for name, content in (
            (f"wrong_size_{backend}", text_format.MessageToString(config)),
            (f"wrong_field_{backend}", text.replace(source, f"wrong_field_{backend}") + "no_such_field: 1\n"),
        ):
            (tmp_path / "models" / name / "1").mkdir(parents=True)
            (tmp_path / "models" / name / "config.pbtxt").write_text(content)
    tolerant = ("--exit-on-error=false", "--strict-readiness=false")
    with triton_server.running(tmp_path / "models", tmp_path / "server", *tolerant) as server:
        found = reasons(server)
        log = server.log
    for name in models:
        backend = next((one for one in BACKENDS[1:] if f"_{one}" in name), None)
        assert (
            (found[name] == "READY") if backend is None else ("unable to find backend library" in found[name])
        )
    for backend in BACKENDS[1:]:
        for wrong in ("size", "field"):
            assert found[f"wrong_{wrong}_{backend}"] == "not polled"
            assert f"wrong_{wrong}_{backend}" in log

    # With a library of that name in its place, everything but the backend's own checks is behind them.
    folder = tmp_path / "stand-ins"
    for backend in BACKENDS[1:]:
        triton_server.stand_in(folder, backend)
    with triton_server.running(tmp_path / "models", folder, *tolerant) as server:
        found = reasons(server)
    for name in models:
        backend = next((one for one in BACKENDS[1:] if f"_{one}" in name), None)
        if backend is not None:
            gpu = backend == "tensorrt" or name.endswith("onnxruntime_int8")
            expected = "has kind KIND_GPU but no GPUs are available" if gpu else "No module named 'model'"
            assert expected in found[name]
