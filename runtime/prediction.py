"""From logits to labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.bundle.schema import Activation
from resnet_export.runtime.errors import BackendError


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One label for an image. `index` is that of the label, `probability` in [0, 1] what the activation makes of it."""

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
    result: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
    return result


ACTIVATIONS: Mapping[Activation, Callable[[NDArray[np.float32]], NDArray[np.float64]]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
}
"""What makes probabilities of logits, by the name that the manifest has for it."""


def two_class(logits: NDArray[Any]) -> NDArray[Any]:
    """Return the logits [N, C], those of a binary classifier, [N, 1], as those of two classes: 0 and z.

    The softmax of 0 and z is the sigmoid of −z and of z, so that the second class is decided on where z > 0.
    """
    return np.concatenate([np.zeros_like(logits), logits], axis=-1) if logits.shape[-1] == 1 else logits


def decides_each(logits: NDArray[Any], activation: Activation) -> bool:
    """Whether logits [N, C] are a multi-label head's: each class is decided on by itself, at a probability of 0.5."""
    return activation == "sigmoid" and logits.shape[-1] > 1


def decisions(logits: NDArray[Any]) -> NDArray[Any]:
    """Return the logits of a multi-label head, [N, C], as those of N·C binary decisions, [N·C, 2]."""
    return two_class(logits.reshape(-1, 1))


def best(
    logits: NDArray[np.float32], labels: Sequence[str], top: int, activation: Activation = "softmax"
) -> list[Prediction]:
    """Return the `top` most probable labels of one image, best first, or all when there are fewer.

    `logits` is [classes]; a binary classifier's one logit has two labels, whose probabilities add up to 1. Equal logits
    keep the order of their classes. Raises BackendError when a logit is not finite, since no order would mean anything.
    """
    if not np.isfinite(logits).all():
        raise BackendError(
            "the artifact returned logits that are not finite; run `resnet-export parity` on the bundle to "
            "see which artifacts compute correctly"
        )
    binary = len(logits) == 1
    logits = two_class(logits)
    order = np.argsort(-logits, kind="stable")[:top]
    probabilities = softmax(logits) if binary else ACTIVATIONS[activation](logits)
    return [
        Prediction(index=int(index), label=labels[index], probability=float(probabilities[index]))
        for index in order
    ]
