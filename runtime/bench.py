"""How fast each artifact runs on each backend of this host, side by side within one run.

The contenders take turns, one counted call each per round, and medians are compared: absolute times wander with
the machine, the ratio of two medians that were taken in turns does not.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import Struct, read_manifest
from resnet_export.runtime.errors import NoBackendError
from resnet_export.runtime.parity.plan import plan
from resnet_export.runtime.parity.report.schema import Skipped
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.progress import Progress, silent
from resnet_export.runtime.select.host import probe
from resnet_export.runtime.session import Session, open_session

_WARMUP = 2


class Timing(Struct, frozen=True):
    """One artifact on one backend at one batch size.

    `milliseconds` is the median of a call's wall time, `low` and `high` are its quartiles; `speedup` is the
    median time of the first fp32 run at this batch size over this one's, None where no fp32 run took part.
    """

    artifact: str
    backend: str
    provider: str
    device: str
    precision: Precision
    simulated: bool
    batch: int
    milliseconds: float
    low: float
    high: float
    speedup: float | None

    @property
    def images_per_second(self) -> float:
        """Throughput of one caller: batch over median time."""
        return 1000 * self.batch / self.milliseconds


class Bench(Struct, frozen=True):
    """All timings, and what could not run here, with the reason."""

    timings: tuple[Timing, ...]
    skipped: tuple[Skipped, ...]
    rounds: int


def bench(
    bundle: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1, 8),
    rounds: int = 20,
    artifacts: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Bench:
    """Time the bundle's artifacts on golden images, `rounds` counted calls each after two to warm up.

    Raises NoBackendError when nothing of what was asked for runs here, RequestError and BundleError as
    `open_session` does, and BackendError when a backend fails.
    """
    manifest = read_manifest(bundle)
    asked = ParitySpec(
        artifacts=None if artifacts is None else tuple(artifacts),
        backends=None if backends is None else tuple(backends),
    )
    planned = plan(manifest, probe(imports=True), asked)
    if not planned.runs:
        reasons = "; ".join(dict.fromkeys(item.reason for item in planned.skipped))
        raise NoBackendError(
            f"nothing of the bundle runs on this host: {reasons or 'it has no artifact asked for'}"
        )
    images = read_golden(bundle).images
    timings: list[Timing] = []
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(
                open_session(
                    bundle,
                    backend=run.backend,
                    artifact=run.artifact.name,
                    precision=run.precision,
                    device=run.device,
                    threads=threads,
                )
            )
            for run in progress(planned.runs, "Opening sessions", len(planned.runs))
        ]
        for size in batches:
            batch = to_input(images[np.arange(size) % len(images)], manifest.preprocessing)
            seconds = [[0.0] * rounds for _ in sessions]
            for turn in progress(range(-_WARMUP, rounds), f"Batch {size}", _WARMUP + rounds):
                for session, times in zip(sessions, seconds, strict=True):
                    # Not counted: the contender before still has threads that spin, and the caches.
                    session.run(batch)
                    start = time.perf_counter()
                    session.run(batch)
                    if turn >= 0:
                        times[turn] = time.perf_counter() - start
            timings += _summarize(sessions, seconds, size)
    return Bench(timings=tuple(timings), skipped=planned.skipped, rounds=rounds)


def _summarize(sessions: Sequence[Session], seconds: Sequence[Sequence[float]], size: int) -> list[Timing]:
    medians = [1000 * statistics.median(times) for times in seconds]
    base = next(
        (
            median
            for session, median in zip(sessions, medians, strict=True)
            if session.choice.precision is Precision.FP32
        ),
        None,
    )
    found = []
    for session, times, median in zip(sessions, seconds, medians, strict=True):
        low, high = np.percentile(times, [25, 75]) * 1000
        choice = session.choice
        found.append(
            Timing(
                artifact=choice.artifact,
                backend=choice.backend,
                provider=choice.provider,
                device=choice.device,
                precision=choice.precision,
                simulated=choice.simulated,
                batch=size,
                milliseconds=median,
                low=float(low),
                high=float(high),
                speedup=None if base is None else base / median,
            )
        )
    return found
