"""The one table of limits, keyed by the arithmetic that really ran, and what may replace a limit.

Each number was derived by experiment, with a stated distance from the worst clean result:
`docs/tolerances.md` says how, and how to repeat it. Tests and reports read this table and write no numbers
of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from resnet_export.runtime.bundle.manifest import Manifest, Struct
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.precision import PRECISIONS, Precision, Tolerance

TABLE: Mapping[Precision, Tolerance] = {name: row.tolerance for name, row in PRECISIONS.items()}
"""The limits per precision, on natural images, against eager fp32."""

UNTRAINED_INT8: Mapping[int, Tolerance] = {
    # Clean, at 64 pixels, where the last average has least to average over: 0.125 and 1 − 8.3e-3; 0.166 and 1 − 0.015;
    # 0.257 and 1 − 0.037; 0.316 and 1 − 0.054; 0.354 and 1 − 0.071.
    18: Tolerance(relative_error=0.2, centered_cosine=0.98, top1_agreement=0.95),
    34: Tolerance(relative_error=0.27, centered_cosine=0.963, top1_agreement=0.95),
    50: Tolerance(relative_error=0.41, centered_cosine=0.907, top1_agreement=0.95),
    101: Tolerance(relative_error=0.5, centered_cosine=0.866, top1_agreement=0.95),
    152: Tolerance(relative_error=0.57, centered_cosine=0.823, top1_agreement=0.95),
}
"""The limits of int8 for networks with random weights, by the number of layers in series.

Such weights leave activations without the structure that makes int8 accurate, and every layer adds its part."""

# From exact to coarse. An int8 graph that a backend happens to compute in fp32 still holds int8 weights.
_COARSENESS = tuple(PRECISIONS)

NEAR_TIE_SIGMAS = 2.0

_OTHER_ROUNDING = 3.0
"""How many times an int8 artifact's relative error a backend may be from its recorded logits."""

Error = Annotated[float, msgspec.Meta(ge=0)]
Cosine = Annotated[float, msgspec.Meta(ge=-1, le=1)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Override(Struct, frozen=True, omit_defaults=True):
    """Limits that replace those of one precision. A key that is left out keeps its limit, null drops it."""

    relative_error: Error | msgspec.UnsetType | None = msgspec.UNSET
    centered_cosine: Cosine | msgspec.UnsetType | None = msgspec.UNSET
    top1_agreement: Fraction | msgspec.UnsetType | None = msgspec.UNSET
    median_error: Error | msgspec.UnsetType | None = msgspec.UNSET
    p90_error: Error | msgspec.UnsetType | None = msgspec.UNSET
    p90_divergence: Error | msgspec.UnsetType | None = msgspec.UNSET
    far_images: Fraction | msgspec.UnsetType | None = msgspec.UNSET


Overrides = Mapping[Precision, Override]

GivenLimits = Mapping[str, Mapping[str, float | None]] | Mapping[Precision, Override]
"""Limits as a caller writes them: those of a tolerance file as mappings, or `Override` objects."""


@dataclass(frozen=True)
class Tolerances:
    """The limits that one network's artifacts are held to, by precision.

    `untrained` says that its predictions mean nothing: classes lie so close together that permitted error swaps them.
    """

    rows: Mapping[Precision, Tolerance]
    untrained: bool = False

    def __getitem__(self, precision: Precision) -> Tolerance:
        return self.rows[precision]

    @classmethod
    def shipped(cls, *, untrained: bool = False, layers_in_series: int | None = None) -> Tolerances:
        """Return the limits of this version for a trained or an untrained network.

        Only int8 on untrained networks depends on the layers in series. A number that `UNTRAINED_INT8` lacks has the
        limits of the next that it has, or of the greatest; None has those of the least.
        """
        if not untrained:
            return cls(TABLE)
        known = sorted(UNTRAINED_INT8)
        series = next(
            (one for one in known if layers_in_series is None or one >= layers_in_series), known[-1]
        )
        return cls({**TABLE, Precision.INT8: UNTRAINED_INT8[series]}, untrained)

    @classmethod
    def shipped_for(cls, manifest: Manifest) -> Tolerances:
        """Return the limits of this version for a bundle's network."""
        untrained = manifest.model.weights.source == "untrained"
        return cls.shipped(untrained=untrained, layers_in_series=manifest.graph.layers_in_series)

    def replaced(
        self, bundle: Mapping[str, Tolerance] | None = None, overrides: Overrides | None = None
    ) -> Tolerances:
        """Return the limits with a bundle's in their place, where it has some, and then the user's."""
        rows = {
            precision: overridden((bundle or {}).get(str(precision), row), (overrides or {}).get(precision))
            for precision, row in self.rows.items()
        }
        return replace(self, rows=rows)

    def by_name(self) -> dict[str, Tolerance]:
        """Return the limits as `Manifest.tolerances` holds them."""
        return {str(precision): row for precision, row in self.rows.items()}


def coarser(first: Precision, second: Precision) -> Precision:
    """Return the less exact of two precisions: the one whose limits an artifact is held to.

    A graph is as coarse as its weights, which its declared precision tells, and as the arithmetic that ran.
    """
    return max(first, second, key=_COARSENESS.index)


def overridden(tolerance: Tolerance, override: Override | None) -> Tolerance:
    """Return the limits with those that the user gave in their place."""
    if override is None:
        return tolerance
    given = msgspec.structs.asdict(override)
    return msgspec.structs.replace(
        tolerance, **{name: value for name, value in given.items() if value is not msgspec.UNSET}
    )


def parse_overrides(data: bytes, name: str = "the tolerance file") -> dict[Precision, Override]:
    """Read a tolerance file: JSON such as {"fp16": {"centered_cosine": 0.9995, "top1_agreement": null}}.

    Raises RequestError for anything else, unknown precisions, repeated keys and values out of range included.
    """
    try:
        found = msgspec.json.decode(data, type=dict[Precision, Override])
        json.loads(data, object_pairs_hook=_once)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
        raise _not_understood(name, "JSON", error) from error
    return found


def checked_overrides(given: GivenLimits, name: str = "tolerances") -> dict[Precision, Override]:
    """Hold limits that a caller gives in place of a file to what `parse_overrides` holds a file to.

    Raises RequestError.
    """
    try:
        plain = msgspec.to_builtins(given, enc_hook=_plain)
        found = msgspec.convert(plain, type=dict[Precision, Override])
        for limits in found.values():
            for value in msgspec.structs.asdict(limits).values():
                if value not in (msgspec.UNSET, None) and not math.isfinite(value):
                    raise ValueError("Number out of range")
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise _not_understood(name, "a mapping", error) from error
    return found


def overrides_of(given: str | Mapping[Precision, Override] | None) -> Overrides:
    """Return the limits that `ParitySpec.tolerances` asks for, read from the file that it names.

    Raises RequestError when the file cannot be read, or is not understood.
    """
    if given is None or not isinstance(given, str):
        return given or {}
    try:
        data = Path(given).read_bytes()
    except OSError as error:
        raise RequestError(f"the tolerance file {given} cannot be read: {error.strerror}") from error
    return parse_overrides(data, given)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of which no key is repeated: of two the last would win, without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"Object repeats the key `{twice}`")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"A limit is of type {type(value).__name__}")


def _not_understood(name: str, kind: str, error: Exception) -> RequestError:
    detail = " ".join(str(error).split())
    return RequestError(
        f"{name} is not understood ({detail}); expected {kind} that maps {', '.join(TABLE)} to limits named "
        f"{', '.join(Override.__struct_fields__)}, top-1 agreement as a fraction"
    )


def reproduction_limit(own: float) -> float:
    """Return how far a backend may be from the recorded logits of an int8 artifact, over the norm of eager's.

    `own` is the relative error of the recorded logits. A backend that adds up in another order rounds otherwise, and
    what it makes is another sample of the same error: independent ones are √2 times `own` apart. Where that is next to
    nothing, what fp16 is allowed is. In three digits, since reports show a limit whole.
    """
    return max(float(f"{_OTHER_ROUNDING * own:.3g}"), TABLE[Precision.FP16].relative_error or 0.0)


def near_tie_width(tolerance: Tolerance, reference: ArrayLike) -> float:
    """Return how close, in logits, two classes must be in the reference for permitted error to swap them.

    `reference` is float [N, C], the eager logits on the golden images. Error that stays within `tolerance`
    has a root mean square of at most s = ‖b − mean b‖ · √(1 − centered_cosine²) / √(N·C), or of
    relative_error · ‖b‖ / √(N·C), whichever limit is tighter. The difference of two logits then wanders by
    √2·s; the width is two of those. Zero when the tolerance limits neither.
    """
    b = np.asarray(reference, np.float64)
    allowed: list[float] = []
    if tolerance.centered_cosine is not None:
        sine = math.sqrt(max(0.0, 1 - tolerance.centered_cosine**2))
        allowed.append(sine * float(np.sqrt(np.mean((b - b.mean(axis=0)) ** 2))))
    if tolerance.relative_error is not None:
        allowed.append(tolerance.relative_error * float(np.sqrt(np.mean(b**2))))
    return NEAR_TIE_SIGMAS * math.sqrt(2) * min(allowed) if allowed else 0.0
