"""The gate: run every artifact on every usable backend, compare, and report.

The golden images and the eager logits in the bundle are always checked. Validation images, with or without
labels, are compared with the fp32 graph once that has itself passed against golden, or with an eager model
that the caller brings. Everything streams: one pass over the images, one batch in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from contextlib import ExitStack
from datetime import UTC, datetime

import numpy as np

from resnet_export.runtime.backends import ROUTES
from resnet_export.runtime.bundle.golden import EAGER, read_golden
from resnet_export.runtime.bundle.manifest import read_manifest
from resnet_export.runtime.errors import BundleError, NoBackendError, RequestError
from resnet_export.runtime.parity.attribution.diagnosis import blame, hint
from resnet_export.runtime.parity.criteria.tolerances import (
    GivenLimits,
    Overrides,
    checked_overrides,
    loosened,
)
from resnet_export.runtime.parity.data_check import ADD_EAGER, check_data, inputs
from resnet_export.runtime.parity.golden_check import Limits, Subject, check_golden, require_same
from resnet_export.runtime.parity.measure.comparison import ImageBatch, Runner
from resnet_export.runtime.parity.measure.metrics import varies
from resnet_export.runtime.parity.plan import Plan, is_reference, plan
from resnet_export.runtime.parity.preprocessing_check import NORMALIZE, check_preprocessing
from resnet_export.runtime.parity.report.schema import Asked, ParityReport, identity, summarize
from resnet_export.runtime.parity.spec import ask, check_path
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.progress import Progress, silent
from resnet_export.runtime.select.host import HostFacts, probe

# With fewer classes predicted than this, agreement on the golden images proves little.
_FEW_CLASSES = 3


def run_parity(
    bundle: str | os.PathLike[str],
    *,
    data: Iterable[ImageBatch] | None = None,
    data_name: str = "validation images",
    artifacts: Collection[str] | None = None,
    backends: Collection[str] | None = None,
    precisions: Collection[Precision] | None = None,
    eager: Runner | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    min_accuracy: float | None = None,
    tolerances: GivenLimits | None = None,
    limit: int | None = None,
    full_batches_known: Collection[str] = (),
    threads: int | None = None,
    progress: Progress = silent,
) -> ParityReport:
    """Check the bundle in the folder `bundle` on this host.

    Args:
        data: validation images in batches, consumed once, as they come: `images` are crops, uint8 [N, H, W, 3] RGB,
            as `preprocess.load` cuts them, `labels` class indices or None.
        data_name: what reports call these images.
        artifacts, backends, precisions: restrict the runs; None means all, each artifact in its own precision.
        eager: the reference for `data`: takes what the artifacts take and returns logits [N, classes]. By default
            the fp32 graph is the reference.
        max_drop: the accuracy drop in percentage points that is still in order; needs labeled `data`.
        min_agreement: the top-1 agreement in percent that is demanded on `data`, or on the golden images without.
        min_accuracy: the top-1 accuracy in percent that is demanded of every run, the reference included; needs
            labeled `data`.
        tolerances: limits that replace the bundle's: {"fp16": {"centered_cosine": 0.9995}}, or what `parse_overrides`
            returns.
        limit: use at most that many images of `data`.
        full_batches_known: artifacts whose full batches somebody compared already, as an export does after each
            step; they are not run again.
        threads: CPU threads of each backend; by default the backend decides.

    A run that a backend refuses or that fails half-way is an entry with an error, and has not passed; a run
    that this host cannot make is listed as skipped with its reason.

    Raises:
        RequestError: an option is wrong, or cannot be held to anything that would run; DatasetError: `data` is empty,
            or its labels are missing or wrong.
        BundleError, SchemaError, IntegrityError: the bundle cannot be read, is not what was exported, or was
            replaced during the check.
        NoBackendError: `data` was given, and no fp32 graph runs here that it could be compared with.
    """
    check_path("bundle", bundle, "a bundle's folder")
    asked = ask(
        data=data,
        data_name=data_name,
        artifacts=artifacts,
        backends=backends,
        precisions=precisions,
        eager=eager,
        max_drop=max_drop,
        min_agreement=min_agreement,
        min_accuracy=min_accuracy,
        tolerances=tolerances,
        limit=limit,
        threads=threads,
    )
    overrides = {} if tolerances is None else checked_overrides(tolerances)
    return run_asked(
        bundle,
        asked,
        overrides,
        data=data,
        eager=eager,
        full_batches_known=frozenset(full_batches_known),
        threads=threads,
        progress=progress,
    )


def run_asked(
    bundle: str | os.PathLike[str],
    asked: Asked,
    overrides: Overrides,
    *,
    data: Iterable[ImageBatch] | None,
    eager: Runner | None,
    full_batches_known: frozenset[str] = frozenset(),
    threads: int | None,
    progress: Progress,
) -> ParityReport:
    """Make the check that `asked` describes, as `run_parity` does, which says what the rest means and what is raised.

    `asked` and `overrides` were found to be in order (`request.ask`, `tolerances.checked_overrides`).
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    manifest = read_manifest(bundle)
    golden = read_golden(bundle)
    require_same(read_manifest(bundle), manifest)
    if not np.isfinite(golden.logits[EAGER]).all():
        raise BundleError("the recorded eager logits hold NaN or infinity; export the bundle again")
    host = probe()
    planned = plan(manifest, host, asked)
    if asked.data is not None and eager is None and not any(map(is_reference, planned.runs)):
        raise NoBackendError(
            f"{asked.data} need the fp32 graph to be compared with, and nothing on this host runs it; install a "
            "backend that does (pip install 'resnet-export[cpu]'), or leave the data out"
        )
    if eager is None:
        _require_comparison(asked, planned)
    drift = () if golden.sample is None else check_preprocessing(golden.sample, manifest.preprocessing)
    normalized = manifest.preprocessing.in_graph or all(
        criterion.passed for criterion in drift if criterion.name == NORMALIZE
    )
    limits = Limits(
        manifest,
        golden,
        asked,
        overrides,
        input_differs=not normalized,
        full_batches_known=full_batches_known,
    )
    stream = None if data is None else inputs(data, limits)

    with ExitStack() as stack:
        subjects = tuple(
            check_golden(bundle, run, limits, host, threads, stack, keep=stream is not None)
            for run in progress(planned.runs, "golden images", len(planned.runs))
        )
        notes = _notes(limits, subjects)
        if stream is not None:
            batches = progress(stream, "validation images")
            subjects, remarks = check_data(subjects, batches, limits, eager)
            notes += remarks
    entries = tuple(subject.entry for subject in subjects)
    logits = {subject.entry.key: subject.golden for subject in subjects if subject.golden is not None}
    stage = blame(entries, drift, varies=varies(golden.logits[EAGER]))
    return ParityReport(
        schema=1,
        bundle=identity(manifest),
        asked=asked,
        entries=entries,
        skipped=planned.skipped,
        unverified=planned.unverified,
        notes=notes,
        verdict=summarize(
            entries, planned.unverified, planned.unmet, drift, stage, hint(stage, entries, drift, logits)
        ),
        preprocessing=drift,
        versions=_versions(host, {entry.backend for entry in entries}),
        times={
            "started": started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - clock,
            "running": {
                subject.entry.key: subject.runner.seconds
                for subject in subjects
                if subject.runner is not None
            },
        },
    )


def _require_comparison(asked: Asked, planned: Plan) -> None:
    """Refuse limits on validation images through which the reference alone would go: nothing would be held to them.

    What was asked for by name and does not run is left to the verdict, which says so.
    """
    demands = [name for name in ("max_drop", "min_agreement") if getattr(asked, name) is not None]
    if asked.data is not None and demands and len(planned.runs) == 1 and not planned.unmet:
        (run,) = planned.runs
        raise RequestError(
            f"{' and '.join(demands)} cannot be held to anything, since {run.artifact.name} on {run.backend}, the "
            f"reference of {asked.data}, is all that would run; add {ADD_EAGER}, or choose another artifact or "
            "backend"
        )


def _notes(limits: Limits, subjects: tuple[Subject, ...]) -> tuple[str, ...]:
    notes = [" ".join(notice.split()) for notice in limits.manifest.provenance.notices]
    if limits.golden.sample is None:
        notes.append("the bundle holds no sample of its preprocessing, which was not checked")
    notes += loosened(
        limits.manifest.tolerances,
        limits.overrides,
        untrained=limits.untrained,
        layers_in_series=limits.manifest.graph.layers_in_series,
    )
    checks = [check for subject in subjects for check in subject.entry.checks]
    classes = checks[0].comparison.figures.reference_classes if checks else _FEW_CLASSES
    if not varies(limits.golden.logits[EAGER]):
        notes.append(
            "the network itself gives every golden image the same logits, so that nothing can be told of its "
            "artifacts; look at the checkpoint that was exported"
        )
    elif classes < _FEW_CLASSES:
        notes.append(
            f"eager predicts only {classes} of the classes on the golden images, so that agreement proves "
            "little there; the centered cosine does not depend on it"
        )
    return tuple(notes)


def _versions(host: HostFacts, backends: set[str]) -> dict[str, str]:
    """Return the versions of the packages that took part in the figures."""
    from importlib import metadata

    modules = {route.module for route in ROUTES if route.backend in backends}
    found = {
        package.distribution: package.version
        for package in host.packages
        if package.module in modules and package.version is not None
    }
    for name in ("numpy", "resnet-export"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a source tree that was never installed
            continue
    return found
