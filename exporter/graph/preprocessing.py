"""Normalization as part of the graph, so that an application can feed raw pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from resnet_export.exporter.graph.exported_graph import BATCH_AXIS, ExportedGraph
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import ExportError

__all__ = ["bake_preprocessing"]


def bake_preprocessing(graph: ExportedGraph, preprocessing: Preprocessing) -> ExportedGraph:
    """Return the graph with a raw input: uint8 [N, H, W, C], normalized inside.

    The input is cast to float before anything else, since TensorRT cannot transpose uint8 (NVIDIA/TensorRT
    issue 3985), then transposed to [N, C, H, W] and freed of 255·mean. The factor 1/(255·std) goes into the
    weights of the first convolution. The mean does not go into its bias: a padded zero stands for the mean
    color only where the mean has been subtracted before the padding.

    Raises ExportError when the input does not lead straight into one ungrouped convolution.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    source = model.graph.input[0]
    readers = [node for node in model.graph.node if source.name in node.input]
    if len(readers) != 1 or readers[0].op_type != "Conv" or _group(readers[0]) != 1:
        raise ExportError(
            f"the input feeds {', '.join(node.op_type for node in readers)}, but a raw input needs one "
            "ungrouped convolution to take up the scale; export with a float32 input"
        )
    first = readers[0]
    size = source.type.tensor_type.shape.dim
    raw = helper.make_tensor_value_info(
        source.name, TensorProto.UINT8, [BATCH_AXIS, size[2].dim_value, size[3].dim_value, size[1].dim_value]
    )
    source.CopyFrom(raw)

    mean = (255 * np.array(preprocessing.mean, np.float64)).astype(np.float32).reshape(1, -1, 1, 1)
    scale = (1 / (255 * np.array(preprocessing.std, np.float64))).reshape(1, -1, 1, 1)
    for tensor in model.graph.initializer:
        if tensor.name == first.input[1]:
            weight = (numpy_helper.to_array(tensor) * scale).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    model.graph.initializer.append(numpy_helper.from_array(mean, "preprocess.mean.255"))

    steps = [
        helper.make_node("Cast", [source.name], ["preprocess.cast.output"], to=TensorProto.FLOAT),
        helper.make_node(
            "Transpose", ["preprocess.cast.output"], ["preprocess.transpose.output"], perm=[0, 3, 1, 2]
        ),
        helper.make_node(
            "Sub", ["preprocess.transpose.output", "preprocess.mean.255"], ["preprocess.sub.output"]
        ),
    ]
    for step in steps:
        step.name = step.output[0].removesuffix(".output")
    first.input[0] = steps[-1].output[0]
    nodes = [*steps, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return replace(graph, model=model, modules={step.name: "" for step in steps} | dict(graph.modules))


def _group(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
