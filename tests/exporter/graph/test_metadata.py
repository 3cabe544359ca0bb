"""The bytes that are shipped: checked, self-contained, free of debris, and the same every time."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.exporter.graph.exported_graph import ExportedGraph, serialize
from resnet_export.exporter.graph.metadata import finish
from resnet_export.exporter.graph.precision import to_fp16
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.precision import Precision
from tests.exported import INFO, PREPROCESSING, exported_resnet18

# Exports in a process of its own, and prints the sha256 of the float32 and of the fp16 file.
EXPORT = """
import hashlib
from resnet_export.exporter.graph.exported_graph import serialize
from tests.exporter.graph.test_metadata import shipped
for precision in ("fp32", "fp16"):
    print(hashlib.sha256(serialize(shipped(precision).model)).hexdigest())
"""


LABELS = ("it's", 'a "quoted" one', *(f"class {index}" for index in range(2, 10)))


def shipped(precision: str) -> ExportedGraph:
    one = exported_resnet18()
    graph = one.graph
    if precision == "fp16":
        graph = to_fp16(graph, scan_ranges(graph, [one.reference.images])).graph
    return finish(
        graph, info=INFO, labels=LABELS, preprocessing=PREPROCESSING, precision=Precision(precision)
    )


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def finished(request: pytest.FixtureRequest) -> ExportedGraph:
    return shipped(request.param)


def test_passes_the_checker_with_full_shape_inference(finished: ExportedGraph) -> None:
    onnx.checker.check_model(serialize(finished.model), full_check=True)


def test_types_every_tensor_between_input_and_output(finished: ExportedGraph) -> None:
    graph = finished.model.graph
    stored = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    inferred = {name: value.type.tensor_type.elem_type for name, value in infer_types(finished.model).items()}
    assert set(inferred) - set(stored) == {"input", "logits"}
    assert all(inferred[name] == kind for name, kind in stored.items())


def test_says_what_it_is(finished: ExportedGraph) -> None:
    facts = {entry.key: entry.value for entry in finished.model.metadata_props}
    assert facts["architecture"] == "resnet18"
    assert facts["classes"] == "10"
    assert facts["weights"] == "untrained: untrained"
    assert facts["weights.seed"] == "0"
    assert facts["precision"] in ("fp32", "fp16")
    assert json.loads(facts["preprocessing"])["mean"] == list(PREPROCESSING.mean)
    assert ast.literal_eval(facts["names"]) == dict(enumerate(LABELS))
    assert ast.literal_eval(facts["imgsz"]) == list(PREPROCESSING.size)
    assert (facts["task"], facts["stride"], facts["batch"]) == ("classify", "1", "1")
    assert finished.model.producer_name == "resnet-export"
    assert finished.model.producer_version


def test_holds_no_path_and_no_exporter_debris(finished: ExportedGraph) -> None:
    copy = onnx.ModelProto()
    copy.CopyFrom(finished.model)
    for tensor in copy.graph.initializer:
        tensor.raw_data = b""  # any three letters turn up somewhere in 45 MB of weights
    data = serialize(copy)
    here = str(Path(__file__).parents[3]).encode()
    for debris in (here, b"site-packages", b".py", b"pkg.torch", b"stack_trace", b"onnxsim", b"aten"):
        assert debris not in data
    assert not any(node.doc_string or node.metadata_props for node in finished.model.graph.node)


def test_holds_all_of_its_data(finished: ExportedGraph) -> None:
    for tensor in finished.model.graph.initializer:
        assert tensor.data_location == onnx.TensorProto.DEFAULT
        assert not tensor.external_data
        assert tensor.raw_data


def test_refuses_data_outside_the_file() -> None:
    graph = exported_resnet18().graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(ExportError, match=r"'conv1\.weight' is stored outside"):
        finish(
            replace(graph, model=model),
            info=INFO,
            labels=LABELS,
            preprocessing=PREPROCESSING,
            precision=Precision.FP32,
        )


def test_refuses_what_the_checker_refuses() -> None:
    graph = exported_resnet18().graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.node[3].op_type = "Rely"
    with pytest.raises(ExportError, match="refuses the fp32 graph"):
        finish(
            replace(graph, model=model),
            info=INFO,
            labels=LABELS,
            preprocessing=PREPROCESSING,
            precision=Precision.FP32,
        )


def test_is_the_same_byte_for_byte_in_another_process_with_another_hash_seed_and_folder(
    tmp_path: Path,
) -> None:
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    child = subprocess.run(
        [sys.executable, "-c", EXPORT],
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    here = [hashlib.sha256(serialize(shipped(name).model)).hexdigest() for name in ("fp32", "fp16")]
    assert child.stdout.split() == here
