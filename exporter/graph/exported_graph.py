"""The graph that travels down the line, and what is common to all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.observe.cpu_session import CpuSession

__all__ = [
    "BATCH_AXIS",
    "INPUT",
    "IR_VERSION",
    "OPSET",
    "ExportedGraph",
    "OnnxNetwork",
    "serialize",
]

OPSET = 19
"""The lowest operator set in which QuantizeLinear and DequantizeLinear take fp16 scales, which a strongly
typed INT8 graph needs; nothing in a ResNet needs a higher one, and every older reader refuses a higher one.
TensorRT 10 and 11 and TensorRT for RTX, ONNX Runtime since 1.15, and OpenVINO read it."""

IR_VERSION = 9
"""The file format of the ONNX release that brought operator set 19; older readers refuse a newer number."""

INPUT = "input"
BATCH_AXIS = "N"


Exporter = Literal["dynamo", "torchscript", "onnx"]


@dataclass(frozen=True)
class ExportedGraph:
    """An ONNX model and where its nodes came from. Treat `model` as frozen: every step returns a new one.

    `modules` maps each node's name to the path of its `nn.Module` ("layer1.0.conv1"; "" is the network).
    `exporter` says which PyTorch exporter made it, or "onnx" where the file existed already; `notices` are sentences
    for the user, such as why the first exporter was rejected.
    """

    model: onnx.ModelProto
    modules: Mapping[str, str]
    exporter: Exporter
    notices: tuple[str, ...] = ()

    @property
    def opset(self) -> int:
        """The version of ONNX's own operator set."""
        return max(int(one.version) for one in self.model.opset_import if one.domain in ("", "ai.onnx"))


@dataclass(frozen=True, eq=False)
class OnnxNetwork:
    """A network that exists as ONNX alone: ONNX Runtime on the file is the reference.

    `source` is the file with its input called "input", float32 [N, C, H, W], and its one output "logits"; nothing else
    in it was changed. `graph` computes the same, in the operator set and with the names of every other export.
    """

    source: onnx.ModelProto
    graph: ExportedGraph

    def runner(self) -> Callable[[NDArray[np.float32]], dict[str, NDArray[Any]]]:
        """Return a function from normalized images [M, C, H, W] to the outputs of the file by name."""
        session = CpuSession(serialize(self.source))

        def run(images: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
            return dict(zip(session.outputs, session.run(images), strict=True))

        return run


def serialize(model: onnx.ModelProto) -> bytes:
    """Return the model's bytes: the same model gives the same bytes in every process."""
    data: bytes = model.SerializeToString(deterministic=True)
    return data
