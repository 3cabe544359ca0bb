"""New names for the classes of a bundle, everywhere that they stand; nothing else changes."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import msgspec
import onnx
import tomli_w

from resnet_export.exporter.bundle.staging import Bundle, extending
from resnet_export.exporter.config import CONFIG
from resnet_export.exporter.graph.metadata import named
from resnet_export.exporter.models.labels import read_labels
from resnet_export.exporter.report.files import write_reports
from resnet_export.runtime.bundle.manifest import (
    REPORT_NAME,
    Artifact,
    Manifest,
    read_artifact,
    read_file,
    read_manifest,
)
from resnet_export.runtime.errors import SchemaError
from resnet_export.runtime.parity.report.schema import ParityReport, decode_report, encode_report

__all__ = ["relabel"]


def relabel(bundle: str | os.PathLike[str], labels: Path) -> Bundle:
    """Give the classes of a bundle the names in a file, in one atomic step.

    They stand in the manifest, in the metadata of every ONNX file (whose hashes change, also where engines name what
    they were built from), and in the report's page. Weights, engines and golden outputs keep their bytes.

    Raises what `read_labels` and `extending` raise.
    """
    path = Path(bundle)
    names = read_labels(labels, len(read_manifest(path).labels))
    with extending(path) as stage:
        manifest = read_manifest(path)
        renamed: dict[str, Artifact] = {}
        for artifact in manifest.artifacts:
            if artifact.kind == "onnx":
                model = onnx.ModelProto.FromString(read_file(path, artifact.file, artifact.sha256))
                file = stage.write(artifact.file, named(model, names).SerializeToString(deterministic=True))
                renamed[artifact.name] = msgspec.structs.replace(
                    artifact, bytes=file.bytes, sha256=file.sha256
                )
        artifacts = tuple(_renamed(artifact, renamed) for artifact in manifest.artifacts)
        changed = msgspec.structs.replace(manifest, labels=names, artifacts=artifacts)
        config = manifest.file(CONFIG)
        if config is not None:
            asked = tomllib.loads(read_artifact(path, config).decode())
            asked.setdefault("model", {})["labels"] = os.fspath(labels)
            stage.write(CONFIG, tomli_w.dumps(asked).encode())
        report = _report(path, changed)
        if report is not None:
            stage.write(REPORT_NAME, encode_report(report))  # before the page looks at the staged bundle
            write_reports(stage, stage.preview(changed), report)
        return stage.commit(changed)


def _renamed(artifact: Artifact, renamed: dict[str, Artifact]) -> Artifact:
    if artifact.engine is not None and artifact.engine.source in renamed:
        engine = msgspec.structs.replace(
            artifact.engine, source_sha256=renamed[artifact.engine.source].sha256
        )
        return msgspec.structs.replace(artifact, engine=engine)
    return renamed.get(artifact.name, artifact)


def _report(path: Path, manifest: Manifest) -> ParityReport | None:
    """Return the report of the bundle with the hashes that its artifacts have now, None where it has none to read."""
    file = manifest.file(REPORT_NAME)
    if file is None:
        return None
    try:
        report = decode_report(read_artifact(path, file))
    except SchemaError:
        return None
    hashes = {artifact.name: artifact.sha256 for artifact in manifest.artifacts}
    entries = tuple(
        msgspec.structs.replace(entry, sha256=hashes.get(entry.artifact, entry.sha256))
        for entry in report.entries
    )
    return msgspec.structs.replace(report, entries=entries)
