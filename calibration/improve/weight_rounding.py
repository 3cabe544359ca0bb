"""Choose each weight's integer so that the layer's output, not the weight, is off by least.

Rounding errors of weights that meet correlated inputs can cancel. Frantar et al., "GPTQ: Accurate Post-Training
Quantization for Generative Pre-trained Transformers", 2022 (arXiv:2210.17323), and "Optimal Brain Compression",
2022 (arXiv:2208.11580), quantize a filter's weights one after the other and let those that are left make up for the
error so far. Chee et al., "QuIP", 2023 (arXiv:2307.13304), section 3, give the same result as a linear feedback,
which needs one Cholesky factorization and no inverse: with C = (F + I) D (F + I)ᵀ, F strictly upper triangular,

    q_k = round(w_k + Σ_{j<k} (w_j - q_j) F_jk)

Weights are compensated within each part of a filter whose covariance is known (`moments.parts`).

C is the covariance of the inputs, not their second moment, where a bias correction follows: what an error does to the
mean of the output is for that to take away (`calibration.bias_correction`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.improve.channel_scaling import by_input, from_rows
from resnet_export.calibration.improve.input_moments import Moments
from resnet_export.calibration.observe.ranges import SYMMETRIC_STEPS
from resnet_export.calibration.quantize.grid import QuantizedWeight, weight_scales
from resnet_export.calibration.quantize.topology import Layer

_DAMPING = 0.01
"""Added to the diagonal, as a share of its mean (GPTQ, section 3.3): inputs vary in every direction on images that
were not seen."""

_BLOCK = 64  # weights of a filter between two products with all that follow


def round_weight(
    layer: Layer, weight: NDArray[np.float32], moments: tuple[Moments, ...], *, centered: bool = True
) -> QuantizedWeight:
    """Return the weight of `layer` on the grid of `weight_scales`, its integers chosen for its inputs.

    Args:
        layer: a Conv, grouped or not, or a Gemm.
        weight: its weight, float32, finite.
        moments: what `input_moments` found for it.
        centered: errors may shift the output's mean, because a bias correction follows.
    """
    scales = weight_scales(weight, layer.axis)
    rows = by_input(weight.astype(np.float64), layer)  # [groups, outputs, inputs, kernel]
    groups, outputs = rows.shape[:2]
    filters = rows.reshape(groups, outputs, -1).astype(np.float32)
    chosen = np.empty_like(filters)
    for one in moments:
        chosen[one.group, :, one.part] = compensate(
            np.ascontiguousarray(filters[one.group, :, one.part]),
            scales.reshape(groups, outputs)[one.group],
            one.covariance if centered else one.second_moment,
        )
    values = from_rows(chosen.reshape(rows.shape).astype(np.float64), weight.shape, layer)
    return QuantizedWeight(np.ascontiguousarray(values).astype(np.int8), scales, layer.axis)


def compensate(
    weight: NDArray[np.float32], scales: NDArray[np.float32], covariance: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return integers in [-127, 127] for the filters `weight` [outputs, d], as float32.

    `scales` [outputs] are theirs and `covariance` [d, d] is their inputs'. Inputs that vary most are quantized
    first, while there are most weights left to make up for the error.
    """
    order = np.argsort(-np.diag(covariance), kind="stable")
    feedback = _feedback(covariance[np.ix_(order, order)])
    sorted_weight = weight[:, order]
    step = scales[:, None]
    size = weight.shape[1]
    integers = np.empty_like(sorted_weight)
    errors = np.zeros_like(sorted_weight)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        target = sorted_weight[:, start:stop] + errors[:, :start] @ feedback[:start, start:stop]
        for k in range(start, stop):
            wanted = target[:, k - start] + errors[:, start:k] @ feedback[start:k, k]
            integers[:, k] = np.clip(np.rint(wanted / scales), -SYMMETRIC_STEPS, SYMMETRIC_STEPS)
            errors[:, k] = sorted_weight[:, k] - integers[:, k] * step[:, 0]
    result = np.empty_like(integers)
    result[:, order] = integers
    return result


def _feedback(covariance: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return F + I, float32, where the damped covariance is (F + I) D (F + I)ᵀ.

    The covariance is finite; it may be zero, of any rank, and indefinite by what float32 rounds.
    """
    mean = float(np.diag(covariance).mean(dtype=np.float64))
    if mean <= 0:  # inputs that never vary: no error can make up for another
        return np.eye(len(covariance), dtype=np.float32)
    damped = covariance[::-1, ::-1].astype(np.float64) / mean
    damped[np.diag_indices_from(damped)] += _DAMPING
    upper = np.linalg.cholesky(damped)[::-1, ::-1]
    return np.ascontiguousarray((upper / np.diag(upper)).astype(np.float32))
