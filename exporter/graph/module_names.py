"""Which nn.Module each node of a graph came from, and names that say so.

Both PyTorch exporters know it and lose it: the dynamo exporter keeps the scope in each node's metadata, the
TorchScript exporter in each node's name, and simplifying or finishing a graph drops either. So every node is
named after its module as soon as it leaves the exporter:

    layer1.0.conv1                 the only node of a module without children
    layer1.0.relu, layer1.0.relu_1 a module that runs twice
    layer1.0.add                   the operator, where a module with children computes something itself
    layer1.0.conv1.output          what the node computes
    layer1.0.conv1.weight, .bias   its parameters; no two nodes share one
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx
from onnx import helper, numpy_helper

from resnet_export.exporter.graph.exported_graph import IR_VERSION

if TYPE_CHECKING:
    from torch import nn

__all__ = ["canonical", "module_paths", "node_names", "paths_after", "renamed"]

_PARAMETERS: Mapping[str, Sequence[str]] = {
    "Conv": ("", "weight", "bias"),
    "Gemm": ("", "weight", "bias"),
    "MatMul": ("", "weight"),
    "BatchNormalization": ("", "weight", "bias", "running_mean", "running_var"),
    "Reshape": ("", "shape"),
    "ReduceMean": ("", "axes"),
}


def module_paths(model: onnx.ModelProto, network: nn.Module) -> list[str]:
    """Return the module path of each node of a graph that has just been exported from `network`.

    A convolution with a folded BatchNorm belongs to the convolution. "" is the network itself.
    """
    modules = dict(network.named_modules())
    return [_path(node, network, modules) for node in model.graph.node]


def _path(node: onnx.NodeProto, network: nn.Module, modules: Mapping[str, nn.Module]) -> str:
    # Where dynamo folds a BatchNorm, the scope names the BatchNorm, and the weight still the convolution.
    for name in node.input[1:2]:
        owner, _, parameter = str(name).rpartition(".")
        if parameter == "weight" and owner in modules:
            return owner
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes: list[str] = ast.literal_eval(entry.value)
            return next((scope for scope in reversed(scopes) if scope in modules), "")
    return _torchscript_path(node.name, network)


def _torchscript_path(name: str, network: nn.Module) -> str:
    """Follow a name such as "/layer1/layer1.0/relu_1/Relu" from the root as far as there are modules.

    A child of a Sequential is spelt with its parent's name in front, and a module's second run with a number
    behind.
    """
    module, path = network, []
    for segment in name.strip("/").split("/")[:-1]:
        child = segment.rpartition(".")[2]
        if child not in module._modules and child.rpartition("_")[2].isdigit():
            child = child.rpartition("_")[0]
        below = module._modules.get(child)
        if below is None:
            break
        module = below
        path.append(child)
    return ".".join(path)


def node_names(
    model: onnx.ModelProto, paths: Sequence[str], leaves: Collection[str], keep: Collection[str] = ()
) -> list[str]:
    """Return a unique name for each node, made from its module path.

    `leaves` are the paths of modules without children: their nodes need no operator in their name. A node
    whose name is in `keep` keeps it.
    """
    names: list[str] = []
    taken = {node.name for node in model.graph.node if node.name in keep}
    for node, path in zip(model.graph.node, paths, strict=True):
        if node.name in keep:
            names.append(node.name)
            continue
        operator = node.op_type.lower()
        base = path if path in leaves and path else f"{path}.{operator}".lstrip(".")
        name, number = base, 0
        while name in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name)
        names.append(name)
    return names


def paths_after(model: onnx.ModelProto, before: onnx.ModelProto, modules: Mapping[str, str]) -> list[str]:
    """Return the module path of each node of `model`, which a rewrite made from the named graph `before`.

    A node that kept its name keeps its module; a new one takes over from the node whose output it computes.
    """
    producers = {name: node.name for node in before.graph.node for name in node.output}
    return [
        modules.get(node.name, modules.get(producers.get(node.output[0], ""), ""))
        for node in model.graph.node
    ]


def renamed(
    model: onnx.ModelProto, names: Sequence[str], paths: Sequence[str]
) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """Return the canonical form under these node names, and the map of the nodes that are left in it."""
    modules = dict(zip(names, paths, strict=True))
    model = canonical(model, names)
    # Of a file that is in a newer operator set already, the format is newer too.
    model.ir_version = max(IR_VERSION, helper.find_min_ir_version_for(model.opset_import))
    return model, {node.name: modules[node.name] for node in model.graph.node}


def canonical(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy whose nodes have `names`, with tensors named after nodes and no exporter debris.

    Constants become initializers, an initializer that several nodes read is copied for each, and doc strings,
    metadata and stored shapes go. Two graphs that differ in nothing else come out with the same bytes.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    graph = onnx.GraphProto(name="network", input=model.graph.input, output=model.graph.output)
    outputs = {value.name for value in model.graph.output}
    tensors = {value.name: value.name for value in (*model.graph.input, *model.graph.output)}
    for node, name in zip(model.graph.node, names, strict=True):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
            continue
        if node.op_type == "Identity" and node.input[0] in constants and node.output[0] not in outputs:
            constants[node.output[0]] = constants[node.input[0]]
            continue
        new = graph.node.add()
        new.CopyFrom(node)
        new.name = name
        new.ClearField("doc_string")
        new.ClearField("metadata_props")
        for position, tensor in enumerate(node.input):
            if tensor in constants:
                new.input[position] = f"{name}.{_role(node.op_type, position)}"
                graph.initializer.append(_stored(constants[tensor], new.input[position]))
            elif tensor:
                new.input[position] = tensors[tensor]
        for position, tensor in enumerate(node.output):
            suffix = "output" if position == 0 else f"output_{position}"
            new.output[position] = tensors.setdefault(tensor, f"{name}.{suffix}")
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
    opsets = sorted((one for one in model.opset_import), key=lambda one: one.domain)
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=opsets, graph=graph)


def _role(operator: str, position: int) -> str:
    roles = _PARAMETERS.get(operator, ())
    return roles[position] if 0 < position < len(roles) else f"constant_{position}"


def _stored(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    """Return the tensor under a new name, with its values as raw little-endian bytes."""
    if tensor.HasField("raw_data"):
        return onnx.TensorProto(
            name=name, data_type=tensor.data_type, dims=tensor.dims, raw_data=tensor.raw_data
        )
    return numpy_helper.from_array(numpy_helper.to_array(tensor), name)
