"""One path from a typed ONNX graph to an engine, for TensorRT 10, TensorRT 11 and TensorRT for RTX.

The network is strongly typed, so the engine computes in the types of the graph; nothing here chooses a
precision.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]

from resnet_export.exporter.engine.layers import make_report, parse_build_log, parse_inspector, typed_nodes
from resnet_export.exporter.engine.options import BuildOptions, apply_options, check_options
from resnet_export.exporter.engine.progress import watched_build
from resnet_export.exporter.engine.targets import sm
from resnet_export.runtime.backends.tensorrt_library import (
    LogMessage,
    errors_of,
    load_library,
    make_runtime,
    process_log,
    readable,
)
from resnet_export.runtime.bundle.atomic_write import write_file
from resnet_export.runtime.bundle.engine_header import TITLES, Variant, check_header
from resnet_export.runtime.bundle.layer_report import LayerInfo, LayerReport
from resnet_export.runtime.bundle.manifest import Artifact, BatchRange, EngineInfo, ExcludedLayer
from resnet_export.runtime.errors import ExportError, RequestError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.progress import Progress, silent


@dataclass(frozen=True)
class Engine:
    """A built engine. `plan` are the bytes to ship, `log` is everything that TensorRT said meanwhile."""

    plan: bytes
    info: EngineInfo
    report: LayerReport
    log: tuple[LogMessage, ...]


def build_engine(
    model: bytes,
    *,
    variant: Variant,
    targets: tuple[str, ...],
    profiles: tuple[BatchRange, ...],
    precision: Precision,
    source: str,
    excluded: tuple[ExcludedLayer, ...] = (),
    options: BuildOptions = BuildOptions(),  # noqa: B008 - frozen
    log_file: Path | None = None,
    progress: Progress = silent,
) -> Engine:
    """Build an engine from a typed ONNX graph.

    Args:
        model: the bytes of the ONNX artifact: one input [N, ...] with a dynamic batch axis.
        variant: the library to build with; it must be installed.
        targets: compute capabilities ("8.6"): any that TensorRT for RTX serves, on any machine; for standard
            TensorRT the one of this host's first GPU (see `plan_engines`).
        profiles: batch ranges; the engine is tuned for each one's `opt`.
        precision: that of the artifact, which the report compares the layers with.
        source: the name of the ONNX artifact, for the manifest.
        excluded: the layers that the graph leaves in a higher precision, with the reasons.
        options: see `BuildOptions`.
        log_file: where to write everything TensorRT says, whether or not the build succeeds.
        progress: shows the build; Ctrl-C cancels it and arrives as KeyboardInterrupt.

    Raises:
        DependencyError: the variant is not installed.
        RequestError: an option or target that the variant cannot honor.
        ExportError: the graph cannot be parsed or built; the message names the node where TensorRT does.
    """
    library = load_library(variant)
    check_options(options, variant, library, profiles)
    graph = _decode(model)
    nodes = typed_nodes(graph)
    started = time.perf_counter()
    with process_log(library).capture() as messages:
        try:
            builder = library.Builder(process_log(library))
            network = _parse(model, library, builder)
            config = _configure(library, builder, network, variant, targets, profiles, options, messages)
            plan = watched_build(
                library,
                config,
                lambda: builder.build_serialized_network(network, config),
                progress,
                f"building the {precision} engine with {TITLES[variant]}",
            )
            if plan is None:
                raise ExportError(
                    f"{TITLES[variant]} {library.__version__} cannot build {source!r}: "
                    f"{_located(messages, graph)}"
                )
            seconds = time.perf_counter() - started
            data = bytes(memoryview(plan))
            if options.timing_cache is not None:
                _write_timing_cache(config, options.timing_cache)
            layers, undescribed = _describe(library, variant, data, options, messages)
        finally:
            if log_file is not None:
                write_log(messages, log_file)
    info = EngineInfo(
        variant=variant,
        version=library.__version__,
        compute_capabilities=targets,
        profiles=profiles,
        source=source,
        source_sha256=hashlib.sha256(model).hexdigest(),
        options=options.given(),
        build_seconds=round(seconds, 3),
    )
    check_header(data, info)
    report = make_report(
        layers,
        nodes,
        source="inspector" if variant == "tensorrt" else "build log",
        asked=precision,
        excluded=excluded,
        builder=f"{TITLES[variant]} {library.__version__}",
        undescribed=undescribed,
    )
    return Engine(data, info, report, tuple(messages))


def engine_artifact(engine: Engine, excluded: tuple[ExcludedLayer, ...] = ()) -> Artifact:
    """Return the manifest's entry, named by variant, version, compute capabilities and precision."""
    capabilities = "-".join(sm(capability) for capability in engine.info.compute_capabilities)
    variant = engine.info.variant.replace("_", "-")
    name = f"{variant}-{engine.info.version}-{capabilities}-{engine.report.asked}"
    return Artifact(
        name=name,
        file=f"engines/{name}.engine",
        kind="engine",
        precision=engine.report.asked,
        target="tensorrt",
        bytes=len(engine.plan),
        sha256=hashlib.sha256(engine.plan).hexdigest(),
        excluded=excluded,
        engine=engine.info,
    )


def write_log(messages: Iterable[LogMessage], path: Path) -> None:
    """Write TensorRT's messages to `path`, one severity and text after the other."""
    path.write_text(
        "".join(f"{message.severity}: {message.text}\n" for message in messages), encoding="utf-8"
    )


def _decode(model: bytes) -> onnx.ModelProto:
    try:
        graph = onnx.load_model_from_string(model)
    except DecodeError as error:
        raise ExportError(f"the graph is not an ONNX model ({error}); export it again") from error
    # TensorRT parses an empty file without complaint, and makes up names that cannot be found again.
    if not graph.graph.node:
        raise ExportError("the graph has no nodes; export it again")
    names = [node.name for node in graph.graph.node]
    if "" in names or len(set(names)) < len(names):
        raise ExportError("the graph has nodes without a name, or two of the same name; export it again")
    return graph


def _parse(model: bytes, library: Any, builder: Any) -> Any:
    # Opt-in on TensorRT 10, accepted and without effect on 11 and RTX, where nothing else exists.
    strongly_typed = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(strongly_typed)
    parser = library.OnnxParser(network, process_log(library))
    if not parser.parse(model):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = [
            f"node {error.node_name()!r} ({error.node_operator()}): {readable(error.desc())}"
            for error in errors
        ]
        known = "; ".join(dict.fromkeys(reasons)) or "no reason given"
        raise ExportError(f"TensorRT {library.__version__} cannot read the graph: {known}")
    if network.num_inputs != 1:
        raise ExportError(f"the graph has {network.num_inputs} inputs, expected one")
    return network


def _configure(
    library: Any,
    builder: Any,
    network: Any,
    variant: Variant,
    targets: tuple[str, ...],
    profiles: tuple[BatchRange, ...],
    options: BuildOptions,
    messages: list[LogMessage],
) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    apply_options(options, library, builder, config)
    if variant == "tensorrt_rtx":
        _set_targets(library, config, targets)
    if options.timing_cache is not None:
        _read_timing_cache(config, options.timing_cache)
    tensor = network.get_input(0)
    rest = tuple(tensor.shape)[1:]
    for batch in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(tensor.name, (batch.min, *rest), (batch.opt, *rest), (batch.max, *rest))
        if config.add_optimization_profile(profile) < 0:
            sizes = f"{batch.min},{batch.opt},{batch.max}"
            raise ExportError(f"the batch sizes {sizes} are refused: {errors_of(messages)}")
    return config


def _set_targets(library: Any, config: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        raise RequestError("there is no GPU to build for; give --gpu, such as --gpu sm86,sm89")
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = getattr(library.ComputeCapability, sm(target).upper(), None)
        if capability is None or not config.set_compute_capability(capability, index):
            known = [name for name in library.ComputeCapability.__members__ if name.startswith("SM")]
            raise RequestError(
                f"{TITLES['tensorrt_rtx']} {library.__version__} does not build for {sm(target)}, it "
                "builds for "
                f"{', '.join(known).lower()}; leave it out of --gpu"
            )


def _describe(
    library: Any, variant: Variant, plan: bytes, options: BuildOptions, messages: list[LogMessage]
) -> tuple[tuple[LayerInfo, ...], str | None]:
    """Return the layers of an engine, or none and why: a description that cannot be read costs no engine."""
    if variant == "tensorrt_rtx":
        layers = parse_build_log(message.text for message in messages)
        return (
            layers,
            None if layers else f"the build log of {library.__version__} lists no layers as known here",
        )
    # There is a GPU to load the engine, or it could not have been built.
    text = _inspect(library, plan, options, messages)
    try:
        return parse_inspector(text), None
    except ExportError as error:
        return (), str(error)


def _inspect(library: Any, plan: bytes, options: BuildOptions, messages: list[LogMessage]) -> str:
    runtime = make_runtime(library, options.given())
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        reason = errors_of(messages)
        raise ExportError(f"TensorRT {library.__version__} cannot load the engine it built: {reason}")
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(library.LayerInformationFormat.JSON))


def _read_timing_cache(config: Any, path: Path) -> None:
    # A cache of another version or device is refused by set_timing_cache; the build then starts an empty one.
    data = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(data), ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def _write_timing_cache(config: Any, path: Path) -> None:
    data = bytes(memoryview(config.get_timing_cache().serialize()))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data)


def _located(messages: list[LogMessage], graph: onnx.ModelProto) -> str:
    """The errors of a build, with the node that they name, if they name one."""
    text = errors_of(messages)
    named = [node for node in graph.graph.node if node.name in text]
    node = max(named, key=lambda found: len(found.name), default=None)
    return text if node is None else f"node {node.name!r} ({node.op_type}): {text}"
