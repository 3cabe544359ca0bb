"""Give every tensor of a graph its type: fp16 wherever it fits, fp32 where it does not.

The result is strongly typed, which is the only kind of network that TensorRT 11 and TensorRT for RTX build:
each operator computes in the type of its tensors, and a Cast stands wherever the type changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, helper, numpy_helper

from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.exporter.graph.export import ExportedGraph
from resnet_export.exporter.graph.fp16_fit import misfits, scale_fits
from resnet_export.exporter.graph.value_ranges import Span
from resnet_export.runtime.bundle.manifest import ExcludedLayer
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.precision import Precision

__all__ = ["TypedGraph", "to_fp16"]

_FP32, _FP16 = int(TensorProto.FLOAT), int(TensorProto.FLOAT16)
_NAMES = {_FP32: "fp32", _FP16: "fp16"}
_INTEGERS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32)

_TYPED = frozenset(
    {
        "Add",
        "AveragePool",
        "Conv",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "HardSigmoid",
        "Identity",
        "MatMul",
        "MaxPool",
        "Mul",
        "ReduceMean",
        "Relu",
        "Reshape",
        "Sigmoid",
        "Softmax",
        "Sub",
        "Transpose",
    }
)
"""Operators that have one floating-point type, that of all their floating-point inputs and outputs."""

_PREPARATION = frozenset({"Cast", "Transpose", "Sub"})


@dataclass(frozen=True)
class TypedGraph:
    """A strongly typed graph, and the layers that stayed in fp32 with the reason for each, in graph order."""

    graph: ExportedGraph
    excluded: tuple[ExcludedLayer, ...]


def to_fp16(graph: ExportedGraph, ranges: Mapping[str, Span]) -> TypedGraph:
    """Return the graph with fp16 arithmetic and weights, and its input and output as they were.

    1. A layer that does not fit (`fp16_fit.misfits`) stays in fp32, between Casts, and is listed in `excluded`.
    2. Preprocessing in front of the first layer stays in fp32, so that pixels are centered before they are
       rounded. It is no layer, and is not listed.
    3. DequantizeLinear takes the type of the layer that reads it, and is doubled where two layers differ.
       QuantizeLinear takes the type of what it reads. Integer weights and zero points stay as they are.
    4. A tensor is cast at most once to each type, next to its first reader.

    Args:
        graph: a float32 graph, or a float32 Q/DQ graph that quantization left.
        ranges: what `scan_ranges` found; for a Q/DQ graph, on the float32 graph that it was made from.

    Raises ExportError when a range is missing, an operator has no typing rule, or the result is not
    consistently typed.
    """
    preparation = _preparation(graph.model.graph)
    reasons = {
        name: reason for name, reason in misfits(graph.model, ranges).items() if name not in preparation
    }
    writer = _Writer(graph, preparation)
    for node in graph.model.graph.node:
        if node.op_type == "QuantizeLinear":
            writer.quantize(node)
        elif node.op_type != "DequantizeLinear":  # those are written where they are read
            writer.compute(node, _FP32 if node.name in preparation or node.name in reasons else _FP16)
    _verify(writer.model, writer.types)
    excluded = tuple(
        ExcludedLayer(node=name, module=graph.modules[name], precision=Precision.FP32, reason=reason)
        for name, reason in reasons.items()
    )
    return TypedGraph(replace(graph, model=writer.model, modules=writer.modules), excluded)


def _preparation(graph: onnx.GraphProto) -> frozenset[str]:
    """Return the names of the nodes that only prepare the input: nothing but these, between it and them."""
    constants = {tensor.name for tensor in graph.initializer}
    raw = {value.name for value in graph.input}
    found = set()
    for node in graph.node:
        if node.op_type in _PREPARATION and all(name in constants or name in raw for name in node.input):
            found.add(node.name)
            raw.update(node.output)
    return frozenset(found)


class _Writer:
    """Writes a typed graph front to back; what a node needs in another type is written just before it.

    `types` has the element type of every tensor that a node has written, `modules` each node's module path.
    """

    def __init__(self, source: ExportedGraph, preparation: frozenset[str]) -> None:
        old = source.model.graph
        self.model = onnx.ModelProto(
            ir_version=source.model.ir_version,
            opset_import=source.model.opset_import,
            graph=onnx.GraphProto(name=old.name, input=old.input, output=old.output),
        )
        self.types: dict[str, int] = {value.name: value.type.tensor_type.elem_type for value in old.input}
        self.modules: dict[str, str] = {}
        self._paths = source.modules
        self._constants = {tensor.name: tensor for tensor in old.initializer}
        self._dequantizers = {node.output[0]: node for node in old.node if node.op_type == "DequantizeLinear"}
        self._outputs = {value.name for value in old.output}
        self._raw = {value.name for value in old.input}
        self._raw.update(name for node in old.node if node.name in preparation for name in node.output)
        self._path_of = {name: source.modules[node.name] for node in old.node for name in node.output}
        self._available: dict[tuple[str, int], str] = {}  # a tensor of the source, in a type → its name here
        self._stored: set[str] = set()

    def compute(self, node: onnx.NodeProto, kind: int) -> None:
        """Write an operator that computes in `kind`."""
        if node.op_type not in _TYPED and node.op_type not in _PREPARATION:
            raise ExportError(
                f"node {node.name!r} is a {node.op_type}, which has no fp16 typing rule; export without fp16"
            )
        result = node.output[0]
        if result in self._outputs and kind != _FP32:
            # The graph's output keeps its name and type, so what the node writes gets another name.
            self._write(node, kind, f"{node.name}.output")
            self._cast(f"{node.name}.output", result, _FP32, self._paths[node.name])
        else:
            self._write(node, kind, result)

    def quantize(self, node: onnx.NodeProto) -> None:
        """Write a QuantizeLinear in the type of what it reads; the raw input is cast to fp16 for it."""
        source = node.input[0]
        narrow = source in self._raw or self.types.get(source, _FP16) == _FP16
        kind = _FP16 if narrow and scale_fits(self._constants[node.input[1]]) else _FP32
        self._write(node, kind, node.output[0])
        integer = self._constants[node.input[2]].data_type if len(node.input) > 2 else TensorProto.UINT8
        self.types[node.output[0]] = integer

    def _write(self, node: onnx.NodeProto, kind: int, output: str) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.output[0] = output
        for position, name in enumerate(node.input):
            if name:
                new.input[position] = self._in_type(name, kind)
        self.model.graph.node.append(new)
        self.modules[new.name] = self._paths[node.name]
        self.types[output] = kind

    def _in_type(self, name: str, kind: int) -> str:
        """Return the name under which a tensor can be read in `kind`. Integers have one type only."""
        if (name, kind) not in self._available:
            if name in self._constants:
                found = self._constant(self._constants[name], kind)
            elif name in self._dequantizers:
                found = self._dequantize(self._dequantizers[name], kind)
            elif self.types[name] in (kind, *_INTEGERS):
                found = name
            else:
                found = f"{_base(name)}.{_NAMES[kind]}"
                self._cast(name, found, kind, self._path_of.get(name, ""))
            self._available[name, kind] = found
        return self._available[name, kind]

    def _constant(self, tensor: onnx.TensorProto, kind: int) -> str:
        name = str(tensor.name)
        if tensor.data_type != _FP32:
            if name not in self._stored:
                self._stored.add(name)
                self.model.graph.initializer.append(tensor)
            return name
        if name in self._stored:  # written before, for a reader of the other type
            name = f"{name}.{_NAMES[kind]}"
        self._stored.add(name)
        values = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _dequantize(self, node: onnx.NodeProto, kind: int) -> str:
        output = str(node.output[0])
        variant = onnx.NodeProto()
        variant.CopyFrom(node)
        if output in self.types:  # written before, for a reader of the other type
            variant.name, output = f"{node.name}.{_NAMES[kind]}", f"{output}.{_NAMES[kind]}"
            self._paths = {**self._paths, variant.name: self._paths[node.name]}
        self._write(variant, kind, output)
        return output

    def _cast(self, source: str, result: str, kind: int, path: str) -> None:
        name = f"{_base(source)}.to_{_NAMES[kind]}"
        self.model.graph.node.append(helper.make_node("Cast", [source], [result], name=name, to=kind))
        self.modules[name] = path
        self.types[result] = kind


def _base(tensor: str) -> str:
    return tensor.removesuffix(".output")


def _verify(model: onnx.ModelProto, types: Mapping[str, int]) -> None:
    """Raise ExportError unless ONNX's own type inference agrees with every type that was decided here."""
    try:
        inferred = infer_types(model)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the fp16 graph is not consistently typed: {error}") from error
    for name, value in inferred.items():
        found = value.type.tensor_type.elem_type
        if found != types[name]:
            raise ExportError(
                f"tensor {name!r} of the fp16 graph came out as {TensorProto.DataType.Name(found)}, where "
                f"{TensorProto.DataType.Name(types[name])} was decided"
            )
