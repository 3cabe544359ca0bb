"""Outputs besides the logits: found in a float32 graph by its shapes and its weights, never by names of modules.

Each is read off by a node of its own, which nothing else reads: an Identity, so that the chain that it is read from is
quantized, typed and fused as it would be without.

 embedding      what the layer that makes the logits reads: the last Conv, Gemm or MatMul with constant weights before
                them, [N, F].
 c2, …, c5      the maps of the spatial pyramid [N, C, H, W], whose sides are those of the image divided by 4, 8, 16
                and 32: of each size the last tensor that the whole network passes through, before the next shrinks it.
                Where branches run side by side (the first block of a stage), no tensor of theirs is one. The pyramid
                ends where a map is pooled into one value for each channel.
 probabilities  softmax of the logits, or the sigmoid of each, [N, classes].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, helper

from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.exporter.graph.exported_graph import BATCH_AXIS, ExportedGraph
from resnet_export.runtime.bundle.manifest import LOGITS
from resnet_export.runtime.bundle.schema import PROBABILITIES
from resnet_export.runtime.errors import RequestError

__all__ = ["EMBEDDING", "FurtherOutputs", "add_outputs", "find_outputs"]

EMBEDDING = "embedding"

_LEVELS = range(2, 6)
_STEP = 2
"""The most halvings that one operator may make within a pyramid: stems cut images into patches of 4 pixels."""

_LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
_POOLS = frozenset(
    {"AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax"}
)


@dataclass(frozen=True)
class FurtherOutputs:
    """Which outputs a graph is to have besides those that the network returns.

    `activation` is what turns logits into probabilities, None where these are not asked for.
    """

    embedding: bool = False
    features: bool = False
    activation: str | None = None


def find_outputs(model: onnx.ModelProto, asked: FurtherOutputs) -> dict[str, str]:
    """Return the tensor behind each output of `asked` but the probabilities, by the output's name.

    Raises RequestError when the graph has none.
    """
    graph = _Graph(model)
    found: dict[str, str] = {}
    if asked.embedding:
        found[EMBEDDING] = graph.embedding()
    if asked.features:
        found |= graph.pyramid()
    return found


def add_outputs(graph: ExportedGraph, asked: FurtherOutputs) -> ExportedGraph:
    """Return the graph with the outputs of `asked` behind those that it has. Raises RequestError as `find_outputs`."""
    taken = {value.name for value in graph.model.graph.output}
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    shapes = _Graph(graph.model).shapes
    modules = dict(graph.modules)
    for name, tensor in find_outputs(graph.model, asked).items():
        _refuse_twice(name, taken)
        shape = shapes[tensor]
        if name == EMBEDDING and len(shape) > 2:
            node = helper.make_node("Flatten", [tensor], [name], name=name, axis=1)
            shape = (shape[0], math.prod(shape[1:]))
        else:
            node = helper.make_node("Identity", [tensor], [name], name=name)
        _append(model, node, shape)
        modules[name] = ""
    if asked.activation is not None:
        _refuse_twice(PROBABILITIES, taken)
        inputs, outputs = [LOGITS], [PROBABILITIES]
        if asked.activation == "sigmoid":
            node = helper.make_node("Sigmoid", inputs, outputs, name=PROBABILITIES)
        else:
            node = helper.make_node("Softmax", inputs, outputs, name=PROBABILITIES, axis=1)
        _append(model, node, shapes[LOGITS])
        modules[PROBABILITIES] = ""
    return replace(graph, model=model, modules=modules)


def _append(model: onnx.ModelProto, node: onnx.NodeProto, shape: tuple[int, ...]) -> None:
    model.graph.node.append(node)
    axes: list[str | int] = [BATCH_AXIS, *shape[1:]]
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, axes))


def _refuse_twice(name: str, taken: set[str]) -> None:
    if name in taken:
        raise RequestError(f"the network returns an output {name!r} by itself; leave the option for it out")


class _Graph:
    """The part of a graph that the logits come from. `shapes` has 0 for an axis of free size."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        types = infer_types(model)
        self.shapes = {
            name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim)
            for name, value in types.items()
        }
        self._floats = {
            name for name, value in types.items() if value.type.tensor_type.elem_type == TensorProto.FLOAT
        }
        self._source = model.graph.input[0].name
        self._writers = {name: node for node in model.graph.node for name in node.output}
        self._nodes = list(self._ancestors(model))

    def embedding(self) -> str:
        """Return what the layer that makes the logits reads: a vector for each image, perhaps with axes of one."""
        tensor = LOGITS
        while tensor in self._writers:
            node = self._writers[tensor]
            activations = [
                str(name) for name in node.input if name in self._floats and name not in self.constants
            ]
            weighted = any(
                name in self.constants and len(self.constants[name].dims) > 1 for name in node.input[1:2]
            )
            if node.op_type in _LAYERS and weighted:
                shape = self.shapes[activations[0]]
                if len(shape) < 2 or any(side != 1 for side in shape[2:]) or not shape[1]:
                    raise RequestError(
                        f"the network has no embedding: the layer {node.name!r} that makes the logits reads "
                        f"{_axes(shape)}, expected a vector [N, F] for each image; leave --embedding out"
                    )
                return activations[0]
            if len(activations) != 1:
                break
            tensor = activations[0]
        raise RequestError(
            "the network has no embedding: no layer with weights makes its logits from one vector; "
            "leave --embedding out"
        )

    def pyramid(self) -> dict[str, str]:
        """Return the maps by name, "c2" to "c5" as far as there are some."""
        height, width = self.shapes[self._source][2:]
        levels: dict[int, str] = {}
        level, sides = 0, (height, width)
        for node, tensor in self._bottlenecks():
            shape = self.shapes[tensor]
            if (
                node.op_type in _POOLS
                and set(shape[2:]) <= {1}
                and set(self.shapes[node.input[0]][2:]) != {1}
            ):
                break
            if len(shape) != 4 or not all(shape[1:]):
                continue
            # With its channels in another place, or cut into patches at once, it is no map of the pyramid.
            halvings = {
                round(math.log2(before / after)) for before, after in zip(sides, shape[2:], strict=True)
            }
            if len(halvings) == 1 and 0 <= max(halvings) <= _STEP:
                level += max(halvings)
                sides = shape[2:]
                levels[level] = tensor
        maps = {f"c{level}": levels[level] for level in _LEVELS if level in levels}
        if len(levels) < 2 or not maps:
            sizes = ", ".join(_sides(self.shapes[tensor]) for tensor in levels.values()) or "no size"
            raise RequestError(
                f"the network has no pyramid of stage maps: on images of {height} × {width} pixels it passes through "
                f"maps of {sizes}, expected several sizes down to a quarter or less; leave --features out"
            )
        return maps

    def _ancestors(self, model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
        """Yield, in order, the nodes that compute floats of an image for the logits."""
        depends = {self._source}
        for node in model.graph.node:
            if any(name in depends for name in node.input):
                depends.update(node.output)
        needed = {LOGITS}
        kept = []
        for node in reversed(model.graph.node):
            if any(name in needed for name in node.output) and any(name in depends for name in node.input):
                needed.update(name for name in node.input if name in self._floats)
                kept.append(node)
        yield from reversed(kept)

    def _bottlenecks(self) -> Iterator[tuple[onnx.NodeProto, str]]:
        """Yield each tensor that everything from the image to the logits passes through, with its writer, in order.

        Nothing that was computed before such a tensor is read after it.
        """
        last: dict[str, int] = {}
        for index, node in enumerate(self._nodes):
            last |= {
                name: index for name in node.input if name in self._floats and name not in self.constants
            }
        alive = {self._source}
        for index, node in enumerate(self._nodes):
            alive |= {name for name in node.output if name in last}
            alive -= {name for name in alive if last[name] <= index}
            if len(alive) == 1 and node.output[0] in alive:
                yield node, node.output[0]


def _axes(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(['N', *map(str, shape[1:])])}]"


def _sides(shape: tuple[int, ...]) -> str:
    return f"{shape[2]} × {shape[3]}"
