"""From an nn.Module to a simplified ONNX graph whose nodes are named after the modules they came from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import onnx

from resnet_export.exporter.graph.exported_graph import ExportedGraph, Exporter, OnnxNetwork
from resnet_export.exporter.graph.module_names import module_paths, node_names, paths_after, renamed
from resnet_export.exporter.graph.stage_check import Reference, StageCheck, check_stage
from resnet_export.runtime.backends.libraries import import_library
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import ExportError

if TYPE_CHECKING:
    from torch import nn

    from resnet_export.exporter.graph.stage_check import Network

__all__ = ["simplify", "to_onnx"]


def to_onnx(network: Network, *, batch: BatchRange, reference: Reference) -> tuple[ExportedGraph, StageCheck]:
    """Export `network` with the batch axis dynamic; return the graph, and the check that holds it to `reference`.

    The dynamo exporter comes first. Where it fails, or its graph differs from the eager network, the
    TorchScript exporter takes its place, and a sentence in `notices` says why. What is ONNX already is only checked.

    Args:
        network: in evaluation mode, float32 [N, C, H, W] → the logits, float32 [N, classes], or a dictionary of float
            outputs with "logits" first.
        batch: the graph is checked at batch sizes 1, 3 and `batch.max`.
        reference: normalized images [M, C, H, W] and the eager network's outputs, by name; the exported input `input`
            has their C, H and W, the exported outputs their names.

    Raises:
        ExportError: both exporters failed.
        DependencyError: ONNX Runtime, with which the graph is checked, is not installed.
    """
    if isinstance(network, OnnxNetwork):
        return network.graph, check_stage(network.graph.model, reference, step="onnx", batch=batch)
    if network.training:
        raise ExportError("the network is in training mode; call eval() before exporting it")
    from resnet_export.exporter.graph.torch_export import export_dynamo, export_torchscript

    shape = reference.images.shape[1:]
    outputs = list(reference.outputs)
    try:
        graph = _named(export_dynamo(network, shape, outputs), network, "dynamo")
        return graph, check_stage(graph.model, reference, step="onnx", batch=batch)
    except ExportError as error:
        notice = f"the dynamo exporter was rejected for the TorchScript exporter: {error}"
    graph = _named(export_torchscript(network, shape, outputs), network, "torchscript")
    graph = replace(graph, notices=(notice,))
    return graph, check_stage(graph.model, reference, step="onnx", batch=batch)


def simplify(graph: ExportedGraph) -> ExportedGraph:
    """Run onnxsim: constants folded, BatchNorms fused, no-ops removed. Raises ExportError when it fails.

    Nodes that survive keep their names and modules. A graph in which there is nothing to simplify comes back
    with the same bytes.
    """
    import_library("onnxruntime")  # without its telemetry, which onnxsim would start
    import onnxsim

    try:
        model, _ = onnxsim.simplify(graph.model)
    except Exception as error:
        raise ExportError(f"onnxsim cannot simplify the graph: {_reason(error)}") from error
    paths = paths_after(model, graph.model, graph.modules)
    leaves = {path for name, path in graph.modules.items() if name == path}
    names = node_names(model, paths, leaves, keep=graph.modules.keys())
    model, modules = renamed(model, names, paths)
    return replace(graph, model=model, modules=modules)


def _named(model: onnx.ModelProto, network: nn.Module, exporter: Exporter) -> ExportedGraph:
    paths = module_paths(model, network)
    leaves = {path for path, module in network.named_modules() if not module._modules}
    names = node_names(model, paths, leaves)
    model, modules = renamed(model, names, paths)
    return ExportedGraph(model, modules, exporter)


def _reason(error: BaseException) -> str:
    """Return the first line of what an error goes back to; exporters wrap theirs in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
