"""Classes get other names wherever a bundle has them, and nothing else changes."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.bundle.relabel import relabel
from resnet_export.exporter.cli import cli
from resnet_export.exporter.config import read_config
from resnet_export.runtime.bundle.manifest import BatchRange, read_manifest, verify_bundle
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity import run_parity
from resnet_export.runtime.parity.report.schema import decode_report

NAMES = tuple(f"kind {index} ö" for index in range(10))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = ExportSpec(fp16=True, batch=BatchRange(min=1, opt=2, max=3), gpu=("sm86",))
    model = ModelSpec(arch="resnet20", num_classes=10)
    return export(model, spec, tmp_path_factory.mktemp("relabel") / "bundle").bundle.path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(NAMES), encoding="utf-8")
    return path


def test_the_names_are_new_in_the_manifest_the_graphs_the_page_and_the_request(
    bundle: Path, labels: Path
) -> None:
    relabel(bundle, labels)
    manifest = verify_bundle(bundle)
    assert manifest.labels == NAMES
    for artifact in manifest.artifacts:
        if artifact.kind == "onnx":
            metadata = {entry.key: entry.value for entry in onnx.load(bundle / artifact.file).metadata_props}
            assert metadata["names"] == repr(dict(enumerate(NAMES)))
    assert read_config(bundle / "export.toml")["labels"] == str(labels)


def test_weights_golden_outputs_and_engines_keep_their_bytes(made: Path, bundle: Path, labels: Path) -> None:
    relabel(bundle, labels)
    before, after = read_manifest(made), read_manifest(bundle)
    assert (before.golden, before.modules, before.tolerances) == (
        after.golden,
        after.modules,
        after.tolerances,
    )
    for one, other in zip(before.artifacts, after.artifacts, strict=True):
        if one.kind == "engine":
            assert one.sha256 == other.sha256
            assert other.engine is not None
            assert other.engine.source_sha256 == after.artifact(other.engine.source).sha256
        else:
            was, now = (onnx.load(folder / one.file) for folder in (made, bundle))
            assert was.graph == now.graph
    assert any(artifact.kind == "engine" for artifact in after.artifacts)


def test_the_report_is_about_the_files_that_are_there_and_the_bundle_still_passes(
    bundle: Path, labels: Path
) -> None:
    relabel(bundle, labels)
    manifest = read_manifest(bundle)
    for entry in decode_report((bundle / "report.json").read_bytes()).entries:
        assert entry.sha256 == manifest.artifact(entry.artifact).sha256
    assert run_parity(bundle, threads=1).exit_code == 0


def test_as_many_names_as_classes_are_needed_and_a_refusal_changes_nothing(
    made: Path, bundle: Path, tmp_path: Path
) -> None:
    few = tmp_path / "few.txt"
    few.write_text("one\ntwo\n")
    with pytest.raises(RequestError):
        relabel(bundle, few)
    assert (bundle / "manifest.json").read_bytes() == (made / "manifest.json").read_bytes()


def test_the_command_says_the_names(bundle: Path, labels: Path) -> None:
    result = CliRunner().invoke(cli, ["relabel", str(bundle), "--labels", str(labels)])
    assert result.exit_code == 0, result.output
    assert "10 classes: kind 0 ö" in result.stdout
