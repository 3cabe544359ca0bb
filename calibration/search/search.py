"""The INT8 step as one function: float graph and real images → a frozen plan, and what was found on the way.

1. Hold some images back, to compare trial graphs on images that nothing was fitted to.
2. Equalize channels, calibrate once, correct biases, round weights (`calibration.improve`).
3. `auto` tries every way to choose ranges and takes the one whose logits are closest.
4. Validate the result on all images. Where it collapses, or exceeds the accuracy budget, `auto` tries every method on
   all of them; then the most sensitive layers are excluded from INT8, and if nothing holds, that is said and they are
   named (`search.acceptance`).

All of it happens on trial graphs. The artifacts are emitted afterwards, once, from graph, table and plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
import numpy as np
import onnx

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.improve.channel_scaling import rescale
from resnet_export.calibration.observe.fingerprint import graph_hash
from resnet_export.calibration.observe.methods import METHODS, Method
from resnet_export.calibration.observe.table import CalibrationTable, require_graph
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.plan import (
    Equalization,
    Exclusion,
    QuantPlan,
    default_exclusions,
    summarize,
)
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.calibration.search.acceptance import exclude_sensitive_layers
from resnet_export.calibration.search.evaluate import Evaluator, FloatRun, Limits, run_float
from resnet_export.calibration.search.improvements import (
    PROBES,
    ROUNDING_IMAGES,
    Candidate,
    Start,
    TrialSetup,
    Validations,
    best_method,
    choose_probe,
    equalize,
    finish,
    round_weights,
    start,
    validate,
)
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.measure.image_errors import usual
from resnet_export.runtime.parity.report.search_report import (
    Improvement,
    MethodTrial,
    QuantizedLayer,
    SearchReport,
)
from resnet_export.runtime.progress import Progress, silent

HELD_BACK = 64
"""Images that trial graphs are compared on, at most a quarter of all: the SNR of their logits is known to about
half a decibel."""

_VALIDATED = 512  # images that the result is validated on where no budget asks for all of them
_LEAST_VARIATION = 10.0  # levels of 255 below which images are called too much alike
_FEWEST = 8  # images below which none are held out


@dataclass(frozen=True)
class SearchSpec:
    """What to search for.

    Attributes:
        method: how ranges are chosen; "auto" tries all.
        exclude: "auto" for the layers that pay and those that a search finds, "none", or layers by name.
        limits: what the result may lose.
        equalize, correct_bias, round_weights: whether to try each improvement.
    """

    method: Method | Literal["auto"] = "auto"
    exclude: Literal["auto", "none"] | tuple[str, ...] = "auto"
    limits: Limits = field(default_factory=Limits)
    equalize: bool = True
    correct_bias: bool = True
    round_weights: bool = True


@dataclass(frozen=True, eq=False)
class Int8Plan:
    """What the INT8 step hands on.

    `model` is the float graph that `table` and `plan` belong to: the exported one, its channels equalized.
    `times` holds what differs from run to run: the `seconds` that each part of the search took, and the
    `latency_ratio` of a graph with excluded layers over the same without, by target.
    """

    model: onnx.ModelProto
    table: CalibrationTable
    plan: QuantPlan
    report: SearchReport
    times: dict[str, dict[str, float]] = field(default_factory=dict)

    def graph(self, target: TargetName) -> onnx.ModelProto:
        """Emit the Q/DQ graph of one target, float32 outside its integers."""
        return quantize(self.model, self.plan.choose_ranges(self.table), self.plan, target)


def plan_int8(
    model: onnx.ModelProto,
    images: Photos,
    spec: SearchSpec | None = None,
    *,
    table: CalibrationTable | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Int8Plan:
    """Search for the best way to quantize `model`, and freeze it.

    Args:
        model: the float32 graph as exported: simplified, BatchNorms folded.
        images: real ones, with labels if there are any.
        spec: what to search for.
        table: a calibration that was made before, in place of a new one; its equalization is done again.
        threads: for ONNX Runtime; None means all processors.
        progress: told about every pass and trial.

    Raises:
        RequestError: `spec` names a layer that is not there, or `table` is of another graph.
        DatasetError: there is no image, or one is not finite.
        ExportError: a weight or an activation is infinite or NaN.
    """
    spec = spec or SearchSpec()
    clock = _Clock()
    first = _first_plan(model, spec)
    notices: list[str] = []
    steps: list[Improvement] = []
    layers: tuple[QuantizedLayer, ...] = ()
    trials: tuple[MethodTrial, ...] = ()
    so_far: Validations | None = None

    setup = _hold_back(model, images, spec, threads, progress)
    if len(setup.evaluator) == len(images):
        notices.append(
            f"{len(images)} images are too few to hold any back: trial graphs were compared on those that they "
            "were fitted to; give 100 or more"
        )
    if (variation := pixel_variation(images)) is not None and variation < _LEAST_VARIATION:
        notices.append(
            f"the {len(images)} calibration images hardly differ: a pixel varies by {variation:.1f} of 255 levels from "
            "one to the next, where photographs vary by 40 to 80; ranges hold for images like them, so give images "
            "that vary as those in use will"
        )
    begun: Start | None = None
    with clock("calibration"):
        if table is None:
            begun = start(model, first, setup, whole=not spec.equalize)
            candidate = begun.candidate
        else:
            candidate = _from_table(model, table, first)
            run = run_float(model, setup.fitted, threads)
    if table is not None and spec.equalize and not table.equalization:
        notices.append(
            "channels were not equalized: the calibration table belongs to the network as it is; leave it out, or "
            "give one that an export wrote"
        )
    if spec.method == "auto":
        with clock("methods"):
            setup, so_far = choose_probe(candidate, setup)
    if begun is not None and spec.equalize:
        with clock("equalization"):
            candidate, run, step, so_far = equalize(begun, setup, so_far)
        steps.append(step)
    elif begun is not None:
        with clock("calibration"):
            candidate, run = finish(begun, setup)
    if spec.correct_bias or spec.round_weights:
        with clock("rounding"):
            candidate, found, layers = round_weights(
                candidate,
                setup,
                _usual(run.sample(ROUNDING_IMAGES)),
                so_far,
                correct_bias=spec.correct_bias,
                round_weights=spec.round_weights,
            )
        steps.extend(found)
    if spec.method == "auto":
        with clock("methods"):
            candidate, trials = best_method(candidate, setup.evaluator, progress)
    else:
        candidate = candidate.with_method(spec.method)

    budget = spec.limits.max_drop
    with clock("validation"):
        held = setup.evaluator.run
        if held.photos is not setup.fitted:
            run = FloatRun.join(images, run, held)
        evaluator = Evaluator(run.sample(_VALIDATED) if budget is None else run, spec.limits, threads=threads)
        verdicts = validate(candidate, evaluator, "Validating", progress)
    if budget is not None and budget < 100 / len(evaluator):
        notices.append(
            f"{len(evaluator)} images cannot tell less than {100 / len(evaluator):.2g} points apart, and the budget is "
            f"{budget:g}: a single image decides; give more"
        )
    if any(one.outside for one in verdicts.values()):
        # What decides may be rare, and not among the images that were held out.
        before = candidate.plan.method
        with clock("methods"):
            closest, retried = best_method(candidate, evaluator, progress)
        trials = (*trials, *retried)
        named = spec.method != "auto"  # a method that was asked for by name is obeyed
        if closest.plan.method != before:
            notices.append(
                f"with {before} ranges{', which were asked for,' if named else ''} INT8 is outside its limits on "
                f"{len(evaluator)} images ({evaluator.limit()}); {closest.plan.method} ranges come closer"
                + (": use them, or --calib-method auto" if named else " and were used")
            )
        if not named:
            candidate = closest
            chosen = next(one for one in retried if one.method == candidate.plan.method)
            verdicts = {target: chosen.results[target] for target in TARGETS}
    outcomes = []
    for target, one in verdicts.items():
        with clock("mixed precision"):
            candidate, outcome = exclude_sensitive_layers(
                candidate,
                target,
                one,
                evaluator,
                setup.fitted,
                may_exclude=spec.exclude == "auto",
                threads=threads,
                progress=progress,
            )
        outcomes.append(outcome)
    report = SearchReport(
        images=len(images),
        held_out=len(setup.evaluator) if len(setup.evaluator) < len(images) else 0,
        steps=tuple(steps),
        methods=trials,
        method=candidate.plan.method,
        layers=_with_exclusions(layers, candidate.plan),
        rankings=tuple(one.ranking for one in outcomes if one.ranking),
        mixed_precision=tuple(one.budget for one in outcomes if one.budget),
        verdicts=tuple(one.verdict for one in outcomes),
        plan=summarize(candidate.plan),
        notices=tuple(notices),
    )
    times: dict[str, dict[str, float]] = {
        "seconds": clock.seconds(),
        "latency_ratio": {
            one.verdict.target: one.latency_ratio for one in outcomes if one.latency_ratio is not None
        },
    }
    return Int8Plan(candidate.model, candidate.table, candidate.plan, report, times)


def plan_from_table(
    model: onnx.ModelProto, table: CalibrationTable, spec: SearchSpec | None = None
) -> Int8Plan:
    """Return the plan that a table alone allows: nothing is tried and nothing measured.

    Weights are rounded to the nearest; `auto` takes the table's own method. Raises RequestError as `plan_int8`.
    """
    spec = spec or SearchSpec()
    method = table.method if spec.method == "auto" else spec.method
    candidate = _from_table(model, table, _first_plan(model, spec)).with_method(method)
    report = SearchReport(
        images=0,
        held_out=0,
        steps=(),
        methods=(),
        method=method,
        layers=(),
        rankings=(),
        mixed_precision=(),
        verdicts=(),
        plan=summarize(candidate.plan),
        notices=(
            "INT8 was quantized from a table alone: nothing was tried, corrected or measured; give images too",
        ),
    )
    return Int8Plan(candidate.model, candidate.table, candidate.plan, report)


def image_tensors(topology: Topology) -> tuple[str, ...]:
    """Return the graph's input and what is made of it before the first layer: casts, transposes, subtractions."""
    layers = {layer.name for layer in topology.layers}
    found = list(topology.inputs)
    for node in topology.nodes:
        sources = [name for name in node.input if name and name not in topology.constants]
        if node.name not in layers and sources and set(sources) <= set(found):
            found.extend(node.output)
    return tuple(found)


def pixel_variation(photos: Photos) -> float | None:
    """Return how much a pixel varies from image to image: its standard deviation, root mean square over all pixels.

    In levels of 255. None where there is one image, or where they are graph inputs and no uint8 crops.
    """
    if photos.images.dtype != np.uint8 or len(photos) < 2:
        return None
    return float(
        np.sqrt(np.mean([rows.var(axis=0).mean() for rows in np.array_split(photos.images, 16, axis=1)]))
    )


def _hold_back(
    model: onnx.ModelProto, images: Photos, spec: SearchSpec, threads: int | None, progress: Progress
) -> TrialSetup:
    if len(images) < _FEWEST:
        fitted = held = images
    else:
        fitted, held = images.split(min(HELD_BACK, len(images) // 4))
    same = Limits(activation=spec.limits.activation)
    evaluator = Evaluator(run_float(model, held, threads), same, threads=threads)
    method = PROBES[0] if spec.method == "auto" else spec.method
    return TrialSetup(fitted, evaluator, method, threads, progress)


def _usual(run: FloatRun) -> Photos:
    """Return the images without the handful that owns the energy of the logits, if there is one.

    Sums and maxima over images would be theirs alone.
    """
    return run.photos.where(usual(run.logits))


def _first_plan(model: onnx.ModelProto, spec: SearchSpec) -> QuantPlan:
    """Return the plan before any search: what is excluded, and min-max for the image itself."""
    topology = Topology(model)
    layers = [layer.name for layer in topology.layers]
    excluded: dict[str, Exclusion] = {}
    if spec.exclude == "auto":
        excluded = default_exclusions(model)
    elif spec.exclude != "none":
        if unknown := [name for name in spec.exclude if name not in layers]:
            raise RequestError(
                f"layer {unknown[0]!r} is to be excluded from INT8, which this network does not have; its layers are "
                f"{', '.join(layers)}"
            )
        excluded = {name: Exclusion(reason="excluded by request") for name in spec.exclude}
    read = {layer.input for layer in topology.layers}
    return QuantPlan(
        excluded=excluded, methods={name: "minmax" for name in image_tensors(topology) if name in read}
    )


def _from_table(model: onnx.ModelProto, table: CalibrationTable, plan: QuantPlan) -> Candidate:
    """Do to `model` what was done before `table` was calibrated. Raises RequestError for another graph's."""
    require_graph(table, graph=graph_hash(model))
    done = tuple(Equalization(one.producers, one.consumers, one.array()) for one in table.equalization)
    if done:
        model = rescale(model, done)
        require_graph(table, graph=table.graph, observed=graph_hash(model))
    return Candidate(model, table.with_methods(METHODS), replace(plan, equalization=done))


def _with_exclusions(layers: tuple[QuantizedLayer, ...], plan: QuantPlan) -> tuple[QuantizedLayer, ...]:
    excluded = {target: plan.excluded_for(target) for target in TARGETS}
    return tuple(
        msgspec.structs.replace(
            one,
            excluded={target: names[one.layer] for target, names in excluded.items() if one.layer in names},
        )
        for one in layers
    )


class _Clock:
    """Adds up the seconds that each part of the search takes."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def seconds(self) -> dict[str, float]:
        return {name: round(taken, 2) for name, taken in self._seconds.items()}
