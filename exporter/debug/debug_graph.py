"""Copies of an artifact's graph that tell the error of each layer, for `runtime/parity/attribution/layers.py`.

The copy holds three networks that share one input, and its outputs are sums and logits, never activations:

    reference/…   the fp32 graph
    artifact/…    the artifact's graph as it is: each layer *in place*
    own/…         each layer of the artifact reading the fp32 graph's tensors: each layer *by itself*
    halved/…      the same with half the scale, for what rounds a tensor to int8

For every layer the copy computes Σ(a − b)² and Σb² of each image, in float32, inside the runtime. Nothing is kept
but these, so memory grows neither with the images nor, since a runtime frees a tensor after its last reader, with
the depth.

The graph that ships is not touched. Still, a tensor with a second reader is not fused away, and what is fused may
compute other values: ONNX Runtime runs DequantizeLinear, Conv, Relu, QuantizeLinear in integers only as a whole.
So a tensor that a Relu or a QuantizeLinear alone reads is measured by itself but not in place, where the tensor
behind it tells as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from resnet_export.calibration.quantize.qdq import QUANTIZE
from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.exporter.debug.node_matching import Pairing, pair
from resnet_export.runtime.errors import ExportError

__all__ = ["Instrumented", "Measure", "instrumented"]

What = Literal["own", "in_place", "halved"]

_FLOAT = int(TensorProto.FLOAT)
_FLOATS = (_FLOAT, int(TensorProto.FLOAT16), int(TensorProto.BFLOAT16))
_FP16_OVERFLOWS = 65520.0  # what lies below rounds to 65504, the largest finite value (IEEE 754)
_FUSED = frozenset({"Relu", QUANTIZE})  # with what stands before them


@dataclass(frozen=True)
class Measure:
    """One comparison: `node` is the layer's, `what` how it was run.

    `error`, `signal` and `product` are outputs of the copy, float32 [N]: Σ(a − b)², Σb² and Σ(a − b)·b by image; the
    last only of layers with integer weights by themselves.
    """

    node: str
    what: What
    error: str
    signal: str
    product: str | None


@dataclass(frozen=True)
class Instrumented:
    """The copy. `logits` is the artifact's output in it; `remarks` say of a node why it is not measured."""

    model: onnx.ModelProto
    pairing: Pairing
    measures: tuple[Measure, ...]
    remarks: dict[str, str]
    logits: str


def instrumented(reference: onnx.ModelProto, artifact: onnx.ModelProto) -> Instrumented:
    """Return the copy of `artifact` that measures its layers against the fp32 graph `reference`.

    Raises ExportError when the graphs have no layers in common, or the artifact is of an older operator set.
    """
    if _opset(reference) > _opset(artifact):
        raise ExportError(
            f"the artifact's graph is of operator set {_opset(artifact)}, the fp32 graph of {_opset(reference)}; "
            "export the bundle again"
        )
    if _opset(reference) < _opset(artifact):  # bf16 needs a newer one
        reference = version_converter.convert_version(reference, _opset(artifact))
    pairing = pair(reference, artifact)
    writer = _Writer(reference, artifact, pairing)
    fused = _fused(artifact)
    wanted: list[tuple[str, What, str, str]] = []
    for number, layer in enumerate(pairing.layers):
        expected = writer.reference(layer.reference)
        wanted.append((layer.node, "own", writer.alone(layer.tensor, f"own/{number}"), expected))
        if layer.tensor not in fused:
            wanted.append((layer.node, "in_place", writer.artifact(layer.tensor), expected))
        if layer.kind == "activations":
            halved = writer.alone(layer.tensor, f"halved/{number}", halve=True)
            wanted.append((layer.node, "halved", halved, expected))
    remarks: dict[str, str] = {}
    for missing in pairing.missing:
        expected = writer.reference(missing.reference)
        if missing.instead is None:
            remarks[missing.node] = "the artifact does not have it"
        else:
            wanted.append((missing.node, "own", writer.reference(missing.instead), expected))
    logits = writer.artifact(artifact.graph.output[0].name)
    types = _types(writer.model(logits))
    weighted = {layer.node for layer in pairing.layers if layer.kind == "weights"}
    for node, what, found, expected in wanted:
        if _fits(types[found], types[expected]):
            axes = tuple(range(1, len(_shape(types[expected]))))
            writer.measure(node, what, found, expected, axes, product=what == "own" and node in weighted)
        else:
            shapes = f"{_words(types[found])}, where that of the fp32 graph is {_words(types[expected])}"
            remarks.setdefault(node, f"its output is {shapes}")
    return Instrumented(writer.model(logits), pairing, tuple(writer.measures), remarks, logits)


def _types(model: onnx.ModelProto) -> dict[str, onnx.ValueInfoProto]:
    try:
        return infer_types(model)
    except onnx.shape_inference.InferenceError as error:
        raise ExportError(f"the layers of the artifact's graph do not fit together: {error}") from error


class _Writer:
    """Writes the networks and the sums into one graph. Every method returns the name of a float32 tensor."""

    def __init__(self, reference: onnx.ModelProto, artifact: onnx.ModelProto, pairing: Pairing) -> None:
        self.measures: list[Measure] = []
        self._models = {"reference": reference, "artifact": artifact}
        self._pairing = pairing
        self._input = str(reference.graph.input[0].name)
        self._inputs = {value.name for model in self._models.values() for value in model.graph.input}
        self._constants = {tensor.name: tensor for tensor in artifact.graph.initializer}
        self._sources = {name: node for node in artifact.graph.node for name in node.output}
        self._nodes: list[onnx.NodeProto] = []
        self._extra: dict[str, onnx.TensorProto] = {}
        self._written: set[str] = set()
        for prefix, model in self._models.items():
            for node in model.graph.node:
                self._copy(node, [self._named(prefix, name) for name in node.input], prefix)

    def reference(self, tensor: str) -> str:
        """Return a tensor of the fp32 graph."""
        kind = self._pairing.reference_types[tensor].type.tensor_type.elem_type
        return self._cast(self._named("reference", tensor), kind, _FLOAT)

    def artifact(self, tensor: str) -> str:
        """Return a tensor of the artifact, in place."""
        return self._cast(self._named("artifact", tensor), self._kind(tensor), _FLOAT)

    def alone(self, tensor: str, prefix: str, *, halve: bool = False) -> str:
        """Return what the layer that writes `tensor` makes of the fp32 graph's tensors; `halve` halves its scale."""
        written: dict[str, str] = {}

        def resolve(name: str) -> str:
            if not name or name in written:
                return written.get(name, name)
            if name in self._constants:
                return self._named("artifact", name)
            fed = None if name == tensor else self._feed(name)
            if fed is not None:
                return fed
            node = self._sources[name]
            inputs = [resolve(one) for one in node.input]
            if halve:
                inputs[1] = self._half(node.input[1])
            self._copy(node, inputs, prefix)
            written.update((one, f"{prefix}/{one}") for one in node.output)
            return written[name]

        kind = self._kind(tensor)
        found = self._cast(resolve(tensor), kind, _FLOAT)
        return self._overflowing(found) if kind == TensorProto.FLOAT16 else found

    def measure(
        self, node: str, what: What, found: str, expected: str, axes: tuple[int, ...], *, product: bool
    ) -> None:
        """Write the sums that compare two float32 tensors over `axes`, all but the batch."""
        difference = self._node("Sub", [found, expected], f"{what}/{node}/difference")
        error = self._reduced("ReduceSumSquare", difference, f"{difference}/sum", axes)
        signal = self._reduced("ReduceSumSquare", expected, f"signal/{expected}", axes)
        along: str | None = None
        if product:
            products = self._node("Mul", [difference, expected], f"{what}/{node}/product")
            along = self._reduced("ReduceSum", products, f"{products}/sum", axes)
        self.measures.append(Measure(node, what, error, signal, along))

    def model(self, logits: str) -> onnx.ModelProto:
        """Return everything that was written."""
        reference, artifact = self._models.values()
        graph = onnx.GraphProto(name="instrumented", input=reference.graph.input, node=self._nodes)
        sums = [name for one in self.measures for name in (one.error, one.signal, one.product) if name]
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys([*sums, logits]))
        for prefix, model in self._models.items():
            for tensor in model.graph.initializer:
                graph.initializer.append(tensor)
                graph.initializer[-1].name = self._named(prefix, tensor.name)
        graph.initializer.extend(self._extra.values())
        return onnx.ModelProto(
            ir_version=max(reference.ir_version, artifact.ir_version),
            opset_import=artifact.opset_import,
            graph=graph,
        )

    def _named(self, prefix: str, name: str) -> str:
        if not name:
            return name
        return self._input if name in self._inputs else f"{prefix}/{name}"

    def _kind(self, name: str) -> int:
        return int(self._pairing.types[name].type.tensor_type.elem_type)

    def _feed(self, name: str) -> str | None:
        """Return the fp32 graph's tensor for one of the artifact, in its type; None where there is none."""
        source = self._pairing.values.get(name)
        if source is None:
            return None
        kind = self._kind(name)
        theirs = int(self._pairing.reference_types[source].type.tensor_type.elem_type)
        if kind != theirs and not {kind, theirs} <= set(_FLOATS):
            return None  # a tensor in integers: what rounds it belongs to the layer
        return self._cast(self._named("reference", source), theirs, kind)

    def _overflowing(self, name: str) -> str:
        """Return an fp16 tensor with infinity where a CPU, which computes fp16 in fp32, hides that fp16 overflows."""
        for constant, value in (("largest", _FP16_OVERFLOWS), ("infinity", np.inf)):
            self._extra[constant] = numpy_helper.from_array(np.array(value, np.float32), constant)
        magnitude = self._node("Abs", [name], f"{name}/abs")
        beyond = self._node("GreaterOrEqual", [magnitude, "largest"], f"{name}/beyond")
        return self._node("Where", [beyond, "infinity", name], f"{name}/overflowing")

    def _half(self, name: str) -> str:
        half = f"half/{name}"
        if half not in self._extra:
            values = numpy_helper.to_array(self._constants[name])
            self._extra[half] = numpy_helper.from_array((values / 2).astype(values.dtype), half)
        return half

    def _cast(self, name: str, kind: int, wanted: int) -> str:
        if kind == wanted:
            return name
        return self._node("Cast", [name], f"{name}/{TensorProto.DataType.Name(wanted).lower()}", to=wanted)

    def _reduced(self, operator: str, source: str, output: str, axes: tuple[int, ...]) -> str:
        # ReduceSum took its axes as an input earlier than ReduceSumSquare.
        if _opset(self._models["artifact"]) < (13 if operator == "ReduceSum" else 18):
            return self._node(operator, [source], output, axes=axes, keepdims=0)
        constant = f"axes/{len(axes)}"
        self._extra.setdefault(constant, numpy_helper.from_array(np.array(axes, np.int64), constant))
        return self._node(operator, [source, constant], output, keepdims=0)

    def _node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        if output not in self._written:
            self._written.add(output)
            self._nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def _copy(self, node: onnx.NodeProto, inputs: Sequence[str], prefix: str) -> None:
        new = onnx.NodeProto()
        new.CopyFrom(node)
        new.name = f"{prefix}/{node.name}"
        new.input[:] = inputs
        new.output[:] = [f"{prefix}/{name}" if name else name for name in node.output]
        self._nodes.append(new)


def _fused(model: onnx.ModelProto) -> frozenset[str]:
    """Return the tensors that a runtime may never store, because their only reader is fused with their writer."""
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    return frozenset(name for name, found in readers.items() if len(found) == 1 and found[0] in _FUSED)


def _opset(model: onnx.ModelProto) -> int:
    return next((int(one.version) for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)


def _shape(value: onnx.ValueInfoProto) -> list[int | None]:
    dims = value.type.tensor_type.shape.dim
    return [int(dim.dim_value) if dim.HasField("dim_value") else None for dim in dims]


def _fits(first: onnx.ValueInfoProto, second: onnx.ValueInfoProto) -> bool:
    a, b = _shape(first), _shape(second)
    return len(a) == len(b) and all(
        None in (one, other) or one == other for one, other in zip(a, b, strict=True)
    )


def _words(value: onnx.ValueInfoProto) -> str:
    return f"[{', '.join('N' if size is None else str(size) for size in _shape(value))}]"
