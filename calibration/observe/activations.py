"""Run a graph over real images and look at the tensors inside it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.quantize.tensor_types import infer_types
from resnet_export.runtime.errors import DatasetError, ExportError

__all__ = ["activations", "float_tensors", "in_fours", "observed_graph"]

_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16})


def float_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the names of every floating-point node output, in graph order."""
    types = infer_types(model)
    return tuple(
        name
        for node in model.graph.node
        for name in node.output
        if name and types[name].type.tensor_type.elem_type in _FLOATS
    )


def activations(
    model: onnx.ModelProto,
    batches: Iterable[NDArray[Any]],
    tensors: Sequence[str] | None = None,
    *,
    threads: int | None = None,
) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield, for each batch, the values of `tensors` by name.

    The extra outputs are on a copy that stays in here. Nothing is kept from one batch to the next, so memory
    grows with the batch and not with their number.

    Args:
        model: a graph with one input.
        batches: arrays in the layout and dtype of the graph's input; [N, 3, H, W] float32 normalized, or
            [N, H, W, 3] uint8.
        tensors: names of node outputs, or of the graph's input; None means every floating-point node output.
        threads: for ONNX Runtime; None means one for each processor.

    Raises:
        DependencyError: ONNX Runtime is not installed.
        DatasetError: a batch is not finite.
        ExportError: the graph lacks one of `tensors`, ONNX Runtime refuses the graph or a batch, or a tensor
            is infinite or NaN on a finite batch.
    """
    names = float_tensors(model) if tensors is None else tuple(tensors)
    source = model.graph.input[0].name
    session = CpuSession(observed_graph(model, [name for name in names if name != source]), threads=threads)
    for batch in batches:
        if not _is_finite(batch):
            raise DatasetError("a batch of images holds an infinite value or NaN; check the image files")
        found = dict(zip(session.outputs, session.run(batch), strict=True))
        found[source] = batch
        for name in session.outputs:
            if not _is_finite(found[name]):
                raise ExportError(
                    f"tensor {name!r} is infinite or NaN on a real image; the network must be finite there: "
                    "check its weights"
                )
        result = {name: found[name] for name in names}
        del found
        yield result
        del result  # so that a consumer who clears it has room for the next


def observed_graph(model: onnx.ModelProto, names: Iterable[str]) -> bytes:
    """Return a serialized copy of the graph whose outputs are the tensors `names`, in graph order.

    Raises ExportError when the graph lacks one of them.
    """
    wanted = set(names)
    produced = [name for node in model.graph.node for name in node.output if name in wanted]
    if missing := wanted - set(produced):
        raise ExportError(f"the graph has no tensor called {', '.join(map(repr, sorted(missing)))}")
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    # A graph must have an output, even where nothing but its input was asked for.
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in produced)
    if not produced:
        copy.graph.output.extend(model.graph.output)
    data: bytes = copy.SerializeToString()
    return data


def _is_finite(array: NDArray[Any]) -> bool:
    """Say whether no element is infinite or NaN. A finite sum proves it in one cheap pass; most sums are."""
    if not np.issubdtype(array.dtype, np.floating):
        return True
    with np.errstate(over="ignore", invalid="ignore"):
        total = array.sum(dtype=np.float32)
    return bool(np.isfinite(total)) or bool(np.isfinite(array).all())


def in_fours(batches: Iterable[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Cut batches into parts of at most four images: as fast as more, whose activations would take a gigabyte."""
    for batch in batches:
        for start in range(0, len(batch), 4):
            yield batch[start : start + 4]
