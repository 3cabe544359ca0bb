"""From an ONNX file of any origin to one whole graph of standard operators, or one sentence why it is none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx.external_data_helper import ExternalDataInfo, load_external_data_for_tensor, uses_external_data
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from resnet_export.runtime.errors import RequestError

__all__ = ["read_onnx"]

_STANDARD = ("", "ai.onnx")
_OLDEST = 7  # what ONNX Runtime still runs
_WEIGHTS_APART = 4  # the IR version from which on weights need not be inputs
_LARGEST = 2**31 - 1  # bytes of a protobuf message


def read_onnx(path: Path) -> tuple[onnx.ModelProto, str]:
    """Return the model with its external data read in and its functions inlined, and the sha256 of all its bytes.

    External data is read from the folder of the file alone, never through a link that leaves it.

    Raises RequestError when the file cannot be read, is no ONNX model, is damaged, lacks data, has data outside its
    folder, is larger than a protobuf message, or uses operators that are not ONNX's own or an operator set that is not
    known here.
    """
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RequestError(f"the ONNX file {path} cannot be read ({reason}); check the path") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's own, which has no types
        raise RequestError(
            f"{path} is not an ONNX file, or it is damaged; copy or export it again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise RequestError(
            f"{path} is not an ONNX file with a network in it: it has {len(model.graph.node)} nodes and "
            f"{len(model.graph.output)} outputs; give an ONNX classifier"
        )
    digest = hashlib.sha256(data)
    for location in _read_data(model, path):
        with location.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    if model.ByteSize() > _LARGEST:
        raise RequestError(
            f"{path} is larger than 2 GiB with its data, expected at most what a protobuf message holds"
        )
    _check_opset(model, path)
    model = _inlined(model, path)
    _check_operators(model, path)
    return model, digest.hexdigest()


def _read_data(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Read external data into the model; return the files that it was in."""
    folder = path.parent.resolve()
    locations = set()
    for tensor in _tensors(model):
        if not uses_external_data(tensor):
            continue
        location = ExternalDataInfo(tensor).location
        file = (folder / location).resolve()
        if not file.is_relative_to(folder):
            raise RequestError(
                f"the tensor {tensor.name!r} of {path} is stored in {location!r}, outside the folder of the file; put "
                "its data beside it, or save it with onnx.save(model, path) in one file"
            )
        if not file.is_file():
            raise RequestError(
                f"{path} has its weights in {location!r}, which is not there; copy that file beside it"
            )
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:
            raise RequestError(
                f"the data of {tensor.name!r} cannot be read from {file} ({_first_line(error)}); copy it again"
            ) from error
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        locations.add(file)
    return sorted(locations)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in _graphs(model.graph):
        yield from graph.initializer
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else list(attribute.graphs):
                yield from _graphs(inner)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _check_opset(model: onnx.ModelProto, path: Path) -> None:
    versions = [one.version for one in model.opset_import if one.domain in _STANDARD]
    newest = onnx.defs.onnx_opset_version()
    if not versions or not _OLDEST <= versions[0] <= newest:
        found = f"operator set {versions[0]}" if versions else "no operator set of ONNX"
        raise RequestError(
            f"{path} names {found}, expected {_OLDEST} to {newest}; export it again with opset_version=19"
        )


def _inlined(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model without functions, and with weights that are no inputs, as files before IR version 4 have."""
    try:
        graph = ir.serde.deserialize_model(model)
        InlinePass()(graph)
        RemoveInitializersFromInputsPass()(graph)
        graph.ir_version = max(graph.ir_version, _WEIGHTS_APART)  # older readers would look for them there
        return ir.serde.serialize_model(graph)
    except Exception as error:  # the file is of any origin
        raise RequestError(
            f"{path} is not a valid ONNX graph ({_first_line(error)}); export it again"
        ) from error


def _check_operators(model: onnx.ModelProto, path: Path) -> None:
    strangers = sorted(
        {f"{node.domain}.{node.op_type}" for node in _nodes(model) if node.domain not in _STANDARD}
    )
    if strangers:
        some = ", ".join(strangers[:3]) + (", …" if len(strangers) > 3 else "")
        raise RequestError(
            f"{path} has operators that are not ONNX's own, {some}, which other engines do not run; export the network "
            "with standard operators, before any optimization by ONNX Runtime"
        )


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
