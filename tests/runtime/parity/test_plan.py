"""What a check will run, decided from facts about the host alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_export.runtime.bundle.manifest import Manifest, read_manifest
from resnet_export.runtime.errors import BundleError, RequestError
from resnet_export.runtime.parity.plan import is_reference, plan
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.host import Gpu, HostFacts, Package
from tests import tiny_bundle

ORT = Package(module="onnxruntime", distribution="onnxruntime", version="1.31.1")
ORT_GPU = Package(module="onnxruntime", distribution="onnxruntime-gpu", version="1.31.1")
OPENVINO = Package(module="openvino", distribution="openvino", version="2026.4.1")
GPU = Gpu(index=0, name="NVIDIA A10", compute_capability="8.6", memory=2**34)


def host(*packages: Package, features: tuple[str, ...] = (), gpus: tuple[Gpu, ...] = ()) -> HostFacts:
    return HostFacts(
        system="linux", machine="x86_64", cpus=2, cpu_features=features, packages=packages, gpus=gpus
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder: Path = tmp_path_factory.mktemp("plan") / "tiny"
    return read_manifest(tiny_bundle.write(folder, tiny_bundle.ALL))


def runs(manifest: Manifest, facts: HostFacts, asked: ParitySpec | None = None) -> list[tuple[str, str]]:
    return [(run.artifact.name, run.backend) for run in plan(manifest, facts, asked or ParitySpec()).runs]


def test_every_artifact_runs_on_every_backend_that_is_there_in_the_order_of_the_manifest(
    manifest: Manifest,
) -> None:
    found = runs(manifest, host(ORT, OPENVINO))
    assert [name for name, _ in found] == [
        name for name in ("fp32", "fp16", "int8", "int8.cpu") for _ in (1, 2)
    ]
    assert runs(manifest, host(ORT)) == [(n, "onnxruntime") for n in ("fp32", "fp16", "int8", "int8.cpu")]


def test_what_cannot_run_is_skipped_with_the_resolvers_own_reason(manifest: Manifest) -> None:
    found = plan(manifest, host(ORT), ParitySpec())
    reasons = {item.backend: item.reason for item in found.skipped if item.artifact == "fp16"}
    assert reasons["openvino"].startswith("needs the package openvino, which is not installed")
    assert found.unverified == found.unmet == ()


def test_an_artifact_that_nothing_runs_is_unverified(manifest: Manifest) -> None:
    found = plan(manifest, host(), ParitySpec())
    assert found.runs == ()
    assert found.unverified == ("fp32", "fp16", "int8", "int8.cpu")
    assert {(item.artifact, item.declared) for item in found.skipped} >= {("fp16", Precision.FP16)}


def test_gpu_and_cpu_of_one_backend_are_runs_of_their_own(manifest: Manifest) -> None:
    found = plan(manifest, host(ORT_GPU, gpus=(GPU,)), ParitySpec(artifacts=("fp16",)))
    assert {(run.provider, run.device) for run in found.runs} >= {
        ("CUDAExecutionProvider", "gpu"),
        ("CPUExecutionProvider", "cpu"),
    }


def test_a_failed_verdict_on_record_keeps_no_artifact_from_being_checked_again(tmp_path: Path) -> None:
    verdict = tiny_bundle.passed(tiny_bundle.FP16, "onnxruntime", "CPUExecutionProvider", ok=False)
    folder = tiny_bundle.write(
        tmp_path / "tiny", (tiny_bundle.FP32, tiny_bundle.FP16), parity={"fp16": (verdict,)}
    )
    assert ("fp16", "onnxruntime") in runs(read_manifest(folder), host(ORT))


def test_only_what_was_asked_for_runs(manifest: Manifest) -> None:
    facts = host(ORT, OPENVINO)
    assert runs(manifest, facts, ParitySpec(artifacts=("fp16",), backends=("openvino",))) == [
        ("fp16", "openvino")
    ]


def test_what_was_asked_for_and_has_no_run_is_unmet(manifest: Manifest) -> None:
    found = plan(manifest, host(ORT), ParitySpec(artifacts=("fp16",), backends=("onnxruntime", "openvino")))
    assert found.unmet == ("backend 'openvino'",)
    found = plan(manifest, host(ORT), ParitySpec(artifacts=("fp16",), backends=("openvino",)))
    assert found.unmet == ("artifact 'fp16'", "backend 'openvino'")


def test_coarser_arithmetic_for_fp32_graphs_runs_only_when_it_is_asked_for(manifest: Manifest) -> None:
    facts = host(OPENVINO, features=("avx512_bf16",))
    assert all(run.precision is run.artifact.precision for run in plan(manifest, facts, ParitySpec()).runs)
    found = plan(manifest, facts, ParitySpec(precisions=(Precision.BF16,)))
    assert [(run.artifact.name, run.precision) for run in found.runs] == [("fp32", Precision.BF16)]
    assert not any(map(is_reference, found.runs))


def test_further_images_bring_the_fp32_graph_along_on_its_best_backend(manifest: Manifest) -> None:
    facts = host(ORT, OPENVINO)
    found = plan(manifest, facts, ParitySpec(artifacts=("int8",), backends=("openvino",), data="photos"))
    assert [(run.artifact.name, run.backend, run.wanted) for run in found.runs] == [
        ("fp32", "onnxruntime", False),
        ("int8", "openvino", True),
    ]
    eager = ParitySpec(artifacts=("int8",), backends=("openvino",), data="photos", reference="eager")
    assert runs(manifest, facts, eager) == [("int8", "openvino")]


def test_a_reference_that_was_not_asked_for_meets_no_request(manifest: Manifest) -> None:
    asked = ParitySpec(artifacts=("fp32",), precisions=(Precision.BF16,), data="photos")
    found = plan(manifest, host(ORT), asked)
    assert [run.wanted for run in found.runs] == [False]
    assert found.unmet == ("artifact 'fp32'",)


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (ParitySpec(artifacts=("fp8",)), BundleError, "no artifact 'fp8'"),
        (ParitySpec(backends=("tflite",)), RequestError, "no backend 'tflite'"),
    ],
)
def test_names_that_do_not_exist_are_refused(
    manifest: Manifest, asked: ParitySpec, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(manifest, host(ORT), asked)
