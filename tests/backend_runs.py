"""Calls of a backend that ask for the logits alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.protocol import Backend, DeviceBackend


def logits_of(backend: Backend, batch: NDArray[Any]) -> NDArray[np.float32]:
    """The logits of a batch, float32 [N, classes]."""
    (logits,) = backend.run(batch, ("logits",))
    return logits


def on_device(backend: DeviceBackend, array: Any) -> Any:
    """The logits of an array on the GPU, there."""
    (logits,) = backend.run_on_device(array, ("logits",))
    return logits
