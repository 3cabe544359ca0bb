"""A network of one identity block and one downsampling block, written node by node: small enough to check
every Q/DQ node of it by hand, and to run in ONNX's reference evaluator.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
CHANNELS = 8
CLASSES = 5


def residual_net(*, seed: int = 0, bias: bool = True, averaged_skip: bool = False) -> onnx.ModelProto:
    """Return the graph: stem, pooling, block `a` (identity), block `b` (downsampling), average, classifier.

    `averaged_skip` puts an average in front of `b.down`, as ResNet-D does.

    input [N, 3, 16, 16] → logits [N, 5]. Nodes are called "stem", "a.conv1", "b.down", "fc"; what they write,
    "stem.out" and so on.
    """
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[np.float32]] = {}

    def add(operator: str, name: str, *inputs: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"{name}.out"], name=name, **attributes))
        return f"{name}.out"

    def conv(name: str, source: str, filters: int, channels: int, kernel: int, stride: int = 1) -> str:
        spread = np.sqrt(2 / (channels * kernel**2))
        constants[f"{name}.weight"] = rng.normal(0, spread, (filters, channels, kernel, kernel)).astype(
            np.float32
        )
        inputs = [source, f"{name}.weight"]
        if bias:
            constants[f"{name}.bias"] = rng.normal(0, 0.2, filters).astype(np.float32)
            inputs.append(f"{name}.bias")
        pads = [kernel // 2] * 4
        return add("Conv", name, *inputs, kernel_shape=[kernel] * 2, pads=pads, strides=[stride] * 2)

    stem = add("Relu", "stem.relu", conv("stem", "input", CHANNELS, 3, 3))
    pooled = add("MaxPool", "pool", stem, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inner = add("Relu", "a.relu1", conv("a.conv1", pooled, CHANNELS, CHANNELS, 3))
    total = add("Add", "a.add", conv("a.conv2", inner, CHANNELS, CHANNELS, 3), pooled)
    first = add("Relu", "a.relu2", total)
    inner = add("Relu", "b.relu1", conv("b.conv1", first, 2 * CHANNELS, CHANNELS, 3, stride=2))
    main = conv("b.conv2", inner, 2 * CHANNELS, 2 * CHANNELS, 3)
    if averaged_skip:
        averaged = add("AveragePool", "b.average", first, kernel_shape=[2, 2], strides=[2, 2])
        skip = conv("b.down", averaged, 2 * CHANNELS, CHANNELS, 1)
    else:
        skip = conv("b.down", first, 2 * CHANNELS, CHANNELS, 1, stride=2)
    second = add("Relu", "b.relu2", add("Add", "b.add", main, skip))
    flat = add("Flatten", "flatten", add("GlobalAveragePool", "average", second))
    constants["fc.weight"] = rng.normal(0, 0.3, (CLASSES, 2 * CHANNELS)).astype(np.float32)
    constants["fc.bias"] = rng.normal(0, 0.1, CLASSES).astype(np.float32)
    add("Gemm", "fc", flat, "fc.weight", "fc.bias", transB=1)
    nodes[-1].output[0] = "logits"
    graph = helper.make_graph(
        nodes,
        "residual_net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def images(count: int, seed: int = 1) -> NDArray[np.float32]:
    """Return normalized images, float32 [count, 3, 16, 16]."""
    return np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)


def with_weight(model: onnx.ModelProto, name: str, values: NDArray[np.float32]) -> onnx.ModelProto:
    """Return a copy with another initializer in place of `name`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values, name))
    return copy
