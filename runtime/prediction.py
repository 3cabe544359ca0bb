"""From logits to labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.schema import Activation
from resnet_export.runtime.errors import BackendError


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One label for an image. `index` is the class, `probability` its softmax in [0, 1]."""

    index: int
    label: str
    probability: float


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the softmax over the last axis, in float64, without overflow for any finite input."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    exponentials = np.exp(shifted)
    result: NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return result


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the sigmoid of each logit, in float64, without overflow for any finite input."""
    result: NDArray[np.float64] = 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))
    return result


ACTIVATIONS: Mapping[Activation, Callable[[NDArray[np.float32]], NDArray[np.float64]]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
}
"""What makes probabilities of logits, by the name that the manifest has for it."""


def best(logits: NDArray[np.float32], labels: Sequence[str], top: int) -> list[Prediction]:
    """Return the `top` most probable labels of one image, best first, or all when there are fewer.

    `logits` is [classes]. Equal logits keep the order of their classes. Raises BackendError when a logit is
    not finite, since no order would mean anything.
    """
    if not np.isfinite(logits).all():
        raise BackendError(
            "the artifact returned logits that are not finite; run `resnet-export parity` on the bundle to "
            "see which artifacts compute correctly"
        )
    order = np.argsort(-logits, kind="stable")[:top]
    probabilities = softmax(logits)
    return [
        Prediction(index=int(index), label=labels[index], probability=float(probabilities[index]))
        for index in order
    ]
