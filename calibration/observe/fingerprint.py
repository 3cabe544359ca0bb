"""Hashes that say whether a calibration table belongs to a network and to a data set."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

_MODULUS = 1 << 256


def graph_hash(model: onnx.ModelProto) -> str:
    """Return the sha256 of what a graph computes and how its tensors are called, as 64 hex digits.

    Operator sets, inputs, outputs, nodes with their attributes and initializers count, in their order; node
    names, documentation, metadata and inferred shapes do not, nor whether a weight lies in `raw_data`.
    """
    # On use: tables are read on devices that have no onnx.
    from onnx import numpy_helper

    digest = hashlib.sha256()

    def feed(*parts: object) -> None:
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)

    for opset in sorted(model.opset_import, key=lambda one: one.domain):
        feed(opset.domain, opset.version)
    for value in (*model.graph.input, *model.graph.output):
        feed(value.name, value.type.SerializeToString(deterministic=True))
    for node in model.graph.node:
        feed(node.domain, node.op_type, *node.input, "→", *node.output)
        for attribute in sorted(node.attribute, key=lambda one: one.name):
            feed(attribute.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        values = np.ascontiguousarray(numpy_helper.to_array(tensor))
        feed(tensor.name, tensor.data_type, list(tensor.dims), values.tobytes())
    return digest.hexdigest()


def image_hash(images: NDArray[Any]) -> str:
    """Return the hash of a set of images ([n, …], any dtype), whatever their order, as 64 hex digits.

    The sum of the images' sha256 modulo 2**256: hashes of disjoint sets add up to the hash of their union, so
    neither batch size nor order matters, nor on which machine an image was seen. It tells data sets apart; it
    is no proof against someone who builds a collision.
    """
    total = 0
    for image in images:
        digest = hashlib.sha256(f"{image.dtype} {image.shape}".encode())
        digest.update(np.ascontiguousarray(image).tobytes())
        total += int.from_bytes(digest.digest(), "big")
    return f"{total % _MODULUS:064x}"


def add_hashes(first: str, second: str) -> str:
    """Return the hash of the union of two sets of images from the hashes of both."""
    return f"{(int(first, 16) + int(second, 16)) % _MODULUS:064x}"
