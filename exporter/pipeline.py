"""The line from a trained network to a checked bundle: each step takes a value and returns the next."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from resnet_export.calibration.data.photos import Photos
from resnet_export.exporter.bundle.manifest import (
    Contents,
    artifact_of,
    describe,
    golden_info,
    maker_versions,
)
from resnet_export.exporter.bundle.staging import Bundle, Staging, check_output, staging
from resnet_export.exporter.config import CONFIG, render_config
from resnet_export.exporter.engine.build import Engines, compile_engines, engine_sources
from resnet_export.exporter.engine.targets import EnginePlan, plan_engines
from resnet_export.exporter.golden.images import choose_golden, choose_photos, names_of_folders
from resnet_export.exporter.golden.label_check import check_labels
from resnet_export.exporter.golden.record import GoldenRecord, record_golden
from resnet_export.exporter.graph.export import simplify, to_onnx
from resnet_export.exporter.graph.exported_graph import serialize
from resnet_export.exporter.graph.further_outputs import FurtherOutputs, add_outputs
from resnet_export.exporter.graph.graph_artifact import GraphArtifact, Lowered, Lowering
from resnet_export.exporter.graph.lower import lower
from resnet_export.exporter.graph.metadata import finish
from resnet_export.exporter.graph.preprocessing import bake_preprocessing
from resnet_export.exporter.graph.reuse import Earlier, open_earlier
from resnet_export.exporter.graph.stage_check import check_stage
from resnet_export.exporter.models.classifier import Classifier
from resnet_export.exporter.models.labels import default_labels
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.parity.check import check_parity
from resnet_export.exporter.parity.validation import validation_spec
from resnet_export.exporter.report.files import write_reports
from resnet_export.exporter.request import bytes_needed, check_request, folder_name
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.bundle.golden import encode_golden
from resnet_export.runtime.bundle.manifest import Artifact, Preprocessing
from resnet_export.runtime.errors import ExportError, RequestError
from resnet_export.runtime.parity.report.schema import ParityReport
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import PRECISIONS, Precision
from resnet_export.runtime.progress import STEPS, Progress, silent
from resnet_export.runtime.select.host import probe

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GOLDEN", "Export", "Job", "export", "load_photos", "prepare"]

GOLDEN = "golden.npz"


@dataclass(frozen=True, eq=False)
class Job:
    """What an export is about, once the request has been found in order.

    Attributes:
        model: which network was asked for.
        spec: what to make of it.
        out: where the bundle shall stand.
        net: the eager network.
        parity: what the finished bundle is held to.
        earlier: a bundle whose graphs may serve again.
        engines: those that this host will build.
        bytes_needed: an upper bound of what the bundle takes on disk.
        created: when the bundle was made, as it says itself.
    """

    model: ModelSpec
    spec: ExportSpec
    out: Path
    net: Classifier
    parity: ParitySpec
    earlier: Earlier | None
    engines: EnginePlan
    bytes_needed: int
    created: datetime

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the bundle, which differs from the network's in `in_graph`."""
        return msgspec.structs.replace(self.net.preprocessing, in_graph=self.spec.input == "uint8")

    @property
    def seed(self) -> int:
        """The seed of everything that is drawn."""
        return self.model.seed

    @property
    def outputs(self) -> FurtherOutputs:
        """The outputs that graphs are to have besides the network's own."""
        spec = self.spec
        return FurtherOutputs(
            embedding=spec.embedding,
            features=spec.features,
            activation=self.net.info.activation if spec.softmax else None,
        )

    @property
    def untrained(self) -> bool:
        """Whether the weights are random."""
        return self.net.info.weights.source == "untrained"


@dataclass(frozen=True, eq=False)
class Export:
    """What came out: the bundle as it stands on disk, and the report of the parity check that is in it."""

    bundle: Bundle
    report: ParityReport


def export(
    model: ModelSpec | nn.Module,
    spec: ExportSpec | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: Progress = silent,
) -> Export:
    """Export a network to a bundle at `out` (the architecture's name in the current folder).

    `model` says which network, or is the nn.Module itself: any that turns images [N, C, H, W] into logits
    [N, classes], of which a copy in evaluation mode is exported. `ModelSpec(module=…)` says more of its images and
    labels.

    The bundle is checked before it is put into place: every artifact on every backend of this host, on the golden
    images, against the eager network. What was found is in `Export.report`, in the bundle's `report.json` and in
    `Artifact.parity`; a session runs no artifact that failed unless it is asked for by name.

    Raises:
        RequestError: an option, the checkpoint, the images or the output folder is wrong.
        DependencyError: a package is not installed.
        ExportError: a step's result differs from the eager network, or breaks ONNX's own rules; or an engine that was
            asked for by name could not be built, and then the bundle stands at `out` without it.
    """
    model = model if isinstance(model, ModelSpec) else ModelSpec(module=model)
    job = prepare(model, spec or ExportSpec(), out, progress=progress)
    titles = steps(job)
    step = progress(titles, STEPS, len(titles))
    with staging(job.out, force=job.spec.force, bytes_needed=job.bytes_needed) as stage:
        next(step)
        photos = load_photos(job, progress=progress)
        golden = record_golden(job.net, choose_golden(photos, job.seed), progress)
        next(step)
        fp32, golden = to_fp32(job, golden)
        remarks = remarks_on_labels(job, fp32, photos)
        activation = job.net.info.activation
        task = Lowering(fp32, photos, golden.shipped, job.spec, job.untrained, activation, progress)
        lowered = tuple(
            lower(precision, task, job.earlier) for precision, _ in zip(job.spec.lowered, step, strict=False)
        )
        graphs = (fp32, *(graph for one in lowered for graph in one.graphs))
        next(step)
        written = write_graphs(stage, job, graphs)
        engines = build_engines(written, job, progress)
        contents = write_rest(stage, job, photos, golden, graphs, written, lowered, engines, remarks)
        next(step)
        staged = stage.preview(describe(contents))
        report = check(staged, job, lowered, written, progress)
        write_reports(stage, staged, report)
        bundle = stage.commit(describe(contents, report))
        next(step, None)
    if job.engines.required and engines.failures:
        failure = engines.failures[0]
        raise ExportError(
            f"{failure.sentence}; all else is in {bundle.path}, to which `resnet-export build` adds engines"
        ) from failure.error
    return Export(bundle, report)


def prepare(
    model: ModelSpec,
    spec: ExportSpec,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: Progress = silent,
) -> Job:
    """Check the request, and load the network that it is about; nothing is written. Raises what `export` does."""
    check_request(model, spec)
    created = _now()
    engines = plan_engines(spec.engine, spec.gpu, probe())
    place = folder_name(model) if out is None else out
    if place is not None:
        check_output(place, force=spec.force)  # before a download
    net = load_classifier(model, progress)
    if model.labels is None and spec.calib is not None and net.labels == default_labels(len(net.labels)):
        names = names_of_folders(spec.calib, len(net.labels))
        if names is not None:
            said = (
                f"no labels were given: the class folders of {os.fspath(spec.calib)!r} name the classes, in "
                f"alphabetical order ({names[0]!r} = 0)"
            )
            net = replace(net, labels=names, notices=(*net.notices, said))
    net = with_activation(net, multi_label=model.multi_label)
    place = net.info.arch if place is None else place
    needed = bytes_needed(net.info, spec, engines)
    earlier = open_earlier(spec, Path(place), maker_versions())
    parity = validation_spec(spec, net.preprocessing, net.labels)
    return Job(model, spec, Path(place), net, parity, earlier, engines, needed, created)


def with_activation(net: Classifier, *, multi_label: bool) -> Classifier:
    """Return the network with what makes probabilities of its logits: the sigmoid, of one alone or if `multi_label`."""
    info = net.info
    if info.num_classes == 1 or multi_label:
        info = msgspec.structs.replace(info, activation="sigmoid")
    if info.num_classes > 1:
        return replace(net, info=info)
    said = (
        f"the network has one output, whose sigmoid is the probability of {net.labels[1]!r}; a logit of at most 0 "
        f"means {net.labels[0]!r}"
    )
    return replace(net, info=info, notices=(*net.notices, said))


def steps(job: Job) -> tuple[str, ...]:
    """Return the titles of the steps that an export takes after `prepare`."""
    return (
        "reading images, recording the eager network",
        "exporting to ONNX",
        *(
            f"making the {precision} graph{'s' * (PRECISIONS[precision].graphs > 1)}"
            for precision in job.spec.lowered
        ),
        f"writing{' and building engines' if job.engines.builds else ''}",
        "checking every artifact on this host",
    )


def load_photos(job: Job, *, progress: Progress = silent) -> Photos:
    """Return the calibration images or the bundled photographs, decoded once for all that follows."""
    return choose_photos(job.spec, job.preprocessing, job.net.labels, job.seed, progress=progress)


def to_fp32(job: Job, golden: GoldenRecord) -> tuple[GraphArtifact, GoldenRecord]:
    """nn.Module → ONNX → simplified → further outputs → preprocessing in the graph, each held to the eager network.

    Returns the graph, and the golden record with the further outputs that were asked for in it.
    """
    batch, preprocessing = job.spec.batch, job.preprocessing
    graph, check = to_onnx(job.net.module, batch=batch, reference=golden.normalized)
    stages = {check.step: check.logits}
    graph = simplify(graph)
    check = check_stage(graph.model, golden.normalized, step="simplified", batch=batch, known=check)
    stages[check.step] = check.logits
    if job.outputs != FurtherOutputs():
        graph = add_outputs(graph, job.outputs)
        golden, notices = golden.with_outputs(job.net.module, graph)
        graph = replace(graph, notices=(*graph.notices, *notices))
        check_stage(graph.model, golden.normalized, step="further outputs", batch=batch)
    if preprocessing.in_graph:
        graph = bake_preprocessing(graph, preprocessing)
        check = check_stage(graph.model, golden.shipped, step="fp32", batch=batch)
    stages["fp32"] = check.logits
    return GraphArtifact("fp32", Precision.FP32, "any", graph, stages), golden


def remarks_on_labels(job: Job, fp32: GraphArtifact, photos: Photos) -> tuple[str, ...]:
    """Return what the network makes of labeled images. Raises RequestError for labels that contradict them."""
    if job.untrained:
        return ()
    said = check_labels(
        fp32.graph.model,
        photos,
        job.net.labels,
        as_given=job.spec.labels_as_given,
        activation=job.net.info.activation,
    )
    return () if said is None else (said,)


def write_graphs(
    stage: Staging, job: Job, graphs: Iterable[GraphArtifact]
) -> tuple[tuple[Artifact, bytes], ...]:
    """Write the graphs as they ship; return their artifacts with their bytes."""
    written = []
    for graph in graphs:
        finished = finish(
            graph.graph,
            info=job.net.info,
            labels=job.net.labels,
            preprocessing=job.preprocessing,
            precision=graph.precision,
        )
        data = serialize(finished.model)
        written.append((artifact_of(graph, stage.write(graph.file, data)), data))
    return tuple(written)


def build_engines(written: Iterable[tuple[Artifact, bytes]], job: Job, progress: Progress) -> Engines:
    """typed ONNX → engines. A build that fails is in the result: it never costs the graphs."""
    files = {artifact.name: (artifact, data) for artifact, data in written}
    return compile_engines(
        [files[source.name] for source in engine_sources(artifact for artifact, _ in files.values())],
        job.spec.batch,
        job.engines,
        timing_cache=job.out.with_name(f"{job.out.name}.timing-cache"),
        progress=progress,
    )


def write_rest(
    stage: Staging,
    job: Job,
    photos: Photos,
    golden: GoldenRecord,
    graphs: tuple[GraphArtifact, ...],
    written: Iterable[tuple[Artifact, bytes]],
    lowered: Iterable[Lowered],
    engines: Engines,
    remarks: tuple[str, ...],
) -> Contents:
    """Write engines, golden outputs and tables beside the graphs; return what the manifest is made from."""
    files = {CONFIG: render_config(job.model, job.spec)}
    files |= {name: data for one in lowered for name, data in one.files.items()}
    for engine in engines.built:
        files |= {engine.artifact.file: engine.plan} | engine.files()
    for name, data in files.items():
        stage.write(name, data)
    record = golden.contents(graphs)
    return Contents(
        net=job.net,
        batch=job.spec.batch,
        preprocessing=job.preprocessing,
        outputs=golden.shipped.specs,
        graphs=graphs,
        artifacts=(
            *(artifact for artifact, _ in written),
            *(engine.artifact for engine in engines.built),
        ),
        golden=golden_info(stage.write(GOLDEN, encode_golden(record)), record, bundled=photos.bundled),
        notices=(
            *job.net.notices,
            *graphs[0].graph.notices,
            *remarks,
            *engines.remarks,
            *remarks_on_reuse(lowered),
        ),
        stages={str(one.graphs[0].precision): one.key for one in lowered},
        created=job.created,
    )


def remarks_on_reuse(lowered: Iterable[Lowered]) -> tuple[str, ...]:
    """Say which graphs are those of an earlier bundle."""
    names = [graph.name for one in lowered if one.reused for graph in one.graphs]
    if not names:
        return ()
    return (
        f"taken over from the earlier bundle, since nothing that they are made of changed: {', '.join(names)}",
    )


def _now() -> datetime:
    """Return the time that SOURCE_DATE_EPOCH says (reproducible-builds.org), or the present time."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch and not epoch.isdecimal():
        raise RequestError(
            f"SOURCE_DATE_EPOCH is {epoch!r}, expected seconds since 1970; unset or correct it"
        )
    return datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)


def check(
    staged: Path,
    job: Job,
    lowered: Iterable[Lowered],
    written: Iterable[tuple[Artifact, bytes]],
    progress: Progress,
) -> ParityReport:
    """Check the staged bundle on this host, on the golden images and those of `--val`; the complete report."""
    return check_parity(
        staged,
        job.parity,
        search=next((one.search for one in lowered if one.search is not None), None),
        times={name: times for one in lowered for name, times in one.times.items()},
        # Full batches of each graph were compared after each step; those of an engine were not.
        full_batches_known=[artifact.name for artifact, _ in written],
        progress=progress,
    )
