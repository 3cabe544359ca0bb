"""torch's two ONNX exporters, called one way."""

from __future__ import annotations

import gc
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from torch import nn
from torch.jit._trace import TracerWarning

from resnet_export.exporter.graph.exported_graph import BATCH_AXIS, INPUT, OPSET
from resnet_export.runtime.errors import ExportError

__all__ = ["export_dynamo", "export_torchscript"]

_EXAMPLE_BATCH = 2  # torch.export takes an axis of 1 to be fixed


def export_dynamo(network: nn.Module, shape: Sequence[int], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the graph of `network`, whose inputs are of `shape` [C, H, W] behind a dynamic batch axis.

    Raises ExportError when the exporter fails, as `export_torchscript` does.
    """
    example = torch.zeros(_EXAMPLE_BATCH, *shape)
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


def export_torchscript(network: nn.Module, shape: Sequence[int], outputs: Sequence[str]) -> onnx.ModelProto:
    """Return the graph of `network`, traced."""
    example = torch.zeros(_EXAMPLE_BATCH, *shape)
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
