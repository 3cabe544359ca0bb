"""Give every tensor of a graph its type: a narrow one wherever it fits, fp32 where it does not.

The result is strongly typed, which is the only kind of network that TensorRT 11 and TensorRT for RTX build:
each operator computes in the type of its tensors, and a Cast stands wherever the type changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx
import onnx_ir as ir

from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.fp16_fit import misfits, scale_fits
from resnet_export.exporter.graph.value_ranges import Span
from resnet_export.runtime.bundle.manifest import ExcludedLayer
from resnet_export.runtime.errors import ExportError
from resnet_export.runtime.precision import Precision

__all__ = ["TypedGraph", "to_fp16"]

_FP32, _FP16, _BF16 = ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16
_NAMES = {_FP32: "fp32", _FP16: "fp16", _BF16: "bf16"}
_NAMES_OF_ONNX = {_FP32: "float", _FP16: "float16", _BF16: "bfloat16"}

_BF16_OPSET, _BF16_IR_VERSION = 22, 10
"""The first operator set in which convolutions and pooling take bf16, which is all that it changed of the operators
here, and the file format of its ONNX release."""

_NOT_BF16 = {"HardSwish": "TensorRT for RTX 1.7.1 takes no bf16 HardSwish"}
"""Operators that ONNX defines in bf16 and a builder refuses there, with the reason that is listed."""

_PREPARATION = frozenset({"Cast", "Transpose", "Sub"})


@dataclass(frozen=True)
class TypedGraph:
    """A strongly typed graph, and the layers that stayed in fp32 with the reason for each, in graph order."""

    graph: ExportedGraph
    excluded: tuple[ExcludedLayer, ...]


def to_fp16(graph: ExportedGraph, ranges: Mapping[str, Span]) -> TypedGraph:
    """Return the graph with fp16 arithmetic and weights, its input and outputs as they were (see `to_typed`).

    Layers that do not fit (`fp16_fit.misfits`) stay in fp32. `ranges` are what `scan_ranges` found; for a Q/DQ graph,
    on the float32 graph that it was made from. Raises ExportError as `to_typed` does, and when a range is missing.
    """
    return to_typed(graph, _FP16, misfits(graph.model, ranges))


def to_bf16(graph: ExportedGraph) -> TypedGraph:
    """Return the graph with bf16 arithmetic and weights, its input and outputs as they were (see `to_typed`).

    bf16 has fp32's range, so every layer fits; what TensorRT does not take in bf16 (`_NOT_BF16`) stays in fp32. Raises
    ExportError as `to_typed` does.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    del model.opset_import[:]
    model.opset_import.add(domain="", version=_BF16_OPSET)
    model.ir_version = _BF16_IR_VERSION
    wide = {node.name: _NOT_BF16[node.op_type] for node in model.graph.node if node.op_type in _NOT_BF16}
    return to_typed(replace(graph, model=model), _BF16, wide)


def to_typed(graph: ExportedGraph, narrow: ir.DataType, wide: Mapping[str, str]) -> TypedGraph:
    """Return the graph with the arithmetic and weights of the type `narrow`, its input and outputs as they were.

    1. A node in `wide` (name → reason) stays in fp32, between Casts, and is listed in `excluded`.
    2. Preprocessing in front of the first layer stays in fp32, so that pixels are centered before they are
       rounded. It is no layer, and is not listed.
    3. DequantizeLinear takes the type of the layer that reads it, and is doubled where two layers differ.
       QuantizeLinear takes the type of what it reads. Integer weights and zero points stay as they are.
    4. A tensor is cast at most once to each type, next to its first reader.
    5. What reads the logits, the first output, computes in fp32, as that output is: probabilities, and no layer.
    6. What an operator takes in the narrow type is what its ONNX schema says, input by input: the scales of a Resize
       and all integers stay as they are, and a node without a form in that type stays in fp32 as if it were in `wide`.

    `graph` is a float32 graph, or a float32 Q/DQ graph that quantization left. Raises ExportError for an operator that
    ONNX does not define, or when the result is not consistently typed.
    """
    writer = _Writer(graph, narrow)
    reasons = {name: reason for name, reason in wide.items() if name not in writer.preparation}
    for name, reason in writer.formless().items():
        reasons.setdefault(name, reason)
    for node in writer.source:
        if node.op_type == "QuantizeLinear":
            writer.quantize(node)
        elif node.op_type != "DequantizeLinear":  # those are written where they are read
            fp32 = node.name in writer.preparation or node.name in reasons or writer.reads_logits(node)
            writer.compute(node, _FP32 if fp32 else narrow)
    excluded = tuple(
        ExcludedLayer(node=name, module=graph.modules[name], precision=Precision.FP32, reason=reason)
        for name, reason in reasons.items()
    )
    return TypedGraph(replace(graph, model=writer.finish(), modules=writer.modules), excluded)


class _Writer:
    """Takes a graph apart and puts it together typed, front to back; a Cast stands just before its first reader.

    `source` are the nodes in order, `preparation` the names of those that only prepare the input: nothing but these,
    between it and them. `modules` has each node's module path.
    """

    def __init__(self, source: ExportedGraph, narrow: ir.DataType) -> None:
        self._model = ir.from_proto(source.model)
        self._graph = self._model.graph
        self._narrow = narrow
        self._paths = dict(source.modules)
        self.source = tuple(self._graph)
        types = infer_types(source.model)
        self._types: dict[ir.Value, ir.DataType] = {
            value: ir.DataType(types[str(value.name)].type.tensor_type.elem_type)
            for value in (*self._graph.inputs, *(value for node in self.source for value in node.outputs))
            if value.name
        }
        self.modules: dict[str, str] = {}
        self.preparation: set[str] = set()
        self._raw = set(self._graph.inputs)
        self._logits = self._graph.outputs[0]
        for node in self.source:
            if node.op_type in _PREPARATION and all(
                value.is_initializer() or value in self._raw for value in node.inputs if value is not None
            ):
                self.preparation.add(_name(node))
                self._raw.update(node.outputs)
        self._graph.remove(self.source)
        self._graph.initializers.clear()
        self._dequantized: set[ir.Node] = set()
        self._available: dict[
            tuple[ir.Value, ir.DataType], ir.Value
        ] = {}  # a tensor, in a type → where it is

    def reads_logits(self, node: ir.Node) -> bool:
        """Whether `node` reads the first output of the graph."""
        return self._logits in node.inputs

    def formless(self) -> dict[str, str]:
        """Return the nodes that turn floats into floats and have no form in the narrow type, with the reason."""
        found = {}
        for node in self.source:
            reads, writes = self._kinds(node, self._narrow)
            if _FP32 in reads and _FP32 in writes and self._narrow not in (*reads, *writes):
                version = self._model.opset_imports[""]
                found[_name(node)] = (
                    f"ONNX defines no {_NAMES[self._narrow]} {node.op_type} in operator set {version}"
                )
        return found

    def compute(self, node: ir.Node, kind: ir.DataType) -> None:
        """Write an operator that computes in `kind`."""
        self._write(node, kind)
        for value in node.outputs:
            if value.is_graph_output() and value.dtype == self._narrow:
                # The graph's output keeps its name and type, so what the node writes gets another name.
                position, name, shape = self._graph.outputs.index(value), value.name, value.shape
                value.name = f"{node.name}.output"
                cast = self._cast(value, str(name), _FP32, self._paths[_name(node)])
                cast.shape = shape
                self._graph.outputs[position] = cast
                self._available[value, _FP32] = cast

    def quantize(self, node: ir.Node) -> None:
        """Write a QuantizeLinear in the type of what it reads; the raw input is cast to the narrow type for it."""
        inputs: Sequence[Any] = node.inputs
        source, scale = inputs[:2]
        narrow = source in self._raw or source.dtype == self._narrow
        self._write(node, self._narrow if narrow and scale_fits(scale.const_value.numpy()) else _FP32)

    def finish(self) -> onnx.ModelProto:
        """Return the model. Raises ExportError unless ONNX's own inference agrees with every type decided here."""
        model = ir.to_proto(self._model)
        del model.graph.value_info[:]
        try:
            inferred = infer_types(model)
        except onnx.shape_inference.InferenceError as error:
            raise ExportError(
                f"the {_NAMES[self._narrow]} graph is not consistently typed: {error}"
            ) from error
        for node in self._graph:
            for value in node.outputs:
                found = ir.DataType(inferred[str(value.name)].type.tensor_type.elem_type)
                if found != value.dtype:
                    raise ExportError(
                        f"tensor {value.name!r} of the {_NAMES[self._narrow]} graph came out as {found.name}, where "
                        f"{value.dtype} was decided"
                    )
        return model

    def _write(self, node: ir.Node, kind: ir.DataType) -> None:
        reads, writes = self._kinds(node, kind)
        for position, (value, read) in enumerate(zip(node.inputs, reads, strict=True)):
            if value is not None and read is not None:
                node.replace_input_with(position, self._in_type(value, read))
        self._graph.append(node)
        self.modules[_name(node)] = self._paths[_name(node)]
        for output, write in zip(node.outputs, writes, strict=True):
            if write is not None:
                output.dtype = write

    def _kinds(
        self, node: ir.Node, kind: ir.DataType
    ) -> tuple[list[ir.DataType | None], list[ir.DataType | None]]:
        """Return the types that a node reads and writes when it computes in `kind`; None for what is left out.

        A float tensor is in `kind` where the operator's schema allows that; everything else has the type that it had,
        and so do floats that no float decides: what a Cast makes, or a Range over integers.
        """
        try:
            schema = onnx.defs.get_schema(node.op_type, self._model.opset_imports[""], node.domain)
        except onnx.defs.SchemaError as error:
            raise ExportError(
                f"node {node.name!r} is a {node.op_type}, which ONNX does not define"
                f"{f' in the domain {node.domain!r}' if node.domain else ''}; export without {_NAMES[self._narrow]}"
            ) from error

        def decided(value: ir.Value | None, formal: Any) -> ir.DataType | None:
            now = None if value is None else self._type_of(value)
            return kind if now == _FP32 and f"tensor({_NAMES_OF_ONNX[kind]})" in formal.types else now

        def decide(values: Sequence[ir.Value | None], formals: Sequence[Any]) -> list[ir.DataType | None]:
            # The last may be repeated.
            return [decided(value, formals[min(at, len(formals) - 1)]) for at, value in enumerate(values)]

        floats = (value is not None and self._type_of(value) == _FP32 for value in node.inputs)
        if node.op_type == "Cast" or not any(floats):
            kind = _FP32
        return decide(node.inputs, schema.inputs), decide(node.outputs, schema.outputs)

    def _type_of(self, value: ir.Value) -> ir.DataType | None:
        """Return the type that a tensor had in the source; None for an output that is left out."""
        return self._types.get(value) if value.const_value is None else value.const_value.dtype

    def _in_type(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """Return where a tensor can be read in `kind`."""
        if (value, kind) not in self._available:
            producer = value.producer()
            if value.const_value is not None:
                found = self._constant(value, kind)
            elif producer is not None and producer.op_type == "DequantizeLinear":
                found = self._dequantize(producer, kind)
            elif value.dtype == kind or (value.dtype is not None and value.dtype.is_integer()):
                found = value
            else:
                path = "" if producer is None else self._paths[_name(producer)]
                found = self._cast(value, f"{_base(value)}.{_NAMES[kind]}", kind, path)
            self._available[value, kind] = found
        return self._available[value, kind]

    def _constant(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        tensor: Any = value.const_value
        name, stored = str(value.name), self._graph.initializers
        if tensor.dtype != _FP32:
            if name not in stored:
                stored.add(value)
            return value
        if name in stored:  # written before, for a reader of the other type
            name = f"{name}.{_NAMES[kind]}"
        new = ir.tensor(tensor.numpy().astype(kind.numpy()), dtype=kind, name=name)
        found = ir.Value(name=name, type=ir.TensorType(kind), shape=ir.Shape(tensor.shape), const_value=new)
        stored.add(found)
        return found

    def _dequantize(self, node: ir.Node, kind: ir.DataType) -> ir.Value:
        # Doubled where it was written before, for a reader of the other type.
        suffix = f".{_NAMES[kind]}" if node in self._dequantized else ""
        self._dequantized.add(node)
        output = ir.Value(name=f"{node.outputs[0].name}{suffix}")
        self._types[output] = _FP32
        name = f"{node.name}{suffix}"
        self._paths[name] = self._paths[_name(node)]
        self._write(
            ir.Node("", node.op_type, node.inputs, node.attributes.values(), outputs=[output], name=name),
            kind,
        )
        return output

    def _cast(self, source: ir.Value, result: str, kind: ir.DataType, path: str) -> ir.Value:
        output = ir.Value(name=result, type=ir.TensorType(kind))
        name = f"{_base(source)}.to_{_NAMES[kind]}"
        cast = ir.node("Cast", [source], {"to": kind.value}, outputs=[output], name=name)
        self._graph.append(cast)
        self.modules[name] = path
        return output


def _name(node: ir.Node) -> str:
    return str(node.name)


def _base(value: ir.Value) -> str:
    return str(value.name).removesuffix(".output")
