"""Where inside a graph an artifact leaves the fp32 graph: one figure per layer, and the first that departs.

Each layer is measured twice, on the same images:

- *by itself*: it is given the fp32 graph's inputs, so that what it adds does not hide behind what came before.
  Rounding to its precision explains an error up to `LIMITS`; a layer beyond it *departs*.
- *in place*: its output inside the whole artifact, where the errors of all layers before it have arrived. That is
  the signal-to-noise ratio that a chart shows; it falls along the network also when nothing is wrong.

Works on arrays alone. `resnet_export.exporter.instrument` makes the graphs that yield them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from resnet_export.runtime.manifest import Precision, Struct

Kind = Literal["fp32", "fp16", "weights", "activations"]
"""What a layer rounds: its arithmetic to fp32 or fp16, its weights to int8, or a tensor to int8."""

LIMITS: Mapping[Kind, float] = {"fp32": 1e-4, "fp16": 5e-3, "weights": 0.05, "activations": 0.1}
"""The largest ‖a − b‖/‖b‖ that rounding explains in one layer by itself."""

WORST = 5


class LayerFigure(Struct, frozen=True):
    """One layer of an artifact against the tensor of the fp32 graph that it computes.

    `node` is a node of the artifact, or, where `missing`, one of the fp32 graph that the artifact does not have;
    `module` is the path of its `nn.Module`. `relative_error` is ‖a−b‖/‖b‖ and `snr_db` −20·log10 of it, in place;
    `own_error` and `own_snr_db` are the same for the layer by itself, and `limit` is what rounding explains
    there. All are over the images on which the layer is finite; `non_finite` counts the others, by itself or in
    place, whichever are more. A ratio in dB is None where there is no error at all, every figure is None where
    nothing could be measured. `note` says what the figures do not.
    """

    node: str
    module: str | None
    op: str
    kind: Kind
    snr_db: float | None
    relative_error: float | None
    own_snr_db: float | None
    own_error: float | None
    limit: float
    non_finite: int
    departs: bool
    missing: bool = False
    note: str = ""

    @property
    def excess(self) -> float:
        """How many times its limit the layer's own error is; infinite where it departs without one."""
        if self.own_error is None or self.non_finite:
            return math.inf if self.departs else 0.0
        return self.own_error / self.limit


class Layerwise(Struct, frozen=True):
    """The layers of one artifact, in the order of its graph, measured on `images` images.

    `backend`, `provider` and `precision` say what ran the instrumented copies. `first` is the first layer that
    departs, None when none does. `unpaired` are nodes of the artifact without a counterpart in the fp32 graph;
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
        """The five layers whose own error is the largest beside its limit, worst first."""
        return tuple(sorted(self.layers, key=lambda layer: -layer.excess)[:WORST])


@dataclass(frozen=True)
class ErrorSums:
    """What is kept of one tensor over the images so far; join disjoint images with `+`.

    `error` is Σ (a − b)² and `signal` Σ b², over the images on which both are finite.
    """

    error: float = 0.0
    signal: float = 0.0
    non_finite: int = 0

    @classmethod
    def of(cls, found: ArrayLike, expected: ArrayLike) -> ErrorSums:
        """Compare float arrays of one shape [N, …], image by image."""
        b = np.asarray(expected, np.float64)
        a = np.asarray(found, np.float64)
        axes = tuple(range(1, b.ndim))
        with np.errstate(invalid="ignore", over="ignore"):
            return cls.of_images(((a - b) ** 2).sum(axis=axes), (b**2).sum(axis=axes))

    @classmethod
    def of_images(cls, errors: ArrayLike, signals: ArrayLike) -> ErrorSums:
        """Add up the Σ (a − b)² and the Σ b² of each image, float [N] both."""
        error, signal = np.asarray(errors, np.float64), np.asarray(signals, np.float64)
        finite = np.isfinite(error) & np.isfinite(signal)
        return cls(float(error[finite].sum()), float(signal[finite].sum()), int(finite.size - finite.sum()))

    def __add__(self, other: ErrorSums) -> ErrorSums:
        return ErrorSums(
            self.error + other.error, self.signal + other.signal, self.non_finite + other.non_finite
        )

    @property
    def relative_error(self) -> float | None:
        """‖a − b‖/‖b‖: infinite for an error where nothing should be, None without a finite image."""
        if self.signal:
            return math.sqrt(self.error / self.signal)
        if self.error:
            return math.inf
        return None if self.non_finite else 0.0


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
    own: ErrorSums | None,
    in_place: ErrorSums | None,
    *,
    missing: bool = False,
    note: str = "",
) -> LayerFigure:
    """Judge one layer: it departs when by itself it is beyond its limit, not finite, or not there to be measured."""
    limit = LIMITS[kind]
    own_error = None if own is None else own.relative_error
    error = None if in_place is None else in_place.relative_error
    departs = own is None or own.non_finite > 0 or own_error is None or own_error > limit
    return LayerFigure(
        node=node,
        module=module,
        op=op,
        kind=kind,
        snr_db=snr_db(error),
        relative_error=_finite(error),
        own_snr_db=snr_db(own_error),
        own_error=_finite(own_error),
        limit=limit,
        non_finite=max(sums.non_finite if sums else 0 for sums in (own, in_place)),
        departs=departs,
        missing=missing,
        note=note,
    )


def first_departure(layers: Iterable[LayerFigure]) -> LayerFigure | None:
    """Return the first layer that departs, in the order of the graph."""
    return next((layer for layer in layers if layer.departs), None)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
