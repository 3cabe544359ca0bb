"""How far a further output (an embedding, a map) is from the reference's, by the definitions that logits have."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from resnet_export.runtime.bundle.manifest import Struct
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.measure.metrics import SAME, cosine, inner, relative_error

__all__ = ["OutputFigures", "output_figures"]

_CHANNELS = {2: 1, 3: 2, 4: 1}
"""Number of axes → the axis of the channels: of [N, F], [N, L, C] and [N, C, H, W]."""


class OutputFigures(Struct, frozen=True):
    """The figures of one output on `images` images; errors are over those whose values are finite.

    `max_abs` and `mean_abs` are absolute differences; `relative_error` is ‖a−b‖/‖b‖; `cosine` is over all values,
    `centered_cosine` after each channel's mean in the reference, over images and positions, was subtracted from both;
    `snr_db` is −20·log10(relative_error). A figure is None where it is undefined.
    """

    images: int
    non_finite: int
    max_abs: float | None
    mean_abs: float | None
    relative_error: float | None
    cosine: float | None
    centered_cosine: float | None
    snr_db: float | None


def output_figures(reference: ArrayLike, candidate: ArrayLike) -> OutputFigures:
    """Compare float arrays [N, F], [N, L, C] or [N, C, H, W] of the same N ≥ 1 images.

    Raises RequestError for other shapes, and when the reference is not finite.
    """
    b, a = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    if b.ndim not in _CHANNELS or not b.size or a.shape != b.shape:
        raise RequestError(
            f"the outputs have shapes {list(a.shape)} and {list(b.shape)}, expected the same of 2 to 4 axes, not empty"
        )
    if not np.isfinite(b).all():
        raise RequestError("the reference holds NaN or infinity; record it again")
    finite = np.isfinite(a).reshape(len(a), -1).all(axis=1)
    images, b, a = len(b), b[finite], a[finite]
    if not len(b):
        return OutputFigures(
            images=images,
            non_finite=images,
            max_abs=None,
            mean_abs=None,
            relative_error=None,
            cosine=None,
            centered_cosine=None,
            snr_db=None,
        )
    size = np.abs(a - b)
    relative = relative_error(a, b)
    axes = tuple(axis for axis in range(b.ndim) if axis != _CHANNELS[b.ndim])
    mean = b.mean(axis=axes, keepdims=True)
    centered_b, centered_a = b - mean, a - mean
    varied = inner(centered_b, centered_b) > SAME**2 * inner(b, b)
    return OutputFigures(
        images=images,
        non_finite=images - len(b),
        max_abs=float(size.max()),
        mean_abs=float(size.mean()),
        relative_error=relative,
        cosine=cosine(inner(a, b), inner(a, a), inner(b, b)),
        centered_cosine=(
            cosine(
                inner(centered_a, centered_b), inner(centered_a, centered_a), inner(centered_b, centered_b)
            )
            if varied
            else None
        ),
        snr_db=-20 * math.log10(relative) if relative else None,
    )
