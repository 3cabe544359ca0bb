"""One small graph for each kind of layer and neighbor that networks have, with what each target quantizes in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resnet_export.calibration.quantize.tensor_types import infer_types

CHANNELS, SIZE = 8, 6
RNG = np.random.default_rng(0)

Step = tuple[str, Sequence[str], str]


def _weight(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)


CONSTANTS: Mapping[str, NDArray[Any]] = {
    "w1": _weight(CHANNELS, CHANNELS, 3, 3),
    "w2": _weight(CHANNELS, CHANNELS, 3, 3),
    "w3": _weight(CHANNELS, 2 * CHANNELS, 3, 3),
    "depthwise": _weight(CHANNELS, 1, 3, 3),
    "grouped": _weight(CHANNELS, 2, 3, 3),
    "squeeze": _weight(4, CHANNELS, 1, 1),
    "excite": _weight(CHANNELS, 4, 1, 1),
    "matrix": _weight(CHANNELS, CHANNELS),
    "matrix2": _weight(CHANNELS, CHANNELS),
    "bias": _weight(CHANNELS),
    "gain": np.ones(CHANNELS, np.float32),
    "variance": np.full(CHANNELS, 0.5, np.float32),
    "half": np.array([0.5], np.float32),
    "one": np.array([1.0], np.float32),
    "root2": np.array([np.sqrt(2)], np.float32),
    "six": np.array(6, np.float32),
    "zero": np.array(0, np.float32),
    "flat": np.array([0, CHANNELS, -1]),
    "axes": np.array([2, 3]),
}


@dataclass(frozen=True)
class Case:
    """A graph of (operator, inputs, output) triples from `input` to `logits`, and what each target quantizes in it."""

    steps: Sequence[Step]
    tensorrt: set[str]
    cpu: set[str]
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto:
        nodes = []
        for operator, inputs, output in self.steps:
            kernel = [CONSTANTS[name] for name in inputs if name in CONSTANTS and operator == "Conv"]
            padded = {"pads": [1, 1, 1, 1]} if kernel and kernel[0].shape[-1] == 3 else {}
            attributes = {**padded, **self.attributes.get(output, {})}
            nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        used = {name for step in self.steps for name in step[1]}
        graph = helper.make_graph(
            nodes,
            "case",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", CHANNELS, SIZE, SIZE])],
            [onnx.ValueInfoProto(name="logits")],
            [numpy_helper.from_array(values, name) for name, values in CONSTANTS.items() if name in used],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
        model.graph.output[0].CopyFrom(infer_types(model)["logits"])
        return model


CASES: Mapping[str, Case] = {
    "a convolution's Relu and the next convolution": Case(
        [("Conv", ["input", "w1"], "a"), ("Relu", ["a"], "r"), ("Conv", ["r", "w2"], "logits")],
        tensorrt={"input", "r"},
        cpu={"input", "r"},
    ),
    "a Clip (ReLU6)": Case(
        [
            ("Conv", ["input", "w1"], "a"),
            ("Clip", ["a", "zero", "six"], "r"),
            ("Conv", ["r", "w2"], "logits"),
        ],
        tensorrt={"input", "r"},
        cpu={"input", "r"},
    ),
    "a depthwise convolution": Case(
        [("Conv", ["input", "depthwise"], "d"), ("Conv", ["d", "w1"], "logits")],
        tensorrt={"input", "d"},
        cpu={"input", "d"},
        attributes={"d": {"group": CHANNELS}},
    ),
    "a grouped convolution": Case(
        [("Conv", ["input", "grouped"], "g"), ("Conv", ["g", "w1"], "logits")],
        tensorrt={"input", "g"},
        cpu={"input", "g"},
        attributes={"g": {"group": 4}},
    ),
    "a squeeze-and-excitation gate": Case(
        [
            ("Conv", ["input", "w1"], "a"),
            ("ReduceMean", ["a", "axes"], "mean"),
            ("Conv", ["mean", "squeeze"], "s"),
            ("Relu", ["s"], "sr"),
            ("Conv", ["sr", "excite"], "e"),
            ("Sigmoid", ["e"], "gate"),
            ("Mul", ["a", "gate"], "gated"),
            ("Add", ["gated", "input"], "sum"),
            ("Conv", ["sum", "w2"], "logits"),
        ],
        tensorrt={
            "input",
            "mean",
            "sr",
            "sum",
        },  # the gate stands between convolution and Add: nothing to fuse
        cpu={"input", "a", "mean", "sr", "e", "sum"},
    ),
    "a hard-sigmoid gate": Case(
        [
            ("Conv", ["input", "w1"], "a"),
            ("HardSigmoid", ["a"], "gate"),
            ("Mul", ["a", "gate"], "gated"),
            ("Conv", ["gated", "w2"], "logits"),
        ],
        tensorrt={"input", "gated"},
        cpu={"input", "a", "gated"},
    ),
    "SiLU": Case(
        [
            ("Conv", ["input", "w1"], "a"),
            ("Sigmoid", ["a"], "s"),
            ("Mul", ["a", "s"], "silu"),
            ("Conv", ["silu", "w2"], "logits"),
        ],
        tensorrt={"input", "silu"},
        cpu={"input", "a", "silu"},
    ),
    "hard-swish": Case(
        [("Conv", ["input", "w1"], "a"), ("HardSwish", ["a"], "h"), ("Conv", ["h", "w2"], "logits")],
        tensorrt={"input", "h"},
        cpu={"input", "a", "h"},
    ),
    "an average pool": Case(
        [("Conv", ["input", "w1"], "a"), ("AveragePool", ["a"], "p"), ("Conv", ["p", "w2"], "logits")],
        tensorrt={"input", "p"},
        cpu={"input", "a", "p"},
        attributes={"p": {"kernel_shape": [2, 2], "strides": [2, 2]}},
    ),
    "a max pool, which moves bytes on a CPU": Case(
        [("Conv", ["input", "w1"], "a"), ("MaxPool", ["a"], "p"), ("Conv", ["p", "w2"], "logits")],
        tensorrt={"input", "p"},
        cpu={"input", "a", "p"},
        attributes={"p": {"kernel_shape": [2, 2], "strides": [2, 2]}},
    ),
    "a concatenation, of which every part has the grid of the whole": Case(
        [
            ("Conv", ["input", "w1"], "a"),
            ("Relu", ["a"], "ra"),
            ("Conv", ["input", "w2"], "b"),
            ("Concat", ["ra", "b"], "both"),
            ("Conv", ["both", "w3"], "logits"),
        ],
        tensorrt={"input", "both"},
        cpu={"input", "ra", "b", "both"},
        attributes={"both": {"axis": 1}},
    ),
    "a concatenation that no layer reads": Case(
        [
            ("Conv", ["input", "w1"], "a"),
            ("Concat", ["a", "input"], "both"),
            ("Sigmoid", ["both"], "s"),
            ("Conv", ["s", "w3"], "logits"),
        ],
        tensorrt={"input", "s"},
        cpu={"input", "s"},  # what is moved and then read as float stays float
        attributes={"both": {"axis": 1}},
    ),
    "a residual Add": Case(
        [
            ("Conv", ["input", "w1"], "skip"),
            ("Relu", ["skip"], "rs"),
            ("Conv", ["rs", "w2"], "main"),
            ("Add", ["main", "rs"], "sum"),
            ("Relu", ["sum"], "rsum"),
            ("Conv", ["rsum", "w1"], "logits"),
        ],
        tensorrt={"input", "rs", "rsum"},
        cpu={"input", "rs", "main", "rsum"},
    ),
    "a batch normalization that cannot be folded": Case(
        [
            ("Conv", ["input", "w1"], "a"),
            ("Add", ["a", "input"], "sum"),
            ("BatchNormalization", ["sum", "gain", "bias", "bias", "variance"], "n"),
            ("Relu", ["n"], "r"),
            ("Conv", ["r", "w2"], "logits"),
        ],
        tensorrt={"input", "r"},
        cpu={"input", "a", "r"},
    ),
    "a MatMul with its bias, LayerNorm and GELU, as of a transformer": Case(
        [
            ("Conv", ["input", "w1"], "patches"),
            ("Reshape", ["patches", "flat"], "rows"),
            ("Transpose", ["rows"], "tokens"),
            ("LayerNormalization", ["tokens", "gain", "bias"], "norm"),
            ("MatMul", ["norm", "matrix"], "m1"),
            ("Add", ["m1", "bias"], "m1b"),
            ("Div", ["m1b", "root2"], "d"),
            ("Erf", ["d"], "erf"),
            ("Add", ["erf", "one"], "e1"),
            ("Mul", ["m1b", "e1"], "e2"),
            ("Mul", ["e2", "half"], "gelu"),
            ("MatMul", ["gelu", "matrix2"], "m2"),
            ("Add", ["m2", "tokens"], "logits"),
        ],
        tensorrt={"input", "norm", "gelu"},
        cpu={"input", "norm", "gelu"},
        attributes={"tokens": {"perm": [0, 2, 1]}},
    ),
    "the product of two activations, as in an attention": Case(
        [
            ("Reshape", ["input", "flat"], "keys"),
            ("Transpose", ["keys"], "queries"),
            ("MatMul", ["queries", "keys"], "scores"),
            ("Softmax", ["scores"], "shares"),
            ("MatMul", ["shares", "queries"], "mixed"),
            ("MatMul", ["mixed", "matrix"], "logits"),
        ],
        tensorrt={"mixed"},
        cpu={"mixed"},
        attributes={"queries": {"perm": [0, 2, 1]}},
    ),
    "a Gemm behind a Flatten": Case(
        [
            ("GlobalAveragePool", ["input"], "mean"),
            ("Flatten", ["mean"], "flat_mean"),
            ("Gemm", ["flat_mean", "matrix", "bias"], "logits"),
        ],
        tensorrt={"flat_mean"},
        cpu={"mean", "flat_mean"},
    ),
    "a convolution that writes an output": Case(
        [("Relu", ["input"], "r"), ("Conv", ["r", "w1"], "logits")],
        tensorrt={"r"},
        cpu={"r"},
    ),
}


def images(count: int, seed: int) -> NDArray[np.float32]:
    """Return inputs of every graph, float32 [count, 8, 6, 6]."""
    return np.random.default_rng(seed).normal(size=(count, CHANNELS, SIZE, SIZE)).astype(np.float32)
