"""What ONNX's operators do to the numbers that pass through them, one row each, as far as precisions depend on it.

A row is about the operator, never about a network. An operator without a row is one about which nothing is promised: it
is computed in floating point, and the range of what it writes is observed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["OPERATORS", "Operator", "operator"]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One operator of ONNX's own domain.

    Attributes:
        name: ONNX's.
        exact: it rounds nothing: each element that it writes is one that it reads, or zero.
        moves: how many of its first inputs it only moves to other places or takes the greatest of, which commutes with
            rounding onto a grid; None means all of them. 0 for a Relu, which engines fuse into what writes its input.
        within: its output lies within the range of its first input (for a Relu, cut at zero).
        span: what its output lies within whatever it reads.
        averages: it divides a sum by the number of its terms.
    """

    name: str
    exact: bool = False
    moves: int | None = 0
    within: bool = False
    span: tuple[float, float] | None = None
    averages: bool = False


def _moving(*names: str) -> tuple[Operator, ...]:
    return tuple(Operator(name=name, exact=True, moves=1, within=True) for name in names)


_ROWS = (
    *_moving("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"),
    *_moving("DepthToSpace", "Expand", "Gather", "GatherND", "Slice", "SpaceToDepth", "Split", "Tile"),
    *_moving("GlobalMaxPool", "MaxPool"),
    Operator(name="Concat", exact=True, moves=None),
    Operator(name="Relu", exact=True, within=True),
    Operator(name="Cast", within=True),
    Operator(name="QuantizeLinear", within=True),
    Operator(name="Erf", span=(-1.0, 1.0)),
    Operator(name="HardSigmoid", span=(0.0, 1.0)),
    Operator(name="Sigmoid", span=(0.0, 1.0)),
    Operator(name="Softmax", span=(0.0, 1.0)),
    Operator(name="Tanh", span=(-1.0, 1.0)),
    Operator(name="AveragePool", averages=True),
    Operator(name="GlobalAveragePool", averages=True),
    Operator(name="ReduceMean", averages=True),
)

OPERATORS: Mapping[str, Operator] = {row.name: row for row in _ROWS}


def operator(name: str) -> Operator:
    """Return the row of an operator, an empty one where the table has none."""
    return OPERATORS.get(name) or Operator(name=name)
