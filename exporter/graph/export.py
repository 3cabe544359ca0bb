"""From an nn.Module to a simplified ONNX graph whose nodes are named after the modules they came from."""

from __future__ import annotations

import gc
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import onnx
import torch
from torch import nn
from torch.jit._trace import TracerWarning

from resnet_export.exporter.graph.module_names import canonical, module_paths, node_names, paths_after
from resnet_export.exporter.graph.stage_check import LOGITS, Reference, StageCheck, check_stage, serialize
from resnet_export.runtime.backends.libraries import import_library
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import ExportError

__all__ = [
    "BATCH_AXIS",
    "INPUT",
    "IR_VERSION",
    "LOGITS",
    "OPSET",
    "ExportedGraph",
    "serialize",
    "simplify",
    "to_onnx",
]

OPSET = 19
"""The lowest operator set in which QuantizeLinear and DequantizeLinear take fp16 scales, which a strongly
typed INT8 graph needs; nothing in a ResNet needs a higher one, and every older reader refuses a higher one.
TensorRT 10 and 11 and TensorRT for RTX, ONNX Runtime since 1.15, and OpenVINO read it."""

IR_VERSION = 9
"""The file format of the ONNX release that brought operator set 19; older readers refuse a newer number."""

INPUT = "input"
BATCH_AXIS = "N"

_EXAMPLE_BATCH = 2  # torch.export takes an axis of 1 to be fixed


@dataclass(frozen=True)
class ExportedGraph:
    """An ONNX model and where its nodes came from. Treat `model` as frozen: every step returns a new one.

    `modules` maps each node's name to the path of its `nn.Module` ("layer1.0.conv1"; "" is the network).
    `exporter` says which PyTorch exporter made it; `notices` are sentences for the user, such as why the
    first exporter was rejected.
    """

    model: onnx.ModelProto
    modules: Mapping[str, str]
    exporter: Literal["dynamo", "torchscript"]
    notices: tuple[str, ...] = ()


def to_onnx(
    network: nn.Module, *, batch: BatchRange, reference: Reference
) -> tuple[ExportedGraph, StageCheck]:
    """Export `network` with the batch axis dynamic; return the graph, and the check that holds it to `reference`.

    The dynamo exporter comes first. Where it fails, or its graph differs from the eager network, the
    TorchScript exporter takes its place, and a sentence in `notices` says why.

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
    if network.training:
        raise ExportError("the network is in training mode; call eval() before exporting it")
    example = torch.zeros(_EXAMPLE_BATCH, *reference.images.shape[1:])
    outputs = list(reference.outputs)
    try:
        graph = _named(_dynamo(network, example, outputs), network, "dynamo")
        return graph, check_stage(graph.model, reference, step="onnx", batch=batch)
    except ExportError as error:
        notice = f"the dynamo exporter was rejected for the TorchScript exporter: {error}"
    graph = replace(
        _named(_torchscript(network, example, outputs), network, "torchscript"), notices=(notice,)
    )
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
    model, modules = _renamed(model, names, paths)
    return replace(graph, model=model, modules=modules)


def _named(
    model: onnx.ModelProto, network: nn.Module, exporter: Literal["dynamo", "torchscript"]
) -> ExportedGraph:
    paths = module_paths(model, network)
    leaves = {path for path, module in network.named_modules() if not module._modules}
    names = node_names(model, paths, leaves)
    model, modules = _renamed(model, names, paths)
    return ExportedGraph(model, modules, exporter)


def _renamed(
    model: onnx.ModelProto, names: Sequence[str], paths: Sequence[str]
) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    """Return the canonical form under these node names, and the map of the nodes that are left in it."""
    modules = dict(zip(names, paths, strict=True))
    model = canonical(model, names)
    model.ir_version = IR_VERSION
    return model, {node.name: modules[node.name] for node in model.graph.node}


def _dynamo(network: nn.Module, example: torch.Tensor, outputs: Sequence[str]) -> onnx.ModelProto:
    try:
        with _quiet(), _uncollected():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim(BATCH_AXIS, min=1)},),
                external_data=False,
                verbose=False,
            )
        if program is None:
            raise ExportError("it returned nothing")
        return program.model_proto
    except Exception as error:
        raise ExportError(f"the dynamo exporter failed: {_reason(error)}") from error


def _torchscript(network: nn.Module, example: torch.Tensor, outputs: Sequence[str]) -> onnx.ModelProto:
    try:
        with _quiet(), TemporaryDirectory() as folder:
            file = Path(folder) / "network.onnx"
            torch.onnx.export(
                network,
                (example,),
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_axes={name: {0: BATCH_AXIS} for name in (INPUT, *outputs)},
                verbose=False,
            )
            return onnx.load(file)
    except Exception as error:
        raise ExportError(f"the TorchScript exporter failed: {_reason(error)}") from error


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the garbage collector off: it takes a quarter of the dynamo exporter's time and finds nothing to free."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporters say: that they are deprecated, that a trace may be wrong (every result is checked
    here), that torchvision's operators are missing, and, where torch.export fails, the whole source of the graph
    that it got to."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore", TracerWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        registration.setLevel(level)


def _reason(error: BaseException) -> str:
    """Return the first line of what an error goes back to; exporters wrap theirs in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
