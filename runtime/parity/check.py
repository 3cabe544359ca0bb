"""The gate: run every artifact on every usable backend, compare, and report.

The golden images and the eager logits in the bundle are always checked. Validation images, with or without
labels, are compared with the fp32 graph once that has itself passed against golden, or with an eager model
that the caller brings. Everything streams: one pass over the images, one batch in memory.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import numpy as np

from resnet_export.runtime.backends.routes import ROUTES
from resnet_export.runtime.bundle.golden import EAGER, read_golden
from resnet_export.runtime.bundle.manifest import read_manifest
from resnet_export.runtime.errors import BundleError, NoBackendError, RequestError
from resnet_export.runtime.parity.attribution.diagnosis import DATA, LABELS, failing_stage, hint, suspects
from resnet_export.runtime.parity.attribution.layers import Layerwise, titled
from resnet_export.runtime.parity.criteria.loosened import loosened
from resnet_export.runtime.parity.criteria.tolerances import Tolerances, overrides_of
from resnet_export.runtime.parity.data_check import ADD_EAGER, check_data, inputs
from resnet_export.runtime.parity.golden_check import CheckContext, CheckedRun, check_golden, require_same
from resnet_export.runtime.parity.measure.comparison import ImageBatch, Runner
from resnet_export.runtime.parity.measure.metrics import varies
from resnet_export.runtime.parity.plan import Plan, Run, is_reference, plan
from resnet_export.runtime.parity.preprocessing_check import NORMALIZE, check_preprocessing
from resnet_export.runtime.parity.report.schema import Entry, ParityReport, class_names, identity, summarize
from resnet_export.runtime.parity.report.search_report import SearchReport
from resnet_export.runtime.parity.spec import BATCHES, ParitySpec, as_spec, check_path, quoted
from resnet_export.runtime.progress import Progress, silent
from resnet_export.runtime.select.host import HostFacts, probe

# With fewer classes predicted than this, agreement on the golden images proves little.
_FEW_CLASSES = 3


CompareLayers = Callable[[Sequence[Entry], tuple[str, ...]], tuple[tuple[Layerwise, ...], tuple[str, ...]]]
"""From the entries, and the artifacts among them that may cause what failed, to compared layers and notes."""

Spread = Callable[
    [tuple[CheckedRun, ...], Iterator[ImageBatch]], tuple[tuple[CheckedRun, ...], Iterator[ImageBatch]]
]
"""From open runs and batches of network inputs to runs and batches that compare the same, computed elsewhere."""


def run_parity(
    bundle: str | os.PathLike[str],
    spec: ParitySpec | None = None,
    *,
    batches: Iterable[ImageBatch] | None = None,
    eager: Runner | None = None,
    compare_layers: CompareLayers | None = None,
    search: SearchReport | None = None,
    times: Mapping[str, Any] | None = None,
    full_batches_known: Collection[str] = (),
    served: Sequence[Run] = (),
    spread: Spread | None = None,
    notes: Callable[[], Iterable[str]] = tuple,
    progress: Progress = silent,
    **options: Any,
) -> ParityReport:
    """Check the bundle in the folder `bundle` on this host, and return the complete report.

    Args:
        spec: what is asked for.
        batches: the validation images, consumed once, as they come: `images` are crops, uint8 [N, H, W, 3] RGB,
            as `preprocess.load` cuts them, `labels` class indices or None. `spec.data` is what reports call them.
        eager: the reference for `batches`: takes what the artifacts take and returns logits [N, classes]. By default
            the fp32 graph is the reference.
        compare_layers: compares the layers that `spec.layers` asks for; without, none are compared.
        search: the report of the search that made the INT8 graphs, which the report then holds.
        times: further entries of the report's `times`.
        full_batches_known: artifacts whose full batches somebody compared already, as an export does after each
            step; they are not run again.
        served: runs of a server to check in place of this host's; `spec.triton` is what reports call it.
        spread: what computes the validation images elsewhere; None for this host.
        notes: called after the last image, for what stands in the report's notes besides.
        options: fields of `spec` by name, in place of its own: `run_parity(bundle, artifacts=["fp16"])`.

    A run that a backend refuses or that fails half-way is an entry with an error, and has not passed; a run
    that this host cannot make is listed as skipped with its reason.

    Raises:
        RequestError: an option is wrong, or cannot be held to anything that would run; DatasetError: there is no
            validation image, or labels are missing or wrong.
        BundleError, SchemaError, IntegrityError: the bundle cannot be read, is not what was exported, or was
            replaced during the check.
        NoBackendError: `batches` were given, and no fp32 graph runs here that they could be compared with.
    """
    check_path("bundle", bundle, "a bundle's folder")
    spec = _spec(spec, options, batches, eager, compare_layers, served)
    overrides = overrides_of(spec.tolerances)
    asked = spec.printable()
    started, clock = datetime.now(UTC), time.perf_counter()
    manifest = read_manifest(bundle)
    golden = read_golden(bundle)
    require_same(read_manifest(bundle), manifest)
    if not np.isfinite(golden.logits[EAGER]).all():
        raise BundleError("the recorded eager logits hold NaN or infinity; export the bundle again")
    host = probe(imports=True)
    planned = plan(manifest, host, asked, served=tuple(served))
    if batches is not None and eager is None and not any(map(is_reference, planned.runs)):
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
    shipped = Tolerances.shipped_for(manifest)
    context = CheckContext(
        manifest,
        golden,
        asked,
        shipped.replaced(manifest.tolerances, overrides),
        host,
        input_differs=not normalized,
        full_batches_known=frozenset(full_batches_known),
    )
    stream = None if batches is None else inputs(batches, context)

    with ExitStack() as stack:
        runs = tuple(
            check_golden(bundle, run, context, stack, keep=stream is not None)
            for run in progress(planned.runs, "golden images", len(planned.runs))
        )
        said = _notes(context, loosened(shipped, context.tolerances, overrides), runs)
        if stream is not None:
            if spread is not None:
                runs, stream = spread(runs, stream)
            runs, remarks = check_data(runs, progress(stream, "validation images"), context, eager)
            said += remarks
    entries = tuple(run.entry for run in runs)
    logits = {run.entry.key: run.golden for run in runs if run.golden is not None}
    stage = failing_stage(entries, drift, varies=varies(golden.logits[EAGER]))
    layerwise, unmeasured = (
        ((), ()) if compare_layers is None else compare_layers(entries, suspects(entries, drift, stage))
    )
    return ParityReport(
        schema=1,
        bundle=identity(manifest),
        asked=asked,
        entries=entries,
        skipped=planned.skipped,
        unverified=planned.unverified,
        notes=(*said, *notes(), *unmeasured),
        verdict=summarize(
            entries,
            planned.unverified,
            planned.unmet,
            drift,
            stage,
            hint(stage, entries, drift, logits),
            _cause(entries, layerwise, stage),
        ),
        class_names=class_names(entries, manifest.labels),
        preprocessing=drift,
        int8=search,
        layerwise=layerwise,
        versions=_versions(host, {entry.backend for entry in entries}),
        times={
            "started": started.isoformat(timespec="seconds"),
            "seconds": time.perf_counter() - clock,
            "running": context.seconds,
            **(times or {}),
        },
    )


def _cause(entries: tuple[Entry, ...], layerwise: tuple[Layerwise, ...], stage: str | None) -> str:
    """Return the most that is known of where a failure begins: a layer, else a stage, else nothing."""
    for found in layerwise:
        if found.first is not None:
            return f"layer {titled(found.first)} of {found.artifact}"
    if stage == LABELS and not any(
        criterion.name == "labels_order" and not criterion.passed
        for entry in entries
        for criterion in entry.criteria
    ):
        return "labels, preprocessing or checkpoint"
    return "" if stage is None else "too few images" if stage == DATA else f"stage {stage}"


def _spec(
    spec: ParitySpec | None,
    options: Mapping[str, Any],
    batches: object,
    eager: object,
    compare_layers: CompareLayers | None,
    served: Sequence[Run],
) -> ParitySpec:
    """Return what is asked for, found to go with what was given beside it."""
    if batches is not None and (
        isinstance(batches, str | bytes | os.PathLike) or not isinstance(batches, Iterable)
    ):
        raise RequestError(
            f"batches is {quoted(batches)}, expected batches of crops; "
            "resnet_export.exporter.parity.check.check_parity takes paths, as data"
        )
    if eager is not None and not callable(eager):
        raise RequestError(
            f"eager is {quoted(eager)}, expected a function that takes a batch and returns logits"
        )
    beside = {} if batches is None or (spec and spec.data is not None) else {"data": BATCHES}
    beside |= {} if eager is None else {"reference": "eager"}
    found = as_spec(spec, beside | dict(options))
    if found.data is not None and batches is None:
        raise RequestError(
            f"data is {quoted(found.data)}, and no batches were given; "
            "resnet_export.exporter.parity.check.check_parity opens paths"
        )
    if found.reference == EAGER and eager is None:
        raise RequestError(
            "the reference is eager, and no eager network was given; resnet_export.exporter.parity.check.check_parity "
            "builds it"
        )
    if found.triton is not None and not served:
        raise RequestError(
            f"triton is {quoted(found.triton)}, and no runs of a server were given; "
            "resnet_export.exporter.parity.check.check_parity asks it"
        )
    if compare_layers is not None:
        return found
    if found.layers not in ("failed", "none"):
        raise RequestError(
            f"layers is {quoted(found.layers)}, and nothing was given that compares them; "
            "resnet_export.exporter.parity.check.check_parity does"
        )
    return as_spec(found, {"layers": "none"})


def _require_comparison(asked: ParitySpec, planned: Plan) -> None:
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


def _notes(context: CheckContext, looser: tuple[str, ...], runs: tuple[CheckedRun, ...]) -> tuple[str, ...]:
    notes = [" ".join(notice.split()) for notice in context.manifest.provenance.notices]
    if context.golden.sample is None:
        notes.append("the bundle holds no sample of its preprocessing, which was not checked")
    notes += looser
    checks = [check for run in runs for check in run.entry.checks]
    classes = checks[0].comparison.figures.reference_classes if checks else _FEW_CLASSES
    if not varies(context.golden.logits[EAGER]):
        notes.append(
            "the network itself gives every golden image the same logits, so that nothing can be told of its "
            "artifacts; look at the checkpoint that was exported"
        )
    elif classes < min(_FEW_CLASSES, len(context.manifest.labels)):
        notes.append(
            f"eager predicts only {classes} of the classes on the golden images, so that top-1 agreement proves "
            "little there; the centered cosine similarity does not depend on it"
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
