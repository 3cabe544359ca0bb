"""The precisions that an artifact can have, one row each; everything else reads this table.

A further precision is a row here and the function that makes its graph (`exporter/graph/`). This module imports nothing
of the project.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

__all__ = ["PRECISIONS", "Precision", "PrecisionSpec", "Tolerance"]


class Precision(enum.StrEnum):
    """The arithmetic of a graph, or the arithmetic that a backend really used."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class Tolerance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The limits that an artifact's logits are held to, against eager fp32, on natural images.

    A limit that is None is not checked. `relative_error` is ‖a−b‖/‖b‖ over all logits; `centered_cosine` is
    the cosine similarity after the mean reference logits are subtracted; agreement is a fraction in [0, 1].

    Where a handful of images owns the energy of the logits, the others take the place of those two. They are about
    single images, each of which weighs the same: the error ‖a−b‖/‖b‖ that half and that 90 % of them stay
    within, the KL divergence of the softmax (nats) that 90 % stay within, and the fraction whose error exceeds 0.5.
    """

    relative_error: Annotated[float, msgspec.Meta(ge=0)] | None = None
    centered_cosine: Annotated[float, msgspec.Meta(ge=-1, le=1)] | None = None
    top1_agreement: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    median_error: Annotated[float, msgspec.Meta(ge=0)] | None = None
    p90_error: Annotated[float, msgspec.Meta(ge=0)] | None = None
    p90_divergence: Annotated[float, msgspec.Meta(ge=0)] | None = None
    far_images: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None


@dataclass(frozen=True, kw_only=True)
class PrecisionSpec:
    """What the project knows of one precision.

    Attributes:
        precision: whose row it is.
        onnx_type: the name of the TensorProto data type of its activations.
        weight_bytes: what one weight takes in its graphs.
        graphs: how many graphs an export makes in it.
        needs: what a request for it has to have besides, as a clause for help texts.
        compute_capability: the first NVIDIA GPUs that compute in it.
        layer_error: the largest ‖a − b‖/‖b‖ that rounding to its type explains in one layer by itself.
        tolerance: the limits of its artifacts. Each number was derived by experiment, with a stated distance from the
            worst clean result: `docs/tolerances.md` says how, and how to repeat it.
        light, dark: the color that charts draw it in, on light and on dark ground.
    """

    precision: Precision
    onnx_type: Literal["FLOAT", "FLOAT16", "BFLOAT16", "INT8"]
    weight_bytes: int
    graphs: int = 1
    needs: str = ""
    compute_capability: str = "0.0"
    layer_error: float
    tolerance: Tolerance
    light: str
    dark: str


_ROWS = (
    PrecisionSpec(
        precision=Precision.FP32,
        onnx_type="FLOAT",
        weight_bytes=4,
        layer_error=1e-4,
        # Clean: 3e-6 and 5e-12 at most. The relative error is what the export itself is held to after every step.
        tolerance=Tolerance(relative_error=1e-4, centered_cosine=0.9999999, top1_agreement=0.99),
        light="#66717f",
        dark="#aeb8c4",
    ),
    PrecisionSpec(
        precision=Precision.FP16,
        onnx_type="FLOAT16",
        weight_bytes=2,
        layer_error=2e-3,
        # Clean: 2.4e-3 and 1 − 3e-6.
        tolerance=Tolerance(relative_error=1e-2, centered_cosine=0.9999, top1_agreement=0.99),
        light="#0072b2",
        dark="#5bb5ec",
    ),
    PrecisionSpec(
        precision=Precision.BF16,
        onnx_type="BFLOAT16",
        weight_bytes=2,
        compute_capability="8.0",
        layer_error=1.6e-2,  # 8 times that of fp16: 3 bits of the mantissa fewer
        # Clean: 2.8e-2 and 1 − 4e-4.
        tolerance=Tolerance(relative_error=6e-2, centered_cosine=0.998, top1_agreement=0.98),
        light="#8a5fa8",
        dark="#c7a2e0",
    ),
    PrecisionSpec(
        precision=Precision.INT8,
        onnx_type="INT8",
        weight_bytes=1,
        layer_error=0.1,
        graphs=2,
        needs="; needs --calib or --calib-table",
        # Clean: 1.1e-2 and 1 − 6e-5. A fault that costs 1 % of the predictions starts at 0.12 and 1 − 8e-3.
        tolerance=Tolerance(
            relative_error=0.1,
            centered_cosine=0.995,
            top1_agreement=0.95,
            # Clean: 8.3e-3 and 1.4e-2. Those that cost 1 % start at 8.1e-2 and 0.11.
            median_error=0.08,
            p90_error=0.2,
            p90_divergence=0.05,
            far_images=0.05,
        ),
        light="#b35300",
        dark="#f2a35b",
    ),
)

PRECISIONS: Mapping[Precision, PrecisionSpec] = {row.precision: row for row in _ROWS}
"""Every precision, from exact to coarse."""
