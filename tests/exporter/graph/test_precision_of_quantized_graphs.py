"""Typing what quantization left: scales and activations in fp16, integers as they were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.precision import to_fp16
from resnet_export.runtime.parity.measure.metrics import relative_error
from tests.typed_graphs import FLOAT, FLOAT16, INT8, assert_strongly_typed, excluded, graph_of, run, types_of


def quantized(
    scale: float = 0.02, weight_scale: float = 0.01, skip: str = "q.output"
) -> tuple[ExportedGraph, dict[str, tuple[float, float]]]:
    """input → Q → DQ → Conv(DQ) → Relu → Add(DQ of `skip`) → logits, float32 throughout, and its ranges."""
    rng = np.random.default_rng(0)
    nodes = [
        ("QuantizeLinear", ["input", "s", "z"], "q.output"),
        ("DequantizeLinear", ["q.output", "s", "z"], "dq.output"),
        ("DequantizeLinear", ["w", "ws", "wz"], "dqw.output"),
        ("Conv", ["dq.output", "dqw.output", "bias"], "conv.output"),
        ("Relu", ["conv.output"], "relu.output"),
        ("DequantizeLinear", [skip, "s", "z"], "dqskip.output"),
        ("Add", ["relu.output", "dqskip.output"], "logits"),
    ]
    constants = {
        "s": np.array(scale, np.float32),
        "z": np.array(0, np.int8),
        "w": rng.integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
        "ws": np.full(4, weight_scale, np.float32),
        "wz": np.zeros(4, np.int8),
        "bias": rng.normal(size=4).astype(np.float32),
    }
    graph = graph_of(
        nodes, constants, Conv={"pads": [1, 1, 1, 1], "kernel_shape": [3, 3]}, DequantizeLinear={}
    )
    for node in graph.model.graph.node:
        if node.name == "dqw":
            node.attribute.append(helper.make_attribute("axis", 0))
    return graph, {"input": (-2.5, 2.5), "conv.output": (-40, 40), "logits": (-40, 40)}


class TestQuantizedGraphs:
    images = np.random.default_rng(2).normal(0, 0.8, (2, 4, 8, 8)).astype(np.float32)

    def test_get_fp16_scales_and_outputs_and_keep_their_integers(self) -> None:
        graph, ranges = quantized()
        typed = to_fp16(graph, ranges)
        assert typed.excluded == ()
        assert_strongly_typed(typed.graph)
        types = types_of(typed.graph)
        assert {types[name] for name in ("s", "ws", "bias", "dq.output", "dqw.output", "conv.output")} == {
            FLOAT16
        }
        assert {types[name] for name in ("z", "w", "wz", "q.output")} == {INT8}
        assert relative_error(run(typed.graph, self.images), run(graph, self.images)) < 5e-3

    def test_mean_the_same_to_the_reference_evaluator(self) -> None:
        graph, ranges = quantized(scale=2.0**-6, weight_scale=2.0**-7)  # exact in fp16: no step can flip
        typed = to_fp16(graph, ranges).graph
        images = self.images.astype(np.float16).astype(np.float32)
        expected, found = (
            ReferenceEvaluator(one.model).run(None, {"input": images})[0] for one in (graph, typed)
        )
        assert relative_error(found, expected) < 2e-3
        assert relative_error(run(typed, images), expected) < 2e-3

    @pytest.mark.parametrize("weight_scale", [3e-5, 300.0])
    def test_keep_a_layer_whose_weight_scales_fp16_cannot_hold(self, weight_scale: float) -> None:
        graph, ranges = quantized(weight_scale=weight_scale)
        typed = to_fp16(graph, ranges)
        assert excluded(typed) == ["conv"]
        assert "the scales of its input 'dqw.output' go from" in typed.excluded[0].reason
        assert_strongly_typed(typed.graph)
        types = types_of(typed.graph)
        # The activation is dequantized once for each type, with no Cast between a layer and its DequantizeLinear.
        assert {types[name] for name in ("ws", "dqw.output", "dq.output", "conv.output")} == {FLOAT}
        assert {types[name] for name in ("relu.output", "dqskip.output", "q.output")} == {FLOAT16, INT8}
        assert relative_error(run(typed.graph, self.images), run(graph, self.images)) < 5e-3

    def test_keep_what_reads_an_activation_whose_scale_fp16_cannot_hold(self) -> None:
        graph, ranges = quantized(scale=2e-5)
        typed = to_fp16(graph, ranges)
        assert excluded(typed) == ["conv", "logits"]
        assert_strongly_typed(typed.graph)
        assert types_of(typed.graph)["s"] == FLOAT
        assert relative_error(run(typed.graph, self.images), run(graph, self.images)) < 5e-3

    def test_double_a_dequantizer_that_two_precisions_read(self) -> None:
        graph, ranges = quantized(weight_scale=3e-5)
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        del model.graph.node[5]
        model.graph.node[5].input[1] = "dq.output"
        modules = {name: path for name, path in graph.modules.items() if name != "dqskip"}
        graph = replace(graph, model=model, modules=modules)
        typed = to_fp16(graph, ranges)
        assert excluded(typed) == ["conv"]
        assert_strongly_typed(typed.graph)
        doubled = [node for node in typed.graph.model.graph.node if node.input[0] == "q.output"]
        assert [(node.name, types_of(typed.graph)[node.output[0]]) for node in doubled] == [
            ("dq", FLOAT),
            ("dq.fp16", FLOAT16),
        ]
        assert relative_error(run(typed.graph, self.images), run(graph, self.images)) < 5e-3
