"""One run on the golden images: opened, run at several batch sizes, compared with eager, attributed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain as joined
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_export.runtime.backends import find_route
from resnet_export.runtime.bundle.golden import EAGER, Golden
from resnet_export.runtime.bundle.manifest import BatchRange, Manifest
from resnet_export.runtime.errors import BackendError, BundleError
from resnet_export.runtime.parity.attribution.stages import attribute, chain
from resnet_export.runtime.parity.criteria.evaluate import (
    Criterion,
    batches,
    judge,
    min_agreement,
    recorded,
    reproduced,
)
from resnet_export.runtime.parity.criteria.tolerances import (
    Overrides,
    coarser,
    near_tie_width,
    reproduction_limit,
    tolerance_for,
)
from resnet_export.runtime.parity.measure.comparison import Runner, compare, printable
from resnet_export.runtime.parity.measure.metrics import distance, relative_error
from resnet_export.runtime.parity.plan import Run
from resnet_export.runtime.parity.report.schema import Check, Entry
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Precision, Tolerance
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.select.host import HostFacts
from resnet_export.runtime.session import Session, open_session


class Clocked:
    """A runner that adds up the seconds it spends."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self.seconds = 0.0

    def __call__(self, images: Any) -> ArrayLike:
        start = time.perf_counter()
        try:
            return self._run(images)
        finally:
            self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class Subject:
    """One run with its verdict so far, its runner while it is open, and its logits on the golden images [N, C]."""

    run: Run
    entry: Entry
    runner: Clocked | None
    golden: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Limits:
    """Everything that verdicts are made of besides figures.

    `input_differs` says that this host normalizes otherwise than the export did; `full_batches_known` names the
    artifacts whose full batches need not run.
    """

    manifest: Manifest
    golden: Golden
    asked: ParitySpec
    overrides: Overrides
    input_differs: bool = False
    full_batches_known: frozenset[str] = frozenset()

    @property
    def untrained(self) -> bool:
        """Whether the network's predictions mean nothing."""
        return self.manifest.model.weights.source == "untrained"

    def tolerance(self, precision: Precision) -> Tolerance:
        """Return the limits for `precision`."""
        series = self.manifest.graph.layers_in_series
        return tolerance_for(
            precision,
            self.manifest.tolerances,
            self.overrides,
            untrained=self.untrained,
            layers_in_series=series,
        )

    def near_tie(self, tolerance: Tolerance) -> float:
        """Return the near-tie width, in logits, under `tolerance`."""
        return near_tie_width(tolerance, self.golden.logits[EAGER])


def check_golden(
    bundle: str | os.PathLike[str],
    run: Run,
    limits: Limits,
    host: HostFacts,
    threads: int | None,
    stack: ExitStack,
    *,
    keep: bool,
) -> Subject:
    """Open one run and check it on the golden images; with `keep` it stays open until `stack` closes it."""
    try:
        session = stack.enter_context(
            open_session(
                bundle,
                backend=run.backend,
                precision=run.precision,
                artifact=run.artifact.name,
                device=run.device,
                threads=threads,
            )
        )
    except BackendError as error:
        return Subject(run, _entry(run, limits, host, error=error_text("could not be opened", error)), None)
    require_same(session.manifest, limits.manifest)
    runner = Clocked(session.run)
    found: NDArray[np.float32] | None = None
    try:
        found = _run_once(runner, limits)
        known = run.artifact.name in limits.full_batches_known
        full = {} if known else _run_full(runner, found, limits)
        entry = _golden_entry(run, session, found, full, limits, host)
    except BackendError as error:
        entry = _entry(run, limits, host, session=session, error=error_text("failed while running", error))
    if not keep or entry.error is not None:
        session.close()
    return Subject(run, entry, runner, found)


def require_same(found: Manifest, expected: Manifest) -> None:
    """Raise BundleError when the bundle is another than at the start: figures of two exports must not mix."""
    if found != expected:
        raise BundleError("the bundle was replaced while it was checked; check it again")


def _run_once(runner: Clocked, limits: Limits) -> NDArray[np.float32]:
    """Return the logits of the golden images, float32 [N, C], each run once."""
    images, manifest = limits.golden.images, limits.manifest
    parts = (images[part] for part in batch_slices(len(images), manifest.batch))
    return np.concatenate([np.asarray(runner(to_input(part, manifest.preprocessing))) for part in parts])


def _run_full(runner: Clocked, found: NDArray[np.float32], limits: Limits) -> dict[int, float | None]:
    """Run full batches, and return by their size how far they are from `found`, the logits of the single pass."""
    images, manifest = limits.golden.images, limits.manifest
    errors: dict[int, float | None] = {}
    for rows in full_batches(len(images), manifest.batch):
        logits = runner(to_input(images[rows], manifest.preprocessing))
        errors[len(rows)] = relative_error(found[rows], logits)
    return errors


def _golden_entry(
    run: Run,
    session: Session,
    found: NDArray[np.float32],
    full: Mapping[int, float | None],
    limits: Limits,
    host: HostFacts,
) -> Entry:
    golden = limits.golden
    eager = golden.logits[EAGER]
    entry = _entry(run, limits, host, session=session)
    stages = chain(run.artifact, tuple(golden.logits), entry.ran)
    known = [golden.logits[stage.name] for stage in stages[:-1]]
    comparison = compare(eager, found, near_tie=limits.near_tie(entry.tolerance))
    criteria = [*judge(comparison.figures, entry.tolerance, near_ties_agree=limits.untrained)]
    if full and entry.tolerance.relative_error is not None:
        criteria.append(batches(full, entry.tolerance.relative_error))
    criteria.append(recorded(int((~np.isfinite(np.hstack([eager, *known])).all(axis=1)).sum())))
    # Without a stage of its own, an artifact ends in the float graph that it was made of.
    if known and stages[-2].precision is Precision.INT8 and entry.tolerance.relative_error is not None:
        criteria += _reproduced(eager, known[-1], found)
    if limits.asked.min_agreement is not None and limits.asked.data is None:
        criteria.append(min_agreement(comparison, limits.asked.min_agreement))
    check = Check(
        images="golden",
        reference=EAGER,
        reference_error=None,
        comparison=comparison,
        criteria=tuple(criteria),
        batches=tuple(full),
    )
    attribution = attribute(
        eager,
        list(zip(stages, [*known, found], strict=True)),
        {precision: limits.tolerance(precision) for precision in Precision},
        entry.title,
        near_ties_agree=limits.untrained,
        input_differs=limits.input_differs,
    )
    return msgspec.structs.replace(entry, checks=(check,), attribution=attribution)


def _reproduced(
    eager: NDArray[np.float32], known: NDArray[np.float32], found: NDArray[np.float32]
) -> Iterator[Criterion]:
    """Yield how near an int8 run's logits `found` come to those recorded of its artifact, `known`, all [N, C]."""
    own, error = relative_error(eager, known), distance(found, known, eager)
    if own is not None and error is not None:  # what is not finite fails by that
        yield reproduced(error, reproduction_limit(own), own)


def batch_slices(count: int, batch: BatchRange) -> Iterator[slice]:
    """Cut `count` images into batches of the smallest, the usual and then the largest size, each image once.

    An artifact whose batch axis is frozen shows at another size.
    """
    start = 0
    for size in joined([batch.min, batch.opt], iter(lambda: batch.max, None)):
        if start >= count:
            return
        yield slice(start, min(start + size, count))
        start += size


def full_batches(count: int, batch: BatchRange) -> Iterator[NDArray[np.intp]]:
    """Yield full batches of the sizes in `batch` that `batch_slices` does not make, as numbers of images in turn.

    Few images do not fill a large batch, and an artifact may be wrong in large ones alone.
    """
    cut = {part.stop - part.start for part in batch_slices(count, batch)}
    for size in sorted({batch.min, batch.opt, batch.max} - cut):
        yield np.arange(size) % count


def _entry(
    run: Run, limits: Limits, host: HostFacts, *, session: Session | None = None, error: str | None = None
) -> Entry:
    choice = None if session is None else session.choice
    ran = run.precision if choice is None else choice.precision
    held_to = coarser(run.artifact.precision, ran)
    notes = () if choice is None else tuple(map(printable, choice.notes))
    if not run.wanted:
        notes += ("not asked for; checked because validation images are compared with it",)
    package = host.package(find_route(run.backend, run.provider).module)
    return Entry(
        artifact=run.artifact.name,
        sha256=run.artifact.sha256,
        backend=run.backend,
        provider=run.provider,
        version=None if package is None else package.version,
        device=run.device if choice is None else choice.device,
        declared=run.artifact.precision,
        ran=ran,
        held_to=held_to,
        simulated=_emulation(run, ran) if choice is not None and choice.simulated else None,
        tolerance=limits.tolerance(held_to),
        notes=notes,
        checks=(),
        attribution=None,
        error=error,
        refusal=run.artifact.refusal,
    )


def error_text(what: str, error: BackendError) -> str:
    """Return one line that says what failed, whatever the backend wrote into its message."""
    return printable(" ".join(f"{what}: {error}".split()))


def _emulation(run: Run, ran: Precision) -> str:
    if ran is Precision.FP16 and run.device == "cpu":
        return "simulated: this CPU computes fp16 in fp32"
    return f"simulated: {run.backend} computes this {ran} graph in wider arithmetic"
