"""Real builds by TensorRT for RTX, which needs no GPU, and the classic path on doubles of NVIDIA's
bindings.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet_export.exporter.engine import builder
from resnet_export.exporter.engine.builder import Engine, build_engine, engine_artifact
from resnet_export.exporter.engine.options import BuildOptions
from resnet_export.exporter.engine.progress import STEPS, Tree
from resnet_export.exporter.engine.targets import FAMILIES
from resnet_export.runtime.backends.tensorrt_library import LogMessage, errors_of, load_library, readable
from resnet_export.runtime.bundle.engine_header import read_header
from resnet_export.runtime.bundle.layer_report import summary
from resnet_export.runtime.bundle.manifest import BatchRange, ExcludedLayer
from resnet_export.runtime.errors import DependencyError, ExportError, RequestError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.progress import Progress, silent
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import Behaviour, FakeLibrary
from tests.resnet_onnx import CONVOLUTIONS, resnet

T = TypeVar("T")
MASK = {"7.5": 1, "8.0": 2, "8.6": 4, "8.9": 8, "12.0": 16, "12.1": 32}
RTX_TARGETS = tuple(MASK)
BATCH = BatchRange(min=1, opt=8, max=32)
FP16 = resnet(18, "fp16")


def build_rtx(
    model: bytes,
    precision: str = "fp16",
    *,
    targets: tuple[str, ...] = ("8.6",),
    profiles: tuple[BatchRange, ...] = (BATCH,),
    excluded: tuple[ExcludedLayer, ...] = (),
    options: BuildOptions = BuildOptions(),  # noqa: B008 - frozen
    log_file: Path | None = None,
    progress: Progress = silent,
) -> Engine:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    return build_engine(
        model,
        variant="tensorrt_rtx",
        targets=targets,
        profiles=profiles,
        precision=Precision(precision),
        source="model",
        excluded=excluded,
        options=options,
        log_file=log_file,
        progress=progress,
    )


def mask(plan: bytes) -> int:
    value: int = struct.unpack_from("<Q", plan, 32)[0]
    return value


@pytest.mark.parametrize("uint8", [False, True], ids=["float32", "uint8"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("depth", [18, 50])
def test_every_convolution_of_an_engine_has_the_precision_of_its_graph(
    depth: Literal[18, 50], precision: Literal["fp32", "fp16", "int8"], uint8: bool
) -> None:
    model = resnet(depth, precision, uint8_input=uint8)
    engine = build_rtx(model, precision)
    assert engine.report.convolutions() == {Precision(precision): CONVOLUTIONS[depth]}
    assert engine.report.source == "build log"
    # The classifier is not quantized in these graphs, and the report says so.
    assert [item.node for item in engine.report.shortfalls()] == (["fc"] if precision == "int8" else [])
    inputs = {layer.name: layer.inputs for layer in engine.report.layers}
    for operator in engine.report.operators:
        assert operator.layer is not None
        if operator.op == "Conv":
            assert inputs[operator.layer][0] == precision
    assert engine.info.source_sha256 == hashlib.sha256(model).hexdigest()


def test_the_report_tells_a_layer_that_was_kept_from_one_that_was_not_asked_for() -> None:
    excluded = ExcludedLayer(
        node="conv1", module="conv1", precision=Precision.FP16, reason="its range is too wide"
    )
    engine = build_rtx(resnet(18, "int8", keep={"conv1", "layer1.0.conv1"}), "int8", excluded=(excluded,))
    assert engine.report.convolutions() == {Precision.INT8: 18, Precision.FP16: 2}
    reasons = {item.node: item.reason for item in engine.report.shortfalls()}
    assert set(reasons) == {"conv1", "layer1.0.conv1", "fc"}
    assert reasons["conv1"] == "its range is too wide"
    assert "conv1 (Conv) computes in fp16, not in int8: its range is too wide" in summary(engine.report)


@pytest.mark.parametrize(
    "targets",
    [("8.6",), ("8.6", "8.9"), ("7.5",), RTX_TARGETS, *itertools.combinations(("8.0", "12.0", "12.1"), 2)],
    ids="-".join,
)
def test_an_engine_is_for_the_compute_capabilities_that_were_asked_for(targets: tuple[str, ...]) -> None:
    engine = build_rtx(FP16, targets=targets)
    assert mask(engine.plan) == sum(MASK[target] for target in targets)
    assert engine.info.compute_capabilities == targets
    header = read_header(engine.plan)
    library = load_library("tensorrt_rtx")
    assert ".".join(map(str, header.version)) == library.__version__ == engine.info.version


@pytest.mark.parametrize("target", [row.compute_capability for row in FAMILIES if not row.rtx])
def test_the_table_of_gpus_agrees_with_what_the_builder_refuses(target: str) -> None:
    with pytest.raises(RequestError, match="does not build for sm"):
        build_rtx(FP16, targets=(target,))
    assert set(RTX_TARGETS) == {row.compute_capability for row in FAMILIES if row.rtx}


def test_what_turing_cannot_do_is_refused_with_the_node() -> None:
    with pytest.raises(ExportError, match=r"node 'fc' \(Gemm\): Cannot compile operation 'fc' for Turing"):
        build_rtx(resnet(18, "fp32"), "fp32", targets=("7.5",))


def test_an_engine_can_have_several_profiles() -> None:
    profiles = (BatchRange(min=1, opt=1, max=1), BatchRange(min=2, opt=16, max=64))
    engine = build_rtx(FP16, profiles=profiles)
    assert engine.info.profiles == profiles
    assert engine.report.convolutions() == {Precision.FP16: 20}


def test_the_manifest_entry_names_variant_version_gpus_and_precision() -> None:
    engine = build_rtx(FP16, targets=("8.6", "8.9"))
    entry = engine_artifact(engine)
    assert entry.name == f"tensorrt-rtx-{engine.info.version}-sm86-sm89-fp16"
    assert entry.file == f"engines/{entry.name}.engine"
    assert (entry.bytes, entry.sha256) == (len(engine.plan), hashlib.sha256(engine.plan).hexdigest())
    assert entry.engine == engine.info
    assert engine.info.build_seconds > 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (BuildOptions(timing_cache=Path("x")), "timing_cache"),
        (BuildOptions(hardware_compatibility="ampere+"), "hardware_compatibility"),
        (BuildOptions(version_compatible=True), "version_compatible"),
        (BuildOptions(strip_weights=True), "strip_weights"),
        (BuildOptions(refit=True), "refit"),
        (BuildOptions(sparse=True), "sparse"),
        (BuildOptions(dla_core=0), "dla_core"),
    ],
)
def test_an_option_that_rtx_would_ignore_is_refused_by_name(options: BuildOptions, named: str) -> None:
    with pytest.raises(RequestError, match=f"TensorRT for RTX does not honor {named}"):
        build_rtx(FP16, options=options)


def test_a_workspace_limit_is_honored() -> None:
    with pytest.raises(RequestError, match="at least 1"):
        build_rtx(FP16, options=BuildOptions(workspace_mib=0))
    engine = build_rtx(FP16, options=BuildOptions(workspace_mib=1024))
    assert engine.info.options == {"workspace_mib": 1024}
    with pytest.raises(ExportError, match="no tactics to implement the operation within workspace limit"):
        build_rtx(FP16, options=BuildOptions(workspace_mib=1))


def test_batch_sizes_that_do_not_ascend_are_refused() -> None:
    with pytest.raises(RequestError, match="4,2,32 do not ascend"):
        build_rtx(FP16, profiles=(BatchRange(min=4, opt=2, max=32),))


def conv_graph(*nodes: onnx.NodeProto, **constants: np.ndarray) -> bytes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        ).SerializeToString()
    )


WEIGHT = np.ones((4, 3, 3, 3), np.float32)
CONV = helper.make_node("Conv", ["input", "w"], ["logits"], name="layer1.0.conv1")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            conv_graph(CONV, w=WEIGHT.astype(np.float16)),
            r"node 'layer1\.0\.conv1' \(Conv\): .*`input` type is Float but `kernel` is of type Half",
        ),
        (
            conv_graph(helper.make_node("Frobnicate", ["input"], ["logits"], name="layer4.odd")),
            r"node 'layer4\.odd' \(Frobnicate\): .*Plugin not found",
        ),
        (
            conv_graph(CONV, w=np.ones((4, 5, 3, 3), np.float32)),
            r"node 'layer1\.0\.conv1' \(Conv\): .*broadcast",
        ),
        (
            conv_graph(
                helper.make_node("DequantizeLinear", ["b", "s", "z"], ["bias"], axis=0, name="bias.dq"),
                helper.make_node("Conv", ["input", "w", "bias"], ["logits"], name="layer1.0.conv1"),
                w=WEIGHT,
                b=np.ones(4, np.int32),
                s=np.ones(4, np.float32),
                z=np.zeros(4, np.int32),
            ),
            r"node 'bias\.dq' \(DequantizeLinear\): .*Int32 but must have type",
        ),
        (b"", "no nodes"),
        (b"vtrt engine", "not an ONNX model"),
        (conv_graph(helper.make_node("Conv", ["input", "w"], ["logits"]), w=WEIGHT), "without a name"),
    ],
)
def test_a_graph_that_cannot_be_built_is_one_readable_error_with_the_node(model: bytes, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        build_rtx(model)
    assert "\n" not in str(caught.value)
    assert "/_src/" not in str(caught.value)
    assert "CUDA driver" not in str(caught.value)


def test_the_whole_log_is_kept_of_builds_that_work_and_that_fail(tmp_path: Path) -> None:
    build_rtx(FP16, log_file=tmp_path / "good.log")
    good = (tmp_path / "good.log").read_text()
    assert "VERBOSE: Layers:" in good
    assert "INFO: Detected 1 inputs" in good
    with pytest.raises(ExportError):
        build_rtx(conv_graph(CONV, w=WEIGHT.astype(np.float16)), log_file=tmp_path / "bad.log")
    assert "ERROR: ITensor::getDimensions" in (tmp_path / "bad.log").read_text()


class Watcher:
    """Counts what a build reports, and does something at a chosen step."""

    def __init__(self, at: int = -1, interrupt: Callable[[], None] | None = None) -> None:
        self.steps: list[Any] = []
        self.total: int | None = None
        self.at = at
        self.interrupt = interrupt

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        self.description, self.total = description, total
        for item in items:
            self.steps.append(item)
            if len(self.steps) == self.at and self.interrupt is not None:
                self.interrupt()
            yield item


def test_a_build_reports_its_progress_up_to_the_end() -> None:
    watcher = Watcher()
    build_rtx(resnet(50, "int8"), "int8", progress=watcher)
    assert watcher.total == STEPS
    assert watcher.steps == list(range(STEPS))
    assert watcher.description == "building the int8 engine with TensorRT for RTX"


def test_ctrl_c_cancels_a_build_and_the_next_one_works(ctrl_c: Callable[[], None]) -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        build_rtx(resnet(50, "int8"), "int8", progress=Watcher(at=2, interrupt=ctrl_c))
    assert threading.active_count() == before, "the builder's thread is still there"
    assert build_rtx(FP16).report.convolutions() == {Precision.FP16: 20}


def test_progress_is_a_walk_down_the_open_phases_and_never_falls() -> None:
    tree = Tree()
    assert tree.fraction() == 0
    tree.start("build", None, 4)
    tree.step("build", 0)
    assert tree.fraction() == 0.25
    tree.start("optimize", "build", 2)
    tree.step("optimize", 0)
    assert tree.fraction() == 0.375
    tree.start("optimize", "build", 10)  # a phase that runs again
    assert tree.fraction() == 0.375
    tree.finish("optimize")
    tree.step("build", 3)
    assert tree.fraction() == 1
    tree.finish("build")
    assert tree.fraction() == 1
    tree.step("unknown", 1)
    assert tree.fraction() == 1


def test_a_missing_library_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(DependencyError, match=r"pip install 'resnet-export\[tensorrt\]'"):
        load_library("tensorrt")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error (Network has no outputs. In "
            "validate at "
            "/_src/optimizer/api/network.cpp:4023)",
            "Network has no outputs",
        ),
        (
            "[localCheckMacros.cpp::getErrorStr::132] Error Code 2: OutOfMemory (Requested size was 24 "
            "bytes.)",
            "Requested size was 24 bytes",
        ),
        (
            "Invalid Node - conv1\nAssertion failed: (a == b): They differ.",
            "Assertion failed: (a == b): They differ",
        ),
        ("[pass.cpp:337: check_turing] Cannot compile operation 'fc'", "Cannot compile operation 'fc'"),
        ("anything else", "anything else"),
    ],
)
def test_messages_of_tensorrt_lose_their_wrapping(text: str, expected: str) -> None:
    assert readable(text) == expected


def test_errors_are_said_once_and_without_the_noise_of_a_missing_driver() -> None:
    noise = "catchCudaError (cudaError 35: CUDA driver version is insufficient for CUDA runtime version)"
    texts = [
        ("ERROR", "first"),
        ("ERROR", noise),
        ("WARNING", "mild"),
        ("ERROR", "first"),
        ("INTERNAL_ERROR", "last"),
    ]
    assert errors_of(LogMessage(*text) for text in texts) == "first; last"
    assert "gave no reason" in errors_of([])


# The classic path, against doubles of NVIDIA's bindings.

CLASSIC = ("10.3", "11.4")


@pytest.fixture(params=CLASSIC)
def classic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    library = FakeLibrary(request.param, Behaviour(FakeCuda(), nodes=("layer1.0.conv1",)))
    monkeypatch.setattr(builder, "load_library", lambda variant: library)
    return library


def build_classic(options: BuildOptions = BuildOptions(), batch: BatchRange = BATCH) -> Engine:  # noqa: B008
    return build_engine(
        conv_graph(CONV, w=WEIGHT),
        variant="tensorrt",
        targets=("8.7",),
        profiles=(batch,),
        precision=Precision.FP32,
        source="model",
        options=options,
    )


def flags_set(library: FakeLibrary) -> set[int]:
    return {call.args[0] for call in library.builder_config.set_flag.call_args_list}


def test_classic_tensorrt_builds_strongly_typed_networks_with_detailed_layers(classic: FakeLibrary) -> None:
    engine = build_classic()
    strongly_typed = 1 << classic.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    classic.built.create_network.assert_called_once_with(strongly_typed)
    assert classic.builder_config.profiling_verbosity == classic.ProfilingVerbosity.DETAILED
    assert flags_set(classic) == set()
    classic.builder_config.clear_flag.assert_called_once_with(classic.BuilderFlag.TF32)
    (profile,) = (call.args[0] for call in classic.builder_config.add_optimization_profile.call_args_list)
    profile.set_shape.assert_called_once_with("input", (1, 3, 4, 4), (8, 3, 4, 4), (32, 3, 4, 4))
    assert read_header(engine.plan).variant == "tensorrt"
    assert engine.info.variant == "tensorrt"
    assert engine_artifact(engine).name == f"tensorrt-{classic.__version__}-sm87-fp32"


def test_classic_engines_are_described_by_their_inspector(classic: FakeLibrary) -> None:
    report = build_classic().report
    assert report.source == "inspector"
    (operator,) = report.operators
    assert (operator.engine, operator.layer) == (Precision.INT8, "layer1.0.conv1 + relu")
    assert operator.reason == f"the graph gives it fp32, TensorRT {classic.__version__} decided otherwise"


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (BuildOptions(version_compatible=True), {"VERSION_COMPATIBLE"}),
        (BuildOptions(strip_weights=True), {"STRIP_PLAN"}),
        (BuildOptions(refit=True), {"REFIT"}),
        (BuildOptions(sparse=True), {"SPARSE_WEIGHTS"}),
        (BuildOptions(tf32=True), {"TF32"}),
    ],
)
def test_classic_options_set_their_flags_and_are_recorded(
    classic: FakeLibrary, options: BuildOptions, flags: set[str]
) -> None:
    engine = build_classic(options)
    # An engine that carries a runtime of its own must be allowed to, also where it is only inspected.
    allowed = classic.runtime.engine_host_code_allowed is True
    assert allowed == options.version_compatible
    assert flags_set(classic) == {classic.BuilderFlag[flag] for flag in flags}
    assert engine.info.options == options.given()
    assert len(engine.info.options) == 1


def test_hardware_compatibility_is_set_or_refused_by_version(classic: FakeLibrary) -> None:
    build_classic(BuildOptions(hardware_compatibility="ampere+"))
    assert (
        classic.builder_config.hardware_compatibility_level == classic.HardwareCompatibilityLevel.AMPERE_PLUS
    )
    same = BuildOptions(hardware_compatibility="same_compute_capability")
    if classic.__version__.startswith("10.3"):
        with pytest.raises(RequestError, match=r"TensorRT 10\.3\.0 has no hardware compatibility level"):
            build_classic(same)
    else:
        build_classic(same)


def test_a_dla_core_must_exist_and_takes_one_batch_size(classic: FakeLibrary) -> None:
    four = BatchRange(min=4, opt=4, max=4)
    build_classic(BuildOptions(dla_core=1), four)
    assert classic.builder_config.default_device_type == classic.DeviceType.DLA
    assert classic.builder_config.DLA_core == 1
    assert flags_set(classic) == {classic.BuilderFlag.GPU_FALLBACK}
    with pytest.raises(RequestError, match="this device has 2 DLA cores"):
        build_classic(BuildOptions(dla_core=2), four)
    with pytest.raises(RequestError, match="one batch size only"):
        build_classic(BuildOptions(dla_core=0))


def test_timings_are_kept_from_one_build_to_the_next(classic: FakeLibrary, tmp_path: Path) -> None:
    cache = tmp_path / "caches" / "timing.cache"
    for _ in range(3):
        build_classic(BuildOptions(timing_cache=cache))
    assert cache.read_bytes() == b"+++"
    assert [file.name for file in cache.parent.iterdir()] == ["timing.cache"]
