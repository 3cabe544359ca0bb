"""What is seen inside a graph is what the eager network computes there, one batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from resnet_export.calibration.observe.activations import activations, float_tensors
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.graph.exported_graph import serialize
from resnet_export.runtime.errors import DatasetError, ExportError
from resnet_export.runtime.parity.measure.metrics import relative_error
from tests.exported import exported_resnet18


def test_gives_what_eager_hooks_see() -> None:
    one = exported_resnet18()
    seen: dict[str, torch.Tensor] = {}
    layers = {"layer1.0.relu_1.output": "layer1.0", "layer2.0.conv2.output": "layer2.0.bn2", "logits": "fc"}
    hooks = [
        one.network.get_submodule(path).register_forward_hook(
            lambda _, __, output, name=name: seen.update({name: output.clone()})
        )
        for name, path in layers.items()
    ]
    with torch.inference_mode():
        one.network(torch.from_numpy(one.reference.images))
    for hook in hooks:
        hook.remove()
    (found,) = activations(one.graph.model, [one.reference.images], list(layers))
    assert list(found) == list(layers)
    for name, expected in seen.items():
        assert found[name].shape == tuple(expected.shape)
        assert relative_error(found[name], expected.numpy()) < 1e-5


def test_gives_every_float_tensor_and_the_input_by_default_on_request() -> None:
    one = exported_resnet18()
    names = float_tensors(one.graph.model)
    assert names == tuple(name for node in one.graph.model.graph.node for name in node.output)
    (found,) = activations(one.graph.model, [one.reference.images[:1]])
    assert tuple(found) == names
    (found,) = activations(one.graph.model, [one.reference.images[:1]], ["input"])
    np.testing.assert_array_equal(found["input"], one.reference.images[:1])


def test_asks_for_a_batch_only_when_its_turn_has_come() -> None:
    one = exported_resnet18()
    given = 0

    def batches() -> Iterator[NDArray[Any]]:
        nonlocal given
        for start in range(3):
            given += 1
            yield one.reference.images[start : start + 1]

    stream = activations(one.graph.model, batches(), ["logits"])
    for expected in (1, 2, 3):
        next(stream)
        assert given == expected
    with pytest.raises(StopIteration):
        next(stream)


def test_leaves_the_graph_as_it_was() -> None:
    one = exported_resnet18()
    before = serialize(one.graph.model)
    list(activations(one.graph.model, [one.reference.images[:1]]))
    assert serialize(one.graph.model) == before


def test_refuses_a_tensor_that_the_graph_has_not() -> None:
    one = exported_resnet18()
    with pytest.raises(ExportError, match="no tensor called 'layer9', 'zz'"):
        next(activations(one.graph.model, [one.reference.images[:1]], ["zz", "logits", "layer9"]))


def test_refuses_a_batch_of_another_shape() -> None:
    one = exported_resnet18()
    with pytest.raises(ExportError, match=r"cannot run the graph on float32 \[1, 3, 5, 5\]"):
        next(activations(one.graph.model, [np.zeros((1, 3, 5, 5), np.float32)]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_a_batch_that_is_not_finite(value: float) -> None:
    one = exported_resnet18()
    images = one.reference.images[:1].copy()
    images[0, 0, 0, 0] = value
    with pytest.raises(DatasetError, match="check the image files"):
        next(activations(one.graph.model, [images], ["logits"]))


def test_accepts_large_values_whose_sum_is_infinite() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[N, 3, 4, 4] input) => (float[N, 3, 4, 4] logits)'
        "{ logits = Identity(input) }"
    )
    batch = np.full((1, 3, 4, 4), 3e38, np.float32)
    (found,) = activations(model, [batch])
    np.testing.assert_array_equal(found["logits"], batch)


def test_a_graph_that_onnxruntime_refuses_is_an_error_of_ours() -> None:
    with pytest.raises(ExportError, match="ONNX Runtime refuses the graph"):
        CpuSession(b"not a graph")
