"""Cross-layer equalization: give each channel the scale at which INT8 loses least, without changing the function.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019 (arXiv:1906.04721),
section 4.1, lets two layers with per-tensor weights share the burden of a channel by its weights' ranges. Here
weights have a scale per output channel, so scaling a producer is free, and the trade is another one: an activation
has one scale for all of its channels, which channels of equal range use best, but what a channel gains there
widens the weights that read it. The factors s minimize, for each group of `calibration.channels`,

    Σ_T Δ_T²/12 · Σ_c s_c² g_Tc   +   λ · Σ_k Σ_o δ_ko²/12 · g_ko · Σ_c q_kc / s_c²

over its quantized tensors T and the layers k that read it: Δ_T = max_c |T_c|/s_c / 127 is the activation's step,
δ_ko = max_c s_c |W_koc| / 127 that of output channel o, q_kc the mean square of the values that meet weights
of channel c, and g the share of such noise that reaches the logits (`calibration.noise_gain`). In log s, with the
maxima as p-norms, this is a geometric program: convex, so every scaling of the same network leads to the same
equalized one, well scaled and badly scaled alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.improve.channel_scaling import ChannelGroup, by_input, channel_groups, rescale
from resnet_export.calibration.improve.noise_gain import noise_gains
from resnet_export.calibration.observe.ranges import SYMMETRIC_STEPS
from resnet_export.calibration.quantize.placement import tensors_to_observe
from resnet_export.calibration.quantize.plan import Equalization
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.runtime.errors import ExportError

Floats = NDArray[np.float64]

IMAGES = 64
"""How many images are looked at: a channel's peak over more of them hardly changes the factors."""

_FLOOR = 0.25
"""A channel counts with at least this share of its greatest magnitude before any ReLU. One that never fired on the
calibration images would otherwise be scaled up without limit, and clip on the first image where it does."""

_WEIGHT_NOISE = 1.0
"""λ: error-compensating rounding leaves about a tenth of the weights' noise (`docs/int8.md`)."""

_PEAK = 16.0
"""The greatest magnitude in an equalized group: far inside fp16's range, weights included."""

_NORM = 8  # p of the p-norms of squares that stand for maxima: at most 2048**(1/16) = 1.6 times the maximum
_STEPS, _RATE = 100, 0.2


@dataclass(frozen=True, eq=False)
class ChannelStats:
    """What a tensor's channels hold: `peak`, the greatest magnitude, and `power`, the mean square; [channels]."""

    peak: Floats
    power: Floats


def equalize(
    model: onnx.ModelProto,
    stats: Mapping[str, ChannelStats],
    *,
    weight_noise: float = _WEIGHT_NOISE,
) -> tuple[onnx.ModelProto, tuple[Equalization, ...]]:
    """Return the equalized network, which computes the same function, and what was done to it.

    Args:
        model: the float32 graph.
        stats: what `look_at_channels` found in it, `over_images`; IMAGES of them do.
        weight_noise: λ; 1 where weights are rounded to the nearest.
    """
    topology = Topology(model)
    gains = noise_gains(model, topology)
    quantized = tensors_to_observe(topology)
    done = []
    for group in channel_groups(model, topology):
        scales = _scales(group, topology, stats, gains, quantized, weight_noise)
        done.append(
            Equalization(
                producers=tuple(layer.name for layer in group.producers),
                consumers=tuple(layer.name for layer in group.consumers),
                factors=(1 / scales).astype(np.float32),
            )
        )
    return rescale(model, done), tuple(done)


def channel_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Return the tensors whose channels `equalize` asks about; none where nothing can be equalized."""
    topology = Topology(model)
    groups = channel_groups(model, topology)
    quantized = set(tensors_to_observe(topology))
    written = {layer.output for group in groups for layer in group.producers}
    return tuple(name for group in groups for name in group.tensors if name in quantized | written)


def look_at_channels(tensors: Iterable[str], found: Mapping[str, NDArray[Any]]) -> dict[str, ChannelStats]:
    """Return the statistics of `tensors` in one batch: `found` has their values [n, channels, …] by name."""
    stats = {}
    for name in tensors:
        rows = found[name].reshape(*found[name].shape[:2], -1)  # [n, channels, positions]
        peak = np.maximum(rows.max(axis=(0, 2)), -rows.min(axis=(0, 2))).astype(np.float64)
        stats[name] = ChannelStats(peak, _square_sums(rows) / rows.shape[2] / len(rows))
    return stats


def over_images(images: Sequence[Mapping[str, ChannelStats]]) -> dict[str, ChannelStats]:
    """Return the statistics over several images, at least one, from those of each; sums are taken in their order.

    Raises ExportError when a tensor was infinite or NaN.
    """
    found = {}
    for name in images[0]:
        peak = np.max([one[name].peak for one in images], axis=0)
        if not np.isfinite(peak).all():
            raise ExportError(
                f"tensor {name!r} is infinite or NaN on a real image; the network must be finite there: check its "
                "weights"
            )
        found[name] = ChannelStats(peak, np.mean([one[name].power for one in images], axis=0))
    return found


def _square_sums(rows: NDArray[np.float32]) -> Floats:
    """Return the sum of squares of each channel of [n, channels, positions]; in float64 where float32 overflows."""
    with np.errstate(over="ignore"):
        found = np.einsum("ncp,ncp->c", rows, rows).astype(np.float64)
    if not np.isfinite(found).all():
        found = np.square(rows.astype(np.float64)).sum(axis=(0, 2))
    return np.asarray(found)


def _scales(
    group: ChannelGroup,
    topology: Topology,
    stats: Mapping[str, ChannelStats],
    gains: Mapping[str, Floats],
    quantized: Iterable[str],
    weight_noise: float,
) -> Floats:
    """Return what every channel of a group is to be divided by, [channels]."""
    greatest = np.max([stats[name].peak for name in group.tensors if name in stats], axis=0)
    alive = greatest > 0
    unit = np.where(
        alive, greatest, 1.0
    )  # scales are searched relative to it, which makes the search canonical
    noise = _Noise(group, topology, stats, gains, quantized, unit, weight_noise)
    scales = unit * np.exp(_minimum(noise, len(unit)))
    if not alive.all():
        # A channel that is zero throughout must not widen the weights that read the others.
        readers = np.max([_widest(group, topology, index) for index in range(len(group.consumers))], axis=0)
        width = (readers * scales)[alive].min() if alive.any() else 1.0
        scales = np.where(alive, scales, width / np.where(readers > 0, readers, 1.0))
    peak = np.max([stats[name].peak / scales for name in group.tensors if name in stats])
    return scales * (peak / _PEAK) if peak > 0 else scales


def _widest(group: ChannelGroup, topology: Topology, index: int) -> Floats:
    layer = group.consumers[index]
    rows = by_input(topology.constant(layer.weight).astype(np.float64), layer)
    return np.asarray(np.abs(rows).max(axis=(1, 3)).reshape(-1))


@dataclass(frozen=True, eq=False)
class _Reader:
    """One weight group of a layer that reads the group, in units of `unit`.

    `channels` are those it reads, `rows` [outputs, channels] its weights' greatest magnitudes to the power 2p, each
    row relative to its own greatest, whose square is `steps` [outputs] with all that a squared step is multiplied
    by; `power` [channels] is the mean square of what meets the weights.
    """

    channels: slice
    rows: Floats
    steps: Floats
    power: Floats


class _Noise:
    """The objective for one group: `__call__` maps log scales to the noise and its gradient."""

    def __init__(
        self,
        group: ChannelGroup,
        topology: Topology,
        stats: Mapping[str, ChannelStats],
        gains: Mapping[str, Floats],
        quantized: Iterable[str],
        unit: Floats,
        weight_noise: float,
    ) -> None:
        members = [name for name in quantized if name in group.tensors and name in stats]
        # Each tensor's peaks [channels], and its gain in units of `unit`.
        self._tensors = [
            (np.maximum(stats[name].peak / unit, _FLOOR), gains.get(name, 1 / unit**2) * unit**2)
            for name in members
        ]
        self._readers: list[_Reader] = []
        for layer in group.consumers:
            if layer.input in stats:
                weight = by_input(topology.constant(layer.weight).astype(np.float64), layer)
                gain = gains.get(layer.output)
                self._read(weight, gain, stats[layer.input].power, unit, weight_noise)

    def _read(
        self, weight: Floats, gain: Floats | None, power: Floats, unit: Floats, weight_noise: float
    ) -> None:
        groups, outputs, inputs, kernel = weight.shape
        gain = np.ones(groups * outputs) if gain is None else gain
        for index, rows in enumerate(weight):
            channels = slice(index * inputs, (index + 1) * inputs)
            width = np.abs(rows).max(axis=2) * unit[channels]
            row = width.max(axis=1)
            share = gain[index * outputs : (index + 1) * outputs] * weight_noise / 12 / SYMMETRIC_STEPS**2
            met = kernel * power[channels] / unit[channels] ** 2
            relative = width / np.where(row > 0, row, 1.0)[:, None]
            self._readers.append(_Reader(channels, relative ** (2 * _NORM), share * row**2, met))

    def __call__(self, logs: Floats) -> tuple[float, Floats]:
        squares = np.exp(2 * logs)
        powers = np.exp(2 * _NORM * logs)
        total, slope = 0.0, np.zeros_like(logs)
        for peaks, gain in self._tensors:
            terms = (peaks**2 / squares) ** _NORM
            step = terms.sum() ** (1 / _NORM) / SYMMETRIC_STEPS**2 / 12
            noise = gain * squares
            total += step * noise.sum()
            slope += 2 * step * (noise - noise.sum() * terms / terms.sum())
        for reader in self._readers:
            sums = reader.rows @ powers[reader.channels]
            sums = np.where(sums > 0, sums, 1.0)
            steps = reader.steps * sums ** (1 / _NORM)
            met = reader.power / squares[reader.channels]
            total += steps.sum() * met.sum()
            widened = ((steps / sums) @ reader.rows) * powers[reader.channels]
            slope[reader.channels] += 2 * (widened * met.sum() - steps.sum() * met)
        return total, slope


def _minimum(noise: _Noise, channels: int) -> Floats:
    """Return the log scales [channels] at the minimum, by gradient descent on the logarithm of the noise.

    Adam (Kingma and Ba 2014, arXiv:1412.6980) with a step that shrinks to nothing, from equal peaks.
    """
    logs, momentum, spread = np.zeros(channels), np.zeros(channels), np.zeros(channels)
    for step in range(1, _STEPS + 1):
        total, slope = noise(logs)
        if total <= 0:
            return logs
        slope = slope / total
        momentum = 0.9 * momentum + 0.1 * slope
        spread = 0.99 * spread + 0.01 * slope**2
        rate = _RATE * (1 - (step - 1) / _STEPS)
        logs = logs - rate * (momentum / (1 - 0.9**step)) / (np.sqrt(spread / (1 - 0.99**step)) + 1e-9)
    return logs
