"""Outputs besides the logits: found by shapes and weights, held to PyTorch's hooks, of no influence on the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.ranges import Range
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.plan import QuantPlan
from resnet_export.calibration.quantize.qdq import emit
from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.exporter.golden.eager_tensors import eager_tensors
from resnet_export.exporter.graph.export import simplify, to_onnx
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.further_outputs import FurtherOutputs, add_outputs
from resnet_export.exporter.graph.precision import to_bf16
from resnet_export.exporter.graph.stage_check import record_reference
from resnet_export.exporter.models.resnet import build
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import RequestError

ALL = FurtherOutputs(embedding=True, features=True, activation="softmax")


def images(side: int, count: int = 2, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(side).normal(size=(count, channels, side, side)).astype(np.float32)


def exported(network: nn.Module, side: int) -> ExportedGraph:
    network = network.eval()
    graph, _ = to_onnx(
        network, batch=BatchRange(min=1, opt=2, max=2), reference=record_reference(network, images(side))
    )
    return simplify(graph)


def run(graph: ExportedGraph, batch: np.ndarray) -> dict[str, np.ndarray]:
    session = CpuSession(graph.model.SerializeToString())
    return dict(zip(session.outputs, session.run(batch), strict=True))


def hooked(network: nn.Module, modules: dict[str, str], batch: np.ndarray) -> dict[str, np.ndarray]:
    """What PyTorch's forward hooks see: name → the output of the module with this path, or "<" and its input."""
    found: dict[str, np.ndarray] = {}
    handles = []
    for name, path in modules.items():
        module = network.get_submodule(path.lstrip("<"))

        def keep(_: nn.Module, given: Any, made: Any, name: str = name, path: str = path) -> None:
            found[name] = (given[0] if path.startswith("<") else made).detach().clone().numpy()

        handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        network(torch.from_numpy(batch))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("row", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_outputs_of_a_resnet_are_what_its_stages_and_its_classifier_pass_on(row: str) -> None:
    torch.manual_seed(0)
    network = build(ZOO[row], 7, 3).eval()
    graph = add_outputs(exported(network, 64), ALL)
    batch = images(64, 3)
    found = run(graph, batch)
    assert list(found) == ["logits", "embedding", "c2", "c3", "c4", "c5", "probabilities"]
    expected = hooked(
        network,
        {f"c{stage + 1}": f"layer{stage}" for stage in range(1, 5)} | {"embedding": "<fc", "logits": "fc"},
        batch,
    )
    expected["probabilities"] = torch.softmax(torch.from_numpy(expected["logits"]), 1).numpy()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4 * np.abs(values).max())
    assert set(graph.modules) == {node.name for node in graph.model.graph.node}
    eager = eager_tensors(network, batch, {name: found[name] for name in ("embedding", "c2", "c5")}, 1e-4)
    for name, values in eager.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", [33, 40, 50])
def test_sides_that_do_not_divide_by_32_have_the_same_stages(side: int) -> None:
    torch.manual_seed(0)
    network = build(ZOO["resnet18"], 7, 3).eval()
    found = run(add_outputs(exported(network, side), FurtherOutputs(features=True)), images(side))
    expected = hooked(network, {f"c{stage + 1}": f"layer{stage}" for stage in range(1, 5)}, images(side))
    assert list(found) == ["logits", *expected]
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-4 * np.abs(values).max())


class Patches(nn.Module):
    """A network that cuts the image into patches of 16 pixels at once."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.head = nn.Conv2d(3, 8, 16, 16), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cut(x).relu().flatten(2).mean(2))


class Shuffled(nn.Module):
    """Two groups whose channels are shuffled between the stages, as ShuffleNet's are."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(width, 8, 3, 2, 1) for width in (3, 8, 8, 8, 8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x).relu()
            _, channels, height, width = x.shape
            x = (
                x.view(-1, 2, channels // 2, height, width)
                .transpose(1, 2)
                .reshape(-1, channels, height, width)
            )
        return self.head(x.mean((2, 3)))


class ChannelsLast(nn.Module):
    """Stages between which the channels go to the end and come back, as ConvNeXt's do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 5)
        self.norms = nn.ModuleList(nn.LayerNorm(12) for _ in range(2))
        self.down = nn.ModuleList(nn.Conv2d(12, 12, 2, 2) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for norm, down in zip(self.norms, self.down, strict=True):
            x = down(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        return self.head(x.mean((2, 3)))


def flat() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )


def plain() -> nn.Module:
    """Convolutions and pooling in a row, and three linear layers: VGG's form."""
    stages: list[nn.Module] = []
    for width in (3, 8, 8, 8, 8):
        stages += [nn.Conv2d(width, 8, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(
        *stages,
        nn.Flatten(),
        nn.Linear(32, 16),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(16, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    )


@pytest.mark.parametrize(
    ("network", "sizes"),
    [
        (plain, {"c2": (8, 16), "c3": (8, 8), "c4": (8, 4), "c5": (8, 2), "embedding": (12,)}),
        (Shuffled, {"c2": (8, 16), "c3": (8, 8), "c4": (8, 4), "c5": (8, 2), "embedding": (8,)}),
        (ChannelsLast, {"c2": (12, 16), "c3": (12, 8), "c4": (12, 4), "embedding": (12,)}),
    ],
)
def test_networks_of_other_forms_have_them_by_their_shapes(
    network: Any, sizes: dict[str, Sequence[int]]
) -> None:
    torch.manual_seed(0)
    graph = add_outputs(exported(network(), 64), ALL)
    found = {name: values.shape[1:3] for name, values in run(graph, images(64)).items()}
    del found["logits"], found["probabilities"]
    assert found == sizes


@pytest.mark.parametrize(
    ("network", "asked", "said"),
    [
        (Patches, "features", "no pyramid of stage maps: on images of 64 × 64 pixels"),
        (flat, "features", "maps of 64 × 64, expected several sizes"),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "embedding",
            r"no embedding: the layer .* reads \[N, 3, 64, 64\], expected a vector",
        ),
    ],
)
def test_a_network_that_has_none_is_told_so(network: Any, asked: str, said: str) -> None:
    graph = exported(network(), 64)
    with pytest.raises(RequestError, match=said):
        add_outputs(graph, FurtherOutputs(**{asked: True}))


@pytest.fixture(scope="module")
def residual() -> ExportedGraph:
    torch.manual_seed(0)
    return exported(build(ZOO["resnet20"], 10, 3), 32)


@pytest.mark.parametrize("target", list(TARGETS))
def test_the_placement_of_a_chain_is_what_it_is_without_its_outputs(
    residual: ExportedGraph, target: str
) -> None:
    tapped = add_outputs(residual, ALL)
    ranges = {name: Range(amax=3.0, low=-3.0, high=3.0) for name in infer_types(residual.model)}
    quantized = [
        emit(graph.model, ranges, QuantPlan(), {}, TARGETS[target]).graph  # type: ignore[index]
        for graph in (residual, tapped)
    ]
    own = [node for node in quantized[1].node if node.name not in ("embedding", "c2", "probabilities")]
    assert [node.SerializeToString() for node in own] == [
        node.SerializeToString() for node in quantized[0].node
    ]
    taps = {node.name: node.input[0] for node in quantized[1].node if node.op_type == "Identity"}
    dequantized = {node.output[0] for node in own if node.op_type == "DequantizeLinear"}
    assert taps["embedding"] in dequantized, "the classifier's input is quantized, and read off as such"
    assert taps["c2"] in dequantized or f"{taps['c2']}_dequantized" not in dequantized


def test_outputs_are_float32_in_a_narrow_graph_and_probabilities_are_computed_in_it(
    residual: ExportedGraph,
) -> None:
    typed = to_bf16(add_outputs(residual, ALL)).graph.model
    kinds = {value.name: value.type.tensor_type.elem_type for value in typed.graph.output}
    assert kinds == dict.fromkeys(("logits", "embedding", "c2", "probabilities"), TensorProto.FLOAT)
    (softmax,) = (node for node in typed.graph.node if node.op_type == "Softmax")
    assert list(softmax.input) == ["logits"], "what was cast once is not cast again"
    onnx.checker.check_model(typed, full_check=True)


def test_an_output_that_the_network_returns_itself_is_not_added_again() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            vector = self.body(x).relu().mean((2, 3))
            return {"logits": self.head(vector), "embedding": vector}

    graph = exported(Two(), 16)
    assert [value.name for value in graph.model.graph.output] == ["logits", "embedding"]
    with pytest.raises(
        RequestError, match="returns an output 'embedding' by itself; leave the option for it out"
    ):
        add_outputs(graph, FurtherOutputs(embedding=True))


def test_a_tensor_that_the_eager_network_never_makes_has_no_eager_values() -> None:
    network, batch = flat().eval(), images(16, 5)
    with torch.no_grad():
        features = network[:4](torch.from_numpy(batch)).numpy()
    found = eager_tensors(network, batch, {"own": features[:3], "other": features + 1}, 1e-4)
    assert list(found) == ["own"]
    np.testing.assert_allclose(found["own"], features[:3], rtol=1e-5)
