"""One run on the golden images: opened, run at several batch sizes, compared with eager, attributed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain as joined
from typing import Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_export.runtime.backends.routes import find_route
from resnet_export.runtime.bundle.golden import EAGER, Golden
from resnet_export.runtime.bundle.manifest import BatchRange, Manifest
from resnet_export.runtime.errors import BackendError, BundleError
from resnet_export.runtime.parity.attribution.stages import attribute, chain
from resnet_export.runtime.parity.criteria.table import Evidence, Reproduction, evaluate
from resnet_export.runtime.parity.criteria.tolerances import (
    Tolerances,
    coarser,
    near_tie_width,
    reproduction_limit,
)
from resnet_export.runtime.parity.measure.comparison import Runner, compare, printable
from resnet_export.runtime.parity.measure.image_errors import usual
from resnet_export.runtime.parity.measure.metrics import distance, relative_error
from resnet_export.runtime.parity.output_check import check_outputs
from resnet_export.runtime.parity.plan import Opened, Run
from resnet_export.runtime.parity.report.schema import Check, Entry, entry_key
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Precision, Tolerance
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.select.host import HostFacts
from resnet_export.runtime.session import Session, open_session


@dataclass(frozen=True)
class CheckedRun:
    """One run with its entry so far, its runner while it is open, and its logits on the golden images [N, C]."""

    run: Run
    entry: Entry
    runner: Runner | None
    golden: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class CheckContext:
    """Everything that entries are made of besides what runs.

    `tolerances` are those in force; `input_differs` says that this host normalizes otherwise than the export did;
    `full_batches_known` names the artifacts whose full batches need not run; `seconds` adds up what each run
    spends, by entry key.
    """

    manifest: Manifest
    golden: Golden
    spec: ParitySpec
    tolerances: Tolerances
    host: HostFacts
    input_differs: bool = False
    full_batches_known: frozenset[str] = frozenset()
    seconds: dict[str, float] = field(default_factory=dict)

    def near_tie(self, tolerance: Tolerance) -> float:
        """Return the near-tie width, in logits, under `tolerance`."""
        return near_tie_width(tolerance, self.golden.logits[EAGER])


def check_golden(
    bundle: str | os.PathLike[str],
    run: Run,
    context: CheckContext,
    stack: ExitStack,
    *,
    keep: bool,
) -> CheckedRun:
    """Open one run and check it on the golden images; with `keep` it stays open until `stack` closes it."""
    try:
        session = stack.enter_context(_open(bundle, run, context) if run.open is None else run.open())
    except BackendError as error:
        return CheckedRun(run, _entry(run, context, error=error_text("could not be opened", error)), None)
    require_same(session.manifest, context.manifest)
    key = entry_key(run.artifact.name, run.backend, run.provider, session.choice.precision)
    runner = _timed(session.run, context.seconds, key)
    found: NDArray[np.float32] | None = None
    try:
        found = _run_once(runner, context)
        known = run.artifact.name in context.full_batches_known
        full = {} if known else _run_full(runner, found, context)
        entry = _golden_entry(run, session, found, full, context)
        entry = msgspec.structs.replace(
            entry, outputs=check_outputs(session, entry.tolerance, context.golden)
        )
    except BackendError as error:
        entry = _entry(run, context, session=session, error=error_text("failed while running", error))
    if not keep or entry.error is not None:
        session.close()
    return CheckedRun(run, entry, runner, found)


def _open(bundle: str | os.PathLike[str], run: Run, context: CheckContext) -> Session:
    return open_session(
        bundle,
        backend=run.backend,
        precision=run.precision,
        artifact=run.artifact.name,
        device=run.device,
        threads=context.spec.threads,
        cache=run.device == "gpu",  # where compiling takes minutes; most bundles are checked once
    )


def require_same(found: Manifest, expected: Manifest) -> None:
    """Raise BundleError when the bundle is another than at the start: figures of two exports must not mix."""
    if found != expected:
        raise BundleError("the bundle was replaced while it was checked; check it again")


def _run_once(runner: Runner, context: CheckContext) -> NDArray[np.float32]:
    """Return the logits of the golden images, float32 [N, C], each run once."""
    images, manifest = context.golden.images, context.manifest
    parts = (images[part] for part in batch_slices(len(images), manifest.batch))
    return np.concatenate([np.asarray(runner(to_input(part, manifest.preprocessing))) for part in parts])


def _run_full(runner: Runner, found: NDArray[np.float32], context: CheckContext) -> dict[int, float | None]:
    """Run full batches, and return by their size how far they are from `found`, the logits of the single pass."""
    images, manifest = context.golden.images, context.manifest
    errors: dict[int, float | None] = {}
    for rows in full_batches(len(images), manifest.batch):
        logits = runner(to_input(images[rows], manifest.preprocessing))
        errors[len(rows)] = relative_error(logits, found[rows])
    return errors


def _golden_entry(
    run: Run,
    session: Opened,
    found: NDArray[np.float32],
    full: Mapping[int, float | None],
    context: CheckContext,
) -> Entry:
    golden = context.golden
    eager = golden.logits[EAGER]
    entry = _entry(run, context, session=session)
    stages = chain(run.artifact, tuple(golden.logits), entry.ran)
    known = [golden.logits[stage.name] for stage in stages[:-1]]
    comparison = compare(
        eager,
        found,
        near_tie=context.near_tie(entry.tolerance),
        activation=context.manifest.model.activation,
    )
    # Without a stage of its own, an artifact ends in the float graph that it was made of.
    recorded = known and stages[-2].precision is Precision.INT8 and entry.tolerance.relative_error is not None
    evidence = Evidence(
        images="golden",
        spec=context.spec,
        figures=comparison.figures,
        tolerance=entry.tolerance,
        untrained=context.tolerances.untrained,
        full_batches=full,
        recorded_non_finite=int((~np.isfinite(np.hstack([eager, *known])).all(axis=1)).sum()),
        reproduction=reproduction(eager, known[-1], found) if recorded else None,
    )
    check = Check(
        images="golden",
        reference=EAGER,
        reference_error=None,
        comparison=comparison,
        criteria=evaluate(evidence),
        batches=tuple(full),
    )
    attribution = attribute(
        eager,
        list(zip(stages, [*known, found], strict=True)),
        context.tolerances,
        entry.title,
        input_differs=context.input_differs,
    )
    return msgspec.structs.replace(entry, checks=(check,), attribution=attribution)


def reproduction(
    eager: NDArray[np.float32], known: NDArray[np.float32], found: NDArray[np.float32]
) -> Reproduction | None:
    """Return how near an int8 run's logits `found` come to those recorded of its artifact, `known`, all [N, C].

    Images that own the energy of eager's logits, where a handful does, are left out: what INT8 loses of them would
    allow everything to all others.
    """
    rows = usual(eager)
    own, error = relative_error(known[rows], eager[rows]), distance(found[rows], known[rows], eager[rows])
    if own is None or error is None:  # what is not finite fails by that
        return None
    return Reproduction(error, own, reproduction_limit(own))


def _timed(run: Runner, seconds: dict[str, float], key: str) -> Runner:
    """Return `run`, which then adds the seconds that it spends to those of `key`."""
    seconds[key] = 0.0

    def timed(images: Any) -> ArrayLike:
        start = time.perf_counter()
        try:
            return run(images)
        finally:
            seconds[key] += time.perf_counter() - start

    return timed


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
    run: Run, context: CheckContext, *, session: Opened | None = None, error: str | None = None
) -> Entry:
    choice = None if session is None else session.choice
    ran = run.precision if choice is None else choice.precision
    held_to = coarser(run.artifact.precision, ran)
    notes = () if choice is None else tuple(map(printable, choice.notes))
    if not run.wanted:
        notes += ("not requested; checked because it is the reference of the validation images",)
    if run.open is None:
        package = context.host.package(find_route(run.backend, run.provider).module)
        version = None if package is None else package.version
    else:
        version = run.version
    return Entry(
        artifact=run.artifact.name,
        sha256=run.artifact.sha256,
        backend=run.backend,
        provider=run.provider,
        version=version,
        device=run.device if choice is None else choice.device,
        declared=run.artifact.precision,
        ran=ran,
        held_to=held_to,
        simulated=_simulated(run, ran) if choice is not None and choice.simulated else None,
        tolerance=context.tolerances[held_to],
        notes=notes,
        checks=(),
        attribution=None,
        error=error,
        refusal=run.artifact.refusal,
    )


def error_text(what: str, error: BackendError) -> str:
    """Return one line that says what failed, whatever the backend wrote into its message."""
    return printable(" ".join(f"{what}: {error}".split()))


def _simulated(run: Run, ran: Precision) -> str:
    if ran is Precision.FP16 and run.device == "cpu":
        return "simulated (computed in fp32)"
    return f"simulated ({run.backend} computes this {ran} graph in a wider precision)"
