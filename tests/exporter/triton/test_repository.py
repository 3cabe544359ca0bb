"""The model repository as files: each configuration, versions, and what is refused before a byte is written."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from resnet_export.exporter.cli.group import cli
from resnet_export.exporter.triton.repository import write_repository
from resnet_export.exporter.triton.spec import TritonSpec
from resnet_export.runtime import open_session, read_manifest
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, encode_manifest
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.preprocess import to_input
from tests import parity_bundle, triton_bundle
from tests.tiny_bundle import FP32, LABELS

EVERY = ("python", "onnxruntime", "openvino", "tensorrt")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return triton_bundle.write(tmp_path_factory.mktemp("triton") / "tiny")


def config(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), pb.ModelConfig())


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_every_backend_gets_a_model_of_what_it_can_run(bundle: Path, tmp_path: Path) -> None:
    written = write_repository(bundle, tmp_path / "models", TritonSpec(backends=EVERY))
    assert written.models == (
        "tiny",
        "tiny_preprocess",
        "tiny_python",
        "tiny_onnxruntime_fp32",
        "tiny_onnxruntime_fp16",
        "tiny_onnxruntime_int8",
        "tiny_onnxruntime_int8_cpu",
        "tiny_openvino_fp32",
        "tiny_openvino_fp16",
        "tiny_openvino_int8_cpu",
        "tiny_tensorrt_fp16",
        "tiny_labels",
    )
    assert {path.name for path in (tmp_path / "models").iterdir()} == set(written.models)
    digest = hashlib.sha256((bundle / MANIFEST_NAME).read_bytes()).hexdigest()
    for name in written.models:
        found = config(tmp_path / "models" / name)
        assert found.name == name
        assert found.parameters["bundle_sha256"].string_value == digest
        assert found.parameters["bundle_sha256.1"].string_value == digest
        assert (tmp_path / "models" / name / "1").is_dir()


def test_a_network_is_configured_from_the_manifest(bundle: Path, tmp_path: Path) -> None:
    write_repository(
        bundle, tmp_path / "models", TritonSpec(backends=EVERY, instances=3, max_queue_delay=500)
    )
    manifest = read_manifest(bundle)
    home = tmp_path / "models" / "tiny_onnxruntime_fp32"
    found = config(home)
    assert (found.backend, found.platform, found.max_batch_size) == ("onnxruntime", "onnxruntime_onnx", 8)
    assert [(one.name, one.data_type, [*one.dims]) for one in found.input] == [
        ("input", pb.TYPE_FP32, [3, 16, 16])
    ]
    assert [(one.name, one.data_type, [*one.dims]) for one in found.output] == [("logits", pb.TYPE_FP32, [5])]
    assert [*found.dynamic_batching.preferred_batch_size] == [manifest.batch.opt, manifest.batch.max]
    assert found.dynamic_batching.max_queue_delay_microseconds == 500
    assert found.instance_group[0].count == 3
    assert (home / found.output[0].label_filename).read_text().splitlines() == list(LABELS)
    warm = (home / "warmup" / found.model_warmup[0].inputs["input"].input_data_file).read_bytes()
    golden = read_golden(bundle).images[:1]
    assert warm == to_input(golden, manifest.preprocessing).tobytes()
    assert [sample.batch_size for sample in found.model_warmup] == [1, manifest.batch.opt]
    assert (home / "1" / found.default_model_filename).read_bytes() == (
        bundle / "model.fp32.onnx"
    ).read_bytes()


def test_accelerators_follow_precision_and_layout(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models", TritonSpec(backends=("onnxruntime",)))

    def accelerator(artifact: str) -> tuple[int, dict[str, str]]:
        found = config(tmp_path / "models" / f"tiny_onnxruntime_{artifact}")
        accelerators = found.optimization.execution_accelerators.gpu_execution_accelerator
        return found.instance_group[0].kind, {
            key: value for one in accelerators for key, value in one.parameters.items()
        }

    kinds = pb.ModelInstanceGroup
    assert accelerator("fp16") == (kinds.KIND_AUTO, {"precision_mode": "FP16"})
    # ONNX Runtime's CPU provider miscomputes this graph: it runs on a GPU, or the server refuses it.
    assert accelerator("int8") == (kinds.KIND_GPU, {"precision_mode": "INT8"})
    assert accelerator("int8_cpu") == (kinds.KIND_CPU, {})


def test_plans_of_several_gpus_are_one_model(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models", TritonSpec(backends=("tensorrt",)))
    home = tmp_path / "models" / "tiny_tensorrt_fp16"
    found = config(home)
    assert dict(found.cc_model_filenames) == {"8.6": "fp16.sm86.plan", "8.9": "fp16.sm89.plan"}
    for file in found.cc_model_filenames.values():
        assert (home / "1" / file).is_file()
    assert found.max_batch_size == 8  # the most that both take
    assert found.platform == "tensorrt_plan"


def test_the_python_model_carries_a_bundle_that_opens(bundle: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "models")
    copied = tmp_path / "models" / "tiny_python" / "1" / "bundle"
    inputs = to_input(parity_bundle.crops(2), read_manifest(bundle).preprocessing)
    with open_session(bundle) as first, open_session(copied) as second:
        np.testing.assert_array_equal(first.run(inputs), second.run(inputs))


def test_a_new_bundle_becomes_the_next_version_and_the_same_one_does_not(
    bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "models"
    (out / "of somebody else").mkdir(parents=True)
    first = write_repository(bundle, out)
    before = snapshot(out)
    again = write_repository(bundle, out)
    assert (first.version, first.added, again.version, again.added) == (1, True, 1, False)
    assert snapshot(out) == before

    other = parity_bundle.write(tmp_path / "tiny", [FP32])
    second = write_repository(other, out)
    assert (second.version, second.added) == (2, True)
    after = snapshot(out)
    assert {file: after[file] for file in before if "/1/" in file} == {
        file: data for file, data in before.items() if "/1/" in file
    }
    for name in second.models:
        parameters = config(out / name).parameters
        assert parameters["bundle_sha256.1"].string_value == first.bundle_sha256
        assert parameters["bundle_sha256.2"].string_value == second.bundle_sha256
        assert parameters["bundle_sha256"].string_value == second.bundle_sha256
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]  # no staging folder is left


def test_labels_with_line_breaks_stay_one_line_each(tmp_path: Path) -> None:
    bundle = parity_bundle.write(tmp_path / "tiny", [FP32])
    manifest = read_manifest(bundle)
    changed = msgspec.structs.replace(manifest, labels=("a\tb", *manifest.labels[1:]))
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    write_repository(bundle, tmp_path / "models")
    lines = (tmp_path / "models" / "tiny_python" / "labels.txt").read_text().splitlines()
    assert lines == ["a b", *LABELS[1:]]


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (TritonSpec(backends=("pytorch",)), "has no backend 'pytorch'"),
        (TritonSpec(name="a b"), "is no name of a model"),
        (TritonSpec(backends=("tensorrt",), artifacts=("fp32",)), "it is an ONNX graph, and no engine"),
        (TritonSpec(backends=("openvino",), artifacts=("int8",)), "it is laid out for TensorRT"),
        (TritonSpec(backends=("python", "python")), "two models would be called"),
    ],
)
def test_what_cannot_be_served_is_refused_before_a_byte_is_written(
    bundle: Path, tmp_path: Path, spec: TritonSpec, sentence: str
) -> None:
    with pytest.raises(RequestError, match=sentence):
        write_repository(bundle, tmp_path / "models", spec)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("variant", "least", "sentence"),
    [("tensorrt_rtx", 1, "of TensorRT for RTX"), ("tensorrt", 2, "takes no batch of 1")],
)
def test_engines_that_triton_cannot_use_are_refused(
    tmp_path: Path, variant: str, least: int, sentence: str
) -> None:
    bundle = triton_bundle.write(tmp_path / "tiny", variant=variant, least=least)
    with pytest.raises(RequestError, match=sentence):
        write_repository(bundle, tmp_path / "models", TritonSpec(backends=("tensorrt",)))


def test_another_network_under_the_same_name_is_refused(bundle: Path, tmp_path: Path) -> None:
    from tests import tiny_bundle

    out = tmp_path / "models"
    write_repository(bundle, out)
    before = snapshot(out)
    other = parity_bundle.write(tmp_path / "tiny", [FP32])
    manifest = read_manifest(other)
    graph = tiny_bundle.graph(uint8=True)
    (other / "model.fp32.onnx").write_bytes(graph)
    changed = msgspec.structs.replace(
        tiny_bundle.manifest([tiny_bundle.artifact(FP32, graph)], uint8=True), golden=manifest.golden
    )
    (other / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    with pytest.raises(RequestError, match="other inputs or outputs"):
        write_repository(other, out)
    assert snapshot(out) == before


def test_the_command_says_what_it_wrote(bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["triton", str(bundle), "--out", str(tmp_path / "models")])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0].startswith(f"{tmp_path / 'models'}: version 1 added, bundle ")
    (tmp_path / "other" / "tiny").mkdir(parents=True)
    for arguments, sentence in (
        ([str(tmp_path / "other")], "is in the way: it is no model that resnet-export wrote"),
        ([str(bundle / "models")], "lies in the folder that BUNDLE names"),
        ([str(tmp_path / "models"), "--artifact", "fp8"], "the bundle has no artifact 'fp8'"),
    ):
        done = CliRunner().invoke(cli, ["triton", str(bundle), "--out", *arguments])
        assert done.exit_code == 2, done.output
        assert sentence in done.output
