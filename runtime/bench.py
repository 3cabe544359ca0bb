"""How fast each artifact runs on each backend of this host, side by side within one run.

The contenders take turns, one counted call each per round, and medians are compared: absolute times wander with
the machine, the ratio of two medians that were taken in turns does not.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from resnet_export.runtime.backends.routes import find_route
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import LOGITS, Manifest, Struct, read_manifest
from resnet_export.runtime.errors import BackendError, NoBackendError, RequestError
from resnet_export.runtime.loaded_model import LoadedModel, load_model
from resnet_export.runtime.parity.plan import plan
from resnet_export.runtime.parity.report.schema import Skipped
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.progress import Progress, silent
from resnet_export.runtime.select.host import HostFacts, probe
from resnet_export.runtime.select.profile import HostProfile, Measurement, save_profile
from resnet_export.runtime.select.resolver import resolve
from resnet_export.runtime.select.spec import SessionSpec

_WARMUP = 2
_TUNE_ROUNDS = 7


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
    """All timings, and what could not run here, with the reason; `profile` is the file that they were saved in."""

    timings: tuple[Timing, ...]
    skipped: tuple[Skipped, ...]
    rounds: int
    profile: str | None = None


def bench(
    bundle: str | os.PathLike[str],
    *,
    batches: Sequence[int] = (1, 8),
    rounds: int = 20,
    artifacts: Sequence[str] | None = None,
    backends: Sequence[str] | None = None,
    threads: int | None = None,
    save: bool = False,
    progress: Progress = silent,
) -> Bench:
    """Time the bundle's artifacts on golden images, `rounds` counted calls each after two to warm up.

    With `save`, sessions that are opened on this kind of host from now on, with the same `threads`, take what was
    fastest (`resnet_export.runtime.select.profile`).

    Raises NoBackendError when nothing of what was asked for runs here, RequestError and BundleError as
    `open_session` does, and BackendError when a backend fails.
    """
    if save and (artifacts is not None or backends is not None):
        raise RequestError(
            "what is saved ranks all artifacts and backends; time all of them, or save nothing"
        )
    manifest = read_manifest(bundle)
    asked = ParitySpec(
        artifacts=None if artifacts is None else tuple(artifacts),
        backends=None if backends is None else tuple(backends),
    )
    host = probe(imports=True)
    planned = plan(manifest, host, asked)
    if not planned.runs:
        reasons = "; ".join(dict.fromkeys(item.reason for item in planned.skipped))
        raise NoBackendError(
            f"nothing of the bundle runs on this host: {reasons or 'it has no artifact asked for'}"
        )
    requests = [
        SessionSpec(
            backend=run.backend,
            artifact=run.artifact.name,
            precision=run.precision,
            device=run.device,
            threads=threads,
            cache=run.device == "gpu",  # where compiling takes minutes
        )
        for run in planned.runs
    ]
    images = read_golden(bundle).images
    with ExitStack() as stack:
        models = [
            stack.enter_context(closing(load_model(bundle, manifest, host, request)))
            for request in progress(requests, "Opening sessions", len(requests))
        ]
        timings = _time(models, images, batches, rounds, progress)
    path = save_profile(profile_of(timings), manifest, host, threads) if save else None
    return Bench(
        timings=timings, skipped=planned.skipped, rounds=rounds, profile=None if path is None else str(path)
    )


def profile_of(timings: Sequence[Timing]) -> HostProfile:
    """Return what the resolver needs of `timings`."""
    return HostProfile(
        created=time.strftime("%Y-%m-%d"),
        measurements=tuple(
            Measurement(
                artifact=timing.artifact,
                backend=timing.backend,
                provider=timing.provider,
                precision=timing.precision,
                batch=timing.batch,
                milliseconds=timing.milliseconds,
            )
            for timing in timings
        ),
    )


def tune(
    bundle: str | os.PathLike[str], manifest: Manifest, host: HostFacts, request: SessionSpec
) -> HostProfile:
    """Time whatever could be chosen for `request`, single images and batches of `batch.opt`.

    What does not open is left out. Raises BundleError, and BackendError when a backend fails while it runs.
    """
    images = read_golden(bundle).images
    with ExitStack() as stack:
        models = []
        for item in resolve(manifest, host, request).trace:
            if item.outcome not in ("chosen", "usable"):
                continue
            one = replace(
                request,
                backend=item.backend,
                artifact=item.artifact,
                precision=item.precision,
                cache=request.cache and find_route(item.backend, item.provider).device == "gpu",
            )
            with suppress(BackendError):
                models.append(stack.enter_context(closing(load_model(bundle, manifest, host, one))))
        batches = sorted({1, manifest.batch.opt})
        return profile_of(_time(models, images, batches, _TUNE_ROUNDS, silent))


def _time(
    models: Sequence[LoadedModel],
    images: NDArray[np.uint8],
    batches: Sequence[int],
    rounds: int,
    progress: Progress,
) -> tuple[Timing, ...]:
    timings: list[Timing] = []
    for size in batches:
        seconds = [[0.0] * rounds for _ in models]
        for turn in progress(range(-_WARMUP, rounds), f"Batch {size}", _WARMUP + rounds):
            for model, times in zip(models, seconds, strict=True):
                batch = to_input(images[np.arange(size) % len(images)], model.manifest.preprocessing)
                # Not counted: the contender before still has threads that spin, and the caches.
                model.run(batch, (LOGITS,))
                start = time.perf_counter()
                model.run(batch, (LOGITS,))
                if turn >= 0:
                    times[turn] = time.perf_counter() - start
        timings += _summarize(models, seconds, size)
    return tuple(timings)


def _summarize(models: Sequence[LoadedModel], seconds: Sequence[Sequence[float]], size: int) -> list[Timing]:
    medians = [1000 * statistics.median(times) for times in seconds]
    base = next(
        (
            median
            for model, median in zip(models, medians, strict=True)
            if model.choice.precision is Precision.FP32
        ),
        None,
    )
    found = []
    for model, times, median in zip(models, seconds, medians, strict=True):
        low, high = np.percentile(times, [25, 75]) * 1000
        choice = model.choice
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
