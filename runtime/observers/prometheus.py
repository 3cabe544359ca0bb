"""Metrics of a session for Prometheus; needs prometheus-client: pip install 'resnet-export[prometheus]'."""

from __future__ import annotations

from typing import Any

from resnet_export.runtime.errors import DependencyError
from resnet_export.runtime.observe import SessionObserver
from resnet_export.runtime.select.choice import Choice

__all__ = ["PrometheusObserver"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)
_RUNS = ("artifact", "backend", "provider", "precision", "device")


class PrometheusObserver(SessionObserver):
    """Registers its metrics on construction; one for each process, or each registry.

        session = open_session("resnet50", observer=PrometheusObserver())
        prometheus_client.start_http_server(9100)

    Metrics, all with the prefix `resnet_export_`: `batch_seconds` and `batch_images` (histograms) and `errors_total`,
    by what runs; `queue_depth` (gauge); `request_seconds` (histogram) and `request_errors_total`, by the error's
    type; `session_info`, 1 for what runs now.

    Args:
        registry: a `prometheus_client.CollectorRegistry`; None for the default one.
    """

    def __init__(self, registry: Any = None) -> None:
        try:
            import prometheus_client as client
        except ImportError as error:
            raise DependencyError(
                "prometheus-client is not installed; run: pip install 'resnet-export[prometheus]'"
            ) from error
        where: dict[str, Any] = {
            "registry": client.REGISTRY if registry is None else registry,
            "namespace": "resnet_export",
        }
        self._seconds = client.Histogram(
            "batch_seconds", "Seconds that the engine took for a batch.", _RUNS, buckets=_SECONDS, **where
        )
        self._images = client.Histogram("batch_images", "Images in a batch.", _RUNS, buckets=_IMAGES, **where)
        self._errors = client.Counter("errors", "Batches that the engine failed on.", _RUNS, **where)
        self._depth = client.Gauge("queue_depth", "Requests waiting for a batch.", **where)
        self._requests = client.Histogram(
            "request_seconds", "Seconds from a request to its answer.", buckets=_SECONDS, **where
        )
        self._failed = client.Counter(
            "request_errors", "Requests that ended in an error.", ("type",), **where
        )
        self._info = client.Gauge("session_info", "1 for what runs.", _RUNS, **where)

    def opened(self, choice: Choice) -> None:
        """See `SessionObserver`."""
        self._info.clear()
        self._info.labels(*_labels(choice)).set(1)

    def ran(self, choice: Choice, images: int, seconds: float, error: Exception | None) -> None:
        """See `SessionObserver`."""
        labels = _labels(choice)
        if error is not None:
            self._errors.labels(*labels).inc()
            return
        self._seconds.labels(*labels).observe(seconds)
        self._images.labels(*labels).observe(images)

    def queued(self, depth: int) -> None:
        """See `SessionObserver`."""
        self._depth.set(depth)

    def answered(self, seconds: float, error: BaseException | None) -> None:
        """See `SessionObserver`."""
        if error is not None:
            self._failed.labels(type(error).__name__).inc()
            return
        self._requests.observe(seconds)


def _labels(choice: Choice) -> tuple[str, ...]:
    return tuple(str(getattr(choice, name)) for name in _RUNS)
