"""An engine that cannot be built never costs the graphs, whatever its builder raises."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_export.exporter import ExportSpec, ModelSpec, export, pipeline
from resnet_export.exporter.engine import build as engine_build
from resnet_export.exporter.engine.targets import EnginePlan, PlannedBuild
from resnet_export.exporter.request import bytes_needed
from resnet_export.runtime.bundle.manifest import BatchRange, read_manifest, verify_bundle
from resnet_export.runtime.errors import (
    DependencyError,
    ExportError,
    IntegrityError,
    RequestError,
    ResnetExportError,
)
from tests.exporter.models.test_module import SIZE, network

SPEC = ExportSpec(batch=BatchRange(min=1, opt=1, max=2))
BUILD = PlannedBuild("tensorrt_rtx", ("8.6",))


@pytest.fixture(params=[DependencyError, RequestError, IntegrityError, ExportError])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[ResnetExportError]:
    """The error that every build of an engine ends in."""
    kind: type[ResnetExportError] = request.param

    def build(*_: object, **__: object) -> None:
        raise kind("the builder is out of order")

    monkeypatch.setattr(engine_build, "build_engine", build)
    return kind


@pytest.mark.usefixtures("kind")
def test_one_that_nobody_named_becomes_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "plan_engines", lambda *_: EnginePlan((BUILD,), required=False))
    result = export(ModelSpec(module=network(), image_size=SIZE), SPEC, tmp_path / "bundle")
    assert result.report.exit_code == 0
    assert "out of order" in result.bundle.manifest.provenance.notices[-1]


def test_one_that_was_named_is_an_error_and_the_graphs_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[ResnetExportError]
) -> None:
    monkeypatch.setattr(pipeline, "plan_engines", lambda *_: EnginePlan((BUILD,)))
    with pytest.raises(ExportError, match=r"out of order.*resnet-export build") as raised:
        export(ModelSpec(module=network(), image_size=SIZE), SPEC, tmp_path / "bundle")
    assert isinstance(raised.value.__cause__, kind)
    assert [artifact.name for artifact in verify_bundle(tmp_path / "bundle").artifacts] == ["fp32"]


@pytest.mark.parametrize("engines", [0, 1], ids=["without engines", "with an engine"])
def test_the_space_that_is_asked_for_holds_the_bundle(resnet18_bundle: Path, engines: int) -> None:
    manifest = read_manifest(resnet18_bundle)
    taken = sum(
        file.stat().st_size
        for file in resnet18_bundle.rglob("*")
        if file.is_file() and (engines or "engines" not in file.parts)
    )
    needed = bytes_needed(manifest.model, ExportSpec(fp16=True), EnginePlan((BUILD,) * engines))
    assert taken <= needed <= 3 * taken
