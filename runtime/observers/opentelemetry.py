"""Metrics of a session for OpenTelemetry; needs its API: pip install 'resnet-export[opentelemetry]'."""

from __future__ import annotations

from typing import Any

from resnet_export.runtime.errors import DependencyError
from resnet_export.runtime.observe import SessionObserver
from resnet_export.runtime.select.choice import Choice

__all__ = ["OpenTelemetryObserver"]

_RUNS = ("artifact", "backend", "provider", "precision", "device")


class OpenTelemetryObserver(SessionObserver):
    """Records through a meter of OpenTelemetry; where the figures go is the application's choice (its SDK).

    Instruments: `resnet_export.batch.duration` (s) and `resnet_export.batch.images`, histograms by what runs and
    `error.type`; `resnet_export.queue.depth`, a gauge; `resnet_export.request.duration` (s), a histogram by
    `error.type`; `resnet_export.sessions.opened`, a counter by what runs.

    Args:
        provider: a `MeterProvider`; None for the global one.
    """

    def __init__(self, provider: Any = None) -> None:
        try:
            from opentelemetry import metrics
        except ImportError as error:
            raise DependencyError(
                "opentelemetry-api is not installed; run: pip install 'resnet-export[opentelemetry]'"
            ) from error
        meter = metrics.get_meter("resnet_export", meter_provider=provider)
        self._seconds = meter.create_histogram(
            "resnet_export.batch.duration", unit="s", description="Seconds that the engine took for a batch."
        )
        self._images = meter.create_histogram(
            "resnet_export.batch.images", unit="{image}", description="Images in a batch."
        )
        self._depth = meter.create_gauge(
            "resnet_export.queue.depth", unit="{request}", description="Requests waiting for a batch."
        )
        self._requests = meter.create_histogram(
            "resnet_export.request.duration", unit="s", description="Seconds from a request to its answer."
        )
        self._opened = meter.create_counter(
            "resnet_export.sessions.opened", unit="{session}", description="Bundles opened or reloaded."
        )

    def opened(self, choice: Choice) -> None:
        """See `SessionObserver`."""
        self._opened.add(1, _attributes(choice))

    def ran(self, choice: Choice, images: int, seconds: float, error: Exception | None) -> None:
        """See `SessionObserver`."""
        attributes = _attributes(choice) | _failure(error)
        self._seconds.record(seconds, attributes)
        self._images.record(images, attributes)

    def queued(self, depth: int) -> None:
        """See `SessionObserver`."""
        self._depth.set(depth)

    def answered(self, seconds: float, error: BaseException | None) -> None:
        """See `SessionObserver`."""
        self._requests.record(seconds, _failure(error))


def _attributes(choice: Choice) -> dict[str, str]:
    return {name: str(getattr(choice, name)) for name in _RUNS}


def _failure(error: BaseException | None) -> dict[str, str]:
    # OpenTelemetry's semantic conventions: error.type is absent where nothing failed.
    return {} if error is None else {"error.type": type(error).__name__}
