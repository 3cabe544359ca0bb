"""One limit, what was found, and whether it holds: the value that reports are made of."""

from __future__ import annotations

import math
from typing import Literal

from resnet_export.runtime.bundle.manifest import Struct

Relation = Literal["≤", "≥"]


class Criterion(Struct, frozen=True):
    """One limit. `value` is None where the figure is undefined, and then the criterion does not pass.

    `name` is that of its row in `criteria.table`. `relation` reads "value `relation` limit". `detail` is a clause that
    says what stands behind the value. `words` say value and limit where the plain form would not be understood.
    """

    name: str
    value: float | None
    relation: Relation
    limit: float
    passed: bool
    detail: str = ""
    words: str = ""


def at_most(name: str, value: float | None, limit: float, detail: str = "") -> Criterion:
    """Return the criterion "value ≤ limit"; an undefined or non-finite value fails it."""
    return hold(name, value, "≤", limit, detail)


def at_least(name: str, value: float | None, limit: float, detail: str = "") -> Criterion:
    """Return the criterion "value ≥ limit"; an undefined or non-finite value fails it."""
    return hold(name, value, "≥", limit, detail)


def hold(
    name: str,
    value: float | None,
    relation: Relation,
    limit: float,
    detail: str = "",
    words: str = "",
    passed: bool | None = None,
) -> Criterion:
    """Hold `value` to `limit`; `passed` says so where more decides than the value, such as its interval."""
    if passed is None:
        passed = (
            value is not None
            and math.isfinite(value)
            and (value <= limit if relation == "≤" else value >= limit)
        )
    return Criterion(
        name=name,
        value=None if value is None else float(value),  # a count is given as an int
        relation=relation,
        limit=float(limit),
        passed=passed,
        detail=detail,
        words=words,
    )


def number(value: float, limit: float, one: float = 1.0) -> str:
    """Return `value` in the fewest digits, from four on, that leave it on its side of `limit` and off `one`.

    A whole number has all of its digits.
    """
    if float(value).is_integer() and abs(value) < 1e12:
        return f"{value:.0f}"
    # The limit itself is shown in 12 digits, and what is shown must differ as well.
    others = (limit, float(f"{limit:.12g}"), one)
    for digits in range(4, 13):
        text = f"{value:.{digits}g}"
        if all(_order(float(text), known) == _order(value, known) for known in others):
            return text
    return f"{value:.12g}"


def _order(value: float, other: float) -> int:
    return (value > other) - (value < other)
