"""What a source of any kind becomes: a network, and what a bundle says about it."""

from __future__ import annotations

from dataclasses import dataclass

from resnet_export.exporter.graph.stage_check import Network
from resnet_export.runtime.bundle.manifest import ModelInfo, Preprocessing

__all__ = ["Classifier"]


@dataclass(frozen=True, eq=False)
class Classifier:
    """The network that everything later is compared with, and what a bundle says about it.

    Nothing past it knows which network it is: `module` takes float32 [N, C, H, W], normalized, and returns float32
    logits [N, classes]. It is an nn.Module in evaluation mode, float32, or an ONNX graph that existed already.
    `preprocessing` ends in such floats; `labels` has one name for each class; `notices` are sentences that the user has
    to see.
    """

    module: Network
    info: ModelInfo
    preprocessing: Preprocessing
    labels: tuple[str, ...]
    notices: tuple[str, ...] = ()
