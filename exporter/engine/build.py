"""The engines of a bundle: which artifacts become one, under which names, with which reports."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from resnet_export.exporter.bundle.staging import Bundle, add_artifacts
from resnet_export.exporter.engine.builder import build_engine, engine_artifact
from resnet_export.exporter.engine.options import BuildOptions
from resnet_export.exporter.engine.targets import EnginePlan, PlannedBuild, plan_engines, sm
from resnet_export.exporter.spec import EngineChoice
from resnet_export.runtime.bundle.engine_header import TITLES, parse_version
from resnet_export.runtime.bundle.layer_report import LayerReport, encode_report
from resnet_export.runtime.bundle.manifest import Artifact, BatchRange, read_artifact, read_manifest
from resnet_export.runtime.errors import DependencyError, ExportError, RequestError, ResnetExportError
from resnet_export.runtime.precision import PRECISIONS, Precision
from resnet_export.runtime.progress import Progress, silent
from resnet_export.runtime.select.host import HostFacts


@dataclass(frozen=True)
class BuiltEngine:
    """An engine that is ready to be put into a bundle: `artifact.file` holds `plan`,
    `artifact.engine.layers` the encoded `report`.
    """

    artifact: Artifact
    plan: bytes
    report: LayerReport

    def files(self) -> dict[str, bytes]:
        """Return the files beside the engine itself: its layer report."""
        engine = self.artifact.engine
        return {engine.layers: encode_report(self.report)} if engine and engine.layers else {}


@dataclass(frozen=True)
class Failure:
    """A build that failed: a sentence that names it, and the error."""

    sentence: str
    error: ResnetExportError


@dataclass(frozen=True)
class Engines:
    """What came of an `EnginePlan`: the engines, a note for each GPU without one, and the builds that failed."""

    built: tuple[BuiltEngine, ...]
    notes: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def remarks(self) -> tuple[str, ...]:
        """A sentence for each engine that was not built."""
        return (*self.notes, *(failure.sentence for failure in self.failures))


def engine_sources(artifacts: Iterable[Artifact]) -> tuple[Artifact, ...]:
    """Return the ONNX artifacts that engines are built from: the reduced precisions, or fp32 when there is
    none.

    Graphs laid out for CPU engines are left out: TensorRT fuses those that were laid out for it. So are those
    that may not be shipped.
    """
    graphs = [
        item for item in artifacts if item.kind == "onnx" and item.target != "cpu" and item.refusal is None
    ]
    return tuple(item for item in graphs if item.precision != Precision.FP32) or tuple(graphs)


def compile_engines(
    sources: Iterable[tuple[Artifact, bytes]],
    batch: BatchRange,
    plan: EnginePlan,
    *,
    options: BuildOptions = BuildOptions(),  # noqa: B008 - frozen
    timing_cache: Path | None = None,
    log_folder: Path | None = None,
    progress: Progress = silent,
) -> Engines:
    """Build every engine of `plan` from every ONNX artifact of `sources` (the artifact and its bytes).

    `timing_cache` is used by standard TensorRT only; `log_folder` gets one file with TensorRT's messages per
    build. A build that fails, in whatever way, is in the result and costs none of the others; the caller decides
    what that means. Where a graph cannot be built for all GPUs of a build, those of the lowest compute capability
    go first (bfloat16 needs 8.0), with a note.
    """
    built: list[BuiltEngine] = []
    notes = list(plan.notes)
    failures: list[Failure] = []
    pairs = tuple(sources)
    for build in plan.builds:
        for source, model in pairs:
            first: Failure | None = None
            targets = sorted(build.targets, key=parse_version)
            for start in range(len(targets)):
                part = PlannedBuild(build.variant, tuple(targets[start:]))
                try:
                    built.append(
                        _compile(source, model, batch, part, options, timing_cache, log_folder, progress)
                    )
                    break
                except Exception as error:  # noqa: BLE001 - a library of NVIDIA's, in whatever version
                    first = first or _failure(build, source, error)
            else:
                failures += [first] if first else []
                continue
            if first is not None:
                left_out = ", ".join(map(sm, targets[:start]))
                notes.append(f"no engine for {left_out} was built from {source.name!r}: {first.error}")
    return Engines(tuple(built), tuple(notes), tuple(failures))


def add_engines(
    bundle: Path,
    *,
    engine: EngineChoice,
    gpu: tuple[str, ...],
    host: HostFacts,
    options: BuildOptions = BuildOptions(),  # noqa: B008 - frozen
    log_folder: Path | None = None,
    progress: Progress = silent,
) -> tuple[Bundle, tuple[str, ...]]:
    """Build engines for an existing bundle and add them to it in one step: `resnet-export build`.

    The bundle changes only when every build is done; an interrupted one leaves it as it was. An engine of
    the same name is replaced. Returns the bundle and the notes on what was not built. Raises what
    `plan_engines`, `read_manifest`, `read_artifact` and `add_artifacts` raise, and where nothing could be built what
    `build_engine` raised, or a DependencyError with the notes.
    """
    plan = plan_engines(engine, gpu, host)
    manifest = read_manifest(bundle)
    sources = engine_sources(manifest.artifacts)
    engines = compile_engines(
        ((source, read_artifact(bundle, source)) for source in sources),
        manifest.batch,
        plan,
        options=options,
        timing_cache=bundle.with_name(f"{bundle.name}.timing-cache"),
        log_folder=log_folder,
        progress=progress,
    )
    if not engines.built:
        if len({str(failure.error) for failure in engines.failures}) == 1:
            raise engines.failures[0].error
        raise (ExportError if engines.failures else DependencyError)("; ".join(engines.remarks))
    files = {name: data for item in engines.built for name, data in item.files().items()}
    added = add_artifacts(bundle, [(item.artifact, item.plan) for item in engines.built], files)
    return added, engines.remarks


def _failure(build: PlannedBuild, source: Artifact, error: Exception) -> Failure:
    if not isinstance(error, ResnetExportError):
        known = ExportError(f"the builder broke down ({type(error).__name__}: {error})")
        known.__cause__ = error
        error = known
    return Failure(f"no {TITLES[build.variant]} engine was built from {source.name!r}: {error}", error)


def _compile(
    source: Artifact,
    model: bytes,
    batch: BatchRange,
    build: PlannedBuild,
    options: BuildOptions,
    timing_cache: Path | None,
    log_folder: Path | None,
    progress: Progress,
) -> BuiltEngine:
    needed = PRECISIONS[source.precision].compute_capability
    if older := [target for target in build.targets if _number(target) < _number(needed)]:
        raise RequestError(
            f"{source.precision} needs GPUs of compute capability {needed} or newer, and {sm(older[0])} is older; "
            "leave it out of --gpu"
        )
    if build.variant == "tensorrt" and options.timing_cache is None:
        options = replace(options, timing_cache=timing_cache)
    log_file = None
    if log_folder is not None:
        targets = "-".join(sm(target) for target in build.targets)
        log_file = log_folder / f"{build.variant}-{targets}-{source.name}.log"
    engine = build_engine(
        model,
        variant=build.variant,
        targets=build.targets,
        profiles=(batch,),
        precision=source.precision,
        source=source.name,
        excluded=source.excluded,
        options=options,
        log_file=log_file,
        progress=progress,
    )
    artifact = engine_artifact(engine, source.excluded)
    info = msgspec.structs.replace(engine.info, layers=f"engines/{artifact.name}.layers.json")
    return BuiltEngine(msgspec.structs.replace(artifact, engine=info), engine.plan, engine.report)


def _number(compute_capability: str) -> tuple[int, ...]:
    return tuple(map(int, compute_capability.split(".")))
