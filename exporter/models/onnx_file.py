"""From an ONNX classifier that exists already to a Classifier: ONNX Runtime on the file is the reference."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import numpy_helper, version_converter
from onnx_ir.passes.common import RemoveUnusedNodesPass

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.graph.exported_graph import (
    BATCH_AXIS,
    INPUT,
    OPSET,
    ExportedGraph,
    OnnxNetwork,
    serialize,
)
from resnet_export.exporter.graph.module_names import node_names, renamed
from resnet_export.exporter.models.classifier import Classifier
from resnet_export.exporter.models.metadata import choose_labels
from resnet_export.exporter.models.onnx_reading import read_onnx
from resnet_export.exporter.models.preprocessing import NOTHING, assumed, choose_preprocessing
from resnet_export.exporter.models.stated import Stated, stated_by_preprocessing
from resnet_export.exporter.models.weight_source import printable
from resnet_export.exporter.spec import ModelSpec, Size
from resnet_export.runtime.bundle.manifest import LOGITS, ModelInfo, Preprocessing, WeightsInfo
from resnet_export.runtime.bundle.schema import CHANNELS
from resnet_export.runtime.errors import ExportError, RequestError

__all__ = ["load_onnx_file"]

_USUAL_SIDE = 224
_AGAIN = "export it again with the batch axis dynamic (dynamic_axes={'input': {0: 'N'}} of torch.onnx.export)"


def load_onnx_file(spec: ModelSpec) -> Classifier:
    """Return the classifier that the file `spec.onnx_file` is; torch is not imported.

    The graph has one input of float32 images, [N, C, H, W] or [N, H, W, C], with a dynamic batch; height and width may
    be dynamic, and are then fixed to the image size. Of several outputs the one is taken that is named "logits", or is
    alone of shape [N, classes]. A Softmax at the end is left out, because a session takes it of the logits.

    Raises RequestError when the file is none of this, or the request contradicts it.
    """
    path = Path(str(spec.onnx_file))
    model, sha256 = read_onnx(path)
    layout, channels, side = _input_of(model, path, spec)
    values, stated = _metadata(model, path)
    preprocessing = choose_preprocessing(spec, stated, channels, side)
    source = _with_input(model, layout, preprocessing)
    source, classes, notices = _with_logits(source, path, spec, preprocessing)
    labels, said = choose_labels(spec, values, classes, ask=False)
    graph = _in_opset(source, path)
    return Classifier(
        module=OnnxNetwork(source, _named(graph, path)),
        info=ModelInfo(
            arch=printable(path.stem),
            num_classes=classes,
            parameters=max(1, _parameters(source)),
            weights=WeightsInfo(source="onnx", name=printable(path.name), sha256=sha256),
        ),
        preprocessing=preprocessing,
        labels=labels,
        notices=(*notices, *said, *assumed(spec, preprocessing, stated)),
    )


def _metadata(model: onnx.ModelProto, path: Path) -> tuple[dict[str, Any], Stated]:
    """Return the names of classes in the file, and what it states of its images, as an export here writes them."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    stated = NOTHING
    if "preprocessing" in found:
        stated = stated_by_preprocessing(found["preprocessing"], path.name)
    try:
        return {"names": ast.literal_eval(found["names"])}, stated
    except (KeyError, ValueError, SyntaxError, MemoryError, RecursionError):
        return {}, stated


def _input_of(
    model: onnx.ModelProto, path: Path, spec: ModelSpec
) -> tuple[Literal["NCHW", "NHWC"], int | None, Size]:
    """Return the layout of the one image input, its channels where they are fixed, and the size of its images."""
    inputs = model.graph.input
    if len(inputs) != 1:
        names = ", ".join(repr(one.name) for one in inputs)
        raise RequestError(
            f"{path} has {len(inputs)} inputs ({names}), expected one of images; export the classifier without the "
            "others"
        )
    kind = inputs[0].type.tensor_type
    dims = [dim.dim_value if dim.dim_value > 0 else None for dim in kind.shape.dim]
    words = f"{onnx.TensorProto.DataType.Name(kind.elem_type).lower()} {[dim or '?' for dim in dims]}"
    if len(dims) != 4 or kind.elem_type != onnx.TensorProto.FLOAT:
        raise RequestError(
            f"the input {inputs[0].name!r} of {path} is {words}, expected images, float [N, channels, height, width]; "
            "export a classifier of float32 images"
        )
    batch, *image = dims
    layout: Literal["NCHW", "NHWC"] = "NHWC" if image[0] not in CHANNELS and image[2] in CHANNELS else "NCHW"
    channels, height, width = image if layout == "NCHW" else (image[2], image[0], image[1])
    if channels is not None and channels not in CHANNELS:
        raise RequestError(
            f"the input {inputs[0].name!r} of {path} is {words}, and images have "
            f"{', '.join(map(str, CHANNELS))} channels"
        )
    if batch is not None:
        raise RequestError(f"{path} has a fixed batch of {batch}, expected a dynamic one; {_AGAIN}")
    asked = spec.image_size
    asked = (asked, asked) if isinstance(asked, int) else asked
    sides = [
        fixed or (_USUAL_SIDE if asked is None else asked[at]) for at, fixed in enumerate((height, width))
    ]
    if asked is not None and tuple(sides) != asked:
        raise RequestError(
            f"{path} takes images of {sides[0]} × {sides[1]}, but {asked[0]} × {asked[1]} were asked for; leave the "
            "image size out"
        )
    return layout, channels, (sides[0], sides[1])


def _with_input(
    model: onnx.ModelProto, layout: Literal["NCHW", "NHWC"], preprocessing: Preprocessing
) -> onnx.ModelProto:
    """Return the model with "input" [N, C, H, W] in front, and no stored shapes but that."""
    graph = ir.serde.deserialize_model(model).graph
    image = graph.inputs[0]
    height, width = preprocessing.size
    for value in [one for node in graph.all_nodes() for one in node.outputs]:
        value.shape = None
        if value.name == INPUT:
            value.name = f"{INPUT}_inside"
    image.name = INPUT
    image.shape = ir.Shape([BATCH_AXIS, preprocessing.channels, height, width])
    if layout == "NHWC":
        turned = ir.node("Transpose", [image], attributes={"perm": [0, 2, 3, 1]})
        turned.outputs[0].name, turned.name = f"{INPUT}_nhwc", f"{INPUT}_nhwc"
        image.replace_all_uses_with(turned.outputs[0])
        turned.replace_input_with(0, image)
        graph.insert_before(graph[0], turned)
    return _serialized(model, graph)


def _with_logits(
    model: onnx.ModelProto, path: Path, spec: ModelSpec, preprocessing: Preprocessing
) -> tuple[onnx.ModelProto, int, tuple[str, ...]]:
    """Return the model with the output "logits" [N, classes] alone, the number of classes, and notices."""
    shapes = _shapes(model, path, preprocessing)
    name = _choose_output(shapes, path, spec)
    others = [other for other in shapes if other != name]
    notices: tuple[str, ...] = (
        (f"the outputs {', '.join(map(repr, others))} of {path.name} were left out; the logits are {name!r}",)
        if others
        else ()
    )
    graph = ir.serde.deserialize_model(model).graph
    logits = next(value for value in graph.outputs if value.name == name)
    last = logits.producer()
    while last is not None and last.op_type == "Identity":
        last = _producer(last)
    if last is not None and last.op_type == "Softmax" and last.inputs[0] is not None:
        logits = last.inputs[0]
        notices += (
            f"{path.name} ends in Softmax, which was left out: the output is the logits before it, and a session takes "
            "the Softmax of them",
        )
    elif len(shapes[name]) > 2:
        flat = ir.node("Flatten", [logits])
        flat.name = f"{LOGITS}_flat"
        graph.append(flat)
        logits = flat.outputs[0]
    for value in [one for node in graph.all_nodes() for one in node.outputs]:
        if value.name == LOGITS and value is not logits:
            value.name = f"{LOGITS}_inside"
    graph.outputs[:] = [logits]
    logits.name = LOGITS
    classes = shapes[name][1]
    logits.shape, logits.dtype = ir.Shape([BATCH_AXIS, classes]), ir.DataType.FLOAT
    result = ir.Model(graph, ir_version=model.ir_version)
    RemoveUnusedNodesPass()(result)
    model = _serialized(model, result.graph)
    found = _run(model, path, np.zeros((3, *_image(preprocessing)), np.float32))[LOGITS].shape
    if found != (3, classes):
        raise RequestError(
            f"the logits of {path} have the shape {list(found)}, expected [3, {classes}] of 3 images"
        )
    if spec.num_classes not in (None, classes):
        raise RequestError(
            f"{path} has {classes} classes, but {spec.num_classes} were asked for; leave it out"
        )
    return model, classes, notices


def _producer(node: ir.Node) -> ir.Node | None:
    return None if node.inputs[0] is None else node.inputs[0].producer()


def _image(preprocessing: Preprocessing) -> tuple[int, int, int]:
    return (preprocessing.channels, *preprocessing.size)


def _run(
    model: onnx.ModelProto, path: Path, images: NDArray[np.float32]
) -> Mapping[str, NDArray[np.float32]]:
    try:
        session = CpuSession(serialize(model))
    except ExportError as error:
        raise RequestError(f"{path} cannot be the source: {error}; export it again") from error
    try:
        return dict(zip(session.outputs, session.run(images), strict=True))
    except ExportError as error:
        raise RequestError(
            f"{path} does not run on a batch of {len(images)} images ({error}); if it is made for one size of batch, "
            f"{_AGAIN}"
        ) from error


def _shapes(model: onnx.ModelProto, path: Path, preprocessing: Preprocessing) -> dict[str, tuple[int, ...]]:
    """Return the outputs that can be logits, with their shapes for two images."""
    found = _run(model, path, np.zeros((2, *_image(preprocessing)), np.float32))
    shapes = {
        name: values.shape
        for name, values in found.items()
        if values.dtype == np.float32
        and values.ndim >= 2
        and len(values) == 2
        and values.shape[1] >= 1
        and values.size == 2 * values.shape[1]
    }
    if not shapes:
        some = ", ".join(f"{name!r} {values.dtype} {list(values.shape)}" for name, values in found.items())
        raise RequestError(
            f"{path} returns {some} for two images, expected logits, float32 [2, classes]; give a classifier"
        )
    return shapes


def _choose_output(shapes: Mapping[str, tuple[int, ...]], path: Path, spec: ModelSpec) -> str:
    wanted = [name for name, shape in shapes.items() if shape[1] == spec.num_classes]
    named = [name for name in shapes if LOGITS in name.lower()]
    for choice in (list(shapes), wanted, named):
        if len(choice) == 1:
            return choice[0]
    some = ", ".join(f"{name!r} of {shape[1]}" for name, shape in shapes.items())
    raise RequestError(
        f"{path} has several outputs that can be the logits, {some}; give --num-classes where that tells them apart, "
        "or keep one with onnx.utils.extract_model"
    )


def _in_opset(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Return the model in the operator set of every other export; one that is newer may stay as it is."""
    version = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    if version == OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:
        if version > OPSET:
            return model
        reason = str(error).strip().splitlines()[-1]
        raise RequestError(
            f"{path} is in operator set {version}, and cannot be converted to {OPSET} ({reason}); export it again with "
            f"opset_version={OPSET}"
        ) from error


def _named(model: onnx.ModelProto, path: Path) -> ExportedGraph:
    """Name nodes after the modules that their weights and names tell of; nodes that tell none keep their names."""
    if any(attribute.HasField("g") for node in model.graph.node for attribute in node.attribute):
        model = _without_branches(model, path)
    paths = [_module(node) for node in model.graph.node]
    inner = {
        ".".join(parts[:at]) for parts in (one.split(".") for one in paths) for at in range(1, len(parts))
    }
    own = [node.name for node in model.graph.node]
    keep = {
        name
        for name, module in zip(own, paths, strict=True)
        if name and name.isprintable() and not module and own.count(name) == 1
    }
    model, modules = renamed(model, node_names(model, paths, set(paths) - inner, keep), paths)
    return ExportedGraph(model, modules, "onnx")


def _without_branches(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Fold what depends on shapes alone, such as the If that torch writes for a squeeze."""
    import onnxsim

    try:
        model, _ = onnxsim.simplify(model)
    except Exception as error:
        raise RequestError(f"onnxsim cannot simplify {path} ({error}); export it again") from error
    branches = sorted(
        {node.op_type for node in model.graph.node for one in node.attribute if one.HasField("g")}
    )
    if branches:
        raise RequestError(
            f"{path} has control flow ({', '.join(branches)}), which no classifier needs; export it in evaluation mode"
        )
    return model


def _module(node: onnx.NodeProto) -> str:
    """Return the path of the module that a node came from, as torch's exporters leave it; "" where nothing tells."""
    for name in node.input[1:2]:
        owner, _, parameter = str(name).rpartition(".")
        if parameter == "weight":
            return _clean(owner)
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return ""
            return _clean(str(scopes[-2])) if isinstance(scopes, list) and len(scopes) > 1 else ""
    if node.name.startswith("/"):
        return _clean(".".join(part.rpartition(".")[2] for part in node.name.strip("/").split("/")[:-1]))
    return ""


def _clean(path: str) -> str:
    return path if path.isprintable() else ""


def _parameters(model: onnx.ModelProto) -> int:
    """Return how many floating-point numbers the file has for weights, the statistics of normalization left out."""
    statistics = {
        name for node in model.graph.node if node.op_type == "BatchNormalization" for name in node.input[3:5]
    }
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in model.graph.initializer
        if tensor.name not in statistics and numpy_helper.to_array(tensor).dtype.kind == "f"
    )


def _serialized(model: onnx.ModelProto, graph: ir.Graph) -> onnx.ModelProto:
    """Return the model with another graph."""
    found: Sequence[onnx.OperatorSetIdProto] = model.opset_import
    result = ir.serde.serialize_model(ir.Model(graph, ir_version=model.ir_version))
    del result.opset_import[:]
    result.opset_import.extend(found)
    result.metadata_props.extend(model.metadata_props)
    return result
