"""ONNX classifiers that exist already: what they become, that torch is not needed, and how others are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.graph.exported_graph import OnnxNetwork
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.request import check_request
from resnet_export.exporter.spec import ExportSpec, ModelSpec
from resnet_export.runtime.errors import DependencyError, RequestError

CLASSES = 5


def classifier(
    *,
    shape: Sequence[Any] = ("N", 3, 32, 32),
    dtype: int = TensorProto.FLOAT,
    opset: int = 13,
    last: Sequence[str] = (),
    head: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[str] = ("scores",),
    inputs: int = 1,
    domain: str = "",
) -> onnx.ModelProto:
    """A convolution, an average and a linear layer: "image" → "scores", and what `last` lets follow."""
    draw = np.random.default_rng(0)
    nhwc = shape[-1] == 3
    weights = {
        "stem.weight": draw.normal(size=(8, 3, 3, 3)),
        "fc.weight": draw.normal(size=(CLASSES, 8)),
        "fc.bias": draw.normal(size=CLASSES),
    }
    nodes = [
        *([helper.make_node("Transpose", ["image"], ["nchw"], perm=[0, 3, 1, 2])] if nhwc else []),
        helper.make_node("Conv", ["nchw" if nhwc else "image", "stem.weight"], ["features"], pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["features"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["dense"], transB=1),
    ]
    for kind in last:
        nodes.append(helper.make_node(kind, [nodes[-1].output[0]], [f"{kind}_out"], domain=domain))
    nodes[-1].output[0] = "scores"
    graph = helper.make_graph(
        [*nodes, *head],
        "g",
        [
            helper.make_tensor_value_info("image" if at == 0 else f"more{at}", dtype, list(shape))
            for at in range(inputs)
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def saved(model: onnx.ModelProto, folder: Path, name: str = "net.onnx") -> str:
    (folder / name).write_bytes(model.SerializeToString())
    return str(folder / name)


def loaded(file: str, **request: Any) -> Any:
    return load_classifier(ModelSpec(model=file, **request))


def images(count: int = 3, side: int = 32) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).normal(size=(count, 3, side, side)).astype(np.float32)


def test_the_file_is_the_network_with_its_own_size_and_classes(tmp_path: Path) -> None:
    model = classifier()
    net = loaded(saved(model, tmp_path))
    assert isinstance(net.module, OnnxNetwork)
    assert (net.info.arch, net.info.num_classes, net.preprocessing.crop) == ("net", CLASSES, 32)
    assert net.info.weights.source == "onnx"
    assert net.info.parameters == 8 * 3 * 9 + CLASSES * 8 + CLASSES
    (expected,) = CpuSession(model.SerializeToString()).run(images())
    assert np.array_equal(net.module.runner()(images())["logits"], expected)
    graph = net.module.graph
    assert graph.opset == 19
    assert graph.modules == {
        "stem": "stem",
        "globalaveragepool": "",
        "flatten": "",
        "fc": "fc",
    }


@pytest.mark.parametrize("opset", [8, 11, 17, 19, 21])
def test_a_file_of_any_operator_set_computes_the_same(tmp_path: Path, opset: int) -> None:
    net = loaded(saved(classifier(opset=opset), tmp_path))
    graph = CpuSession(net.module.graph.model.SerializeToString())
    np.testing.assert_allclose(
        graph.run(images())[0], net.module.runner()(images())["logits"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("opset", [7, 8, 13])
def test_weights_that_are_inputs_as_before_ir_version_4_are_weights(tmp_path: Path, opset: int) -> None:
    model = classifier(opset=opset)
    expected = loaded(saved(model, tmp_path)).module.runner()(images())["logits"]
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 3
    net = loaded(saved(model, tmp_path))
    assert np.array_equal(net.module.runner()(images())["logits"], expected)
    graph = CpuSession(net.module.graph.model.SerializeToString())
    np.testing.assert_allclose(graph.run(images())[0], expected, rtol=1e-5, atol=1e-5)


def test_images_with_channels_last_are_turned(tmp_path: Path) -> None:
    model = classifier(shape=("N", 24, 40, 3))
    net = loaded(saved(model, tmp_path))
    assert net.preprocessing.size == (24, 40)
    turned = images(side=40)[:, :, :24]
    (expected,) = CpuSession(model.SerializeToString()).run(turned.transpose(0, 2, 3, 1))
    assert np.array_equal(net.module.runner()(turned)["logits"], expected)


@pytest.mark.parametrize(("asked", "size"), [(None, (224, 224)), (64, (64, 64)), ((32, 48), (32, 48))])
def test_a_dynamic_size_is_fixed_to_the_image_size(tmp_path: Path, asked: Any, size: tuple[int, int]) -> None:
    net = loaded(saved(classifier(shape=("N", 3, "h", "w")), tmp_path), image_size=asked)
    assert net.preprocessing.size == size
    dims = net.module.graph.model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value or dim.dim_param for dim in dims] == ["N", 3, *size]


def test_a_softmax_at_the_end_is_left_out_and_named(tmp_path: Path) -> None:
    model = classifier(last=("Softmax", "Identity"))
    net = loaded(saved(model, tmp_path))
    assert "ends in Softmax" in net.notices[0]
    logits = net.module.runner()(images())["logits"].astype(np.float64)
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    (expected,) = CpuSession(model.SerializeToString()).run(images())
    np.testing.assert_allclose(exponents / exponents.sum(axis=1, keepdims=True), expected, rtol=1e-5)


def test_of_several_outputs_the_only_one_that_can_be_logits_is_taken(tmp_path: Path) -> None:
    net = loaded(saved(classifier(outputs=("features", "scores")), tmp_path))
    assert net.info.num_classes == CLASSES
    assert "'scores'" not in " ".join(net.notices)  # feature maps are no candidates


def test_among_outputs_that_could_all_be_logits_the_number_of_classes_decides(tmp_path: Path) -> None:
    file = saved(classifier(outputs=("flat", "scores")), tmp_path)
    with pytest.raises(
        RequestError, match=r"several outputs .* 'flat' of 8, 'scores' of 5; give --num-classes"
    ):
        loaded(file)
    net = loaded(file, num_classes=CLASSES)
    assert net.info.num_classes == CLASSES
    assert "the outputs 'flat' of net.onnx were left out" in net.notices[0]


def test_external_data_in_its_folder_is_read_in(tmp_path: Path) -> None:
    model = classifier()
    plain = loaded(saved(model, tmp_path))
    onnx.save(model, tmp_path / "big.onnx", save_as_external_data=True, location="w.data", size_threshold=0)
    net = loaded(str(tmp_path / "big.onnx"))
    assert np.array_equal(net.module.runner()(images())["logits"], plain.module.runner()(images())["logits"])
    before = net.info.weights.sha256
    data = (tmp_path / "w.data").read_bytes()
    (tmp_path / "w.data").write_bytes(data[:-4] + b"\0\0\0\0")
    assert loaded(str(tmp_path / "big.onnx")).info.weights.sha256 != before


@pytest.mark.parametrize("location", ["../w.data", "/tmp/w.data", "link.data", "absent.data"])
def test_external_data_elsewhere_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(
        classifier(), folder / "big.onnx", save_as_external_data=True, location="w.data", size_threshold=0
    )
    (folder / "w.data").rename(tmp_path / "w.data")
    (folder / "link.data").symlink_to(tmp_path / "w.data")
    model = onnx.load(folder / "big.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    with pytest.raises(RequestError, match=r"outside the folder of the file|which is not there"):
        loaded(saved(model, folder))


REFUSED = {
    "two inputs": (classifier(inputs=2), {}, "has 2 inputs .'image', 'more1'., expected one"),
    "a fixed batch": (classifier(shape=(1, 3, 32, 32)), {}, "has a fixed batch of 1, expected a dynamic one"),
    "no image": (classifier(shape=("N", 3)), {}, r"is float \[.*, 3\], expected images"),
    "five channels": (classifier(shape=("N", 5, 32, 32)), {}, "and images have 1, 3, 4 channels"),
    "half precision": (classifier(dtype=TensorProto.FLOAT16), {}, "is float16 .* expected images"),
    "integers": (classifier(dtype=TensorProto.UINT8), {}, "is uint8 .* expected images"),
    "a custom operator": (
        classifier(last=("MyOp",), domain="com.acme"),
        {},
        r"operators that are not ONNX's own, com\.acme\.MyOp",
    ),
    "an operator that there is not": (
        classifier(last=("Sigmoidal",)),
        {},
        "ONNX Runtime refuses .* Sigmoidal",
    ),
    "an old operator set": (classifier(opset=6), {}, "names operator set 6, expected 7 to"),
    "a future operator set": (classifier(opset=99), {}, "names operator set 99"),
    "another size": (classifier(), {"image_size": 64}, "takes images of 32 × 32, but 64 × 64 were asked for"),
    "other classes": (classifier(), {"num_classes": 7}, "has 5 classes, but 7 were asked for"),
    "feature maps": (
        classifier(outputs=("features",)),
        {},
        r"returns 'features' float32 \[2, 8, 32, 32\] .* expected logits",
    ),
    "a batch fixed inside": (
        classifier(
            outputs=("fixed",),
            head=[
                helper.make_node("Constant", [], ["one"], value_ints=[1, CLASSES]),
                helper.make_node("Reshape", ["scores", "one"], ["fixed"]),
            ],
        ),
        {},
        "does not run on a batch of 2 images",
    ),
}


@pytest.mark.parametrize(("model", "request_", "words"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_is_no_such_classifier_is_refused_in_one_sentence(
    tmp_path: Path, model: onnx.ModelProto, request_: dict[str, Any], words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        loaded(saved(model, tmp_path), **request_)
    assert "\n" not in str(caught.value)


def test_a_model_without_operator_sets_is_refused(tmp_path: Path) -> None:
    model = classifier()
    del model.opset_import[:]
    with pytest.raises(RequestError, match="names no operator set of ONNX"):
        loaded(saved(model, tmp_path))


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x08", bytes(range(256))])
def test_what_is_no_onnx_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "net.onnx").write_bytes(data)
    with pytest.raises(RequestError, match="is not an ONNX file"):
        loaded(str(tmp_path / "net.onnx"))
    with pytest.raises(RequestError, match=r"cannot be read \(No such file"):
        loaded(str(tmp_path / "absent.onnx"))


def test_an_export_from_an_onnx_file_needs_no_torch(tmp_path: Path) -> None:
    file = saved(classifier(), tmp_path)
    program = f"""
import sys
sys.modules["torch"] = sys.modules["onnxscript"] = sys.modules["safetensors"] = None
from resnet_export.exporter import ExportSpec, ModelSpec, export
result = export(ModelSpec(model={file!r}), ExportSpec(fp16=True, engine="none"), {str(tmp_path / "out")!r})
print(result.report.exit_code)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0"], done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["provenance"]["exporter"] == "onnx"
    assert manifest["model"]["weights"]["source"] == "onnx"
    assert [artifact["name"] for artifact in manifest["artifacts"]] == ["fp32", "fp16"]


def test_the_packages_of_torch_are_asked_for_only_where_torch_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torch" else object())
    check_request(ModelSpec(model="net.ONNX"), ExportSpec())
    with pytest.raises(DependencyError, match="torch is not installed"):
        check_request(ModelSpec(depth=18), ExportSpec())
