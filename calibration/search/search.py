"""The INT8 step as one function: float graph and real images → a frozen plan, and what was found on the way.

1. Hold some images back, to compare trial graphs on images that nothing was fitted to.
2. Equalize channels, calibrate once, correct biases, round weights (`calibration.improve`).
3. `auto` tries every way to choose ranges and takes the one whose logits are closest.
4. Judge the result on all images. Where it collapses, or exceeds the accuracy budget, try every method on all of
   them, then keep the layers to blame in floating point, and if nothing holds, say so and name them
   (`calibration.limits`).

All of it happens on trial graphs. The artifacts are emitted afterwards, once, from graph, table and plan.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import msgspec
import onnx

from resnet_export.calibration.data.inputs import Feed
from resnet_export.calibration.data.photos import Inputs
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
from resnet_export.calibration.search.acceptance import mended
from resnet_export.calibration.search.evaluate import Judge, Limits
from resnet_export.calibration.search.improvements import (
    Bench,
    Candidate,
    Judged,
    best_method,
    calibrated,
    equalized,
    judged,
    rounded,
)
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.errors import RequestError
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

_JUDGED = 512  # images that the result is judged on where no budget asks for all of them
_FEWEST = 8  # images below which none are held out
_PROBE: Method = "percentile"  # of the ranges in comparisons that come before a method is chosen


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
    `latency_ratio` of a graph with kept layers over the same without, by target.
    """

    model: onnx.ModelProto
    table: CalibrationTable
    plan: QuantPlan
    findings: SearchReport
    times: dict[str, dict[str, float]] = field(default_factory=dict)

    def graph(self, target: TargetName) -> onnx.ModelProto:
        """Emit the Q/DQ graph of one target, float32 outside its integers."""
        return quantize(self.model, self.plan.choose_ranges(self.table), self.plan, target)


def plan_int8(
    model: onnx.ModelProto,
    images: Feed,
    spec: SearchSpec | None = None,
    *,
    table: CalibrationTable | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Int8Plan:
    """Search for the best way to quantize `model`, and freeze it.

    Args:
        model: the float32 graph as exported: simplified, BatchNorms folded.
        images: real ones, with labels if there are any; see `feed_of`.
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
    so_far: Judged | None = None

    bench = _hold_back(model, images, spec, threads, progress)
    if len(bench.judge) == len(images):
        notices.append(
            f"{len(images)} images are too few to hold any back: trial graphs were compared on those that they "
            "were fitted to; give 100 or more"
        )
    with clock("calibration"):
        candidate = _from_table(model, table, first) if table else calibrated(model, first, bench)
    if table is not None and spec.equalize and not table.equalization:
        notices.append(
            "channels were not equalized: the calibration table belongs to the network as it is; leave it out, or "
            "give one that an export wrote"
        )
    if spec.equalize and table is None:
        with clock("equalization"):
            candidate, step, so_far = equalized(candidate, bench)
        steps.append(step)
    if spec.correct_bias or spec.round_weights:
        with clock("rounding"):
            candidate, found, layers = rounded(
                candidate, bench, so_far, correct_bias=spec.correct_bias, round_weights=spec.round_weights
            )
        steps.extend(found)
    if spec.method == "auto":
        with clock("methods"):
            candidate, trials = best_method(candidate, bench.judge, progress)
    else:
        candidate = candidate.with_method(spec.method)

    with clock("judging"):
        budget = spec.limits.max_drop
        judge = Judge(
            model, images.sample(_JUDGED) if budget is None else images, spec.limits, threads=threads
        )
        verdicts = judged(candidate, judge, "Judging", progress)
    if budget is not None and budget < 100 / len(judge):
        notices.append(
            f"{len(judge)} images cannot tell less than {100 / len(judge):.2g} points apart, and the budget is "
            f"{budget:g}: a single image decides; give more"
        )
    if any(one.outside for one in verdicts.values()):
        # What decides may be rare, and not among the images that were held out.
        before = candidate.plan.method
        with clock("methods"):
            closest, retried = best_method(candidate, judge, progress)
        trials = (*trials, *retried)
        named = spec.method != "auto"  # a method that was asked for by name is obeyed
        if closest.plan.method != before:
            notices.append(
                f"with {before} ranges{', which were asked for,' if named else ''} INT8 is outside its limits on "
                f"{len(judge)} images ({judge.limit()}); {closest.plan.method} ranges come closer"
                + (": use them, or --calib-method auto" if named else " and were used")
            )
        if not named:
            candidate = closest
            chosen = next(one for one in retried if one.method == candidate.plan.method)
            verdicts = {target: chosen.results[target] for target in TARGETS}
    outcomes = []
    for target, one in verdicts.items():
        with clock("mixed precision"):
            candidate, outcome = mended(
                candidate,
                target,
                one,
                judge,
                bench.fitted,
                may_exclude=spec.exclude == "auto",
                threads=threads,
                progress=progress,
            )
        outcomes.append(outcome)
    findings = SearchReport(
        images=len(images),
        held_out=len(bench.judge) if len(bench.judge) < len(images) else 0,
        steps=tuple(steps),
        methods=trials,
        method=candidate.plan.method,
        layers=_with_kept(layers, candidate.plan),
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
    return Int8Plan(candidate.model, candidate.table, candidate.plan, findings, times)


def plan_from_table(
    model: onnx.ModelProto, table: CalibrationTable, spec: SearchSpec | None = None
) -> Int8Plan:
    """Return the plan that a table alone allows: nothing is tried and nothing measured.

    Weights are rounded to the nearest; `auto` takes the table's own method. Raises RequestError as `plan_int8`.
    """
    spec = spec or SearchSpec()
    method = table.method if spec.method == "auto" else spec.method
    candidate = _from_table(model, table, _first_plan(model, spec)).with_method(method)
    findings = SearchReport(
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
    return Int8Plan(candidate.model, candidate.table, candidate.plan, findings)


def image_tensors(topology: Topology) -> tuple[str, ...]:
    """Return the graph's input and what is made of it before the first layer: casts, transposes, subtractions."""
    layers = {layer.name for layer in topology.layers}
    found = list(topology.inputs)
    for node in topology.nodes:
        sources = [name for name in node.input if name and name not in topology.constants]
        if node.name not in layers and sources and set(sources) <= set(found):
            found.extend(node.output)
    return tuple(found)


def _hold_back(
    model: onnx.ModelProto, images: Feed, spec: SearchSpec, threads: int | None, progress: Progress
) -> Bench:
    if len(images) < _FEWEST:
        fitted = held = images
    else:
        fitted, held = images.split(min(HELD_BACK, len(images) // 4))
    batches: list[Inputs] = list(held())  # few enough to keep, and compared often
    judge = Judge(model, lambda: batches, threads=threads)
    return Bench(fitted, judge, _PROBE if spec.method == "auto" else spec.method, threads, progress)


def _first_plan(model: onnx.ModelProto, spec: SearchSpec) -> QuantPlan:
    """Return the plan before any search: what is kept, and min-max for the image itself.

    The image has no outliers, and its brightest value, which clipping would touch first, is among its most common.
    """
    topology = Topology(model)
    layers = [layer.name for layer in topology.layers]
    excluded: dict[str, Exclusion] = {}
    if spec.exclude == "auto":
        excluded = default_exclusions(model)
    elif spec.exclude != "none":
        if unknown := [name for name in spec.exclude if name not in layers]:
            raise RequestError(
                f"layer {unknown[0]!r} is to be kept in fp16, which this network does not have; its layers are "
                f"{', '.join(layers)}"
            )
        excluded = {name: Exclusion(reason="kept by request") for name in spec.exclude}
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


def _with_kept(layers: tuple[QuantizedLayer, ...], plan: QuantPlan) -> tuple[QuantizedLayer, ...]:
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
