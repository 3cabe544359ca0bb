"""Seeded damage: the same generator makes the same file."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import helper

from resnet_export.runtime.bundle.graph_check import OPERATORS

__all__ = ["damage_bytes", "damage_json", "damage_onnx"]

NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    2**16,
    2**20,
    2**31 - 1,
    2**31,
    2**40,
    2**62,
    2**63 - 1,
    -(2**31),
    -(2**63),
)
TEXTS = (
    "",
    "..",
    "../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "🦔",
    "x" * 10_000,
    "nan",
    "\ud800",
    "CON",
    "*/_ORT_MEM_ADDR_/*",
)
ATTRIBUTES = (
    "axis",
    "axes",
    "kernel_shape",
    "pads",
    "strides",
    "dilations",
    "group",
    "perm",
    "ceil_mode",
    "to",
    "auto_pad",
)


def damage_bytes(draw: Random, data: bytes) -> bytes:
    """Overwrite, flip, drop, repeat and insert a few bytes, or cut the end off."""
    damaged = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(damaged) or 1)
        length = draw.randint(1, 16)
        match draw.randrange(7):
            case 0:
                damaged[at : at + 1] = bytes([draw.randrange(256)])
            case 1:
                damaged[at : at + 1] = bytes(byte ^ 1 << draw.randrange(8) for byte in damaged[at : at + 1])
            case 2:
                del damaged[at : at + length]
            case 3:
                damaged[at:at] = damaged[at : at + length]
            case 4:
                damaged[at:at] = draw.randbytes(length)
            case 5:
                number = draw.choice(NUMBERS) & (2**64 - 1)
                damaged[at : at + 8] = number.to_bytes(8, draw.choice(("little", "big")))
            case 6 if draw.random() < 0.3:
                del damaged[at:]
    return bytes(damaged)


def damage_json(draw: Random, data: bytes) -> bytes:
    """Replace, drop, repeat and exchange values anywhere in a document; now and then damage its bytes."""
    if draw.random() < 0.2:
        return damage_bytes(draw, data)
    document: Any = json.loads(data)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(document))
        holder, key = draw.choice(places)
        other_holder, other_key = draw.choice(places)
        match draw.randrange(6):
            case 0:
                holder[key] = draw.choice(NUMBERS)
            case 1:
                holder[key] = draw.choice(TEXTS)
            case 2:
                holder[key] = draw.choice((None, True, [], {}, 1e308, -0.0, [[[]]], {"": None}))
            case 3:
                del holder[key]
            case 4:
                holder[key] = json.loads(json.dumps(other_holder[other_key]))
            case 5 if isinstance(holder, list):
                holder.extend(json.loads(json.dumps(holder)) * draw.choice((1, 100)))
        if not isinstance(document, dict) or not document:
            break
    return json.dumps(document).encode()


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def damage_onnx(draw: Random, data: bytes) -> bytes:
    """Change attributes, shapes, types, edges and operators of a graph; now and then damage its bytes."""
    if draw.random() < 0.2:
        return damage_bytes(draw, data)
    model = onnx.load_from_string(data)
    for _ in range(draw.randint(1, 3)):
        try:
            draw.choice(_GRAPH_DAMAGE)(draw, model)
        except (ValueError, TypeError, OverflowError, IndexError, DecodeError):
            continue  # a number that does not fit its field
    damaged: bytes = model.SerializeToString()
    return damaged


def _attribute(draw: Random, model: onnx.ModelProto) -> None:
    attribute = draw.choice([a for node in model.graph.node for a in node.attribute])
    if attribute.ints:
        attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(NUMBERS)
    else:
        attribute.i = draw.choice(NUMBERS)


def _new_attribute(draw: Random, model: onnx.ModelProto) -> None:
    value = draw.choice((draw.choice(NUMBERS), draw.choices(NUMBERS, k=draw.randint(1, 4)), "SAME_UPPER"))
    draw.choice(model.graph.node).attribute.append(helper.make_attribute(draw.choice(ATTRIBUTES), value))


def _shape(draw: Random, model: onnx.ModelProto) -> None:
    tensor = draw.choice(model.graph.initializer)
    tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(NUMBERS)


def _whole_constant(draw: Random, model: onnx.ModelProto) -> None:
    """Another shape, with as much data as it takes."""
    tensor = draw.choice(model.graph.initializer)
    sizes = draw.choices((0, 1, 2, 3, 16), k=draw.randint(0, 5))
    count = 1
    for size in sizes:
        count *= size
    width = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    del tensor.dims[:]
    tensor.dims.extend(sizes)
    tensor.raw_data = draw.randbytes(count * width)


def _type(draw: Random, model: onnx.ModelProto) -> None:
    draw.choice(model.graph.initializer).data_type = draw.randrange(30)


def _ends(draw: Random, model: onnx.ModelProto) -> None:
    kind = draw.choice((*model.graph.input, *model.graph.output)).type.tensor_type
    if draw.random() < 0.5:
        kind.elem_type = draw.randrange(30)
    else:
        draw.choice(kind.shape.dim).dim_value = draw.choice(NUMBERS)


def _edge(draw: Random, model: onnx.ModelProto) -> None:
    node = draw.choice(model.graph.node)
    names = [name for other in model.graph.node for name in (*other.input, *other.output)]
    node.input[draw.randrange(len(node.input))] = draw.choice((*names, ""))


def _operator(draw: Random, model: onnx.ModelProto) -> None:
    draw.choice(model.graph.node).op_type = draw.choice((*sorted(OPERATORS), "If", "Loop"))


def _node(draw: Random, model: onnx.ModelProto) -> None:
    node = draw.choice(model.graph.node)
    match draw.randrange(3):
        case 0:
            model.graph.node.remove(node)
        case 1:
            model.graph.node.append(node)
        case 2:
            del node.input[1:]


def _external(draw: Random, model: onnx.ModelProto) -> None:
    tensor = draw.choice(model.graph.initializer)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=draw.choice(TEXTS).encode("utf-8", "replace").decode())


def _version(draw: Random, model: onnx.ModelProto) -> None:
    model.opset_import[0].version = draw.randrange(30)
    model.ir_version = draw.randrange(15)


_GRAPH_DAMAGE: tuple[Callable[[Random, onnx.ModelProto], None], ...] = (
    _attribute,
    _attribute,
    _new_attribute,
    _shape,
    _whole_constant,
    _type,
    _ends,
    _edge,
    _operator,
    _node,
    _external,
    _version,
)
