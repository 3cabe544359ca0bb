"""Error attribution by stage: the way from the eager logits to the backend's, taken apart.

With L_0 the eager logits, L_i those after step i and d_i = L_i − L_{i−1}, the total difference is D = Σ
d_i. Each step's share is c_i = ⟨d_i, D⟩ / ‖D‖². The shares add up to 1 exactly, whatever the steps' errors
do to each other, since Σ ⟨d_i, D⟩ = ⟨D, D⟩; a negative share belongs to a step that takes back error of
others. The norms alone do not add up: ‖D‖² = Σ ‖d_i‖² + Σ_{i≠j} ⟨d_i, d_j⟩, and the cross terms are
reported beside them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from resnet_export.runtime.bundle.manifest import Artifact, Struct
from resnet_export.runtime.errors import BundleError
from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.criteria.table import Evidence, evaluate
from resnet_export.runtime.parity.criteria.tolerances import Tolerances, coarser, near_tie_width
from resnet_export.runtime.parity.measure.metrics import Metrics, inner, varies
from resnet_export.runtime.precision import Precision

BACKEND = "backend"

# What every artifact has behind it, in this order; "fp32" is the finished graph, preprocessing included.
_FP32_STAGES = ("onnx", "simplified", "fp32")


class StepError(Struct, frozen=True):
    """One step of the chain, from the stage before it to `stage`, over the images that are finite throughout.

    `separate` is ‖d_i‖/‖L_0‖ and `cumulative` ‖L_i − L_0‖/‖L_0‖; `separate_snr_db` and `cumulative_snr_db`
    are the same in decibels, None without error. `share` is c_i, None when there is no error at all.
    `non_finite` counts images with NaN or infinity in this stage. `criteria` hold the step alone to the
    limits of `precision`.
    """

    stage: str
    precision: Precision
    separate: float | None
    separate_snr_db: float | None
    cumulative: float | None
    cumulative_snr_db: float | None
    share: float | None
    non_finite: int
    criteria: tuple[Criterion, ...]

    @property
    def passed(self) -> bool:
        """Whether the step alone keeps the limits of its precision."""
        return all(criterion.passed for criterion in self.criteria)


class Attribution(Struct, frozen=True):
    """The error of one artifact on one backend, by stage, in the order of the chain.

    `total` is ‖D‖/‖L_0‖. `cross` is Σ_{i≠j} ⟨d_i, d_j⟩ / ‖D‖², how far the squared norms fall short of
    adding up. `residual` is |Σ c_i − 1|, which float64 keeps under `bound`. `largest` is the stage with the
    largest share, and `diverges` the first whose step alone breaks the limits of its precision, None when
    none does. `finding` says all that in words of `subject` ("int8 on openvino").
    """

    stages: tuple[StepError, ...]
    total: float | None
    cross: float | None
    residual: float | None
    bound: float | None
    largest: str | None
    diverges: str | None
    subject: str
    finding: str

    @property
    def sentence(self) -> str:
        """The finding with what it is of."""
        return f"{self.subject}: {self.finding}"


class Stage(Struct, frozen=True):
    """A stage of the chain before it is measured: its name, and the arithmetic that its step brings in."""

    name: str
    precision: Precision


def chain(artifact: Artifact, recorded: Sequence[str], ran: Precision) -> tuple[Stage, ...]:
    """Return the stages from after eager to the backend's output for one artifact.

    `recorded` are the stages that the bundle has logits of, `ran` what the backend computed in. An fp16
    graph is made of the fp32 graph. An int8 graph for TensorRT keeps fp16 around its quantized layers, so
    that its step is the one from fp16; one for CPUs keeps fp32. The logits recorded of the artifact itself,
    or of the ONNX artifact that an engine was built from, come last, and then the backend.
    """
    source = artifact.engine.source if artifact.engine else artifact.name
    stages = [Stage(name=name, precision=Precision.FP32) for name in _FP32_STAGES if name in recorded]
    if artifact.precision is Precision.INT8 and artifact.target != "cpu" and "fp16" in recorded:
        stages.append(Stage(name="fp16", precision=Precision.FP16))
    if source in recorded and all(stage.name != source for stage in stages):
        stages.append(Stage(name=source, precision=artifact.precision))
    return (*stages, Stage(name=BACKEND, precision=coarser(artifact.precision, ran)))


def attribute(
    eager: ArrayLike,
    steps: Sequence[tuple[Stage, ArrayLike]],
    tolerances: Tolerances,
    subject: str,
    *,
    input_differs: bool = False,
) -> Attribution:
    """Take the difference between `eager` and the last of `steps`, float logits [N, C] each, apart by step.

    `tolerances` are the limits that a step alone is held to, by its precision; `subject` is what the sentence
    calls the whole ("int8 on openvino"). `input_differs` says that the backend
    was not fed what the recorded stages were, so that its step is not the backend's alone. Raises BundleError when
    the shapes differ or the eager logits are not finite.
    """
    first = np.asarray(eager, np.float64)
    arrays = [np.asarray(array, np.float64) for _, array in steps]
    for (stage, _), array in zip(steps, arrays, strict=True):
        if array.shape != first.shape:
            raise BundleError(
                f"the logits of stage {stage.name!r} have shape {list(array.shape)}, the eager ones "
                f"{list(first.shape)}; export the bundle again"
            )
    if first.ndim != 2 or not np.isfinite(first).all():
        raise BundleError("the recorded eager logits hold NaN or infinity; export the bundle again")
    finite = [np.isfinite(array).all(axis=1) for array in arrays]
    usable = np.logical_and.reduce([np.ones(len(first), bool), *finite])
    base = first[usable]
    states = [base, *(array[usable] for array in arrays)]
    whole = states[-1] - base
    norm, total = _norm(base), _norm(whole)

    measured: list[StepError] = []
    known = first
    for i, (stage, _) in enumerate(steps):
        step = states[i + 1] - states[i]
        separate = _norm(step) / norm if norm else None
        cumulative = _norm(states[i + 1] - base) / norm if norm else None
        measured.append(
            StepError(
                stage=stage.name,
                precision=stage.precision,
                separate=separate,
                separate_snr_db=_decibels(separate),
                cumulative=cumulative,
                cumulative_snr_db=_decibels(cumulative),
                share=inner(step, whole) / total**2 if total else None,
                non_finite=int((~finite[i]).sum()),
                criteria=_step_criteria(known, arrays[i], tolerances, stage.precision),
            )
        )
        # A stage without a finite image cannot be the reference of the next: its step is measured across
        # the gap.
        if finite[i].all():
            known = arrays[i]
    shares = [error.share for error in measured if error.share is not None]
    squares = sum(_norm(states[i + 1] - states[i]) ** 2 for i in range(len(steps)))
    largest = max(measured, key=lambda error: error.share or 0.0).stage if shares else None
    diverges = next((error.stage for error in measured if not error.passed), None)
    return Attribution(
        stages=tuple(measured),
        total=total / norm if norm else None,
        cross=1 - squares / total**2 if total else None,
        residual=abs(math.fsum(shares) - 1) if shares else None,
        bound=_bound(states, total) if shares else None,
        largest=largest,
        diverges=diverges,
        subject=subject,
        finding=_finding(measured, total / norm if norm else None, largest, diverges, input_differs),
    )


def _step_criteria(
    known: NDArray[np.float64], found: NDArray[np.float64], tolerances: Tolerances, precision: Precision
) -> tuple[Criterion, ...]:
    tolerance = tolerances[precision]
    figures = Metrics.of(known, found, near_tie_width(tolerance, known)).result()
    if not varies(known):
        # What a network that ignores its input leaves undefined is no error of the steps behind it.
        tolerance = msgspec.structs.replace(tolerance, centered_cosine=None)
        if np.array_equal(known, found):
            tolerance = msgspec.structs.replace(tolerance, relative_error=None)
    return evaluate(Evidence(figures=figures, tolerance=tolerance, untrained=tolerances.untrained))


def _bound(states: list[NDArray[np.float64]], total: float) -> float:
    """How far rounding in float64 may push Σ c_i from 1, to first order.

    Each element of a difference is rounded once, by at most u = 2⁻⁵³ of itself, and each of the k inner
    products of n elements by at most n·u of Σ|d_i·D| ≤ ‖d_i‖·‖D‖ (N. J. Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.1). Differences of float32 logits within 2²⁹ of each other are exact,
    and need no more.
    """
    count = states[0].size
    steps = sum(_norm(after - before) for before, after in itertools.pairwise(states))
    return (count + 4 * len(states)) * 2.0**-53 * (steps / total + 1)


def _norm(x: NDArray[np.float64]) -> float:
    return math.sqrt(inner(x, x))


def _decibels(relative: float | None) -> float | None:
    return -20 * math.log10(relative) if relative else None


def _finding(
    stages: Sequence[StepError],
    total: float | None,
    largest: str | None,
    diverges: str | None,
    input_differs: bool,
) -> str:
    by_name = {error.stage: error for error in stages}
    broken = next((error for error in stages if error.non_finite), None)
    if broken is not None:
        return (
            f"NaN or infinity first appears in {_named(broken.stage, input_differs)}, "
            f"on {broken.non_finite} images; nothing after it can be trusted."
        )
    if largest is None:
        return "no error, every stage gives the eager model's logits bit for bit."
    part = by_name[largest]
    share = part.share or 0.0
    text = (
        f"{100 * min(share, 1.0):.0f} % of the error is attributed to {_named(largest, input_differs)} "
        f"(relative error {part.separate or 0.0:.2g}, total {total or 0.0:.2g})"
    )
    if share > 1.05:
        text += ", and other stages take some of it back"
    if diverges is not None:
        text += f"; the first stage outside its own limits is {_named(diverges, input_differs)}"
    else:
        text += "; every stage is within its own limits"
    return text + "."


def _named(stage: str, input_differs: bool) -> str:
    if stage == BACKEND and input_differs:
        return "the backend, whose input is not what the export normalized"
    return "the backend" if stage == BACKEND else f"stage {stage}"
