"""How much of the noise on a tensor reaches the logits: rounding errors followed to the end, as variances.

Rounding errors of different channels and positions are close to independent, so their variances add up: a
convolution multiplies the variance of each input channel by its squared weights. Followed backwards from the
logits, that gives every channel of every tensor one number. Nothing is run for it, and it is exact in what
matters here: scaling a channel up before it is read, and down after, changes its gain by just that factor squared.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from resnet_export.calibration.improve.channel_scaling import by_input
from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.calibration.quantize.topology import Topology

Floats = NDArray[np.float64]

_RELU = 0.5  # the share of values whose error a ReLU passes on
_GATE = 0.25  # of an error's variance, what a gate between 0 and 1 leaves


def noise_gains(model: onnx.ModelProto, topology: Topology | None = None) -> dict[str, Floats]:
    """Return, for every activation with channels, float64 [channels]: logit variance per unit of its variance.

    "Variance" is summed over classes, for an error on one position of an image that is as large on all. A tensor
    whose readers are unknown operators has no entry.
    """
    topology = topology or Topology(model)
    shapes = {
        name: [axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for name, value in infer_types(model).items()
    }
    logits = str(model.graph.output[0].name)
    gains = {logits: np.ones(shapes[logits][1])} if len(shapes.get(logits, ())) > 1 else {}
    layers = {layer.name: layer for layer in topology.layers}
    for node in reversed(topology.nodes):
        after = gains.get(node.output[0])
        if after is None:
            continue
        if node.name in layers:
            layer = layers[node.name]
            if len(shapes.get(layer.output, ())) > 2 and node.op_type == "MatMul":
                continue  # its channels are in the last axis
            squares = by_input(topology.constant(layer.weight).astype(np.float64), layer) ** 2
            before = np.einsum("goik,go->gi", squares, after.reshape(len(squares), -1)).reshape(-1)
            _add(gains, layer.input, before)
            continue
        share = _share(node, shapes)
        for name in node.input:
            if name in shapes and len(shapes[name]) > 1 and shapes[name][1] == len(after):
                _add(gains, name, share * after)
    return gains


def _share(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> float:
    """Return what part of an error's variance an operator without weights passes on."""
    if node.op_type == "Relu":
        return _RELU
    if node.op_type == "Mul":
        return _GATE
    if node.op_type == "AveragePool":
        kernel = next(helper.get_attribute_value(one) for one in node.attribute if one.name == "kernel_shape")
        return 1 / float(np.prod(kernel))
    if node.op_type in ("GlobalAveragePool", "ReduceMean"):
        return 1 / float(np.prod([max(size, 1) for size in shapes[node.input[0]][2:]]))
    return 1.0


def _add(gains: dict[str, Floats], name: str, more: Floats) -> None:
    gains[name] = gains[name] + more if name in gains else more
