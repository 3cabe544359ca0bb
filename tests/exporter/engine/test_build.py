"""Engines in bundles: real builds by TensorRT for RTX, added to an existing bundle in one step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from onnx import TensorProto, helper

from resnet_export.exporter.engine import build as engine_build
from resnet_export.exporter.engine.build import add_engines, compile_engines, engine_sources
from resnet_export.exporter.engine.options import BuildOptions
from resnet_export.exporter.engine.targets import EnginePlan, PlannedBuild
from resnet_export.runtime.bundle.layer_report import decode_report, read_reports
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    Artifact,
    BatchRange,
    read_artifact,
    read_file,
    read_manifest,
)
from resnet_export.runtime.errors import (
    BackendError,
    DependencyError,
    ExportError,
    IntegrityError,
    RequestError,
    ResnetExportError,
)
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.host import HostFacts, Package
from tests import engine_bundle, tiny_bundle
from tests.tiny_bundle import FP16, FP32, INT8, INT8_CPU

T = TypeVar("T")

HOST = HostFacts(
    system="linux",
    machine="x86_64",
    cpus=2,
    packages=(Package(module="tensorrt_rtx", distribution="tensorrt-rtx-cu13", version="1.7.1.116"),),
    gpu_note="there is no NVIDIA driver",
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    return engine_bundle.write(tmp_path / "tiny")


def engines(folder: Path) -> dict[str, Artifact]:
    return {item.name: item for item in read_manifest(folder).artifacts if item.kind == "engine"}


def test_engines_come_from_the_reduced_precisions_that_tensorrt_can_read() -> None:
    def sources(*variants: tiny_bundle.Variant) -> list[str]:
        made = [tiny_bundle.artifact(variant, b"x") for variant in variants]
        return [item.name for item in engine_sources(made)]

    assert sources(FP32, FP16, INT8, INT8_CPU) == ["fp16", "int8"]
    assert sources(FP32, FP16) == ["fp16"]
    assert sources(FP32, INT8_CPU) == ["fp32"]


def test_engines_and_their_layer_reports_are_added_to_a_bundle(bundle: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    made, notes = add_engines(bundle, engine="tensorrt-rtx", gpu=("sm86", "sm89"), host=HOST, log_folder=logs)
    assert notes == ()
    found = engines(bundle)
    assert made.manifest == read_manifest(bundle)
    assert {item.precision for item in found.values()} == {Precision.FP16, Precision.INT8}
    for item in found.values():
        assert item.engine is not None
        assert item.engine.compute_capabilities == ("8.6", "8.9")
        assert item.engine.source == str(item.precision)
        assert item.engine.source_sha256 == made.manifest.artifact(item.engine.source).sha256
        assert item.engine.profiles == (made.manifest.batch,)
        assert read_artifact(bundle, item)[:4] == b"vtrt"
        assert item.engine.layers is not None
        (listed,) = [file for file in made.manifest.files if file.file == item.engine.layers]
        report = decode_report(read_file(bundle, listed.file, listed.sha256))
        assert report.convolutions() == {item.precision: 2}
    assert [item.name for item, _ in read_reports(bundle, made.manifest)] == list(found)
    assert all(report.asked == item.precision for item, report in read_reports(bundle, made.manifest))
    assert sorted(file.name for file in logs.iterdir()) == [
        "tensorrt_rtx-sm86-sm89-fp16.log",
        "tensorrt_rtx-sm86-sm89-int8.log",
    ]


def test_engines_for_other_gpus_stand_beside_the_first_and_equal_ones_replace_them(bundle: Path) -> None:
    add_engines(bundle, engine="tensorrt-rtx", gpu=("sm86",), host=HOST)
    add_engines(bundle, engine="tensorrt-rtx", gpu=("sm89",), host=HOST)
    assert len(engines(bundle)) == 4
    made, _ = add_engines(bundle, engine="auto", gpu=("sm89",), host=HOST)
    assert len(engines(bundle)) == 4
    assert len(made.manifest.files) == 4


def test_auto_says_what_it_did_not_build(bundle: Path) -> None:
    _, notes = add_engines(bundle, engine="auto", gpu=(), host=HOST)
    assert len(engines(bundle)) == 2
    (note,) = notes
    assert "no TensorRT engine was built" in note


def test_ctrl_c_leaves_the_bundle_as_it_was(bundle: Path, ctrl_c: Callable[[], None]) -> None:
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    begun = 0

    def interrupting(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        nonlocal begun
        begun += 1
        if begun == 2:  # the first engine is done
            ctrl_c()
        yield from items

    with pytest.raises(KeyboardInterrupt):
        add_engines(bundle, engine="tensorrt-rtx", gpu=("sm86",), host=HOST, progress=interrupting)
    assert begun == 2
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_refused_option_or_gpu_leaves_the_bundle_as_it_was(bundle: Path) -> None:
    before = (bundle / MANIFEST_NAME).read_bytes()
    with pytest.raises(RequestError, match="does not serve sm87"):
        add_engines(bundle, engine="tensorrt-rtx", gpu=("sm87",), host=HOST)
    with pytest.raises(RequestError, match="does not honor sparse"):
        add_engines(bundle, engine="tensorrt-rtx", gpu=(), host=HOST, options=BuildOptions(sparse=True))
    assert (bundle / MANIFEST_NAME).read_bytes() == before


def test_a_graph_that_a_builder_refuses_costs_the_other_graphs_nothing() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    good, bad = tiny_bundle.graph(FP16), b"half a graph"
    sources = [(tiny_bundle.artifact(FP16, good), good), (tiny_bundle.artifact(INT8, bad), bad)]
    builds = (PlannedBuild("tensorrt_rtx", ("8.6",)),)
    engines = compile_engines(sources, BatchRange(), EnginePlan(builds, ("before",), required=False))
    assert [item.artifact.precision for item in engines.built] == [Precision.FP16]
    assert engines.remarks[0] == "before"
    assert engines.remarks[1].startswith("no TensorRT for RTX engine was built from 'int8': ")
    assert "not an ONNX model" in engines.remarks[1]
    (failure,) = engines.failures
    assert isinstance(failure.error, ExportError)


@pytest.mark.parametrize("kind", [DependencyError, RequestError, IntegrityError, ExportError, BackendError])
def test_any_failure_of_one_build_leaves_the_others_whatever_its_kind(
    monkeypatch: pytest.MonkeyPatch, kind: type[ResnetExportError]
) -> None:
    def build(model: bytes, **arguments: object) -> None:
        raise kind("the builder is out of order")

    monkeypatch.setattr("resnet_export.exporter.engine.build.build_engine", build)
    graph = tiny_bundle.graph(FP16)
    engines = compile_engines(
        [(tiny_bundle.artifact(FP16, graph), graph)],
        BatchRange(),
        EnginePlan((PlannedBuild("tensorrt_rtx", ("8.6",)),), required=False),
    )
    assert engines.built == ()
    assert type(engines.failures[0].error) is kind
    assert engines.remarks[-1].endswith("the builder is out of order")


def test_the_timing_cache_stands_beside_the_bundle_and_is_for_classic_tensorrt(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Path | None] = {}

    def build(model: bytes, **arguments: object) -> None:
        options = arguments["options"]
        assert isinstance(options, BuildOptions)
        asked[str(arguments["variant"])] = options.timing_cache
        raise ExportError("enough")

    monkeypatch.setattr(engine_build, "build_engine", build)
    plan = EnginePlan(
        (PlannedBuild("tensorrt_rtx", ("8.6",)), PlannedBuild("tensorrt", ("8.6",))), required=False
    )
    monkeypatch.setattr(engine_build, "plan_engines", lambda *_: plan)
    with pytest.raises(ExportError, match="enough"):
        add_engines(bundle, engine="auto", gpu=(), host=HOST)
    assert asked == {"tensorrt_rtx": None, "tensorrt": bundle.parent / "tiny.timing-cache"}


def test_whatever_a_builder_raises_is_a_failure_of_that_build_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = read_manifest(bundle)
    sources = [
        (source, read_file(bundle, source.file, source.sha256))
        for source in engine_sources(manifest.artifacts)
    ]
    real = engine_build.build_engine
    for broken in (
        TypeError("Builder: no constructor"),
        MemoryError(),
        AttributeError("set_flag"),
        OSError("lost"),
    ):

        def build(model: bytes, broken: Exception = broken, **arguments: Any) -> Any:
            if arguments["source"] == "int8":
                raise broken
            return real(model, **arguments)

        monkeypatch.setattr(engine_build, "build_engine", build)
        engines = compile_engines(
            sources, manifest.batch, EnginePlan((PlannedBuild("tensorrt_rtx", ("8.6",)),))
        )
        assert [item.artifact.precision for item in engines.built] == [Precision.FP16]
        (failure,) = engines.failures
        assert isinstance(failure.error, ExportError)
        assert failure.error.__cause__ is broken
        assert type(broken).__name__ in failure.sentence


def test_a_graph_that_an_older_gpu_cannot_run_is_built_for_the_others() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    model = bfloat16_graph()
    source = msgspec.structs.replace(tiny_bundle.artifact(FP16, model), name="bf16", precision=Precision.BF16)
    plan = EnginePlan((PlannedBuild("tensorrt_rtx", ("8.6", "7.5")),))
    engines = compile_engines([(source, model)], BatchRange(), plan)
    (built,) = engines.built
    assert built.artifact.engine is not None
    assert built.artifact.engine.compute_capabilities == ("8.6",)
    assert built.report.convolutions() == {Precision.BF16: 1}
    (note,) = engines.notes
    assert note.startswith("no engine for sm75 was built from 'bf16': ")
    assert engines.failures == ()
    (failure,) = compile_engines(
        [(source, model)], BatchRange(), EnginePlan((PlannedBuild("tensorrt_rtx", ("7.5",)),))
    ).failures
    assert "sm75" in failure.sentence


def test_where_nothing_could_be_built_it_is_an_error_and_the_bundle_stays_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (bundle / MANIFEST_NAME).read_bytes()
    with pytest.raises(DependencyError, match=r"pip install 'resnet-export\[tensorrt-rtx\]'"):
        add_engines(bundle, engine="auto", gpu=(), host=msgspec.structs.replace(HOST, packages=()))

    def build(model: bytes, **arguments: Any) -> Any:
        raise ExportError(f"{arguments['source']} is refused")

    monkeypatch.setattr(engine_build, "build_engine", build)
    with pytest.raises(ExportError, match=r"'fp16': fp16 is refused; .*'int8': int8 is refused"):
        add_engines(bundle, engine="auto", gpu=(), host=HOST)
    assert (bundle / MANIFEST_NAME).read_bytes() == before


def test_of_a_mixture_of_gpus_the_bundle_gets_what_can_be_built_here(bundle: Path) -> None:
    _, (note,) = add_engines(bundle, engine="auto", gpu=("RTX 3090", "8.9", "H100"), host=HOST)
    assert {item.engine.compute_capabilities for item in engines(bundle).values() if item.engine} == {
        ("8.6", "8.9")
    }
    assert note.startswith("no engine was built for sm90: ")


def bfloat16_graph() -> bytes:
    """One convolution in bfloat16 between two casts."""
    bf16, fp32 = TensorProto.BFLOAT16, TensorProto.FLOAT
    weights = helper.make_tensor("w", bf16, [8, 3, 3, 3], np.random.default_rng(0).normal(size=216))
    nodes = [
        helper.make_node("Cast", ["input"], ["x"], name="narrow", to=bf16),
        helper.make_node("Conv", ["x", "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Cast", ["y"], ["logits"], name="widen", to=fp32),
    ]
    values = [
        helper.make_tensor_value_info(name, fp32, ["N", channels, 16, 16])
        for name, channels in (("input", 3), ("logits", 8))
    ]
    graph = helper.make_graph(nodes, "bf16", values[:1], values[1:], [weights])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
