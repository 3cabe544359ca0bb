"""fp16 where it fits, fp32 where it does not, and a graph that is strongly typed either way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

from resnet_export.exporter.graph.export import simplify, to_onnx
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.precision import TypedGraph, to_bf16, to_fp16
from resnet_export.exporter.graph.preprocessing import bake_preprocessing
from resnet_export.exporter.graph.stage_check import Reference, check_stage, record_reference
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.parity.measure.metrics import relative_error
from resnet_export.runtime.precision import Precision
from tests.exported import BATCH, PREPROCESSING, exported_resnet18
from tests.layer_graphs import CASES
from tests.layer_graphs import images as layer_images
from tests.typed_graphs import FLOAT, assert_strongly_typed, excluded, graph_of, run, types_of


@pytest.fixture(scope="module")
def narrow() -> TypedGraph:
    one = exported_resnet18()
    return to_fp16(one.graph, scan_ranges(one.graph, [one.reference.images]))


class TestResNet18:
    def test_is_fp16_between_its_fp32_input_and_output(self, narrow: TypedGraph) -> None:
        assert narrow.excluded == ()
        assert_strongly_typed(narrow.graph)
        types = types_of(narrow.graph)
        assert [name for name, kind in types.items() if kind == FLOAT] == ["input", "logits"]
        casts = [node.name for node in narrow.graph.model.graph.node if node.op_type == "Cast"]
        assert casts == ["input.to_fp16", "fc.to_fp32"]

    def test_computes_what_the_eager_network_computes_at_every_batch_size(self, narrow: TypedGraph) -> None:
        checked = check_stage(
            narrow.graph.model, exported_resnet18().reference, step="fp16", batch=BATCH, limit=5e-3
        )
        assert 1e-5 < checked.worst < 5e-3  # not so close that it could still be fp32

    def test_stores_its_weights_as_the_nearest_fp16_numbers(self, narrow: TypedGraph) -> None:
        before = {tensor.name: tensor for tensor in exported_resnet18().graph.model.graph.initializer}
        for tensor in narrow.graph.model.graph.initializer:
            wide = numpy_helper.to_array(before[tensor.name])
            expected = wide.astype(np.float16) if wide.dtype == np.float32 else wide
            np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected)

    def test_keeps_its_module_map_and_leaves_its_source_alone(self, narrow: TypedGraph) -> None:
        one = exported_resnet18()
        assert {name: narrow.graph.modules[name] for name in one.graph.modules} == dict(one.graph.modules)
        assert narrow.graph.modules["input.to_fp16"] == ""
        assert narrow.graph.modules["fc.to_fp32"] == "fc"
        assert set(types_of(one.graph).values()) == {FLOAT, TensorProto.INT64}

    def test_centres_raw_pixels_before_it_rounds_them(self) -> None:
        one = exported_resnet18()
        baked = bake_preprocessing(one.graph, PREPROCESSING)
        typed = to_fp16(baked, scan_ranges(baked, [one.crops]))
        assert typed.excluded == ()
        assert_strongly_typed(typed.graph)
        operators = [node.op_type for node in typed.graph.model.graph.node]
        assert operators[:5] == ["Cast", "Transpose", "Sub", "Cast", "Conv"]
        found = check_stage(
            typed.graph.model,
            Reference(one.crops, {"logits": one.reference.logits}),
            step="fp16",
            batch=BATCH,
            limit=5e-3,
        )
        assert found.worst > 1e-5


class TestALayerThatLeavesTheRange:
    """ResNet-18 with one convolution that reaches millions, which the next convolution takes back."""

    def overflowing(self) -> ExportedGraph:
        graph = exported_resnet18().graph
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        gains = {"layer2.1.conv1.weight": 1e6, "layer2.1.conv1.bias": 1e6, "layer2.1.conv2.weight": 1e-6}
        for tensor in model.graph.initializer:
            if tensor.name in gains:
                values = numpy_helper.to_array(tensor) * np.float32(gains[tensor.name])
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return replace(graph, model=model)

    def test_stays_in_fp32_with_its_neighbours_alone_and_the_result_is_right(self) -> None:
        one, graph = exported_resnet18(), self.overflowing()
        typed = to_fp16(graph, scan_ranges(graph, [one.reference.images]))
        assert excluded(typed) == ["layer2.1.conv1", "layer2.1.relu", "layer2.1.conv2"]
        assert_strongly_typed(typed.graph)
        assert check_stage(typed.graph.model, one.reference, step="fp16", batch=BATCH, limit=5e-3).worst > 0

    def test_is_listed_with_its_module_and_its_figures(self) -> None:
        one, graph = exported_resnet18(), self.overflowing()
        ranges = scan_ranges(graph, [one.reference.images])
        first = to_fp16(graph, ranges).excluded[0]
        assert (first.module, first.precision) == ("layer2.1.conv1", Precision.FP32)
        low, high = ranges["layer2.1.conv1.output"]
        assert first.reason.startswith(f"its output goes from {low:.4g} to {high:.4g}; fp16 ends at 65504")


def test_a_layer_is_kept_because_true_fp16_arithmetic_would_overflow() -> None:
    """ONNX Runtime computes fp16 convolutions in fp32 on a CPU and never overflows; the reference evaluator does."""
    weight = np.random.default_rng(1).normal(size=(4, 4, 1, 1)) * 2e4
    nodes = [
        ("Conv", ["input", "weight"], "conv.output"),
        ("Relu", ["conv.output"], "relu.output"),
        ("Mul", ["relu.output", "back"], "mul.output"),
        ("Relu", ["mul.output"], "logits"),
    ]
    graph = graph_of(nodes, {"weight": weight.astype(np.float32), "back": np.float32([1e-4])})
    images = TestReasons.images * 10
    ranges = scan_ranges(graph, [images])
    typed = to_fp16(graph, ranges)
    assert excluded(typed) == ["conv", "relu", "mul"]

    def reference(one: ExportedGraph) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return ReferenceEvaluator(one.model).run(None, {"input": images})[0]

    assert relative_error(reference(typed.graph), reference(graph)) < 2e-3
    unaware = to_fp16(graph, dict.fromkeys(ranges, (-1.0, 1.0)))
    assert unaware.excluded == ()
    assert np.isinf(reference(unaware.graph)).any()


class TestReasons:
    """Each on the smallest graph that has it."""

    images = np.random.default_rng(0).normal(size=(2, 4, 8, 8)).astype(np.float32)

    def typed(self, graph: ExportedGraph, images: NDArray[np.float32] | None = None) -> TypedGraph:
        batch = self.images if images is None else images
        typed = to_fp16(graph, scan_ranges(graph, [batch]))
        assert_strongly_typed(typed.graph)
        assert relative_error(run(typed.graph, batch), run(graph, batch)) < 2e-3
        return typed

    def test_a_sum_before_an_average_counts_where_the_average_would_fit(self) -> None:
        graph = graph_of(
            [("Relu", ["input"], "relu.output"), ("GlobalAveragePool", ["relu.output"], "logits")], {}
        )
        assert excluded(self.typed(graph, self.images * 100)) == []
        typed = self.typed(graph, self.images * 1000)  # averages of about 400, sums of about 25,000
        assert excluded(typed) == ["logits"]
        assert typed.excluded[0].reason.startswith("the sum of the 64 values that it averages goes from")

    @pytest.mark.parametrize(
        ("gain", "reason"),
        [(1e6, "its constant 'weight' reaches"), (1e-6, "its constant 'weight' changes by")],
    )
    def test_weights_that_fp16_cannot_hold_stay(self, gain: float, reason: str) -> None:
        weight = np.random.default_rng(1).normal(size=(4, 4, 1, 1)) * gain
        graph = graph_of([("Conv", ["input", "weight"], "logits")], {"weight": weight.astype(np.float32)})
        typed = to_fp16(graph, dict.fromkeys(("input", "logits"), (-1.0, 1.0)))
        assert excluded(typed) == ["logits"]
        assert typed.excluded[0].reason.startswith(reason)
        assert types_of(typed.graph)["weight"] == FLOAT

    @pytest.mark.parametrize("operator", ["Conv", "Add"])
    def test_a_bias_too_small_for_fp16_is_no_reason_and_one_too_large_is(self, operator: str) -> None:
        weight = np.random.default_rng(1).normal(size=(4, 4, 1, 1)).astype(np.float32)
        small = np.float32([3e-8, -2e-8, 1e-8, 2e-8])

        def graph(bias: NDArray[np.float32]) -> ExportedGraph:
            if operator == "Conv":
                return graph_of(
                    [("Conv", ["input", "weight", "bias"], "logits")], {"weight": weight, "bias": bias}
                )
            return graph_of([("Add", ["input", "bias"], "logits")], {"bias": bias.reshape(4, 1, 1)})

        assert excluded(self.typed(graph(small))) == []
        typed = to_fp16(graph(small + np.float32(7e4)), dict.fromkeys(("input", "logits"), (-1.0, 1.0)))
        assert typed.excluded[0].reason.startswith("its constant 'bias' reaches")

    def test_a_tensor_that_is_subnormal_throughout_stays(self) -> None:
        graph = graph_of(
            [("Mul", ["input", "small"], "mul.output"), ("Mul", ["mul.output", "large"], "logits")],
            {"small": np.float32([1e-3]), "large": np.float32([1e4])},
        )
        typed = self.typed(graph, self.images / 100)
        assert excluded(typed) == ["mul", "logits"]
        assert "smallest normal number" in typed.excluded[0].reason

    def test_a_dead_tensor_is_no_reason(self) -> None:
        graph = graph_of([("Mul", ["input", "zero"], "logits")], {"zero": np.float32([0])})
        assert excluded(self.typed(graph)) == []

    def test_an_output_that_leaves_the_range_is_written_in_fp32_without_a_cast(self) -> None:
        graph = graph_of([("Mul", ["input", "gain"], "logits")], {"gain": np.float32([3e4])})
        typed = self.typed(graph)
        assert excluded(typed) == ["logits"]
        assert [node.op_type for node in typed.graph.model.graph.node] == ["Mul"]


class TestRefusals:
    def test_a_missing_range_names_the_tensor(self) -> None:
        one = exported_resnet18()
        ranges = scan_ranges(one.graph, [one.reference.images[:1]])
        del ranges["layer3.0.conv2.output"]
        with pytest.raises(ExportError, match=r"'layer3\.0\.conv2\.output' has no scanned range"):
            to_fp16(one.graph, ranges)

    def test_an_operator_that_onnx_does_not_define_is_named(self) -> None:
        graph = graph_of([("Relu", ["input"], "logits")], {})
        graph.model.graph.node[0].domain = "com.example"
        graph.model.opset_import.add(domain="com.example", version=1)
        with pytest.raises(ExportError, match=r"'logits'.*Relu"):
            to_fp16(graph, {"input": (-1, 1), "logits": (-1, 1)})


RESIDUAL = [
    ("Conv", ["input", "w1"], "conv1.output"),
    ("Relu", ["conv1.output"], "relu1.output"),
    ("Conv", ["relu1.output", "w2"], "conv2.output"),
    ("Add", ["conv2.output", "relu1.output"], "add.output"),
    ("Relu", ["add.output"], "relu2.output"),
    ("MaxPool", ["relu2.output"], "pool.output"),
    ("ReduceMean", ["pool.output", "axes"], "mean.output"),
    ("Reshape", ["mean.output", "shape"], "reshape.output"),
    ("Gemm", ["reshape.output", "w3", "bias"], "logits"),
]
RANDOM = np.random.default_rng(0)
CONSTANTS = {
    "w1": RANDOM.normal(0, 0.4, (6, 4, 1, 1)).astype(np.float32),
    "w2": RANDOM.normal(0, 0.4, (6, 6, 1, 1)).astype(np.float32),
    "w3": RANDOM.normal(0, 0.4, (6, 5)).astype(np.float32),
    "bias": RANDOM.normal(0, 0.4, 5).astype(np.float32),
    "axes": np.array([2, 3]),
    "shape": np.array([-1, 6]),
}
SCANNED = ("input", "conv1.output", "conv2.output", "add.output", "mean.output", "logits")


@settings(max_examples=60, deadline=None)
@given(too_large=st.sets(st.sampled_from(SCANNED)), seed=st.integers(0, 2**16))
def test_any_set_of_tensors_can_stay_in_fp32(too_large: set[str], seed: int) -> None:
    graph = graph_of(RESIDUAL, CONSTANTS, MaxPool={"kernel_shape": [2, 2]})
    typed = to_fp16(graph, {name: (-1e6, 1e6) if name in too_large else (-1.0, 1.0) for name in SCANNED})
    assert_strongly_typed(typed.graph)
    types = types_of(typed.graph)
    assert all(types[name] == FLOAT for name in too_large)
    if not too_large:
        assert typed.excluded == ()
    batch = np.random.default_rng(seed).normal(size=(3, 4, 8, 8)).astype(np.float32)
    assert relative_error(run(typed.graph, batch), run(graph, batch)) < 5e-3


class TestFurtherOutputs:
    """A network that returns more than its logits: an embedding that the classifier reads, and probabilities."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.fc = nn.Linear(8, 5)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            embedding = torch.relu(self.conv(x)).mean((2, 3))
            logits = self.fc(embedding)
            return {"logits": logits, "embedding": embedding, "probabilities": logits.softmax(1)}

    def test_pass_through_every_step_and_are_compared_after_each(self) -> None:
        torch.manual_seed(0)
        network = self.Wide().eval()
        images = np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32)
        reference = record_reference(network, images)
        graph, _ = to_onnx(network, batch=BATCH, reference=reference)
        graph = simplify(graph)
        assert [output.name for output in graph.model.graph.output] == [
            "logits",
            "embedding",
            "probabilities",
        ]
        check_stage(graph.model, reference, step="simplified", batch=BATCH)
        typed = to_fp16(graph, scan_ranges(graph, [images]))
        onnx.checker.check_model(typed.graph.model, full_check=True)
        assert {output.type.tensor_type.elem_type for output in typed.graph.model.graph.output} == {FLOAT}
        operators = [node.op_type for node in typed.graph.model.graph.node]
        assert operators.count("Cast") == 3  # the input, logits and embedding; probabilities read the logits
        kinds = {node.name: (node.op_type, list(node.input)) for node in typed.graph.model.graph.node}
        assert ("Softmax", ["logits"]) in kinds.values()
        assert typed.excluded == ()
        check_stage(typed.graph.model, reference, step="fp16", batch=BATCH, limit=5e-3)

    @pytest.mark.parametrize("name", ["embedding", "probabilities"])
    def test_that_differ_are_named(self, name: str) -> None:
        torch.manual_seed(0)
        network = self.Wide().eval()
        images = np.random.default_rng(0).normal(size=(6, 3, 16, 16)).astype(np.float32)
        reference = record_reference(network, images)
        graph, _ = to_onnx(network, batch=BATCH, reference=reference)
        off = {**reference.outputs, name: reference.outputs[name] * np.float32(1.01)}
        with pytest.raises(ExportError, match=f"is allowed for '{name}'"):
            check_stage(graph.model, Reference(images, off), step="test", batch=BATCH)

    @pytest.mark.parametrize("wrong", ["a tuple", "no logits", "a vector"])
    def test_of_another_form_are_refused_in_one_sentence(self, wrong: str) -> None:
        class Wrong(nn.Module):
            def forward(self, x: torch.Tensor) -> object:
                scores = x.mean((2, 3))
                return {"a tuple": (scores,), "no logits": {"scores": scores}, "a vector": scores[:, 0]}[
                    wrong
                ]

        with pytest.raises(ExportError, match=r"expected logits \[N, classes\]"):
            record_reference(Wrong().eval(), np.zeros((2, 3, 8, 8), np.float32))


class TestBf16:
    def test_is_strongly_typed_with_bf16_weights_in_the_operator_set_that_has_them(self) -> None:
        one = exported_resnet18()
        typed = to_bf16(one.graph)
        assert typed.excluded == ()
        onnx.checker.check_model(typed.graph.model, full_check=True)
        assert typed.graph.model.opset_import[0].version == 22
        types = types_of(typed.graph)
        assert [name for name, kind in types.items() if kind == FLOAT] == ["input", "logits"]
        weight = next(t for t in typed.graph.model.graph.initializer if t.name == "layer2.0.conv1.weight")
        wide = next(t for t in one.graph.model.graph.initializer if t.name == "layer2.0.conv1.weight")
        error = np.abs(numpy_helper.to_array(weight).astype(np.float32) - numpy_helper.to_array(wide))
        assert error.max() <= 2.0**-8 * np.abs(numpy_helper.to_array(wide)).max()  # 8 bits, to nearest
        assert set(types_of(one.graph).values()) == {FLOAT, TensorProto.INT64}

    def test_computes_what_the_eager_network_does_to_the_8_bits_of_bf16(self) -> None:
        one = exported_resnet18()
        graph = to_bf16(one.graph).graph
        check = check_stage(graph.model, one.reference, step="bf16", batch=BATCH, limit=6e-2)
        assert check.worst > 1e-3  # not so close that it could be fp16
        (reference,) = ReferenceEvaluator(graph.model).run(None, {"input": one.reference.images})
        assert relative_error(check.logits, reference) < 6e-2

    def test_keeps_what_fp16_could_not_hold(self) -> None:
        one, graph = exported_resnet18(), TestALayerThatLeavesTheRange().overflowing()
        typed = to_bf16(graph)
        assert typed.excluded == ()
        check_stage(typed.graph.model, one.reference, step="bf16", batch=BATCH, limit=6e-2)

    def test_centers_raw_pixels_before_it_rounds_them(self) -> None:
        one = exported_resnet18()
        typed = to_bf16(bake_preprocessing(one.graph, PREPROCESSING))
        assert [node.op_type for node in typed.graph.model.graph.node][:5] == [
            "Cast",
            "Transpose",
            "Sub",
            "Cast",
            "Conv",
        ]
        raw = Reference(one.crops, one.reference.outputs)
        check_stage(typed.graph.model, raw, step="bf16", batch=BATCH, limit=6e-2)


@pytest.mark.parametrize("name", CASES)
class TestAnyLayer:
    """fp16 and bf16 follow from the operators' ONNX schemas, whatever the network."""

    @staticmethod
    def graph(name: str) -> ExportedGraph:
        model = CASES[name].model()
        return ExportedGraph(model, {node.name: "" for node in model.graph.node}, "dynamo")

    def test_is_strongly_typed_in_fp16_and_right(self, name: str) -> None:
        graph, batch = self.graph(name), layer_images(4, seed=2)
        typed = to_fp16(graph, scan_ranges(graph, [batch]))
        assert typed.excluded == ()
        assert_strongly_typed(typed.graph)
        (expected,) = ReferenceEvaluator(graph.model).run(None, {"input": batch})
        assert relative_error(run(typed.graph, batch), expected) < 2e-3
        assert (
            relative_error(ReferenceEvaluator(typed.graph.model).run(None, {"input": batch})[0], expected)
            < 5e-3
        )

    def test_is_right_in_bf16(self, name: str) -> None:
        graph, batch = self.graph(name), layer_images(4, seed=2)
        typed = to_bf16(graph)
        assert excluded(typed) == [
            node.name for node in graph.model.graph.node if node.op_type == "HardSwish"
        ]
        onnx.checker.check_model(typed.graph.model, full_check=True)
        (expected,) = ReferenceEvaluator(graph.model).run(None, {"input": batch})
        assert 1e-4 < relative_error(run(typed.graph, batch), expected) < 3e-2


def test_integers_and_what_decides_them_keep_their_types() -> None:
    """A transformer's shapes: Shape → Gather → Concat → Reshape, beside floats that are moved."""
    graph = graph_of(
        [
            ("Shape", ["input"], "shape"),
            ("Gather", ["shape", "first"], "batch"),
            ("Concat", ["batch", "rest"], "target"),
            ("Reshape", ["input", "target"], "rows"),
            ("Cast", ["batch"], "count"),
            ("Div", ["rows", "count"], "logits"),
        ],
        {"first": np.array([0]), "rest": np.array([4, 64])},
        Concat={"axis": 0},
        Cast={"to": TensorProto.FLOAT},
    )
    batch = TestReasons.images
    typed = to_fp16(graph, scan_ranges(graph, [batch]))
    assert_strongly_typed(typed.graph)
    types = types_of(typed.graph)
    assert [types[name] for name in ("shape", "batch", "target", "rows")] == [7, 7, 7, TensorProto.FLOAT16]
    assert relative_error(run(typed.graph, batch), run(graph, batch)) < 2e-3


def test_an_operator_without_a_form_in_bf16_stays_in_fp32_and_is_listed() -> None:
    graph = graph_of(
        [
            ("Relu", ["input"], "relu.output"),
            ("Einsum", ["relu.output"], "sum.output"),
            ("Relu", ["sum.output"], "logits"),
        ],
        {},
        Einsum={"equation": "nchw->nc"},
    )
    typed = to_bf16(graph)
    assert excluded(typed) == ["sum"]
    assert typed.excluded[0].reason == "ONNX defines no bf16 Einsum in operator set 22"
    assert relative_error(run(typed.graph, TestReasons.images), run(graph, TestReasons.images)) < 3e-2
    assert excluded(to_fp16(graph, scan_ranges(graph, [TestReasons.images]))) == []
