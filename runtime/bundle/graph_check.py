"""Is an ONNX artifact a plain, self-contained graph of reasonable size? Found out before a native parser sees it.

A hash says that a file is the one in the manifest, not who wrote both. Engines read what a file refers to, allocate
what it declares, and divide by what it says: OpenVINO 2026.4 ends the process over external data, and a padding of
2³⁰ pixels takes gigabytes. Three things are therefore required of each graph:

1. It is self-contained: no external data, no subgraphs, functions, sparse or string tensors; only operators of ONNX's
   own domain, without control flow, sequences and text. Every constant holds exactly the data that its shape says.
2. Attributes that engines divide by or allocate by (kernels, strides, dilations, pads, groups) are in range.
3. No tensor whose shape can be told has more elements for one image than `_MAX_ELEMENTS`, 64 times the image's, or
   the largest constant in the file.

The shapes are inferred by the rules of ONNX's operator specification for the operators in `_RULES`; past one that has
no rule, or that depends on computed values, shapes are unknown and nothing is required of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from resnet_export.runtime.bundle.onnx_wire import Message, WireError, read_model
from resnet_export.runtime.errors import IntegrityError

__all__ = ["OPERATORS", "check_graph"]

_DOMAINS: Final = ("", "ai.onnx")
_MAX_ELEMENTS: Final = 2**25  # 128 MiB of float32
_MAX_PER_INPUT: Final = 64
_MAX_RANK: Final = 16
_OPSET: Final = 13  # artifacts are written in 19 or later; before 13 operators take other inputs
_MAX_CONSTANT: Final = 256  # elements of a tensor of integers whose values may decide about shapes


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_UNARY: Final = _names(
    """Abs Acos Acosh Asin Asinh Atan Atanh BatchNormalization BitCast BitwiseNot Cast Ceil Celu Clip Cos Cosh CumSum
    DequantizeLinear Dropout Elu Erf Exp Floor Gelu GroupNormalization HardSigmoid HardSwish Hardmax Identity
    InstanceNormalization IsInf IsNaN LRN LayerNormalization LeakyRelu Log LogSoftmax LpNormalization
    MeanVarianceNormalization Mish Neg Not QuantizeLinear RMSNormalization Reciprocal Relu Round Selu Shrink Sigmoid
    Sign Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Trilu"""
)
_BROADCAST: Final = _names(
    """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min
    Mod Mul Or PRelu Pow Sub Sum Where Xor"""
)
_WITHOUT_RULE: Final = _names(
    """ArgMax ArgMin Attention CastLike CenterCropPad DynamicQuantizeLinear Einsum GRU Gather GatherElements GatherND
    GridSample LSTM MatMulInteger OneHot Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean
    ReduceMin ReduceProd ReduceSum ReduceSumSquare RotaryEmbedding ScatterElements ScatterND Size Slice Split
    TopK"""
)


# How many inputs operators take from `_OPSET` on, where it is other than one; further ones may be left out by an empty
# name. OpenVINO reads an input that is not there.
_INPUTS: Final[Mapping[str, tuple[int, int]]] = {
    name: (least, most)
    for least, most, names in (
        (0, 0, "Constant"),
        (
            1,
            2,
            """ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
            ReduceSumSquare Split Squeeze Trilu""",
        ),
        (1, 3, "Clip Dropout"),
        (1, 4, "Resize"),
        (1, 2**20, "Concat Einsum Max Mean Min Sum"),
        (
            2,
            2,
            """Add And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike CenterCropPad CumSum Div Equal Expand Gather
            GatherElements GatherND Greater GreaterOrEqual GridSample Less LessOrEqual MatMul Mod Mul Or PRelu Pow
            RMSNormalization Reshape Sub Tile TopK Unsqueeze Xor""",
        ),
        (2, 3, "Conv ConvTranspose DequantizeLinear Gemm LayerNormalization QuantizeLinear"),
        (2, 4, "ConvInteger MatMulInteger Pad"),
        (3, 3, "GroupNormalization InstanceNormalization OneHot Range ScatterElements ScatterND Where"),
        (3, 4, "RotaryEmbedding"),
        (3, 5, "Slice"),
        (3, 6, "GRU"),
        (3, 7, "Attention"),
        (3, 8, "LSTM"),
        (5, 5, "BatchNormalization"),
        (8, 8, "QLinearMatMul"),
        (8, 9, "QLinearConv"),
    )
    for name in names.split()
}


@dataclass(frozen=True)
class _Value:
    """What is known of a tensor: its shape for one image, and its values where it is a short list of integers."""

    shape: tuple[int, ...] | None = None
    numbers: tuple[int, ...] | None = None


_UNKNOWN = _Value()


class _RefusalError(ValueError):
    """The end of a sentence that says what is wrong with the graph."""


@dataclass(frozen=True)
class _Node:
    """A node with its attributes, None where it has none of that name."""

    kind: str
    inputs: tuple[_Value, ...]
    attributes: Mapping[str, Any]

    def ints(self, name: str) -> tuple[int, ...] | None:
        found = self.attributes.get(name)
        return None if found is None else tuple(found.get("ints", ()))

    def number(self, name: str, default: int) -> int:
        found = self.attributes.get(name)
        return default if found is None else int(found.get("i", 0))

    def shape(self, index: int) -> tuple[int, ...] | None:
        return self.inputs[index].shape if index < len(self.inputs) else None

    def numbers(self, index: int) -> tuple[int, ...] | None:
        return self.inputs[index].numbers if index < len(self.inputs) else None


def check_graph(data: bytes, file: str, image: Sequence[int | str] = ()) -> None:
    """Raise IntegrityError unless the bytes of the ONNX artifact `file` are a plain, self-contained graph.

    `image` is the shape that the manifest gives the input, for axes that the graph leaves open.
    """
    try:
        _check_model(read_model(data), image)
    except (WireError, _RefusalError) as error:
        raise IntegrityError(
            f"{file!r} {error}, which no artifact of a bundle does; export the bundle again"
        ) from error


def _check_model(model: Message, image: Sequence[int | str]) -> Mapping[str, _Value]:
    """Return what is known of each tensor. Raises _RefusalError."""
    graph = model.get("graph")
    if graph is None:
        raise _RefusalError("is no ONNX model")
    versions = [
        one.get("version", 0) for one in model.get("opset_import", ()) if _text(one, "domain") in _DOMAINS
    ]
    if len(versions) != 1 or versions[0] < _OPSET:
        raise _RefusalError(
            f"uses ONNX's operator set {', '.join(map(str, versions[:3])) or 'in no version'}"
        )
    known: dict[str, _Value] = {"": _UNKNOWN}
    for tensor in graph.get("initializer", ()):
        known[_text(tensor, "name")] = _constant(tensor)
    # What is dequantized of a weight is as large as the weight, whose data is in the file.
    limit = max((_MAX_ELEMENTS, *(math.prod(one.shape or ()) for one in known.values())))
    for info in graph.get("input", ()):
        name = _text(info, "name")
        if name not in known:
            shape = _of_one_image(_declared(info), image)
            limit = max(limit, _MAX_PER_INPUT * math.prod((shape or ())[1:]))
            if math.prod(shape or ()) > limit:
                raise _RefusalError(
                    f"takes an input of the shape {list(shape or ())}, more than {limit:,} elements"
                )
            known[name] = _Value(shape)
    for info in (*graph.get("output", ()), *graph.get("value_info", ())):
        _declared(info)
    for message in graph.get("node", ()):
        _check_node(message, known, limit)
    return known


def _check_node(message: Message, known: dict[str, _Value], limit: int) -> None:
    kind, domain = _text(message, "op_type"), _text(message, "domain")
    if domain not in _DOMAINS or kind not in OPERATORS:
        raise _RefusalError(f"has a node of the operator {'.'.join(filter(None, (domain, kind)))[:100]!r}")
    attributes = {_text(attribute, "name"): attribute for attribute in message.get("attribute", ())}
    tensors = {
        name: [_constant(tensor) for tensor in (attribute.get("t"), *attribute.get("tensors", ())) if tensor]
        for name, attribute in attributes.items()
    }
    names = [_decode(name) for name in message.get("input", ())]
    least, most = _INPUTS.get(kind, (1, 1))
    if not least <= len(names) <= most or "" in names[:least]:
        raise _RefusalError(f"has a {kind} with {len(names)} inputs")
    if strangers := [name for name in names if name not in known]:
        raise _RefusalError(f"has a {kind} of {strangers[0][:100]!r}, which nothing before it makes")
    inputs = tuple(known[name] for name in names)
    node = _Node(kind, inputs, attributes)
    if kind == "Constant":
        found = _of_attribute(node, tensors)
    else:
        rule = _RULES.get(kind)
        found = _UNKNOWN if rule is None else rule(node)
    if found.shape is not None:
        count = math.prod(found.shape)
        if min(found.shape, default=1) < 0 or count > limit:
            where = _text(message, "name")[:100]
            raise _RefusalError(
                f"has in node {where!r} ({kind}) a tensor of the shape {list(found.shape)} for one image, more "
                f"than {limit:,} elements"
                if count > limit
                else f"has in node {where!r} ({kind}) a tensor of the shape {list(found.shape)}"
            )
    outputs = [_decode(name) for name in message.get("output", ())]
    if twice := [name for name in outputs if name and name in known]:
        raise _RefusalError(f"makes {twice[0][:100]!r} twice")
    # Further outputs are masks, indices and statistics of the first one's size or less, and parts of a split.
    known.update(dict.fromkeys(outputs[1:], _UNKNOWN))
    if outputs:
        known[outputs[0]] = found


# Constants

# Bits of an element by ONNX's number of its type; the field of numbers that holds it where it is not raw.
_BITS: Final = {
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
_FLOAT, _INT32, _INT64, _DOUBLE = 1, 6, 7, 11
_HOLDERS: Final = {
    1: "float_data",
    14: "float_data",
    7: "int64_data",
    11: "double_data",
    15: "double_data",
    12: "uint64_data",
    13: "uint64_data",
}
_NUMBERS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def _constant(tensor: Message) -> _Value:
    """Return what is known of a constant, which has to hold as many bytes as its shape says."""
    name = _text(tensor, "name")[:100]
    dims = tuple(tensor.get("dims", ()))
    kind = tensor.get("data_type", 0)
    if tensor.get("data_location", 0) != 0:
        raise _RefusalError(f"has data outside the file (constant {name!r})")
    if kind not in _BITS or len(dims) > _MAX_RANK or min(dims, default=1) < 0:
        raise _RefusalError(f"has a constant {name!r} of type {kind} and shape {list(dims[:_MAX_RANK])}")
    count, bits = math.prod(dims), _BITS[kind]
    holders = [field for field in _NUMBERS if tensor.get(field)]
    raw = tensor.get("raw_data")
    if raw is not None:
        right = not holders and len(raw) == (count * bits + 7) // 8
    else:
        expected = _HOLDERS.get(kind, "int32_data")
        units = count * (2 if kind in (14, 15) else 1) if bits >= 8 else (count * bits + 7) // 8
        right = holders in ([], [expected]) and _held(tensor, expected) == units
    if not right:
        raise _RefusalError(f"has a constant {name!r} with other data than its shape {list(dims)} takes")
    if kind not in (_INT32, _INT64) or count > _MAX_CONSTANT:
        return _Value(dims)
    return _Value(dims, _integers(tensor, kind, raw))


def _held(tensor: Message, field: str) -> int:
    """Return how many numbers a field holds, packed or not."""
    import numpy as np  # here, so that reading a manifest and `--help` need none

    width = {"float_data": 4, "double_data": 8}.get(field)
    total = 0
    for part in tensor.get(field, ()):
        if width is None:
            # The last byte of each number has its highest bit clear.
            total += 1 if isinstance(part, int) else int((np.frombuffer(part, np.uint8) < 0x80).sum())
        elif len(part) % width:
            raise _RefusalError("is cut off within a constant")
        else:
            total += len(part) // width
    return total


def _integers(tensor: Message, kind: int, raw: memoryview | None) -> tuple[int, ...] | None:
    if raw is None:
        parts = tensor.get(_HOLDERS.get(kind, "int32_data"), ())
        return tuple(parts) if all(isinstance(part, int) for part in parts) else None
    size, code = (8, "q") if kind == _INT64 else (4, "i")
    return struct.unpack(f"<{len(raw) // size}{code}", raw)


def _of_attribute(node: _Node, tensors: Mapping[str, Sequence[_Value]]) -> _Value:
    if found := tensors.get("value"):
        return found[0]
    if (one := node.attributes.get("value_int")) is not None:
        return _Value((), (int(one.get("i", 0)),))
    if (several := node.ints("value_ints")) is not None:
        return _Value((len(several),), several)
    return _UNKNOWN


def _declared(info: Message) -> tuple[int | None, ...] | None:
    """Return the declared shape of a tensor, None for an axis that is open."""
    tensor = info.get("type", {}).get("tensor_type")
    if tensor is None:
        raise _RefusalError(f"has in {_text(info, 'name')[:100]!r} something other than a tensor")
    if "shape" not in tensor:
        return None
    dims = tuple(dim.get("dim_value") for dim in tensor["shape"].get("dim", ()))
    sizes = [size for size in dims if size is not None]
    if len(dims) > _MAX_RANK or min(sizes, default=1) < 0 or math.prod(sizes) >= 2**40:
        raise _RefusalError(f"declares a tensor of the shape {list(dims[:_MAX_RANK])}")
    return dims


def _of_one_image(dims: tuple[int | None, ...] | None, image: Sequence[int | str]) -> tuple[int, ...] | None:
    """Return the shape of an input for one image; None where neither the graph nor the manifest fixes it."""
    if dims is None:
        return None
    given = image if len(image) == len(dims) else (None,) * len(dims)
    sizes = [other if size is None else size for size, other in zip(dims, given, strict=True)]
    if sizes and not isinstance(sizes[0], int):
        sizes[0] = 1
    return (
        tuple(size for size in sizes if isinstance(size, int))
        if all(isinstance(s, int) for s in sizes)
        else None
    )


def _text(message: Message, field: str) -> str:
    return _decode(message.get(field, b""))


def _decode(view: memoryview | bytes) -> str:
    # ONNX's strings are UTF-8; a name that is not stays distinct from all others.
    return bytes(view).decode("utf-8", "surrogateescape")


# Rules: the shape of a node's first output


def _same(node: _Node) -> _Value:
    keeps = node.kind in ("Cast", "Identity")
    return _Value(node.shape(0), node.numbers(0) if keeps else None)


def _broadcast(node: _Node) -> _Value:
    shapes = [value.shape for value in node.inputs]
    if not shapes or any(shape is None for shape in shapes):
        return _UNKNOWN
    rank = max(len(shape or ()) for shape in shapes)
    padded = [(1,) * (rank - len(shape or ())) + (shape or ()) for shape in shapes]
    return _Value(tuple(max(axis) for axis in zip(*padded, strict=True)))


@dataclass(frozen=True)
class _Window:
    """Kernel, stride, dilation, and padding of both ends, of each spatial axis; in range."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    same: bool


def _window(node: _Node, kernel: Sequence[int] | None, spatial: int) -> _Window:
    found = {
        "kernel_shape": node.ints("kernel_shape"),
        "strides": node.ints("strides"),
        "dilations": node.ints("dilations"),
        "pads": node.ints("pads"),
        "output_padding": node.ints("output_padding"),
        "output_shape": node.ints("output_shape"),
    }
    for name, values in found.items():
        if values is None:
            continue
        lowest = 0 if "pad" in name else 1
        expected = spatial * (2 if name == "pads" else 1)
        if len(values) != expected or min(values, default=lowest) < lowest or max(values, default=0) >= 2**20:
            raise _RefusalError(f"has a {node.kind} with {name} {list(values[:8])}")
    ones, zeros = (1,) * spatial, (0,) * spatial
    kernel = found["kernel_shape"] or tuple(kernel or ones)
    pads = found["pads"] or zeros * 2
    dilation = found["dilations"] or ones
    if len(kernel) != spatial or any(
        pad > (size - 1) * step + size  # such a border would be padding alone
        for pad, size, step in zip(pads, kernel * 2, dilation * 2, strict=True)
    ):
        raise _RefusalError(f"has a {node.kind} with a kernel {list(kernel[:8])} and pads {list(pads[:8])}")
    auto = node.attributes.get("auto_pad", {}).get("s", b"")
    return _Window(
        tuple(kernel),
        found["strides"] or ones,
        dilation,
        pads[:spatial],
        pads[spatial:],
        bytes(auto).startswith(b"SAME"),
    )


def _slid(sizes: Sequence[int], window: _Window, *, ceil: bool = False) -> tuple[int, ...]:
    out = []
    for axis, size in enumerate(sizes):
        stride = window.stride[axis]
        if window.same:
            out.append(-(-size // stride))
            continue
        reach = window.dilation[axis] * (window.kernel[axis] - 1) + 1
        room = size + window.before[axis] + window.after[axis] - reach
        if room < 0:
            raise _RefusalError(f"has a window of {reach} over an axis of {size}")
        out.append((-(-room // stride) if ceil else room // stride) + 1)
    return tuple(out)


def _conv(node: _Node) -> _Value:
    image, weight = node.shape(0), node.shape(3 if node.kind == "QLinearConv" else 1)
    group = node.number("group", 1)
    if group < 1 or (weight is not None and (len(weight) < 3 or min(weight) < 1 or weight[0] % group)):
        raise _RefusalError(f"has a {node.kind} with {group} groups and weights {list(weight or ())}")
    if image is None or weight is None:
        return _UNKNOWN
    if len(image) != len(weight) or image[1] != weight[1] * group:
        raise _RefusalError(f"has a {node.kind} of {list(image)} with weights {list(weight)}, {group} groups")
    window = _window(node, weight[2:], len(image) - 2)
    if window.kernel != weight[2:]:
        raise _RefusalError(
            f"has a {node.kind} with kernel_shape {list(window.kernel)} and weights {list(weight)}"
        )
    return _Value((image[0], weight[0], *_slid(image[2:], window)))


def _conv_transpose(node: _Node) -> _Value:
    image, weight = node.shape(0), node.shape(1)
    group = node.number("group", 1)
    if group < 1:
        raise _RefusalError(f"has a {node.kind} with {group} groups")
    if image is None or weight is None:
        return _UNKNOWN
    if len(image) != len(weight) or len(image) < 3 or image[1] != weight[0] or min(weight) < 1:
        raise _RefusalError(f"has a {node.kind} of {list(image)} with weights {list(weight)}")
    window = _window(node, weight[2:], len(image) - 2)
    asked = node.ints("output_shape")
    extra = node.ints("output_padding") or (0,) * len(window.kernel)
    sizes = asked or tuple(
        stride * (size - 1) + more + (kernel - 1) * dilation + 1
        for size, stride, kernel, dilation, more in zip(
            image[2:], window.stride, window.kernel, window.dilation, extra, strict=True
        )
    )
    return _Value((image[0], weight[1] * group, *sizes))


def _pool(node: _Node) -> _Value:
    image = node.shape(0)
    kernel = node.ints("kernel_shape")
    if kernel is None or min(kernel, default=0) < 1:
        raise _RefusalError(f"has a {node.kind} with kernel_shape {list(kernel or ())}")
    window = _window(node, kernel, len(kernel))
    if image is None:
        return _UNKNOWN
    if len(image) != len(kernel) + 2:
        raise _RefusalError(f"has a {node.kind} of {list(image)} with kernel_shape {list(kernel)}")
    return _Value((*image[:2], *_slid(image[2:], window, ceil=node.number("ceil_mode", 0) != 0)))


def _global_pool(node: _Node) -> _Value:
    image = node.shape(0)
    return _UNKNOWN if image is None else _Value((*image[:2], *(1 for _ in image[2:])))


def _gemm(node: _Node) -> _Value:
    a, b = node.shape(0), node.shape(1)
    if a is None or b is None:
        return _UNKNOWN
    if len(a) != 2 or len(b) != 2:
        raise _RefusalError(f"has a Gemm of {list(a)} and {list(b)}")
    a, b = (a[::-1] if node.number("transA", 0) else a), (b[::-1] if node.number("transB", 0) else b)
    if a[1] != b[0]:
        raise _RefusalError(f"has a Gemm of {list(a)} and {list(b)}")
    return _Value((a[0], b[1]))


def _matmul(node: _Node) -> _Value:
    a, b = node.shape(0), node.shape(3 if node.kind == "QLinearMatMul" else 1)
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return _UNKNOWN
    if a[-1] != b[-2]:
        raise _RefusalError(f"has a {node.kind} of {list(a)} and {list(b)}")
    outer = _broadcast(_Node(node.kind, (_Value(a[:-2]), _Value(b[:-2])), {})).shape
    return _Value((*(outer or ()), a[-2], b[-1]))


def _flatten(node: _Node) -> _Value:
    shape = node.shape(0)
    if shape is None:
        return _UNKNOWN
    axis = node.number("axis", 1)
    axis += len(shape) if axis < 0 else 0
    if not 0 <= axis <= len(shape):
        raise _RefusalError(f"has a Flatten at axis {axis} of {list(shape)}")
    return _Value((math.prod(shape[:axis]), math.prod(shape[axis:])))


def _reshape(node: _Node) -> _Value:
    shape, wanted = node.shape(0), node.numbers(1)
    if wanted is not None and (min(wanted, default=0) < -1 or wanted.count(-1) > 1):
        raise _RefusalError(f"has a Reshape to {list(wanted[:_MAX_RANK])}")
    if shape is None or wanted is None or node.number("allowzero", 0):
        return _UNKNOWN
    sizes = [
        shape[axis] if size == 0 and axis < len(shape) else size for axis, size in enumerate(wanted)
    ]  # 0 copies
    rest = math.prod(size for size in sizes if size != -1)
    total = math.prod(shape)
    if -1 in sizes and rest:
        sizes[sizes.index(-1)] = total // rest
    # The batch may be in the sizes as a number other than the one image that is counted here.
    if math.prod(size for size in sizes) != total:
        return _UNKNOWN
    return _Value(tuple(sizes))


def _transpose(node: _Node) -> _Value:
    shape = node.shape(0)
    if shape is None:
        return _UNKNOWN
    order = node.ints("perm") or tuple(reversed(range(len(shape))))
    if sorted(order) != list(range(len(shape))):
        raise _RefusalError(f"has a Transpose of {list(shape)} by {list(order[:_MAX_RANK])}")
    return _Value(tuple(shape[axis] for axis in order))


def _squeeze(node: _Node) -> _Value:
    shape, axes = node.shape(0), node.numbers(1)
    if shape is None or axes is None:
        return _UNKNOWN
    gone = {axis % len(shape) for axis in axes if shape}
    return _Value(tuple(size for axis, size in enumerate(shape) if axis not in gone), node.numbers(0))


def _unsqueeze(node: _Node) -> _Value:
    shape, axes = node.shape(0), node.numbers(1)
    if shape is None or axes is None or len(axes) > _MAX_RANK:
        return _UNKNOWN
    rank = len(shape) + len(axes)
    new = {axis % rank for axis in axes if rank}
    rest = iter(shape)
    return _Value(tuple(1 if axis in new else next(rest, 1) for axis in range(rank)), node.numbers(0))


def _concat(node: _Node) -> _Value:
    shapes = [value.shape for value in node.inputs]
    axis = node.number("axis", 0)
    if not shapes or any(shape is None for shape in shapes):
        return _UNKNOWN
    first = shapes[0] or ()
    if any(len(shape or ()) != len(first) for shape in shapes) or not -len(first) <= axis < len(first):
        raise _RefusalError(f"has a Concat of shapes that do not fit, along axis {axis}")
    total = sum((shape or ())[axis] for shape in shapes)
    sizes = [*first]
    sizes[axis] = total
    numbers = [value.numbers for value in node.inputs]
    known = [number for part in numbers if part is not None for number in part]
    whole = all(part is not None for part in numbers) and len(known) <= _MAX_CONSTANT
    return _Value(tuple(sizes), tuple(known) if whole and len(first) == 1 else None)


def _shape_of(node: _Node) -> _Value:
    shape = node.shape(0)
    return _UNKNOWN if shape is None or len(node.attributes) else _Value((len(shape),), shape)


def _pad(node: _Node) -> _Value:
    shape = node.shape(0)
    pads = node.numbers(1)
    if shape is None or pads is None or len(node.inputs) > 3:
        return _UNKNOWN
    if len(pads) != 2 * len(shape):
        raise _RefusalError(f"has a Pad of {list(shape)} by {list(pads[: 2 * _MAX_RANK])}")
    rank = len(shape)
    return _Value(tuple(size + pads[axis] + pads[axis + rank] for axis, size in enumerate(shape)))


def _resize(node: _Node) -> _Value:
    shape, sizes = node.shape(0), node.numbers(3)
    if shape is None or sizes is None or "axes" in node.attributes:
        return _UNKNOWN
    return _Value(tuple(sizes))


def _expand(node: _Node) -> _Value:
    shape, wanted = node.shape(0), node.numbers(1)
    if shape is None or wanted is None:
        return _UNKNOWN
    return _broadcast(_Node(node.kind, (_Value(shape), _Value(wanted)), {}))


def _tile(node: _Node) -> _Value:
    shape, times = node.shape(0), node.numbers(1)
    if shape is None or times is None or len(times) != len(shape):
        return _UNKNOWN
    return _Value(tuple(size * count for size, count in zip(shape, times, strict=True)))


def _filled(node: _Node) -> _Value:
    wanted = node.numbers(0)
    return _UNKNOWN if wanted is None else _Value(wanted)


def _blocks(node: _Node) -> _Value:
    shape, block = node.shape(0), node.number("blocksize", 0)
    if block < 1:
        raise _RefusalError(f"has a {node.kind} with blocksize {block}")
    if shape is None or len(shape) != 4:
        return _UNKNOWN
    images, channels, height, width = shape
    if node.kind == "DepthToSpace":
        return _Value((images, channels // block**2, height * block, width * block))
    return _Value((images, channels * block**2, height // block, width // block))


_RULES: Final[Mapping[str, Callable[[_Node], _Value]]] = {
    **dict.fromkeys(_UNARY, _same),
    **dict.fromkeys(_BROADCAST, _broadcast),
    **dict.fromkeys(("Conv", "ConvInteger", "QLinearConv"), _conv),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool"), _global_pool),
    **dict.fromkeys(("MatMul", "QLinearMatMul"), _matmul),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), _blocks),
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "ConvTranspose": _conv_transpose,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape_of,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

OPERATORS: Final = frozenset((*_RULES, *_WITHOUT_RULE, "Constant"))
"""The operators of ONNX's own domain that an artifact may use."""
