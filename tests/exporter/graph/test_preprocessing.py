"""A raw uint8 input is normalized inside the graph exactly as outside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.graph.exported_graph import ExportedGraph, serialize
from resnet_export.exporter.graph.preprocessing import bake_preprocessing
from resnet_export.exporter.graph.stage_check import Reference, check_stage
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.parity.measure.metrics import relative_error
from tests.exported import BATCH, PREPROCESSING, SIZE, Exported, exported_resnet18


@pytest.fixture(scope="module")
def baked() -> ExportedGraph:
    return bake_preprocessing(exported_resnet18().graph, PREPROCESSING)


def test_agrees_with_the_float_pipeline_at_every_batch_size(baked: ExportedGraph) -> None:
    one = exported_resnet18()
    checked = check_stage(
        baked.model, Reference(one.crops, {"logits": one.reference.logits}), step="preprocessing", batch=BATCH
    )
    assert set(checked.relative) == {1, 3, BATCH.max}
    assert checked.worst < 1e-5


@pytest.mark.parametrize("value", [0, 1, 124, 255])
def test_is_exact_at_the_padded_border_for_a_uniform_image(baked: ExportedGraph, value: int) -> None:
    image = np.full((1, SIZE, SIZE, 3), value, np.uint8)
    mean, std = (np.array(one, np.float32) for one in (PREPROCESSING.mean, PREPROCESSING.std))
    floats = ((image / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        expected = exported_resnet18().network(torch.from_numpy(floats.copy())).numpy()
    assert relative_error(CpuSession(serialize(baked.model)).run(image)[0], expected) < 1e-4


unit = st.floats(0.0625, 0.9375)


@settings(max_examples=5, deadline=None)
@given(mean=st.tuples(unit, unit, unit), std=st.tuples(unit, unit, unit))
def test_follows_whatever_mean_and_deviation_it_is_given(
    mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    one: Exported = exported_resnet18()
    graph = bake_preprocessing(one.graph, Preprocessing(crop=SIZE, mean=mean, std=std))
    floats = ((one.crops[:1] / 255 - np.array(mean)) / np.array(std)).astype(np.float32).transpose(0, 3, 1, 2)
    with torch.inference_mode():
        expected = one.network(torch.from_numpy(floats.copy())).numpy()
    assert relative_error(CpuSession(serialize(graph.model)).run(one.crops[:1])[0], expected) < 1e-4


def test_casts_first_and_then_transposes_and_subtracts_once(baked: ExportedGraph) -> None:
    nodes = baked.model.graph.node
    assert [node.op_type for node in nodes[:4]] == ["Cast", "Transpose", "Sub", "Conv"]
    source = baked.model.graph.input[0].type.tensor_type
    assert source.elem_type == TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in source.shape.dim] == ["N", SIZE, SIZE, 3]
    onnx.checker.check_model(baked.model, full_check=True)


def test_keeps_the_module_map_and_leaves_its_source_alone(baked: ExportedGraph) -> None:
    before = exported_resnet18().graph
    assert set(baked.modules) == {node.name for node in baked.model.graph.node}
    assert {name: baked.modules[name] for name in before.modules} == dict(before.modules)
    assert before.model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_refuses_a_network_whose_input_goes_elsewhere_than_into_one_convolution() -> None:
    graph = exported_resnet18().graph
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model.graph.node.append(helper.make_node("Relu", ["input"], ["second"], "second"))
    with pytest.raises(ExportError, match="the input feeds Conv, Relu"):
        bake_preprocessing(replace(graph, model=model), PREPROCESSING)
