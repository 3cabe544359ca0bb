"""What a model repository is asked for."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TritonSpec"]


@dataclass(frozen=True)
class TritonSpec:
    """How a bundle is served.

    Attributes:
        name: of the ensemble; every other model's name starts with it. None: the name of the bundle's folder.
        backends: Triton's backends that get a model, "python", "onnxruntime", "openvino" or "tensorrt"; the ensemble
            runs the first.
        artifacts: restrict the artifacts; None: every one that the backend can run and no parity check failed.
        instances: of each model, per device.
        max_queue_delay: microseconds that a request waits for others to fill a preferred batch.
        top: how many labels the ensemble returns for an image.
    """

    name: str | None = None
    backends: tuple[str, ...] = ("python",)
    artifacts: tuple[str, ...] | None = None
    instances: int = 1
    max_queue_delay: int = 2000
    top: int = 5
