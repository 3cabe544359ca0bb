"""The integers that stand for real numbers: scales, zero points, and weights rounded onto them.

A symmetric scale is always a number that fp16 holds exactly: the TensorRT graph's scales are typed as fp16 later,
when the integers are chosen, and a scale that changed then would change every weight with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.calibration.observe.ranges import AFFINE_STEPS, SYMMETRIC_STEPS, Range

_FP16_LEAST = 2.0**-24
_FP16_NORMAL = 2.0**-14
_FP16_GREATEST = float(np.finfo(np.float16).max)
_AFFINE_LEAST = 2.0**-60  # times a weight scale it is still a normal float32
_UNSEEN = 1.0  # the range given to what was zero throughout: any will do, as long as scales stay finite


@dataclass(frozen=True)
class Grid:
    """One scale for a whole tensor: real = (integer - `zero_point`) · `scale`.

    `signed` is int8 in [-128, 127] with zero point 0; otherwise uint8 in [0, 255]. `scale` is a float32 value,
    positive and finite.
    """

    scale: float
    zero_point: int
    signed: bool

    @property
    def dtype(self) -> type[np.int8] | type[np.uint8]:
        return np.int8 if self.signed else np.uint8


def symmetric_grid(limits: Range) -> Grid:
    """Return the int8 grid on which ±`amax` is ±127."""
    amax = limits.amax if limits.amax > 0 else _UNSEEN
    return Grid(scale=float(_fp16_at_least(np.array(amax / SYMMETRIC_STEPS))), zero_point=0, signed=True)


def affine_grid(limits: Range) -> Grid:
    """Return the uint8 grid whose 255 steps reach from `low` to `high`, moved so that zero lies on it."""
    width = limits.high - limits.low
    scale = float(np.float32(max((width if width > 0 else _UNSEEN) / AFFINE_STEPS, _AFFINE_LEAST)))
    return Grid(
        scale=scale, zero_point=int(np.clip(np.rint(-limits.low / scale), 0, AFFINE_STEPS)), signed=False
    )


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight on one symmetric grid per output channel.

    `values` is int8 in [-127, 127] with the weight's shape; `scales` is float32 [channels], positive; `axis` is
    the output channels' axis.
    """

    values: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int

    def real(self) -> NDArray[np.float32]:
        """Return the float32 weight that the integers stand for."""
        return self.values.astype(np.float32) * along(self.scales, self.axis, self.values.ndim)


def weight_scales(weight: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return, for each output channel, the scale that puts the greatest magnitude on 127: float32 [channels].

    Per-channel scales: Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018,
    section 3.1. A channel so weak, or dead, that its scale would be subnormal in fp16 takes the least normal
    number, as long as its steps stay within an eighth of the strongest channel's: what they round away is then
    18 dB below what rounds away there.
    """
    amax = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis)).astype(np.float64)
    scales = amax / SYMMETRIC_STEPS if amax.any() else np.full_like(amax, _UNSEEN / SYMMETRIC_STEPS)
    return _fp16_at_least(np.maximum(scales, min(_FP16_NORMAL, scales.max() / 8)))


def quantize_weight(
    weight: NDArray[np.float32], axis: int, scales: NDArray[np.float32] | None = None
) -> QuantizedWeight:
    """Round a float32 weight to the nearest point of its grid (`scales` defaults to `weight_scales`)."""
    scales = weight_scales(weight, axis) if scales is None else scales
    integers = np.rint(weight / along(scales, axis, weight.ndim))
    values = np.clip(integers, -SYMMETRIC_STEPS, SYMMETRIC_STEPS).astype(np.int8)
    return QuantizedWeight(values, scales, axis)


def rescaled(weight: QuantizedWeight, *, at_least: NDArray[np.floating[Any]]) -> QuantizedWeight:
    """Return the weight with every channel's scale raised to `at_least` [channels], where it is less."""
    if (weight.scales >= at_least).all():
        return weight
    scales = np.maximum(weight.scales, _fp16_at_least(np.asarray(at_least, np.float64)))
    return quantize_weight(weight.real(), weight.axis, scales)


def along(scales: NDArray[np.float32], axis: int, ndim: int) -> NDArray[np.float32]:
    """Reshape per-channel scales so that they broadcast against an array of `ndim` axes."""
    return scales.reshape([-1 if i == axis else 1 for i in range(ndim)])


def _fp16_at_least(scales: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round up to what fp16 holds, so that nothing is clipped; beyond its range, keep the float32."""
    inside = np.clip(scales, _FP16_LEAST, _FP16_GREATEST)
    nearest = inside.astype(np.float16)
    with np.errstate(over="ignore"):  # above the greatest number, which is not taken
        above = np.nextafter(nearest, np.float16(np.inf))
    rounded = np.where(nearest < inside, above, nearest).astype(np.float32)
    return np.where(scales > _FP16_GREATEST, scales.astype(np.float32), rounded)
