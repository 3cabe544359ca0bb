"""Which tensor of the fp32 graph each layer of an artifact's graph computes.

1. A node that both graphs have under one name computes the same tensor in both.
2. Cast, QuantizeLinear and DequantizeLinear pass on what they read.
3. A node that only the artifact has computes what a reader that both have reads there in the fp32 graph. The node
   before it, whose tensor that would have been by rule 1, then only leads up to it: a convolution whose BatchNorm
   stands behind it.
4. A node that only the fp32 graph has is missing. What the artifact's readers get in its place is known.

A layer is a node of the artifact with such a tensor, together with whatever stands between it and other such
tensors: the DequantizeLinear of its weights, nodes without a counterpart. A QuantizeLinear and the
DequantizeLinear that reads it are one layer, which rounds a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from resnet_export.calibration.quantize.qdq import DEQUANTIZE, QUANTIZE
from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.parity.attribution.layers import Kind

__all__ = ["Layer", "Missing", "Pairing", "pair"]

_CONVERSIONS = frozenset({"Cast", QUANTIZE, DEQUANTIZE})


@dataclass(frozen=True)
class Layer:
    """One layer of the artifact: `node` writes `tensor`, which stands for `reference` of the fp32 graph.

    `origin` is the node of the fp32 graph that writes `reference`, or the first that reads it where it is the
    graph's input.
    """

    node: str
    op: str
    kind: Kind
    tensor: str
    reference: str
    origin: str


@dataclass(frozen=True)
class Missing:
    """A node of the fp32 graph that the artifact lacks.

    `reference` is its tensor, and `instead` the tensor of the fp32 graph that the artifact's readers get in place
    of it, None where that is unknown. `after` is the last node of both graphs in front of it.
    """

    node: str
    op: str
    reference: str
    instead: str | None
    after: str | None


@dataclass(frozen=True)
class Pairing:
    """The layers of an artifact in the order of its graph, and what has no counterpart on the other side.

    `values` maps tensors of the artifact to the tensors of the fp32 graph that they stand for. `types` and
    `reference_types` have the type and shape of every tensor of either graph that is no initializer.
    """

    layers: tuple[Layer, ...]
    missing: tuple[Missing, ...]
    unpaired: tuple[str, ...]
    values: Mapping[str, str]
    types: Mapping[str, onnx.ValueInfoProto]
    reference_types: Mapping[str, onnx.ValueInfoProto]


def pair(reference: onnx.ModelProto, artifact: onnx.ModelProto) -> Pairing:
    """Pair the layers of two graphs with one input each. Raises ExportError when they are of different networks."""
    nodes = {node.name: node for node in reference.graph.node}
    own = {node.name: node for node in artifact.graph.node}
    if not nodes.keys() & own.keys():
        raise ExportError(
            "no node of the artifact's graph has the name of one in the fp32 graph, so no layers can be compared; "
            "export the bundle again"
        )
    writers = {name: node for node in artifact.graph.node for name in node.output}
    constants = _constants(artifact)
    by_name = {nodes[name].output[0]: own[name].output[0] for name in nodes.keys() & own.keys()}
    read = _read_instead(nodes, own, writers)
    counterpart = {
        tensor: read[tensor] if tensor in read and writers[read[tensor]].name not in nodes else name
        for tensor, name in by_name.items()
    }
    values = {name: tensor for tensor, name in counterpart.items()}
    values |= {
        mine.name: theirs.name
        for mine, theirs in zip(artifact.graph.input, reference.graph.input, strict=False)
    }
    for node in artifact.graph.node:
        if node.op_type in _CONVERSIONS and node.input[0] in values:
            values.setdefault(node.output[0], values[node.input[0]])
    types, reference_types = _types(artifact, "artifact's"), _types(reference, "fp32")
    layers = tuple(_layers(reference, artifact, values, types, constants))
    paired = {layer.node for layer in layers}
    return Pairing(
        layers=layers,
        missing=tuple(_missing(nodes, own, read, values)),
        unpaired=tuple(
            node.name
            for node in artifact.graph.node
            if node.name not in paired
            and not constants.issuperset(node.output)
            and node.op_type not in _CONVERSIONS
        ),
        values=values,
        types=types,
        reference_types=reference_types,
    )


def _constants(model: onnx.ModelProto) -> frozenset[str]:
    """Return every tensor that depends on no input: initializers, and what is computed of nothing else."""
    found = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if found.issuperset(name for name in node.input if name):
            found.update(node.output)
    return frozenset(found)


def _types(model: onnx.ModelProto, whose: str) -> dict[str, onnx.ValueInfoProto]:
    try:
        return infer_types(model)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the {whose} graph is not consistently typed: {error}; export it again") from error


def _read_instead(
    nodes: Mapping[str, onnx.NodeProto],
    own: Mapping[str, onnx.NodeProto],
    writers: Mapping[str, onnx.NodeProto],
) -> dict[str, str]:
    """Return, for tensors of the fp32 graph, what the artifact's reader of the same name reads there."""
    found: dict[str, str] = {}
    for name, node in nodes.items():
        for theirs, mine in zip(node.input, own[name].input if name in own else (), strict=False):
            while mine in writers and writers[mine].op_type in _CONVERSIONS:
                mine = writers[mine].input[0]
            if theirs and mine in writers:
                found.setdefault(theirs, mine)
    return found


def _layers(
    reference: onnx.ModelProto,
    artifact: onnx.ModelProto,
    values: Mapping[str, str],
    types: Mapping[str, onnx.ValueInfoProto],
    constants: frozenset[str],
) -> Iterator[Layer]:
    origins = {name: node.name for node in reversed(reference.graph.node) for name in node.input}
    origins |= {node.output[0]: node.name for node in reference.graph.node}
    quantizers = {node.output[0]: node for node in artifact.graph.node if node.op_type == QUANTIZE}
    integer_weights = {
        node.output[0]
        for node in artifact.graph.node
        if node.op_type == DEQUANTIZE and node.output[0] in constants
    }
    for node in artifact.graph.node:
        tensor = node.output[0]
        if tensor not in values or node.op_type == QUANTIZE:
            continue
        kind: Kind
        if node.op_type == DEQUANTIZE:
            quantizer = quantizers.get(node.input[0])
            if quantizer is None:
                continue
            name, op, kind = quantizer.name, QUANTIZE, "activations"
        else:
            touched = {types[one].type.tensor_type.elem_type for one in (tensor, *node.input) if one in types}
            narrow = next((_NARROW[one] for one in touched if one in _NARROW), None)
            weighted = not integer_weights.isdisjoint(node.input)
            name, op = node.name, node.op_type
            kind = "weights" if weighted else narrow or "fp32"
        yield Layer(name, op, kind, tensor, values[tensor], origins[values[tensor]])


_NARROW: Mapping[int, Kind] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def _missing(
    nodes: Mapping[str, onnx.NodeProto],
    own: Mapping[str, onnx.NodeProto],
    read: Mapping[str, str],
    values: Mapping[str, str],
) -> Iterator[Missing]:
    after: str | None = None
    for name, node in nodes.items():
        if name in own:
            after = name
        else:
            tensor = node.output[0]
            yield Missing(name, node.op_type, tensor, values.get(read.get(tensor, "")), after)
