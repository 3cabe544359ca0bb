"""From what TensorRT says about an engine's layers to a `LayerReport`.

Fused layers hide their parts, so everything is counted by ONNX node name: TensorRT keeps the names in each
layer's metadata, as "[ONNX Layer: name]" parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import onnx

from resnet_export.runtime.bundle.layer_report import LayerInfo, LayerReport, Operator
from resnet_export.runtime.bundle.manifest import ExcludedLayer
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.precision import PRECISIONS, Precision

# The operators whose arithmetic decides how fast and how exact a ResNet is.
OPERATORS = ("Conv", "Gemm", "MatMul")

LOG_MARKER = "Layers:"

# The type of kernels that TensorRT generates for pointwise operators.
_GENERATED = "kgen"

# The precision of floating-point weights, by their ONNX type.
_PRECISIONS = {
    onnx.TensorProto.DataType.Value(row.onnx_type): row.precision
    for row in PRECISIONS.values()
    if row.precision is not Precision.INT8
}
_DTYPES = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "int8": "int8",
    "uint8": "uint8",
    "int32": "int32",
    "int64": "int64",
    "int4": "int4",
    "fp8": "fp8",
    "fp4": "fp4",
    "bool": "bool",
}
_DTYPE = re.compile(rf"\b({'|'.join(_DTYPES)})\b", re.IGNORECASE)
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^\x1f]*)\]")
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<type>.*?), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: (?P<tactic>.*?), .*?Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: .*?, Dimensions: \[(?P<dimensions>[^\]]*)\].*?Datatype: (?P<dtype>\w+)")


@dataclass(frozen=True)
class TypedNode:
    """A convolution or matrix product of a typed graph, and the precision that the graph gives it."""

    name: str
    op: str
    precision: Precision | None


def parse_build_log(messages: Iterable[str]) -> tuple[LayerInfo, ...]:
    """Return the layers listed in the log of a build with detailed profiling verbosity.

    One message starts with "Layers:" and has one line per layer (TensorRT for RTX 1.7.1). Empty when no
    message does.
    """
    layers: list[LayerInfo] = []
    for message in messages:
        if not message.startswith(LOG_MARKER):
            continue
        for line in message.splitlines()[1:]:
            match = _LINE.match(line)
            if match is None:
                break  # the list ends at an empty line; I/O tensors and engine metadata follow
            layers.append(
                LayerInfo(
                    name=match["name"],
                    type=match["type"],
                    nodes=_onnx_nodes(match["metadata"]),
                    inputs=tuple(_dtype(tensor["dtype"]) for tensor in _TENSOR.finditer(match["inputs"])),
                    outputs=tuple(_dtype(tensor["dtype"]) for tensor in _TENSOR.finditer(match["outputs"])),
                    weights=_weights(
                        (_integers(tensor["dimensions"]), tensor["dtype"])
                        for tensor in _TENSOR.finditer(match["constants"] or "")
                    ),
                    tactic=match["tactic"],
                )
            )
    return tuple(layers)


def parse_inspector(text: str) -> tuple[LayerInfo, ...]:
    """Return the layers that an engine inspector lists as JSON (`LayerInformationFormat.JSON`).

    An engine built without detailed profiling verbosity lists names only; its layers have no data types. Fields that
    a version leaves out stay empty. Raises ExportError when the text is not such a list.
    """
    try:
        entries = msgspec.json.decode(text.encode())["Layers"]
        return tuple(_inspected(entry) for entry in entries)
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"the engine inspector's answer is not a list of layers ({type(error).__name__}: {error}); "
            "this version of TensorRT writes it differently"
        ) from error


def typed_nodes(model: onnx.ModelProto) -> tuple[TypedNode, ...]:
    """Return the convolutions and matrix products of a typed graph, in graph order, with their precision.

    A node computes in int8 when both its data and its weights come from a DequantizeLinear, and otherwise
    in the floating-point type of its weights; None stands for a type that has no `Precision`.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    constants: dict[str, int] = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    values: dict[str, int] = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }

    def element_type(name: str) -> int:
        if name in constants:
            return constants[name]
        node = producers.get(name)
        if node is None or name in values:
            return values.get(name, onnx.TensorProto.UNDEFINED)
        if node.op_type == "Cast":
            return int(next(attribute.i for attribute in node.attribute if attribute.name == "to"))
        if node.op_type == "Constant":
            return int(
                next(attribute.t.data_type for attribute in node.attribute if attribute.name == "value")
            )
        if node.op_type == "DequantizeLinear":
            return element_type(node.input[1])  # the scale has the type of the output
        return element_type(node.input[0])

    def is_quantized(name: str) -> bool:
        node = producers.get(name)
        return node is not None and node.op_type == "DequantizeLinear"

    found: list[TypedNode] = []
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            continue
        kind = element_type(node.input[1])
        quantized = is_quantized(node.input[0]) and is_quantized(node.input[1])
        found.append(
            TypedNode(node.name, node.op_type, Precision.INT8 if quantized else _PRECISIONS.get(kind))
        )
    return tuple(found)


def make_report(
    layers: tuple[LayerInfo, ...],
    nodes: tuple[TypedNode, ...],
    *,
    source: Literal["inspector", "build log"],
    asked: Precision,
    excluded: tuple[ExcludedLayer, ...] = (),
    builder: str,
    undescribed: str | None = None,
) -> LayerReport:
    """Match the layers of an engine with the nodes of its graph.

    `excluded` are the layers that the graph deliberately leaves in a higher precision; `builder` is the name
    and version of the library, for the reasons; `undescribed` says why there are no layers.
    """
    by_node: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        for name in layer.nodes:
            by_node.setdefault(name, []).append(layer)
    reasons = {layer.node: layer.reason for layer in excluded}
    operators = []
    for node in nodes:
        computing = _computing_layer(by_node.get(node.name, []), asked)
        engine = None if computing is None else _precision(computing)
        reason = _reason(node, engine, asked, reasons, builder)
        operators.append(
            Operator(
                node=node.name,
                op=node.op,
                graph=node.precision,
                engine=engine,
                layer=None if computing is None else computing.name,
                reason=reason,
            )
        )
    return LayerReport(
        asked=asked, source=source, layers=layers, operators=tuple(operators), undescribed=undescribed
    )


def _inspected(entry: Any) -> LayerInfo:
    if isinstance(entry, str):  # names only
        return LayerInfo(name=entry, type="", nodes=tuple(entry.split(" + ")), inputs=(), outputs=())
    constants = [
        (tuple(tensor.get("Dimensions", ())), _format(tensor)) for tensor in entry.get("Constants", ())
    ]
    # Layers outside the compiler backend describe their weights by type and count instead.
    weights = entry["Weights"].get("Type", "") if "Weights" in entry else None
    return LayerInfo(
        name=entry["Name"],
        type=entry.get("LayerType", ""),
        nodes=_onnx_nodes(entry.get("Metadata", "")) or tuple(entry["Name"].split(" + ")),
        inputs=tuple(_dtype(_format(tensor)) for tensor in entry.get("Inputs", ())),
        outputs=tuple(_dtype(_format(tensor)) for tensor in entry.get("Outputs", ())),
        weights=_weights(constants) if weights is None else _dtype(weights),
        tactic=entry.get("TacticName", ""),
    )


def _format(tensor: Mapping[str, Any]) -> str:
    """Layers of standard TensorRT say "Row major Int8 format", compiled ones name the type by itself."""
    return str(tensor.get("Datatype") or tensor.get("Format/Datatype", ""))


def _dtype(text: str) -> str:
    match = _DTYPE.search(text)
    return text if match is None else _DTYPES[match[0].lower()]


def _onnx_nodes(metadata: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_ONNX_NODE.findall(metadata)))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _weights(constants: Iterable[tuple[tuple[int, ...], str]]) -> str | None:
    """The type of the first constant that is a matrix or more; scales and biases extend in one dimension."""
    for dimensions, dtype in constants:
        if sum(size > 1 for size in dimensions) > 1:
            return _dtype(dtype)
    return None


def _computing_layer(layers: list[LayerInfo], asked: Precision) -> LayerInfo | None:
    """Of the layers that name a node, the one that computes it: it has weights.

    The others cast, pad or quantize its data first; such a generated kernel may have a large constant too.
    There is one computing layer for each profile, and the one that differs from what was asked for is reported.
    """
    weighted = [layer for layer in layers if layer.weights is not None]
    computing = [layer for layer in weighted if layer.type != _GENERATED] or weighted or layers[-1:]
    differing = (layer for layer in computing if _precision(layer) != asked)
    return next(differing, computing[0] if computing else None)


def _precision(layer: LayerInfo) -> Precision | None:
    # Weight-only quantization (int8 weights, fp16 data) computes in the type of the data.
    kind = layer.inputs[0] if layer.inputs else layer.weights
    return Precision(kind) if kind in set(Precision) else None


def _reason(
    node: TypedNode, engine: Precision | None, asked: Precision, excluded: Mapping[str, str], builder: str
) -> str | None:
    if engine is None:
        return "no layer of the engine names it"
    if engine == asked:
        return None
    if engine != node.precision:
        return f"the graph gives it {node.precision or 'another type'}, {builder} decided otherwise"
    if node.name in excluded:
        return excluded[node.name]
    if asked is Precision.INT8:
        return "the graph has no QuantizeLinear and DequantizeLinear on both its data and its weights"
    return f"the graph has its weights in {node.precision or 'another type'}"
