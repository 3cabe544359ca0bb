"""Where a target wants its activations quantized: rules about operators and tensors, whatever the network.

A layer is a Conv, Gemm or MatMul with constant weights, grouped and depthwise convolutions among them, that the plan
does not keep in floating point. Everything else computes in floating point: sigmoid gates, SiLU, hard-swish, GELU,
normalizations, softmax, averages, and the products of two activations in an attention. `operators` says what each of
them does to numbers.

For both targets:
 1. The input of every layer is quantized. What reads a tensor off as an output of the graph decides nothing, and reads
    it as it was quantized: else what writes the tensor would have to write it twice.

For TensorRT (documentation, "Q/DQ Layer-Placement Recommendations"; NVIDIA/TensorRT issues 1992, 3197, 4554):
 2. The skip operand of an Add is quantized where the other operand comes straight from a convolution that is a
    layer: Conv, Add and Relu then become one kernel that reads and writes int8. The other operand is not, which
    would split them.
 3. What reads a quantized tensor for another purpose (pooling, an Add without such a convolution) reads it as
    it was. TensorRT moves a QuantizeLinear in front of a concatenation or a pooling by itself.

For CPU engines (`docs/int8.md` has the measurements), because ONNX Runtime runs an operator in integers only
between a DequantizeLinear on each input and a QuantizeLinear on the output:
 4. What a convolution writes, after its Relu or Clip, is quantized: in front of a sum, a gate, an activation or a
    normalization too. Not where an operator that moves it reads it: OpenVINO would move the DequantizeLinear behind
    that, and lose 10 to 20 dB.
 5. What an operator only moves (pooling, concatenation, reshaping, transposition: `Operator.moves`) is quantized with
    the grid of what it writes, where that is quantized: it commutes with rounding, so it moves bytes.
 6. Whatever reads a quantized tensor reads it quantized, so that it is never stored as float; except a layer
    that the plan keeps, which would lose what it is kept for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from resnet_export.calibration.quantize.operators import operator
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.precision import Precision


@dataclass(frozen=True, kw_only=True)
class Target:
    """One layout of an INT8 graph: the choices in which targets differ. A further target is a row of `TARGETS`.

    Attributes:
        name: as manifest, plan and report say it; the artifact is called "int8.NAME", its file "model.int8.NAME.onnx".
        signed: activations lie on the symmetric int8 grid; else on the affine uint8 grid.
        skip_operand: rule 2.
        convolved: rule 4.
        moved: rule 5.
        shared: rule 6 in place of rule 3.
        integer_bias: biases are int32, in units of input scale times weight scale; else they stay float.
        float_precision: what layers outside of the integers compute in; anything but fp32 is typed after the emission.
        float_classifier: `--exclude auto` leaves a final classifier in that precision without a search.
        timed_here: a CPU of the machine that exports can time the graph.
    """

    name: TargetName
    signed: bool
    skip_operand: bool
    convolved: bool
    moved: bool
    shared: bool
    integer_bias: bool
    float_precision: Precision
    float_classifier: bool
    timed_here: bool


_ROWS = (
    Target(
        name="tensorrt",
        signed=True,
        skip_operand=True,
        convolved=False,
        moved=False,
        shared=False,
        integer_bias=False,
        float_precision=Precision.FP16,
        float_classifier=True,
        timed_here=False,
    ),
    Target(
        name="cpu",
        signed=False,
        skip_operand=False,
        convolved=True,
        moved=True,
        shared=True,
        integer_bias=True,
        float_precision=Precision.FP32,
        float_classifier=False,
        timed_here=True,
    ),
)

TARGETS: Mapping[TargetName, Target] = {row.name: row for row in _ROWS}


@dataclass(frozen=True)
class Placement:
    """What is quantized.

    Attributes:
        ranges: each tensor that is quantized → the tensor whose range it takes, mostly itself.
        reads: (node name, input position) of everything that reads a tensor in its quantized form.
    """

    ranges: Mapping[str, str]
    reads: frozenset[tuple[str, int]]


def place(topology: Topology, excluded: Iterable[str], target: Target) -> Placement:
    """Apply the rules to a graph in which the layers called `excluded` stay in floating point."""
    excluded = frozenset(excluded)
    layers = [layer for layer in topology.layers if layer.name not in excluded]
    convolved = {layer.output for layer in layers if layer.node.op_type == "Conv"}
    ranges = {layer.input: layer.input for layer in layers}
    reads = {(layer.name, 0) for layer in layers}
    if target.skip_operand:
        for node, main, skip in topology.residuals():
            if main in convolved and topology.only_reader(main) is not None:
                ranges.setdefault(skip, skip)
                reads.update((node.name, position) for position in _positions(node, {skip}))
    if target.moved:
        for node in reversed(topology.nodes):
            if len(node.output) == 1 and node.output[0] in ranges:
                for position, name in enumerate(node.input[: operator(node.op_type).moves]):
                    if name not in ranges and name not in topology.constants:
                        ranges[name] = ranges[node.output[0]]
                        reads.add((node.name, position))
    if target.convolved:
        for tensor in map(topology.activated, sorted(convolved)):
            readers = topology.readers.get(tensor, [])
            if tensor not in topology.outputs and all(operator(one.op_type).moves == 0 for one in readers):
                ranges.setdefault(tensor, tensor)
    if target.shared:
        for tensor in ranges:
            for reader in topology.readers.get(tensor, []):
                if reader.name not in excluded:
                    reads.update((reader.name, position) for position in _positions(reader, {tensor}))
    for tap in topology.taps:
        reads.update((tap.name, position) for position in _positions(tap, set(ranges)))
    return Placement(ranges, frozenset(reads))


def tensors_to_observe(topology: Topology) -> tuple[str, ...]:
    """Return the tensors whose range one target or another needs when no layer is kept, in graph order."""
    wanted = {tensor for target in TARGETS.values() for tensor in place(topology, (), target).ranges.values()}
    written = (name for node in topology.nodes for name in node.output)
    return tuple(name for name in (*topology.inputs, *written) if name in wanted)


def _positions(node: onnx.NodeProto, tensors: set[str]) -> list[int]:
    return [position for position, name in enumerate(node.input) if name in tensors]
