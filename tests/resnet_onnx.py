"""ResNet graphs written node by node with `onnx.helper`, typed as TensorRT wants them, in a fraction of a
second.

They have the shape of what the exporter makes (BatchNorm folded, a residual Add, a classifier) and random
weights.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
CONVOLUTIONS = {18: 20, 50: 53}


def resnet(
    depth: Literal[18, 50] = 18,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    *,
    uint8_input: bool = False,
    keep: Collection[str] = (),
    size: int = 64,
    width: int = 16,
) -> bytes:
    """The bytes of a ResNet; `keep` names convolutions that int8 leaves in fp16, `width` replaces 64
    channels.
    """
    graph = _Graph(
        np.dtype(np.float32 if precision == "fp32" else np.float16), precision == "int8", frozenset(keep)
    )
    value = _uint8_stem(graph) if uint8_input else graph.cast("input", "input_cast", graph.dtype)
    value = graph.relu(graph.conv(value, "conv1", 3, width, kernel=7, stride=2))
    value = graph.node("MaxPool", [value], "maxpool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    expansion = 1 if depth == 18 else 4
    channels = width
    for stage, blocks in enumerate(BLOCKS[depth]):
        inner = width << stage
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            value = _block(graph, value, name, channels, inner, inner * expansion, stride)
            channels = inner * expansion
    value = graph.node("GlobalAveragePool", [value], "avgpool")
    value = graph.node("Flatten", [value], "flatten")
    weight = graph.random("fc.weight", (CLASSES, channels))
    value = graph.node("Gemm", [value, weight, graph.random("fc.bias", (CLASSES,))], "fc", transB=1)
    graph.nodes[-1].output[0] = "fc_out"
    graph.cast("fc_out", "logits", np.dtype(np.float32), always=True)
    shape: list[Any] = ["N", size, size, 3] if uint8_input else ["N", 3, size, size]
    made = helper.make_graph(
        graph.nodes,
        "resnet",
        [
            helper.make_tensor_value_info(
                "input", TensorProto.UINT8 if uint8_input else TensorProto.FLOAT, shape
            )
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def _uint8_stem(graph: _Graph) -> str:
    """Preprocessing in the graph: Cast first, then Transpose, one Sub."""
    value = graph.cast("input", "input_cast", np.dtype(np.float32), always=True)
    value = graph.node("Transpose", [value], "to_nchw", perm=[0, 3, 1, 2])
    mean = graph.constant("mean", np.full((1, 3, 1, 1), 120, np.float32))
    return graph.cast(graph.node("Sub", [value, mean], "center"), "center_cast", graph.dtype)


def _block(graph: _Graph, value: str, name: str, channels: int, inner: int, outer: int, stride: int) -> str:
    if inner == outer:
        body = graph.relu(graph.conv(value, f"{name}.conv1", channels, inner, kernel=3, stride=stride))
        body = graph.conv(body, f"{name}.conv2", inner, outer, kernel=3)
    else:
        body = graph.relu(graph.conv(value, f"{name}.conv1", channels, inner, kernel=1))
        body = graph.relu(graph.conv(body, f"{name}.conv2", inner, inner, kernel=3, stride=stride))
        body = graph.conv(body, f"{name}.conv3", inner, outer, kernel=1)
    skip = value
    if stride != 1 or channels != outer:
        skip = graph.conv(value, f"{name}.downsample", channels, outer, kernel=1, stride=stride)
    return graph.relu(graph.node("Add", [body, graph.quantized(skip)], f"{name}.add"))


@dataclass
class _Graph:
    dtype: np.dtype[Any]
    int8: bool
    keep: frozenset[str]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def constant(self, name: str, array: NDArray[Any]) -> str:
        self.constants[name] = array
        return name

    def random(self, name: str, shape: tuple[int, ...]) -> str:
        scale = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1
        return self.constant(name, (self.rng.normal(size=shape) * scale).astype(self.dtype))

    def cast(self, value: str, name: str, dtype: np.dtype[Any], *, always: bool = False) -> str:
        if dtype == np.float32 and not always:
            return value
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        self.nodes.append(helper.make_node("Cast", [value], [name], name=f"{name}_node", to=kind))
        return name

    def relu(self, value: str) -> str:
        return self.node("Relu", [value], f"{value.removesuffix('_out')}.relu")

    def conv(
        self, value: str, name: str, channels: int, filters: int, *, kernel: int, stride: int = 1
    ) -> str:
        weight = self.random(f"{name}.weight", (filters, channels, kernel, kernel))
        bias = self.random(f"{name}.bias", (filters,))
        if self.int8 and name not in self.keep:
            value, weight = self.quantized(value), self._quantized_weight(name)
        pads = [kernel // 2] * 4
        return self.node(
            "Conv", [value, weight, bias], name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=pads
        )

    def quantized(self, value: str) -> str:
        """`value` through QuantizeLinear and DequantizeLinear, one pair per tensor."""
        name = value.removesuffix("_out")
        if self.int8 and f"{name}.scale" not in self.constants:
            scale = self.constant(f"{name}.scale", np.array(0.05, self.dtype))
            zero = self.constant("zero", np.array(0, np.int8))
            quantized = self.node("QuantizeLinear", [value, scale, zero], f"{name}.q")
            self.node("DequantizeLinear", [quantized, scale, zero], f"{name}.dq")
        return f"{name}.dq_out" if self.int8 else value

    def _quantized_weight(self, name: str) -> str:
        weight = self.constants.pop(f"{name}.weight").astype(np.float32)
        scale = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(self.dtype)
        integers = np.rint(weight / scale.astype(np.float32)[:, None, None, None]).clip(-127, 127)
        inputs = [
            self.constant(f"{name}.weight.int8", integers.astype(np.int8)),
            self.constant(f"{name}.weight.scale", scale),
            self.constant(f"{name}.weight.zero", np.zeros(len(scale), np.int8)),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}.weight.dq", axis=0)
