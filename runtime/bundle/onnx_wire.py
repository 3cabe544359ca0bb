"""Reading an ONNX file without ONNX: protobuf's wire format, for the messages and fields of a self-contained graph.

Stricter than a protobuf library, which merges repeated messages, takes the last of repeated values and keeps fields
that it does not know: a file in which two readers could see different graphs is refused (ONNX IR specification;
protobuf documentation, "Encoding"). Data of tensors are views of the file, nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

__all__ = ["Message", "WireError", "read_model"]

Message = dict[str, Any]
"""The fields of a message by name: int, float bytes or text as a memoryview, a Message, or a list of these."""

# A file of ResNet-152 has 20,000. Each takes a microsecond.
_MAX_FIELDS: Final = 2_000_000

_Kind = Literal["int", "float", "bytes"]


class WireError(ValueError):
    """The file is not what a self-contained graph is serialized to; the message is the end of a sentence about it."""


def _entry() -> dict[int, tuple[str, str, bool]]:
    return {1: ("key", "bytes", False), 2: ("value", "bytes", False)}


# By message and number: name, kind ("int" and "float" repeated may be packed) or message, and whether it repeats.
_FIELDS: Final[dict[str, dict[int, tuple[str, str, bool]]]] = {
    "Model": {
        1: ("ir_version", "int", False),
        2: ("producer_name", "bytes", False),
        3: ("producer_version", "bytes", False),
        4: ("domain", "bytes", False),
        5: ("model_version", "int", False),
        6: ("doc_string", "bytes", False),
        7: ("graph", "Graph", False),
        8: ("opset_import", "OperatorSet", True),
        14: ("metadata_props", "Entry", True),
    },
    "OperatorSet": {1: ("domain", "bytes", False), 2: ("version", "int", False)},
    "Entry": _entry(),
    "Graph": {
        1: ("node", "Node", True),
        2: ("name", "bytes", False),
        5: ("initializer", "Tensor", True),
        10: ("doc_string", "bytes", False),
        11: ("input", "ValueInfo", True),
        12: ("output", "ValueInfo", True),
        13: ("value_info", "ValueInfo", True),
        14: ("quantization_annotation", "Annotation", True),
        16: ("metadata_props", "Entry", True),
    },
    "Annotation": {1: ("tensor_name", "bytes", False), 2: ("quant_parameter_tensor_names", "Entry", True)},
    "Node": {
        1: ("input", "bytes", True),
        2: ("output", "bytes", True),
        3: ("name", "bytes", False),
        4: ("op_type", "bytes", False),
        5: ("attribute", "Attribute", True),
        6: ("doc_string", "bytes", False),
        7: ("domain", "bytes", False),
        9: ("metadata_props", "Entry", True),
    },
    "Attribute": {
        1: ("name", "bytes", False),
        2: ("f", "float", False),
        3: ("i", "int", False),
        4: ("s", "bytes", False),
        5: ("t", "Tensor", False),
        7: ("floats", "float", True),
        8: ("ints", "int", True),
        9: ("strings", "bytes", True),
        10: ("tensors", "Tensor", True),
        13: ("doc_string", "bytes", False),
        20: ("type", "int", False),
    },
    "Tensor": {
        1: ("dims", "int", True),
        2: ("data_type", "int", False),
        4: ("float_data", "float", True),
        5: ("int32_data", "int", True),
        7: ("int64_data", "int", True),
        8: ("name", "bytes", False),
        9: ("raw_data", "bytes", False),
        10: ("double_data", "double", True),
        11: ("uint64_data", "int", True),
        12: ("doc_string", "bytes", False),
        14: ("data_location", "int", False),
        16: ("metadata_props", "Entry", True),
    },
    "ValueInfo": {
        1: ("name", "bytes", False),
        2: ("type", "Type", False),
        3: ("doc_string", "bytes", False),
        4: ("metadata_props", "Entry", True),
    },
    "Type": {1: ("tensor_type", "TensorType", False), 6: ("denotation", "bytes", False)},
    "TensorType": {1: ("elem_type", "int", False), 2: ("shape", "Shape", False)},
    "Shape": {1: ("dim", "Dimension", True)},
    "Dimension": {
        1: ("dim_value", "int", False),
        2: ("dim_param", "bytes", False),
        3: ("denotation", "bytes", False),
    },
}
# Fields of ONNX that no artifact has, by what they are.
_REFUSED: Final[dict[tuple[str, int], str]] = {
    ("Model", 20): "training information",
    ("Model", 25): "functions",
    ("Model", 26): "a device configuration",
    ("Graph", 15): "sparse initializers",
    ("Node", 8): "an overloaded function",
    ("Node", 10): "a device configuration",
    ("Attribute", 6): "a subgraph",
    ("Attribute", 11): "subgraphs",
    ("Attribute", 14): "a type",
    ("Attribute", 15): "types",
    ("Attribute", 21): "a reference to a function's attribute",
    ("Attribute", 22): "a sparse tensor",
    ("Attribute", 23): "sparse tensors",
    ("Tensor", 3): "a segment of a tensor",
    ("Tensor", 6): "strings in a tensor",
    ("Tensor", 13): "data outside the file",
    ("Type", 4): "a sequence",
    ("Type", 5): "a map",
    ("Type", 7): "an opaque type",
    ("Type", 8): "a sparse tensor",
    ("Type", 9): "an optional value",
}
_FIXED = {"float": 4, "double": 8}


def read_model(data: bytes) -> Message:
    """Return the ModelProto in `data`.

    The values of tensors in `float_data`, `int32_data` and the like are not decoded: each is a list of memoryviews,
    packed, and of numbers that are not. Raises WireError.
    """
    return _Reader().message("Model", memoryview(data))


class _Reader:
    def __init__(self) -> None:
        self._left = _MAX_FIELDS

    def message(self, kind: str, data: memoryview) -> Message:
        known = _FIELDS[kind]
        found: Message = {}
        for number, wire, value in self._fields(data):
            if number not in known:
                raise WireError(
                    f"holds {_REFUSED.get((kind, number), f'field {number} of {kind}, which is not known')}"
                )
            name, content, many = known[number]
            if content in _FIELDS:
                if wire != 2:
                    raise WireError(f"is damaged at {kind}.{name}")
                value = self.message(content, value)
            elif many and wire == 2 and content != "bytes":
                value = value if kind == "Tensor" and name != "dims" else list(_unpack(value, content))
                if isinstance(value, list):
                    found.setdefault(name, []).extend(value)
                    continue
            elif wire != {"int": 0, "double": 1, "bytes": 2, "float": 5}[content]:
                raise WireError(f"is damaged at {kind}.{name}")
            if many:
                found.setdefault(name, []).append(value)
            elif name in found:
                raise WireError(f"says {kind}.{name} twice")
            else:
                found[name] = value
        return found

    def _fields(self, data: memoryview) -> Iterator[tuple[int, int, Any]]:
        at, end = 0, len(data)
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise WireError(f"has more than {_MAX_FIELDS:,} fields")
            tag, at = _varint(data, at)
            number, wire = tag >> 3, tag & 7
            if wire == 0:
                value, at = _varint(data, at)
                yield number, wire, _signed(value)
                continue
            if wire == 2:
                size, at = _varint(data, at)
            elif wire in (1, 5):
                size = 8 if wire == 1 else 4
            else:
                raise WireError(f"has a field of the wire type {wire}, which ONNX does not use")
            if size > end - at:
                raise WireError("is cut off")
            yield number, wire, data[at : at + size]
            at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at >= len(data):
            raise WireError("is cut off")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
    raise WireError("has a number of more than 64 bits")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _unpack(data: memoryview, kind: str) -> Iterator[Any]:
    if kind == "int":
        at = 0
        while at < len(data):
            value, at = _varint(data, at)
            yield _signed(value)
        return
    size = _FIXED[kind]
    if len(data) % size:
        raise WireError("is cut off within a list of numbers")
    yield from (data[at : at + size] for at in range(0, len(data), size))
