"""The line from a checkpoint to a bundle: each step takes a value and returns the next."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.table import encode_table
from resnet_export.calibration.search.search import Int8Plan
from resnet_export.exporter import report as page
from resnet_export.exporter.bundle.manifest import describe
from resnet_export.exporter.bundle.staging import Bundle, Staging, check_output, staging
from resnet_export.exporter.engine.build import compile_engines, engine_sources
from resnet_export.exporter.engine.targets import EnginePlan, plan_engines
from resnet_export.exporter.golden.images import choose_golden, choose_photos
from resnet_export.exporter.golden.label_check import label_notice
from resnet_export.exporter.golden.preprocessing_sample import record_sample
from resnet_export.exporter.graph.export import check_against, serialize, simplify, to_onnx
from resnet_export.exporter.graph.graph_artifact import Draft
from resnet_export.exporter.graph.int8 import TABLE, find_plan, to_int8
from resnet_export.exporter.graph.metadata import finish
from resnet_export.exporter.graph.precision import to_fp16
from resnet_export.exporter.graph.preprocessing import bake_preprocessing
from resnet_export.exporter.graph.stage_check import Probe, compare, eager_probe
from resnet_export.exporter.graph.value_ranges import Span, scan_ranges
from resnet_export.exporter.models.classifier import Network, build_network
from resnet_export.exporter.parity.check import check_parity
from resnet_export.exporter.request import bytes_needed, check_request, folder_name
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.bundle.golden import EAGER, Golden, Sample, encode_golden
from resnet_export.runtime.bundle.manifest import Artifact, GoldenInfo, Manifest, Preprocessing
from resnet_export.runtime.parity.report import markdown
from resnet_export.runtime.parity.report.schema import ParityReport, encode_report
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import normalize
from resnet_export.runtime.progress import Progress, silent
from resnet_export.runtime.select.host import probe

GOLDEN = "golden.npz"
REPORT = "report.json"


@dataclass(frozen=True)
class Subject:
    """What an export is about, once the request has been found in order.

    `preprocessing` is that of the bundle, and differs from the network's in `in_graph`; `engines` says which
    this host will build; `bytes_needed` is an upper bound of what the bundle takes on disk.
    """

    out: Path
    network: Network
    preprocessing: Preprocessing
    photos: Photos
    golden: Photos
    engines: EnginePlan
    bytes_needed: int


def export(
    model: ModelSpec,
    spec: ExportSpec | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: Progress = silent,
) -> Bundle:
    """Export a network and return the bundle at `out` (the architecture's name in the current folder).

    The bundle is checked before it is put into place: every artifact on every backend of this host, on the golden
    images, against the eager network. The findings are in its `report.json` and in `Artifact.parity`; a
    session runs no artifact that failed unless it is asked for by name.

    Raises:
        RequestError: an option, the checkpoint, the images or the output folder is wrong.
        DependencyError: a package is not installed.
        ExportError: a step's result differs from the eager network, or breaks ONNX's own rules.
    """
    spec = spec or ExportSpec()
    subject = prepare(model, spec, out, progress=progress)
    network, preprocessing, photos = subject.network, subject.preprocessing, subject.photos
    with staging(subject.out, force=spec.force, bytes_needed=subject.bytes_needed) as stage:
        eager = eager_probe(network.module, normalize(subject.golden.images, network.preprocessing), progress)
        shipped = Probe(subject.golden.as_input(), eager.logits)

        fp32 = to_fp32(network, spec, preprocessing, eager, shipped)
        drafts = [fp32]
        int8 = None
        if spec.fp16:
            drafts.append(narrow(fp32, scan_ranges(fp32.graph, photos.inputs(), progress), shipped, spec))
        if spec.int8:
            untrained = network.info.weights.source == "untrained"
            int8 = find_plan(fp32, spec, photos, untrained=untrained, progress=progress)
            stage.write(TABLE, encode_table(int8.table))
            drafts += to_int8(fp32, int8, photos.inputs(), shipped, spec, progress)
        return ship(stage, subject, spec, eager, drafts, int8, progress)


def prepare(
    model: ModelSpec,
    spec: ExportSpec,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: Progress = silent,
) -> Subject:
    """Check the request and build what it is about; nothing is written. Raises what `export` raises for it."""
    check_request(model, spec)
    engines = plan_engines(spec.engine, spec.gpu, probe())
    place = folder_name(model) if out is None else out
    if place is not None:
        check_output(place, force=spec.force)
    network = build_network(model, progress)
    place = network.info.arch if place is None else place
    need = bytes_needed(network.info, spec)
    check_output(place, force=spec.force, bytes_needed=need)
    preprocessing = msgspec.structs.replace(network.preprocessing, in_graph=spec.input == "uint8")
    photos = choose_photos(spec, preprocessing, network.labels, model.seed, progress=progress)
    golden = choose_golden(photos, model.seed)
    return Subject(Path(place), network, preprocessing, photos, golden, engines, need)


def to_fp32(
    network: Network, spec: ExportSpec, preprocessing: Preprocessing, eager: Probe, shipped: Probe
) -> Draft:
    """nn.Module → ONNX → simplified ONNX, each held to the eager network's logits.

    `eager` has normalized images, `shipped` the same images as the finished graph takes them.
    """
    graph = to_onnx(network.module, image_size=preprocessing.crop, batch=spec.batch, probe=eager)
    graph = check_against(simplify(graph), eager, step="simplified", batch=spec.batch)
    if preprocessing.in_graph:
        graph = bake_preprocessing(graph, preprocessing)
        graph = check_against(graph, shipped, step="fp32", batch=spec.batch)
    return Draft("fp32", "model.onnx", Precision.FP32, "any", graph, graph.checks[-1].logits)


def narrow(fp32: Draft, spans: Mapping[str, Span], shipped: Probe, spec: ExportSpec) -> Draft:
    """fp32 ONNX → strongly typed fp16 ONNX; layers whose `spans` leave fp16's range keep fp32."""
    typed = to_fp16(fp32.graph, spans)
    # Measured here and judged with everything else: whether fp16 is close enough is the parity check's to say.
    found = compare(typed.graph.model, shipped, step="fp16", batch=spec.batch, limit=math.inf)
    return Draft("fp16", "model.fp16.onnx", Precision.FP16, "any", typed.graph, found.logits, typed.excluded)


def ship(
    stage: Staging,
    subject: Subject,
    spec: ExportSpec,
    eager: Probe,
    drafts: list[Draft],
    int8: Int8Plan | None,
    progress: Progress,
) -> Bundle:
    """typed ONNX → engines → bundle: written, checked where nobody sees it yet, and put into place."""
    network, preprocessing = subject.network, subject.preprocessing
    files, written = {}, {}
    for draft in drafts:
        graph = finish(draft.graph, info=network.info, preprocessing=preprocessing, precision=draft.precision)
        files[draft.name] = serialize(graph.model)
        written[draft.name] = stage.write(draft.file, files[draft.name])
    golden = write_golden(stage, subject.golden, eager, drafts, record_sample(network.preprocessing))
    notices = (*network.notices, *drafts[0].graph.notices, *_said_of_labels(subject, drafts[0]))
    artifacts = [(draft, written[draft.name]) for draft in drafts]
    manifest = describe(network, spec, preprocessing, artifacts, golden, notices)
    sources = [(artifact, files[artifact.name]) for artifact in engine_sources(manifest)]
    built, notes = compile_engines(
        sources,
        spec.batch,
        subject.engines,
        timing_cache=subject.out.with_name(f"{subject.out.name}.timing-cache"),
        progress=progress,
    )
    for engine in built:
        stage.write(engine.artifact.file, engine.plan)
        for name, data in engine.files().items():
            stage.write(name, data)
    manifest = with_engines(manifest, [engine.artifact for engine in built], notes)
    unseen = stage.draft(manifest)
    # Full batches of each graph were compared after each step; those of an engine were not.
    report = check_parity(
        unseen,
        search=None if int8 is None else int8.findings,
        times=None if int8 is None else {"int8": int8.times},
        full_batches_known=files,
        progress=progress,
    )
    stage.write(REPORT, encode_report(report))
    stage.write("report.md", markdown.render(report).encode())
    if page.installed():
        stage.write("report.html", page.render(report, page.gather(stage.draft(manifest), report)))
    return stage.commit(with_verdicts(manifest, report))


def _said_of_labels(subject: Subject, fp32: Draft) -> tuple[str, ...]:
    photos, network = subject.photos, subject.network
    if network.info.weights.source == "untrained":
        return ()
    said = label_notice(fp32.graph.model, photos, network.labels)
    return () if said is None else (said,)


def write_golden(
    stage: Staging, photos: Photos, eager: Probe, drafts: list[Draft], sample: Sample
) -> GoldenInfo:
    """Write the golden images with the logits of every stage on them, and the sample of the preprocessing."""
    logits = {EAGER: eager.logits}
    logits |= {check.step: check.logits for check in drafts[0].graph.checks}
    logits |= {draft.name: draft.logits for draft in drafts}
    file = stage.write(GOLDEN, encode_golden(Golden(photos.images, logits, sample)))
    return GoldenInfo(
        file=file.file,
        bytes=file.bytes,
        sha256=file.sha256,
        count=len(photos),
        source="bundled" if photos.bundled else "calibration",
        stages=tuple(sorted(logits)),
        sample_bytes=len(sample.file),
    )


def with_engines(manifest: Manifest, engines: Sequence[Artifact], notes: Sequence[str]) -> Manifest:
    """Return the manifest with the engines, and a notice for each that was not built."""
    provenance = manifest.provenance
    return msgspec.structs.replace(
        manifest,
        artifacts=(*manifest.artifacts, *engines),
        provenance=msgspec.structs.replace(provenance, notices=(*provenance.notices, *notes)),
    )


def with_verdicts(manifest: Manifest, report: ParityReport) -> Manifest:
    """Return the manifest with what the parity check found of each artifact."""
    judged = (
        msgspec.structs.replace(artifact, parity=report.verdicts(artifact.name))
        for artifact in manifest.artifacts
    )
    return msgspec.structs.replace(manifest, artifacts=tuple(judged))
