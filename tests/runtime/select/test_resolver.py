"""The resolver on made-up hosts: no GPU, engine or backend is needed to test what it decides about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resnet_export.runtime.backends.routes import ROUTES
from resnet_export.runtime.bundle.manifest import Artifact, BatchRange, EngineInfo, Manifest, Verdict
from resnet_export.runtime.errors import BundleError, RequestError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.choice import Considered, Resolution
from resnet_export.runtime.select.host import CPU_FEATURES, Gpu, HostFacts, Package
from resnet_export.runtime.select.resolver import explain, resolve
from resnet_export.runtime.select.spec import SessionSpec, parse_request
from tests import tiny_bundle

RTX_4090 = Gpu(index=0, name="NVIDIA GeForce RTX 4090", compute_capability="8.9", memory=24 << 30)
RTX_3060 = Gpu(index=1, name="NVIDIA GeForce RTX 3060", compute_capability="8.6", memory=12 << 30)

# Every route with a runner, so that the ranking does not depend on which engines can be run today.


def package(distribution: str, version: str, module: str | None = None) -> Package:
    return Package(module=module or distribution, distribution=distribution, version=version)


ORT = package("onnxruntime", "1.31.1")
ORT_GPU = package("onnxruntime-gpu", "1.31.1", "onnxruntime")
OPENVINO = package("openvino", "2026.4.1")
RTX = package("tensorrt-rtx-cu13", "1.7.1.116", "tensorrt_rtx")
TENSORRT = package("tensorrt", "10.13.3.9")


def host(
    *packages: Package,
    gpus: tuple[Gpu, ...] = (),
    features: tuple[str, ...] = CPU_FEATURES,
    machine: str = "x86_64",
) -> HostFacts:
    return HostFacts(
        system="linux",
        machine=machine,
        cpus=8,
        cpu_features=features,
        packages=packages,
        gpus=gpus,
        gpu_note=None if gpus else "there is no NVIDIA driver",
    )


CPU_HOST = host(ORT, OPENVINO)
GPU_HOST = host(ORT_GPU, OPENVINO, RTX, TENSORRT, gpus=(RTX_4090,))


def verdict(
    precision: Precision,
    backend: str = "onnxruntime",
    provider: str = "CPUExecutionProvider",
    *,
    ok: bool = True,
) -> Verdict:
    return Verdict(
        backend=backend, provider=provider, precision=precision, passed=ok, detail="" if ok else "cosine 0.4"
    )


def onnx(variant: tiny_bundle.Variant, *parity: Verdict) -> Artifact:
    return tiny_bundle.artifact(variant, b"graph", parity)


def vouched(variant: tiny_bundle.Variant) -> Artifact:
    return onnx(variant, verdict(variant.precision))


def engine(
    precision: Precision = Precision.FP16,
    *,
    variant: str = "tensorrt_rtx",
    version: str = "1.7.1.116",
    capabilities: tuple[str, ...] = ("8.6", "8.9"),
    parity: tuple[Verdict, ...] = (),
) -> Artifact:
    return Artifact(
        name=f"{variant}.{precision}",
        file=f"engines/{variant}.{precision}.engine",
        kind="engine",
        precision=precision,
        target="tensorrt",
        bytes=1,
        sha256="0" * 64,
        engine=EngineInfo(
            variant=variant,
            version=version,
            compute_capabilities=capabilities,
            profiles=(BatchRange(),),
            source=str(precision),
            source_sha256="0" * 64,
        ),
        parity=parity,
    )


ALL_ONNX = tuple(vouched(variant) for variant in tiny_bundle.ALL)
ALL_ENGINES = tuple(
    engine(precision, variant=variant, version=version)
    for variant, version in (("tensorrt_rtx", "1.7.1.116"), ("tensorrt", "10.13.3.9"))
    for precision in (Precision.FP32, Precision.FP16, Precision.INT8)
)


def pick(artifacts: tuple[Artifact, ...], facts: HostFacts = CPU_HOST, **request: object) -> Resolution:
    return resolve(tiny_bundle.manifest(artifacts), facts, SessionSpec(**request))


def chosen(resolution: Resolution) -> str | None:
    choice = resolution.choice
    return choice and f"{choice.artifact} {choice.backend} {choice.provider}"


def reasons(resolution: Resolution, artifact: str, backend: str) -> str:
    found = [item.reason for item in resolution.trace if (item.artifact, item.backend) == (artifact, backend)]
    assert found, f"{artifact} on {backend} is not in the trace"
    return "\n".join(found)


# What is best


def test_a_cpu_takes_the_cpu_layout_of_int8_on_openvino() -> None:
    assert chosen(pick(ALL_ONNX)) == "int8.cpu openvino CPU"


def test_without_openvino_a_cpu_takes_the_cpu_layout_of_int8_on_onnxruntime() -> None:
    assert chosen(pick(ALL_ONNX, host(ORT))) == "int8.cpu onnxruntime CPUExecutionProvider"


def test_without_a_cpu_layout_openvino_runs_the_tensorrt_layout_of_int8() -> None:
    assert chosen(pick((*ALL_ONNX[:3],))) == "int8 openvino CPU"


def test_onnxruntime_on_a_cpu_prefers_fp32_over_everything_it_only_emulates() -> None:
    assert chosen(pick(ALL_ONNX[:3], host(ORT))) == "fp32 onnxruntime CPUExecutionProvider"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_on_a_cpu_fp16_ranks_below_fp32_and_is_labelled_emulated(backend: str) -> None:
    artifacts = (vouched(tiny_bundle.FP16), vouched(tiny_bundle.FP32))
    assert chosen(pick(artifacts, backend=backend)).startswith("fp32")
    asked = pick(artifacts, backend=backend, precision=Precision.FP16).choice
    assert asked is not None
    assert (asked.precision, asked.simulated) == (Precision.FP16, True)


def test_int8_for_tensorrt_is_emulated_by_onnxruntime_and_real_on_openvino() -> None:
    artifacts = (vouched(tiny_bundle.INT8),)
    flags = {
        backend: pick(artifacts, backend=backend).choice.simulated for backend in ("onnxruntime", "openvino")
    }
    assert flags == {"onnxruntime": True, "openvino": False}
    assert pick(ALL_ONNX, host(ORT), artifact="int8.cpu").choice.simulated is False


def test_int8_is_emulated_by_the_cuda_provider() -> None:
    choice = pick(ALL_ONNX, GPU_HOST, artifact="int8.cpu", backend="onnxruntime", device=0).choice
    assert choice.provider == "CUDAExecutionProvider"
    assert choice.simulated


def test_a_gpu_takes_a_matching_engine_first() -> None:
    order = []
    artifacts = (*ALL_ONNX, *ALL_ENGINES)
    while (resolution := pick(artifacts, GPU_HOST)).choice and resolution.choice.backend == "tensorrt":
        order.append(resolution.choice.artifact)
        artifacts = tuple(artifact for artifact in artifacts if artifact.name != order[-1])
    assert order == [
        "tensorrt.int8",
        "tensorrt.fp16",
        "tensorrt_rtx.fp16",
        "tensorrt_rtx.int8",
        "tensorrt_rtx.fp32",
        "tensorrt.fp32",
    ]
    assert chosen(resolution) == "fp16 onnxruntime CUDAExecutionProvider"


def test_a_gpu_without_engines_takes_fp32_on_cuda_when_nothing_else_is_vouched_for() -> None:
    artifacts = tuple(onnx(variant) for variant in tiny_bundle.ALL)
    assert chosen(pick(artifacts, GPU_HOST)) == "fp32 onnxruntime CUDAExecutionProvider"


def test_the_device_is_named_with_its_index() -> None:
    two = host(ORT_GPU, gpus=(RTX_4090, RTX_3060))
    assert pick(ALL_ONNX, two).choice.device == "gpu:0"
    assert pick(ALL_ONNX, two, device=1).choice.device == "gpu:1"
    assert pick(ALL_ONNX, two, device="cpu").choice.device == "cpu"


def test_an_engine_runs_on_the_gpu_that_it_was_built_for() -> None:
    two = host(RTX, gpus=(RTX_4090, RTX_3060))
    artifacts = (*ALL_ONNX, engine(capabilities=("8.6",)))
    assert pick(artifacts, two).choice.device == "gpu:1"
    assert "8.9" in reasons(pick(artifacts, two, device=0), "tensorrt_rtx.fp16", "tensorrt")


# Parity


def test_an_artifact_that_failed_its_parity_check_is_never_picked_unasked() -> None:
    artifacts = (onnx(tiny_bundle.INT8_CPU, verdict(Precision.INT8, ok=False)), onnx(tiny_bundle.FP32))
    resolution = pick(artifacts)
    assert chosen(resolution) == "fp32 onnxruntime CPUExecutionProvider"
    assert "failed its parity check on onnxruntime (CPUExecutionProvider) in int8: cosine 0.4" in reasons(
        resolution, "int8.cpu", "openvino"
    )


def test_a_precision_does_not_lift_a_failed_verdict_and_naming_the_artifact_does() -> None:
    artifacts = (onnx(tiny_bundle.INT8_CPU, verdict(Precision.INT8, ok=False)), onnx(tiny_bundle.FP32))
    assert pick(artifacts, precision=Precision.INT8).choice is None
    assert pick(artifacts, artifact="int8.cpu").choice.artifact == "int8.cpu"


def test_fp32_that_failed_its_parity_check_is_not_picked_either() -> None:
    assert pick((onnx(tiny_bundle.FP32, verdict(Precision.FP32, ok=False)),)).choice is None


def test_a_verdict_counts_for_its_own_engine_first() -> None:
    parity = (verdict(Precision.INT8), verdict(Precision.INT8, "openvino", "CPU", ok=False))
    assert chosen(pick((onnx(tiny_bundle.INT8_CPU, *parity),))) == "int8.cpu onnxruntime CPUExecutionProvider"


def test_reduced_precision_without_a_verdict_runs_only_when_asked_for() -> None:
    artifacts = (onnx(tiny_bundle.INT8_CPU), onnx(tiny_bundle.FP32))
    resolution = pick(artifacts)
    assert resolution.choice.precision == Precision.FP32
    assert "no parity verdict" in reasons(resolution, "int8.cpu", "openvino")
    assert pick(artifacts, precision=Precision.INT8).choice.artifact == "int8.cpu"


def test_an_engine_goes_by_the_verdict_of_the_graph_it_was_built_from() -> None:
    facts = host(RTX, ORT, gpus=(RTX_4090,))
    assert pick((*ALL_ONNX, engine()), facts).choice.backend == "tensorrt"
    failed = onnx(tiny_bundle.FP16, verdict(Precision.FP16, ok=False))
    assert pick((onnx(tiny_bundle.FP32), failed, engine()), facts).choice.artifact == "fp32"
    own = engine(parity=(verdict(Precision.FP16, "tensorrt", "tensorrt_rtx"),))
    assert pick((onnx(tiny_bundle.FP32), failed, own), facts).choice.backend == "tensorrt"


# What the host lacks


@pytest.mark.parametrize(
    ("facts", "artifact", "backend", "expected"),
    [
        (host(), vouched(tiny_bundle.FP32), "openvino", "pip install 'resnet-export[openvino]'"),
        (host(), vouched(tiny_bundle.FP32), "onnxruntime", "pip install 'resnet-export[cpu]'"),
        (
            host(ORT, gpus=(RTX_4090,)),
            vouched(tiny_bundle.FP32),
            "onnxruntime",
            "needs onnxruntime-gpu, this host has onnxruntime 1.31.1",
        ),
        (host(ORT_GPU), vouched(tiny_bundle.FP32), "onnxruntime", "there is no NVIDIA driver"),
        (GPU_HOST, engine(version="1.6.0"), "tensorrt", "1.6.0, this host has 1.7.1.116"),
        (GPU_HOST, engine(capabilities=("7.5", "8.6")), "tensorrt", "7.5, 8.6, this GPU has 8.9"),
        (host(RTX), engine(), "tensorrt", "there is no NVIDIA driver"),
        (host(gpus=(RTX_4090,)), engine(), "tensorrt", "tensorrt_rtx, which is not installed"),
    ],
)
def test_a_rejection_states_both_sides(
    facts: HostFacts, artifact: Artifact, backend: str, expected: str
) -> None:
    assert expected in reasons(pick((artifact,), facts), artifact.name, backend)


def test_a_gpu_index_that_does_not_exist_is_named_beside_those_that_do() -> None:
    resolution = pick(ALL_ONNX, GPU_HOST, device=3)
    assert resolution.choice is None
    assert "needs GPU 3, this host has GPU 0" in reasons(resolution, "fp32", "onnxruntime")


def test_an_engine_of_unknown_library_version_is_not_tried() -> None:
    unknown = Package(module="tensorrt_rtx", distribution="tensorrt_rtx", version=None)
    resolution = pick((engine(),), host(unknown, gpus=(RTX_4090,)), artifact="tensorrt_rtx.fp16")
    assert resolution.choice is None
    assert "states no version" in reasons(resolution, "tensorrt_rtx.fp16", "tensorrt")


def test_an_engine_that_the_manifest_does_not_describe_is_not_tried() -> None:
    bare = msgspec.structs.replace(engine(), engine=None)
    resolution = pick((bare,), GPU_HOST, artifact=bare.name)
    assert resolution.choice is None
    assert "does not say what the engine was built for" in reasons(resolution, bare.name, "tensorrt")


@pytest.mark.parametrize(
    ("features", "machine", "expected"),
    [
        (("avx2", "avx512_vnni"), "x86_64", "int8.cpu"),
        (("avx2", "avx_vnni"), "AMD64", "int8.cpu"),
        (("avx2",), "x86_64", "fp32"),
        ((), "AMD64", "fp32"),
        (("asimd",), "aarch64", "int8.cpu"),
    ],
)
def test_int8_on_x86_needs_vnni_unless_it_was_asked_for(
    features: tuple[str, ...], machine: str, expected: str
) -> None:
    facts = host(ORT, OPENVINO, features=features, machine=machine)
    assert pick(ALL_ONNX, facts).choice.artifact == expected
    assert pick(ALL_ONNX, facts, precision=Precision.INT8).choice.artifact == "int8.cpu"


def test_unknown_cpu_features_are_said_to_be_unknown() -> None:
    facts = msgspec.structs.replace(CPU_HOST, cpu_features=(), cpu_note="this is win32")
    assert "unknown (this is win32)" in reasons(pick(ALL_ONNX, facts), "int8.cpu", "openvino")


# What the user asks for


def test_bf16_runs_on_request_only_and_only_where_the_cpu_has_it() -> None:
    assert chosen(pick(ALL_ONNX, precision=Precision.BF16)) == "fp32 openvino CPU"
    assert pick(ALL_ONNX, precision=Precision.BF16).choice.precision == Precision.BF16
    assert "precision='bf16' has to request" in reasons(pick(ALL_ONNX), "fp32", "openvino")
    old = pick(ALL_ONNX, host(OPENVINO, features=("avx2",)), precision=Precision.BF16)
    assert old.choice is None
    assert "avx512_bf16 or amx_bf16 or bf16" in reasons(old, "fp32", "openvino")


def test_a_bf16_graph_runs_where_there_are_kernels_for_it_and_is_rejected_with_the_reason_elsewhere() -> None:
    graphs = (*ALL_ONNX, vouched(tiny_bundle.Variant("bf16", Precision.BF16)))
    assert pick(graphs, artifact="bf16").choice.backend == "openvino"
    assert "no kernels for bf16 graphs" in reasons(pick(graphs, artifact="bf16"), "bf16", "onnxruntime")
    old = pick(graphs, host(ORT, OPENVINO, features=("avx2",)), artifact="bf16")
    assert old.choice is None
    assert "avx512_bf16 or amx_bf16 or bf16" in reasons(old, "bf16", "openvino")


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.INT8])
def test_a_precision_is_what_runs_or_nothing_does(precision: Precision) -> None:
    assert pick(ALL_ONNX, precision=precision).choice.precision == precision
    others = tuple(artifact for artifact in ALL_ONNX if artifact.precision != precision)
    assert pick(others, precision=precision).choice is None


def test_a_device_excludes_the_other_kind() -> None:
    assert pick(ALL_ONNX, GPU_HOST, device="cpu").choice.backend == "openvino"
    nothing = pick(ALL_ONNX, CPU_HOST, device="gpu")
    assert nothing.choice is None
    assert "device 'gpu' was requested, this runs on the CPU" in reasons(nothing, "fp32", "openvino")


def test_a_choice_that_could_not_be_opened_is_passed_over_with_its_error() -> None:
    manifest = tiny_bundle.manifest(ALL_ONNX)
    first = resolve(manifest, CPU_HOST, SessionSpec())
    assert first.choice is not None
    second = resolve(manifest, CPU_HOST, SessionSpec(), {first.choice: "no such instruction"})
    assert chosen(second) == "int8.cpu onnxruntime CPUExecutionProvider"
    assert "could not be opened: no such instruction" in reasons(second, "int8.cpu", "openvino")


def test_backend_tensorrt_without_an_engine_is_explained_in_one_sentence() -> None:
    request = SessionSpec(backend="tensorrt")
    on_cpus = tuple(route for route in ROUTES if route.device == "cpu")
    sentence = explain(
        resolve(tiny_bundle.manifest(ALL_ONNX[:1]), CPU_HOST, request, routes=on_cpus), request
    )
    assert sentence == (
        "the bundle has nothing to run with backend='tensorrt', it has fp32 in bf16 on openvino; "
        "fp32 in fp32 on onnxruntime or openvino; `resnet-export build` adds engines"
    )


def test_backend_tensorrt_with_the_wrong_engine_names_expected_and_found() -> None:
    request = SessionSpec(backend="tensorrt")
    resolution = resolve(tiny_bundle.manifest((*ALL_ONNX, engine(version="1.6.0"))), GPU_HOST, request)
    sentence = explain(resolution, request)
    assert sentence.startswith(
        "nothing on this host runs the bundle with backend='tensorrt': tensorrt_rtx.fp16"
    )
    assert "1.6.0" in sentence
    assert "1.7.1.116" in sentence
    assert "openvino" not in sentence


def test_the_explanation_without_a_wish_lists_every_reason() -> None:
    sentence = explain(pick(ALL_ONNX[:1], host()), SessionSpec())
    assert sentence.startswith("nothing on this host runs the bundle: fp32 on ")
    assert "resnet-export[cpu]" in sentence
    assert "resnet-export[openvino]" in sentence


def test_a_wish_is_checked_before_it_counts() -> None:
    manifest = tiny_bundle.manifest(ALL_ONNX)
    assert parse_request(
        manifest, backend="openvino", precision="int8", artifact="int8", device=2
    ) == SessionSpec(backend="openvino", precision=Precision.INT8, artifact="int8", device=2)
    assert parse_request(manifest) == SessionSpec()
    with pytest.raises(
        RequestError, match=r"no backend 'torch'; give one of tensorrt, onnxruntime, .*openvino"
    ):
        parse_request(manifest, backend="torch")
    with pytest.raises(RequestError, match="no precision 'fp8'; give one of fp32, fp16, bf16, int8"):
        parse_request(manifest, precision="fp8")
    with pytest.raises(BundleError, match=r"no artifact .fp64.; it has fp32, fp16, int8, int8\.cpu"):
        parse_request(manifest, artifact="fp64")


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [
        *(("device", text, "cpu") for text in ("cpu", "CPU", " Cpu ")),
        *(("device", text, "gpu") for text in ("gpu", "GPU", "cuda", "CUDA")),
        *(("device", text, 0) for text in (0, "0", "cuda:0", "gpu:0", np.int64(0))),
        *(("device", text, 12) for text in (12, "12", "CUDA:12", "GPU:12", np.uint8(12))),
        *(("precision", text, Precision.FP16) for text in ("fp16", "FP16", "Fp16 ", Precision.FP16)),
        *(("precision", text, Precision.INT8) for text in ("int8", "INT8")),
        *(("backend", text, "openvino") for text in ("openvino", "OpenVINO", "OPENVINO")),
        *(("backend", text, "tensorrt") for text in ("tensorrt", "TensorRT")),
        *(("threads", number, 3) for number in (3, np.int32(3))),
    ],
)
def test_the_spellings_of_other_tools_are_understood(argument: str, value: Any, expected: object) -> None:
    spec = parse_request(tiny_bundle.manifest(ALL_ONNX), **{argument: value})
    found = getattr(spec, argument)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("device", r"no device .*; give 'cpu', 'gpu' or the index of a GPU, such as 1 or 'cuda:1'"),
        ("precision", "no precision .*; give one of fp32, fp16, bf16, int8"),
        ("backend", "no backend .*; give one of tensorrt, onnxruntime, "),
        ("threads", "threads is .*, expected a number from 1 on"),
    ],
)
@pytest.mark.parametrize(
    "value",
    [
        -1,
        True,
        1.0,
        "",
        " ",
        "-1",
        "cuda:",
        "cuda:-1",
        "cuda:x",
        "cuda:1:2",
        "cpu:9",
        "9" * 5000,
        "²",
        "١",
        b"cpu",
        [],
        {},
    ],
)
def test_any_other_spelling_is_refused_in_one_sentence(argument: str, expected: str, value: Any) -> None:
    with pytest.raises(RequestError, match=expected) as refused:
        parse_request(tiny_bundle.manifest(ALL_ONNX), **{argument: value})
    assert "\n" not in str(refused.value)


# For any manifest and host

words = st.text("ab1.", max_size=4)
precisions = st.sampled_from(Precision)
verdicts = st.builds(
    Verdict,
    backend=st.sampled_from(["onnxruntime", "openvino", "tensorrt"]),
    provider=st.sampled_from([route.provider for route in ROUTES]),
    precision=precisions,
    passed=st.booleans(),
    detail=words,
)
engines = st.builds(
    EngineInfo,
    variant=st.sampled_from(["tensorrt", "tensorrt_rtx"]),
    version=st.sampled_from(["1.7.1.116", "1.7.1", "10.13.3.9", "", "x"]) | words,
    compute_capabilities=st.lists(st.sampled_from(["8.6", "8.9"]), max_size=2).map(tuple),
    profiles=st.just(()),
    source=words,
    source_sha256=st.just("0" * 64),
    options=st.dictionaries(
        st.sampled_from(["version_compatible", "hardware_compatibility"]), st.sampled_from([True, "ampere+"])
    ),
)
artifacts = st.builds(
    Artifact,
    name=words,
    file=st.just("f"),
    kind=st.sampled_from(["onnx", "engine"]),
    precision=precisions,
    target=st.sampled_from(["any", "cpu", "tensorrt"]),
    bytes=st.just(1),
    sha256=st.just("0" * 64),
    engine=st.none() | engines,
    parity=st.lists(verdicts, max_size=2).map(tuple),
)
manifests = st.lists(artifacts, max_size=5).map(lambda found: tiny_bundle.manifest(found))
packages = st.builds(
    Package,
    module=st.sampled_from(["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]),
    distribution=st.sampled_from(["onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt"]),
    version=st.none() | st.sampled_from(["1.7.1.116", "10.13.3.9"]) | words,
)
gpus = st.builds(
    Gpu,
    index=st.integers(0, 2),
    name=words,
    compute_capability=st.sampled_from(["7.5", "8.6", "8.9"]),
    memory=st.just(1),
)
hosts = st.builds(
    HostFacts,
    system=words,
    machine=st.sampled_from(["x86_64", "aarch64", ""]),
    cpus=st.integers(1, 64),
    cpu_features=st.lists(st.sampled_from(CPU_FEATURES), max_size=4).map(tuple),
    cpu_note=st.none() | words,
    packages=st.lists(packages, max_size=5).map(tuple),
    gpus=st.lists(gpus, max_size=3).map(tuple),
    gpu_note=st.none() | words,
)
wishes = st.builds(
    SessionSpec,
    backend=st.none() | st.sampled_from(["onnxruntime", "openvino", "tensorrt"]) | words,
    precision=st.none() | precisions,
    artifact=st.none() | words,
    device=st.none() | st.sampled_from(["cpu", "gpu"]) | st.integers(-1, 3),
    threads=st.none() | st.integers(1, 4),
)


def is_wanted(item: Considered, request: SessionSpec) -> bool:
    return (
        request.backend in (None, item.backend)
        and request.precision in (None, item.precision)
        and request.artifact in (None, item.artifact)
    )


def is_library(provider: str, engine: EngineInfo) -> bool:
    compatible = engine.options.get("version_compatible") and not engine.options.get("strip_weights")
    return provider == engine.variant or (
        (provider, engine.variant) == ("tensorrt_lean", "tensorrt") and bool(compatible)
    )


@settings(max_examples=150, deadline=None)
@given(manifest=manifests, facts=hosts, request=wishes)
def test_every_candidate_is_in_the_trace_and_the_best_usable_one_is_chosen(
    manifest: Manifest, facts: HostFacts, request: SessionSpec
) -> None:
    resolution = resolve(manifest, facts, request)
    expected = sorted(
        (artifact.name, route.backend, route.provider, precision)
        for artifact in manifest.artifacts
        for route in ROUTES
        if route.kind == artifact.kind
        and (
            artifact.engine is None or artifact.kind == "onnx" or is_library(route.provider, artifact.engine)
        )
        for precision in (artifact.precision, *(route.also if artifact.precision == Precision.FP32 else ()))
    )
    assert sorted((c.artifact, c.backend, c.provider, c.precision) for c in resolution.trace) == expected
    assert all(item.reason for item in resolution.trace)
    assert explain(resolution, request)
    fit = [item for item in resolution.trace if item.outcome in ("chosen", "usable")]
    assert [item.outcome for item in fit] == ["chosen", *["usable"] * (len(fit) - 1)][: len(fit)]
    assert (resolution.choice is None) == (not fit)
    assert all(is_wanted(item, request) for item in fit)
    if resolution.choice is not None:
        assert (resolution.choice.artifact, resolution.choice.backend) == (fit[0].artifact, fit[0].backend)
        assert resolution.choice.precision == fit[0].precision


@settings(max_examples=100, deadline=None)
@given(manifest=manifests, facts=hosts, request=wishes)
def test_failing_choices_one_after_the_other_ends_with_none_and_repeats_none(
    manifest: Manifest, facts: HostFacts, request: SessionSpec
) -> None:
    failures: dict[object, str] = {}
    while (choice := resolve(manifest, facts, request, failures, ROUTES).choice) is not None:
        assert choice not in failures
        failures[choice] = "error"
    assert len(failures) <= 2 * len(ROUTES) * len(manifest.artifacts)


@settings(max_examples=100, deadline=None)
@given(manifest=manifests, facts=hosts)
def test_nothing_unvouched_or_failed_is_ever_chosen_without_being_asked_for(
    manifest: Manifest, facts: HostFacts
) -> None:
    unique = {artifact.name: artifact for artifact in manifest.artifacts}
    manifest = tiny_bundle.manifest(tuple(unique.values()))
    choice = resolve(manifest, facts, SessionSpec()).choice
    if choice is None:
        return
    picked = unique[choice.artifact]
    source = unique.get(picked.engine.source) if picked.kind == "engine" and picked.engine else None
    records = picked.parity or (source.parity if source else ())
    assert not records or any(record.passed for record in records)
    assert records or choice.precision == Precision.FP32
    assert choice.precision == picked.precision


@given(facts=hosts, request=wishes)
def test_facts_and_decisions_survive_json(facts: HostFacts, request: SessionSpec) -> None:
    resolution = resolve(tiny_bundle.manifest(ALL_ONNX), facts, request)
    for value in (facts, request, resolution):
        assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value


@pytest.mark.parametrize("render", [str, repr])
def test_choices_and_candidates_print_what_matters(render: Callable[[object], str]) -> None:
    resolution = pick(ALL_ONNX, host(ORT), precision=Precision.FP16)
    assert "fp16" in render(resolution.choice)
    assert (
        str(resolution.choice)
        == "fp16 on onnxruntime (CPUExecutionProvider) in fp16, simulated (computed in fp32)"
    )
    assert (
        str(pick(ALL_ONNX, GPU_HOST).choice) == "fp16 on onnxruntime (CUDAExecutionProvider, gpu:0) in fp16"
    )
    assert str(resolution.trace[-1]).startswith("skipped: int8.cpu on onnxruntime")
