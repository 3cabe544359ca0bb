"""Where a target wants its activations quantized.

A layer is a Conv or Gemm with constant weights that the plan does not keep in floating point.

For both targets:
 1. The input of every layer is quantized.

For TensorRT (documentation, "Q/DQ Layer-Placement Recommendations"; NVIDIA/TensorRT issues 1992, 3197, 4554):
 2. The skip operand of an Add is quantized where the other operand comes straight from a convolution that is a
    layer: Conv, Add and Relu then become one kernel that reads and writes int8. The other operand is not, which
    would split them.
 3. What reads a quantized tensor for another purpose (pooling, an Add without such a convolution) reads it as
    it was.

For CPU engines (`docs/int8.md` has the measurements), because ONNX Runtime runs an operator in integers only
between a DequantizeLinear on each input and a QuantizeLinear on the output:
 4. Both operands of an Add are quantized where each is a convolution's output or quantized already.
 5. What a MaxPool reads is quantized with the grid of what it writes, where that is quantized: taking a maximum
    commutes with rounding, so it pools bytes.
 6. Whatever reads a quantized tensor reads it quantized, so that it is never stored as float; except a layer
    that the plan keeps, which would lose what it is kept for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import onnx

from resnet_export.calibration.quantize.topology import Topology
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.precision import Precision


@dataclass(frozen=True, kw_only=True)
class Target:
    """One layout of an INT8 graph: the choices in which targets differ. A further target is a row of `TARGETS`.

    Attributes:
        name: as manifest, plan and report say it; the artifact is called "int8.NAME", its file "model.int8.NAME.onnx".
        signed: activations lie on the symmetric int8 grid; else on the affine uint8 grid.
        both_operands: rule 4 in place of rule 2.
        pooled: rule 5.
        shared: rule 6 in place of rule 3.
        integer_bias: biases are int32, in units of input scale times weight scale; else they stay float.
        float_precision: what layers outside of the integers compute in; anything but fp32 is typed after the emission.
        float_classifier: `--exclude auto` leaves a final classifier in that precision without a search.
        timed_here: a CPU of the machine that exports can time the graph.
    """

    name: TargetName
    signed: bool
    both_operands: bool
    pooled: bool
    shared: bool
    integer_bias: bool
    float_precision: Precision
    float_classifier: bool
    timed_here: bool


_ROWS = (
    Target(
        name="tensorrt",
        signed=True,
        both_operands=False,
        pooled=False,
        shared=False,
        integer_bias=False,
        float_precision=Precision.FP16,
        float_classifier=True,
        timed_here=False,
    ),
    Target(
        name="cpu",
        signed=False,
        both_operands=True,
        pooled=True,
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
    for node, main, skip in topology.residuals():
        if target.both_operands:
            chosen = {main, skip} if {main, skip} <= ranges.keys() | convolved else set()
        else:
            fuses = main in convolved and topology.only_reader(main) is not None
            chosen = {skip} if fuses else set()
        ranges.update((tensor, tensor) for tensor in chosen)
        reads.update((node.name, position) for position in _positions(node, chosen))
    if target.pooled:
        for node in topology.nodes:
            if node.op_type == "MaxPool" and node.output[0] in ranges and node.input[0] not in ranges:
                ranges[node.input[0]] = ranges[node.output[0]]
                reads.add((node.name, 0))
    if target.shared:
        for tensor in ranges:
            for reader in topology.readers.get(tensor, []):
                if reader.name not in excluded:
                    reads.update((reader.name, position) for position in _positions(reader, {tensor}))
    return Placement(ranges, frozenset(reads))


def tensors_to_observe(topology: Topology) -> tuple[str, ...]:
    """Return the tensors whose range one target or another needs when no layer is kept, in graph order."""
    wanted = {tensor for target in TARGETS.values() for tensor in place(topology, (), target).ranges.values()}
    written = (name for node in topology.nodes for name in node.output)
    return tuple(name for name in (*topology.inputs, *written) if name in wanted)


def _positions(node: onnx.NodeProto, tensors: set[str]) -> list[int]:
    return [position for position, name in enumerate(node.input) if name in tensors]
