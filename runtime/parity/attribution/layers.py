"""Where inside a graph an artifact leaves the fp32 graph: one figure per layer, and the first that diverges.

Each layer is measured twice, on the same images:

- *by itself*: it is given the fp32 graph's inputs, so that what it adds does not hide behind what came before.
  A layer whose error is not what rounding to its precision explains *diverges*.
- *in place*: its output inside the whole artifact, where the errors of all layers before it have arrived. That is
  the signal-to-noise ratio that a chart shows; it falls along the network also when nothing is wrong.

Works on arrays alone. `resnet_export.exporter.debug.layerwise` makes the graphs that yield them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from resnet_export.runtime.bundle.manifest import Struct
from resnet_export.runtime.precision import PRECISIONS, Precision

Kind = Literal["fp32", "fp16", "bf16", "weights", "activations"]
"""What a layer rounds: its arithmetic to a floating-point type, its weights to int8, or one tensor to int8."""

LIMITS: Mapping[str, float] = {
    **{row.precision: row.layer_error for row in PRECISIONS.values()},
    "weights": 0.05,
    "activations": PRECISIONS[Precision.INT8].layer_error,
}
"""The largest ‖a − b‖/‖b‖ that rounding explains in one layer by itself (`docs/parity.md` has the measurements)."""

GAIN = 5e-3
"""By how much integer weights may make everything larger or smaller."""

COARSE = 1.4
"""How coarse a tensor may be rounded to int8: its error over that with half the scale."""

COARSE_BESIDE_OTHERS = 3.0
"""The same beside the upper quartile over the graph's tensors, if that allows more. Ranges that span each value ever
seen are all coarse; one wrong scale is so alone."""

WORST = 5


class LayerFigure(Struct, frozen=True):
    """One layer of an artifact against the tensor of the fp32 graph that it computes.

    `node` is a node of the artifact, or, where `missing`, one of the fp32 graph that the artifact does not have;
    `module` is the path of its `nn.Module`. `relative_error` is ‖a−b‖/‖b‖ and `snr_db` −20·log10 of it, in place;
    `local_error` and `local_snr_db` are the same for the layer by itself, and `limit` is what rounding explains
    there. All are over the images on which the layer is finite; `non_finite` counts the others, by itself or in
    place, whichever are more. A ratio in dB is None where there is no error at all, every figure is None where
    nothing could be measured, and those in place also where a runtime fuses the layer with the next.

    `gain` is ⟨a, b⟩/⟨b, b⟩ by itself, of layers with integer weights. `coarseness` is the error of a tensor that is
    rounded to int8, over its error at half the scale, and `coarseness_limit` what it may be. `reason` says in words
    why the layer diverges.
    """

    node: str
    module: str | None
    op: str
    kind: Kind
    snr_db: float | None
    relative_error: float | None
    local_snr_db: float | None
    local_error: float | None
    limit: float
    non_finite: int
    gain: float | None
    coarseness: float | None
    diverges: bool
    missing: bool
    reason: str
    coarseness_limit: float = COARSE

    @property
    def excess(self) -> float:
        """How far the layer is beyond what is explained, 1 being the limit; infinite where nothing was measured."""
        if self.diverges and (self.local_error is None or self.non_finite):
            return math.inf
        shares = [
            0.0 if self.local_error is None else self.local_error / self.limit,
            0.0 if self.gain is None else abs(self.gain - 1) / GAIN,
            0.0 if self.coarseness is None else self.coarseness / self.coarseness_limit,
        ]
        return max(shares)


class Layerwise(Struct, frozen=True):
    """The layers of one artifact, in the order of its graph, measured on `images` images.

    `backend`, `provider` and `precision` say what ran the instrumented copies. `first` is the first layer that
    diverges, None when none does. `unpaired` are nodes of the artifact without a counterpart in the fp32 graph;
    they are measured as part of the layer that reads them. `perturbation_db` is how near the instrumented
    copy's logits are to those of the plain graph on the same backend, as a ratio in dB; None: the same bits.
    `sentence` sums up.
    """

    artifact: str
    backend: str
    provider: str
    precision: Precision
    images: int
    first: LayerFigure | None
    layers: tuple[LayerFigure, ...]
    unpaired: tuple[str, ...]
    perturbation_db: float | None
    notes: tuple[str, ...]
    sentence: str

    @property
    def worst(self) -> tuple[LayerFigure, ...]:
        """The five layers that are the furthest beyond what is explained, or nearest to it, worst first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.excess)[:WORST])


@dataclass(frozen=True)
class ErrorSums:
    """What is kept of one tensor over the images so far; join disjoint images with `+`.

    Over the images on which both are finite, `error` is Σ (a − b)², `signal` Σ b² and `product` Σ (a − b)·b.
    """

    error: float = 0.0
    signal: float = 0.0
    product: float = 0.0
    non_finite: int = 0

    @classmethod
    def of(cls, found: ArrayLike, expected: ArrayLike) -> ErrorSums:
        """Compare float arrays of one shape [N, …], image by image."""
        b = np.asarray(expected, np.float64)
        axes = tuple(range(1, b.ndim))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.asarray(found, np.float64) - b
            return cls.of_images(
                (difference**2).sum(axis=axes), (b**2).sum(axis=axes), (difference * b).sum(axis=axes)
            )

    @classmethod
    def of_images(cls, errors: ArrayLike, signals: ArrayLike, products: ArrayLike | None = None) -> ErrorSums:
        """Add up the Σ (a − b)², the Σ b² and the Σ (a − b)·b of each image, float [N] each."""
        error, signal = np.asarray(errors, np.float64), np.asarray(signals, np.float64)
        product = np.zeros_like(error) if products is None else np.asarray(products, np.float64)
        finite = np.isfinite(error) & np.isfinite(signal)
        return cls(
            error=float(error[finite].sum()),
            signal=float(signal[finite].sum()),
            product=float(product[finite].sum()),
            non_finite=int(finite.size - finite.sum()),
        )

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(
            error=self.error + other.error,
            signal=self.signal + other.signal,
            product=self.product + other.product,
            non_finite=self.non_finite + other.non_finite,
        )

    @property
    def relative_error(self) -> float | None:
        """‖a − b‖/‖b‖: infinite for an error where nothing should be, None without a finite image."""
        if self.signal:
            return math.sqrt(self.error / self.signal)
        if self.error:
            return math.inf
        return None if self.non_finite else 0.0


@dataclass(frozen=True)
class LayerSums:
    """The sums of one layer: by itself, in place, and by itself with half its scale; None: not measured."""

    own: ErrorSums | None = None
    in_place: ErrorSums | None = None
    halved: ErrorSums | None = None

    @property
    def coarseness(self) -> float | None:
        """The error by itself over that with half the scale; None where either is unknown or there is none."""
        own = None if self.own is None else self.own.relative_error
        other = None if self.halved is None else self.halved.relative_error
        return None if own is None or not other else _finite(own / other)


def coarseness_limit(layers: Iterable[LayerSums]) -> float:
    """Return how coarse a tensor of the graph with these layers may be rounded."""
    known = [layer.coarseness for layer in layers]
    found = [one for one in known if one is not None]
    return max(COARSE, COARSE_BESIDE_OTHERS * float(np.quantile(found, 0.75))) if found else COARSE


def snr_db(relative_error: float | None) -> float | None:
    """Return −20·log10(relative_error); None for no error at all, an undefined one and an infinite one."""
    if not relative_error or not math.isfinite(relative_error):
        return None
    return -20 * math.log10(relative_error)


def layer_figure(
    node: str,
    module: str | None,
    op: str,
    kind: Kind,
    sums: LayerSums,
    *,
    coarse: float = COARSE,
    missing: bool = False,
    remark: str = "",
) -> LayerFigure:
    """Return the figures of one layer, and whether it diverges. It does when, by itself,

    1. it cannot be measured, or is not finite on some image;
    2. its error is beyond `LIMITS`;
    3. its integer weights make everything larger or smaller, by more than `GAIN`: rounding errors point in all
       directions, and what they have in common with the signal averages out;
    4. it rounds to int8, and half its scale would leave less than 1/`coarse` of its error (`coarseness_limit`). A
       scale is a compromise between clipping and rounding; half of one that was chosen on real images clips far more.

    `remark` says why a layer cannot be measured.
    """
    own, limit = sums.own, LIMITS[kind]
    local_error = None if own is None else own.relative_error
    error = None if sums.in_place is None else sums.in_place.relative_error
    gain = 1 + own.product / own.signal if kind == "weights" and own is not None and own.signal else None
    reasons = list(_reasons(own, local_error, limit, gain, remark, missing=missing))
    if sums.coarseness is not None and sums.coarseness > coarse:
        reasons.append(f"half its scale would leave {100 / sums.coarseness:.0f} % of its error")
    return LayerFigure(
        node=node,
        module=module,
        op=op,
        kind=kind,
        snr_db=snr_db(error),
        relative_error=_finite(error),
        local_snr_db=snr_db(local_error),
        local_error=_finite(local_error),
        limit=limit,
        non_finite=max(one.non_finite if one else 0 for one in (own, sums.in_place)),
        gain=gain,
        coarseness=sums.coarseness,
        coarseness_limit=coarse,
        diverges=bool(reasons),
        missing=missing,
        reason=", ".join(reasons),
    )


def first_divergence(layers: Iterable[LayerFigure]) -> LayerFigure | None:
    """Return the first layer that diverges, in the order of the graph."""
    return next((layer for layer in layers if layer.diverges), None)


def summary(name: str, layers: tuple[LayerFigure, ...]) -> str:
    """Return one sentence about the artifact `name`: where it diverges first, or that it does not."""
    first = first_divergence(layers)
    if first is None:
        return f"{name}: each of its {len(layers)} layers adds no more error than its precision explains"
    more = sum(layer.diverges for layer in layers) - 1
    behind = f"; {more} more layer{'' if more == 1 else 's'} behind it" if more else ""
    return f"{name} diverges at {titled(first)}: {first.reason}{behind}"


def titled(layer: LayerFigure) -> str:
    """Return a layer's node with its operator, and its module where the node is not called after it."""
    module = f", module {layer.module}" if layer.module and layer.module != layer.node else ""
    return f"{layer.node} ({layer.op}{module})"


def _reasons(
    own: ErrorSums | None,
    local_error: float | None,
    limit: float,
    gain: float | None,
    remark: str,
    *,
    missing: bool,
) -> Iterator[str]:
    if own is not None and own.non_finite:
        yield f"NaN or infinite on {own.non_finite} images"
    elif local_error is None:
        yield remark or "it cannot be measured"
    elif local_error > limit:
        if missing:
            yield f"the artifact does not have it, which makes an error of {local_error:.2g}"
        else:
            yield f"an error of {local_error:.2g} by itself, where {limit:g} is explained"
    if gain is not None and abs(gain - 1) > GAIN:
        yield f"its output is {100 * abs(gain - 1):.1f} % too {'large' if gain > 1 else 'small'}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
