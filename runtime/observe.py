"""What a session reports while it serves, for metrics: latency, batch sizes, queue depth, errors, and what runs.

    class Print(SessionObserver):
        def ran(self, choice, images, seconds, error): print(choice.artifact, images, seconds, error)

    session = open_session("resnet50", observer=Print())

Adapters for prometheus-client and OpenTelemetry are in `resnet_export.runtime.observers`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.protocol import Backend, DeviceBackend
from resnet_export.runtime.bundle.schema import BatchRange
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.choice import Choice

if TYPE_CHECKING:
    from resnet_export.runtime.batching import MicroBatcher

__all__ = ["Reporter", "SessionObserver"]


class SessionObserver:
    """Override what is wanted; every method does nothing by itself.

    Methods are called in the thread that does the work, many at a time, and should return at once. What one raises is
    logged the first time, to the logger "resnet_export", and never reaches whoever uses the session.
    """

    def opened(self, choice: Choice) -> None:
        """A bundle was opened, or reloaded: `choice` runs from now on."""

    def ran(self, choice: Choice, images: int, seconds: float, error: Exception | None) -> None:
        """The engine ran one batch of `images`, in `seconds`; `error` is what it raised."""

    def queued(self, depth: int) -> None:
        """A request of `Session.submit` or `aclassify` came, and `depth` others were waiting for a batch."""

    def answered(self, seconds: float, error: BaseException | None) -> None:
        """Such a request ended `seconds` after it came, decoding, waiting and running included.

        `error` is what its future raises, a bad image, a full queue, a timeout and a cancellation among it.
        """


class Reporter:
    """Tells an observer, whatever it raises."""

    def __init__(self, observer: SessionObserver) -> None:
        self._observer = observer
        self._failed: set[str] = set()

    def tell(self, what: str, *facts: object) -> None:
        """Call the observer's method `what`."""
        try:
            getattr(self._observer, what)(*facts)
        except Exception:  # whatever it is, it must not cost a request
            if what not in self._failed:
                self._failed.add(what)
                logging.getLogger("resnet_export").exception(
                    "the observer of a session failed in %s(); further failures there are not logged", what
                )

    def follow(self, request: Future[Any], batcher: MicroBatcher[Any, Any]) -> None:
        """Report a request now, and when it ends."""
        start = time.perf_counter()
        self.tell("queued", batcher.waiting)

        def ended(future: Future[Any]) -> None:
            error = CancelledError() if future.cancelled() else future.exception()
            self.tell("answered", time.perf_counter() - start, error)

        request.add_done_callback(ended)

    def watch(self, backend: Backend, choice: Choice) -> Backend:
        """Report that `choice` was opened, and return `backend`, which then reports every batch."""
        self.tell("opened", choice)
        kind = _ReportingDeviceBackend if isinstance(backend, DeviceBackend) else _ReportingBackend
        return kind(backend, choice, self)


class _ReportingBackend:
    """A backend, and a report of each batch."""

    def __init__(self, backend: Backend, choice: Choice, reporter: Reporter) -> None:
        self._backend: Any = backend
        self._choice = choice
        self._reporter = reporter

    @property
    def provider(self) -> str:
        return self._backend.provider  # type: ignore[no-any-return]

    @property
    def precision(self) -> Precision:
        return self._backend.precision  # type: ignore[no-any-return]

    @property
    def notes(self) -> tuple[str, ...]:
        return self._backend.notes  # type: ignore[no-any-return]

    @property
    def batch(self) -> BatchRange | None:
        return self._backend.batch  # type: ignore[no-any-return]

    def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        found: tuple[NDArray[np.float32], ...] = self._report(self._backend.run, batch, outputs)
        return found

    def close(self) -> None:
        self._backend.close()

    def _report(self, run: Any, batch: Any, outputs: Sequence[str]) -> Any:
        start, error = time.perf_counter(), None
        try:
            return run(batch, outputs)
        except Exception as raised:
            error = raised
            raise
        finally:
            shape = getattr(batch, "shape", (0,))
            self._reporter.tell("ran", self._choice, int(shape[0]), time.perf_counter() - start, error)


class _ReportingDeviceBackend(_ReportingBackend):
    """Likewise, for arrays on the GPU; its seconds are those until the work was handed over."""

    def run_on_device(self, array: Any, outputs: Sequence[str]) -> tuple[Any, ...]:
        found: tuple[Any, ...] = self._report(self._backend.run_on_device, array, outputs)
        return found
