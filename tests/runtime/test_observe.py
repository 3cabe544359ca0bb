"""What a session reports: to a recording observer, to prometheus-client, to OpenTelemetry."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest

from resnet_export.runtime import (
    Choice,
    ImageError,
    QueueFullError,
    RequestTimeoutError,
    SessionObserver,
    open_session,
)
from resnet_export.runtime.batching import BatchingSpec
from tests import tiny_bundle


class Recorder(SessionObserver):
    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []

    def opened(self, choice: Choice) -> None:
        self.calls.append(("opened", choice.artifact))

    def ran(self, choice: Choice, images: int, seconds: float, error: Exception | None) -> None:
        assert seconds > 0
        self.calls.append(("ran", choice.artifact, images, type(error)))

    def queued(self, depth: int) -> None:
        self.calls.append(("queued", depth))

    def answered(self, seconds: float, error: BaseException | None) -> None:
        assert seconds >= 0
        self.calls.append(("answered", type(error)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("observed") / "tiny")


NONE = type(None)


def test_batches_requests_and_errors_are_reported(bundle: Path) -> None:
    seen = Recorder()
    with open_session(bundle, observer=seen) as session:
        session.classify(list(tiny_bundle.images(6)))  # batch.opt is 4
        session.submit(tiny_bundle.images(1)[0]).result()
        with pytest.raises(ImageError):
            session.submit(b"no image").result()
    assert seen.calls == [
        ("opened", "fp32"),
        ("ran", "fp32", 4, NONE),
        ("ran", "fp32", 2, NONE),
        ("queued", 0),
        ("ran", "fp32", 1, NONE),
        ("answered", NONE),
        ("queued", 0),
        ("answered", ImageError),
    ]


def test_a_reload_says_what_runs_now(bundle: Path) -> None:
    seen = Recorder()
    with open_session(bundle, observer=seen) as session:
        session.reload()
        assert seen.calls.count(("opened", "fp32")) == 2


def test_rejections_timeouts_and_failures_are_answers_too(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resnet_export.runtime.backends.onnxruntime import OnnxRuntimeBackend
    from resnet_export.runtime.errors import BackendError

    seen, busy, image = Recorder(), threading.Event(), tiny_bundle.images(1)[0]

    def fail(*_: object) -> None:
        busy.wait(30)
        raise BackendError("out of order")

    monkeypatch.setattr(OnnxRuntimeBackend, "run", fail)
    batching = BatchingSpec(queue_size=1, when_full="reject")
    with open_session(bundle, backend="onnxruntime", batching=batching, observer=seen) as session:
        running = session.submit(image)
        while session._served.current.batcher.waiting:
            pass
        waiting = session.submit(image, timeout=0.01)
        with pytest.raises(QueueFullError):
            session.submit(image)
        with pytest.raises(RequestTimeoutError):
            waiting.result()
        busy.set()
        with pytest.raises(BackendError):
            running.result()
    assert ("ran", "fp32", 1, BackendError) in seen.calls
    ended = [call[1] for call in seen.calls if call[0] == "answered"]
    assert sorted(one.__name__ for one in ended) == ["BackendError", "QueueFullError", "RequestTimeoutError"]


def test_an_observer_that_fails_costs_nothing_and_is_logged_once(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(SessionObserver):
        def ran(self, *_: object) -> None:
            raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, "resnet_export"), open_session(bundle, observer=Broken()) as session:
        assert len(session.classify(list(tiny_bundle.images(9)))) == 9
    assert [record.getMessage() for record in caplog.records] == [
        "the observer of a session failed in ran(); further failures there are not logged"
    ]


def test_prometheus_reads_the_same_figures(bundle: Path) -> None:
    from prometheus_client import CollectorRegistry, generate_latest

    from resnet_export.runtime.observers.prometheus import PrometheusObserver

    registry = CollectorRegistry()
    with open_session(bundle, backend="onnxruntime", observer=PrometheusObserver(registry)) as session:
        session.classify(list(tiny_bundle.images(6)))
        session.submit(tiny_bundle.images(1)[0]).result()
        with pytest.raises(ImageError):
            session.submit(b"no image").result()
    runs = {
        "artifact": "fp32",
        "backend": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "precision": "fp32",
        "device": "cpu",
    }

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"resnet_export_{name}", labels)

    assert value("session_info", **runs) == 1
    assert value("batch_images_sum", **runs) == 7
    assert value("batch_seconds_count", **runs) == 3
    assert value("batch_images_bucket", **runs, le="2.0") == 2
    assert value("errors_total", **runs) is None
    assert value("request_seconds_count") == 1
    assert value("request_errors_total", type="ImageError") == 1
    assert value("queue_depth") == 0
    assert b"# HELP resnet_export_batch_seconds" in generate_latest(registry)


def test_opentelemetry_reads_the_same_figures(bundle: Path) -> None:
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    from resnet_export.runtime.observers.opentelemetry import OpenTelemetryObserver

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    with open_session(bundle, backend="onnxruntime", observer=OpenTelemetryObserver(provider)) as session:
        session.classify(list(tiny_bundle.images(6)))
        with pytest.raises(ImageError):
            session.submit(b"no image").result()
    found = reader.get_metrics_data()
    assert found is not None
    metrics = {
        metric.name: [*metric.data.data_points]
        for one in found.resource_metrics
        for scope in one.scope_metrics
        for metric in scope.metrics
    }
    provider.shutdown()
    (images,) = metrics["resnet_export.batch.images"]
    assert (images.count, images.sum, images.attributes["artifact"]) == (2, 6, "fp32")
    (request,) = metrics["resnet_export.request.duration"]
    assert (request.count, request.attributes) == (1, {"error.type": "ImageError"})
    assert metrics["resnet_export.sessions.opened"][0].value == 1
    assert metrics["resnet_export.queue.depth"][0].value == 0
