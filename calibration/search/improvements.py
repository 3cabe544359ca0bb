"""The improvements that INT8 gets before its ranges are chosen: equalized channels and better-rounded weights.

Each is tried on the held-out images beside the same graph without it, and used unless it does harm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.improve import equalization as equalizing
from resnet_export.calibration.improve.bias_correction import bias_correction
from resnet_export.calibration.improve.blas import one_blas_thread
from resnet_export.calibration.improve.channel_scaling import by_input
from resnet_export.calibration.improve.input_moments import Moments, input_moments
from resnet_export.calibration.improve.weight_rounding import round_weight
from resnet_export.calibration.observe.calibrate import Observation, observe_graph
from resnet_export.calibration.observe.cpu_session import cpu_threads
from resnet_export.calibration.observe.methods import BY_IMAGE, METHODS, Method
from resnet_export.calibration.observe.table import CalibrationTable, Factors
from resnet_export.calibration.quantize.grid import QuantizedWeight, quantize_weight
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.plan import QuantPlan
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.calibration.quantize.topology import Layer, Topology
from resnet_export.calibration.search.evaluate import Evaluator, FloatRun
from resnet_export.calibration.search.mixed_precision import multiply_add_shares
from resnet_export.runtime.ahead import map_ahead
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.parity.measure.image_errors import usual
from resnet_export.runtime.parity.measure.metrics import relative_error
from resnet_export.runtime.parity.report.search_report import (
    Improvement,
    ImprovementName,
    MethodTrial,
    QuantizedLayer,
    Validation,
)
from resnet_export.runtime.progress import Progress

ROUNDING_IMAGES = 128
"""Images whose patches weights are rounded for; twice as many gained nothing that could be measured."""

PROBES: tuple[Method, ...] = ("percentile", "quantile")
"""Of the ranges in comparisons that come before a method is chosen: one that counts values, one that counts images."""

_DECIDED = 6.0  # dB, a bit of every tensor: what a handful of images that decides the ranges costs all others, at least
_SAME_FUNCTION = 1e-3  # the relative error of the logits: float32 arithmetic in another order leaves 1e-6
_HARM = 1.0  # dB: networks with badly scaled channels need equalization, which is not given up for less


@dataclass(frozen=True, eq=False)
class Candidate:
    """A network on its way to INT8: the float graph, equalized or not, its table, and the plan so far."""

    model: onnx.ModelProto
    table: CalibrationTable
    plan: QuantPlan

    def graph(self, target: TargetName, *, method: Method | None = None) -> onnx.ModelProto:
        """Return the Q/DQ graph for `target`, with ranges by `method` (None: the plan's)."""
        plan = self.plan if method is None else self.with_method(method).plan
        return quantize(self.model, plan.choose_ranges(self.table), plan, target)

    def with_method(self, method: Method) -> Candidate:
        """Return the candidate with its ranges chosen by `method`.

        The photograph itself, to which the plan gives a method of its own, keeps min-max: it has no outliers, and
        its brightest value, which clipping would touch first, is among its most common. Methods that look at whole
        images apply to it as well: where most photographs are far darker than the brightest, they have to.
        """
        own: Method = method if method in BY_IMAGE else "minmax"
        plan = replace(self.plan, method=method, methods=dict.fromkeys(self.plan.methods, own))
        return replace(self, table=msgspec.structs.replace(self.table, method=method), plan=plan)


@dataclass(frozen=True)
class TrialSetup:
    """What candidates are made from and compared on.

    Attributes:
        fitted: the images that ranges, channels and weights are fitted to.
        evaluator: the images that were held out.
        method: of the ranges, in comparisons.
        threads: for ONNX Runtime; None means all processors.
        progress: told about every pass and trial.
    """

    fitted: Photos
    evaluator: Evaluator
    method: Method
    threads: int | None
    progress: Progress


def validate(
    candidate: Candidate, evaluator: Evaluator, title: str, progress: Progress, method: Method | None = None
) -> dict[TargetName, Validation]:
    """Return how the graphs of all targets do, with ranges by `method` (None: the plan's)."""
    share = max(1, evaluator.threads // len(TARGETS))

    def tried(target: TargetName) -> Validation:
        return evaluator(candidate.graph(target, method=method), target, threads=share)

    # Emitting and opening a graph takes one thread, and as long as to run it.
    workers = min(len(TARGETS), evaluator.threads)
    found = map_ahead(tried, TARGETS, ahead=workers, workers=workers)
    return dict(zip(TARGETS, progress(found, title, len(TARGETS)), strict=True))


def mean_decibels(found: Mapping[TargetName, Validation]) -> float:
    """Return the mean over the targets of an image's SNR, by which candidates are compared."""
    return float(np.mean([one.decibels for one in found.values()]))


Validations = Mapping[TargetName, Validation]


def choose_probe(candidate: Candidate, setup: TrialSetup) -> tuple[TrialSetup, Validations]:
    """Return the setup with the method of `PROBES` that does best by far, or the first, and how the candidate does.

    Under ranges that a handful of images decides, what an improvement does for all others would drown.
    """
    found = {
        method: validate(candidate, setup.evaluator, f"Evaluating {method} ranges", setup.progress, method)
        for method in PROBES
    }
    first = PROBES[0]
    best = max(PROBES, key=lambda method: mean_decibels(found[method]) - _DECIDED * (method != first))
    return replace(setup, method=best), found[best]


@dataclass(frozen=True, eq=False)
class Start:
    """The network as it is, calibrated on a part of the fitted images: what equalization begins with.

    Attributes:
        candidate: with a table of the images `seen`.
        observation: that table is made of; each look has the float logits [1, classes] and the channels' statistics.
        seen, rest: the images that are in it, and those that are not.
    """

    candidate: Candidate
    observation: Observation
    seen: Photos
    rest: Photos


def start(model: onnx.ModelProto, plan: QuantPlan, setup: TrialSetup, *, whole: bool) -> Start:
    """Calibrate the network as it is on `equalization.IMAGES` of the fitted images, or on the whole of them.

    The part is enough to compare it with the equalized network, which is hardly ever the worse one.
    """
    rest, seen = setup.fitted[:0], setup.fitted
    if not whole and len(seen) > equalizing.IMAGES:
        rest, seen = seen.split(equalizing.IMAGES)
    found = _observe(model, seen, setup, () if whole else equalizing.channel_tensors(model))
    return Start(Candidate(model, found.table(model, None, PROBES), plan), found, seen, rest)


def finish(begun: Start, setup: TrialSetup) -> tuple[Candidate, FloatRun]:
    """Return the network as it is, calibrated on all fitted images, and its run on them.

    The table is the same, bit for bit, as if all images had been observed in one pass.
    """
    model, found = begun.candidate.model, begun.observation
    run = FloatRun(begun.seen, _logits(found))
    if len(begun.rest):
        more = _observe(model, begun.rest, setup)
        found = found.merge(more)
        run = FloatRun.join(setup.fitted, FloatRun(begun.rest, _logits(more)), run)
    return replace(begun.candidate, table=found.table(model, None, METHODS)), run


def equalize(
    begun: Start, setup: TrialSetup, without: Validations | None
) -> tuple[Candidate, FloatRun, Improvement, Validations | None]:
    """Return the network with its channels equalized, unless that does harm, calibrated on all fitted images.

    With it come the float network's run on them and how the candidate does with the setup's ranges, None where that
    is not known. `without` is how it does before, None where that is not known yet.
    """
    before, method = begun.candidate, setup.method

    def as_it_is(
        note: str, tried: Validations | None = None
    ) -> tuple[Candidate, FloatRun, Improvement, Validations | None]:
        compared = (without or {}, tried) if tried else ({}, {})
        return *finish(begun, setup), _step("equalization", method, *compared, used=False, note=note), None

    looks = begun.observation.looks
    if not looks[0].channels:
        return as_it_is("no layers can be equalized")
    mask = usual(_logits(begun.observation))
    channels = equalizing.over_images([one.channels for one, kept in zip(looks, mask, strict=True) if kept])
    model, done = equalizing.equalize(before.model, channels)
    found = _observe(model, setup.fitted, setup)
    logits = _logits(found)
    error = relative_error(logits[setup.fitted.spread(len(begun.seen))], _logits(begun.observation))
    if error is None or error > _SAME_FUNCTION:
        distance = (
            "not finite" if error is None else f"only within {-20 * math.log10(error):.1f} dB of the network"
        )
        return as_it_is(f"the equalized float network is {distance}; it was not used")
    factors = tuple(Factors.of(one.producers, one.consumers, one.factors) for one in done)
    table = msgspec.structs.replace(found.table(model, before.model, METHODS), equalization=factors)
    after = Candidate(model, table, replace(before.plan, equalization=done))
    if without is None:
        without = validate(before, setup.evaluator, "Evaluating without equalization", setup.progress, method)
    with_it = validate(after, setup.evaluator, "Evaluating equalization", setup.progress, method)
    if mean_decibels(with_it) <= mean_decibels(without) - _HARM:
        return as_it_is(f"it cost more than {_HARM:g} dB and was not used", with_it)
    step = _step("equalization", method, without, with_it, used=True)
    return after, FloatRun(setup.fitted, logits), step, with_it


class _Look(NamedTuple):
    """What is made of an image besides the histograms."""

    logits: NDArray[np.float32]
    channels: dict[str, equalizing.ChannelStats]


def _observe(
    model: onnx.ModelProto, photos: Photos, setup: TrialSetup, tensors: tuple[str, ...] = ()
) -> Observation:
    logits = model.graph.output[0].name

    def look(found: Mapping[str, NDArray[Any]]) -> _Look:
        return _Look(found[logits], equalizing.look_at_channels(tensors, found))

    return observe_graph(
        model,
        photos.inputs(),
        further=(logits, *tensors),
        look=look,
        total=len(photos),
        threads=setup.threads,
        progress=setup.progress,
    )


def _logits(observation: Observation) -> NDArray[np.float32]:
    return np.concatenate([one.logits for one in observation.looks])


@dataclass(frozen=True, eq=False)
class _Rounded:
    """A layer's weight with its integers chosen, and what corrects its bias for the nearest ones and for these."""

    layer: QuantizedLayer
    weight: QuantizedWeight
    nearest_shift: NDArray[np.float32] | None
    shift: NDArray[np.float32] | None


def round_weights(
    before: Candidate,
    setup: TrialSetup,
    sample: Photos,
    without: Validations | None,
    *,
    correct_bias: bool,
    round_weights: bool,
) -> tuple[Candidate, tuple[Improvement, ...], tuple[QuantizedLayer, ...]]:
    """Return the candidate with corrected biases and compensated rounding, what each gained, and the layers.

    Either can be left out. `without` is how the candidate does before, None where that is not known yet.
    """
    method = setup.method
    topology = Topology(before.model)
    names = [layer.name for layer in topology.layers]
    shares = multiply_add_shares(before.model, topology)
    moments = input_moments(before.model, names, sample.inputs, images=len(sample), threads=setup.threads)

    def rounded(given: tuple[Layer, tuple[Moments, ...]]) -> _Rounded | str:
        layer, found = given
        if not all(one.finite for one in found):
            return layer.name
        weight = topology.constant(layer.weight)
        nearest = chosen = quantize_weight(weight, layer.axis)
        corrected = correct_bias and layer.bias_input is not None
        if round_weights:
            chosen = round_weight(layer, weight, found, centered=corrected)
        nearest_shift, shift = (
            None if layer.bias_input is None else bias_correction(layer, weight, one, found)
            for one in (nearest, chosen)
        )
        described = QuantizedLayer(
            layer=layer.name,
            operator=layer.node.op_type,
            multiply_adds=shares[layer.name],
            nearest_db=_output_decibels(layer, weight, nearest, found),
            rounded_db=_output_decibels(layer, weight, chosen, found),
            excluded={},
        )
        return _Rounded(described, chosen, nearest_shift, shift)

    workers = setup.threads or cpu_threads()
    with one_blas_thread():
        ahead = map_ahead(rounded, moments, ahead=workers, workers=workers)
        done = list(setup.progress(ahead, "Rounding weights", len(names)))
    overflowing = [one for one in done if isinstance(one, str)]
    rows = [one for one in done if not isinstance(one, str)]
    layers = [one.layer for one in rows]
    nearest_corrections = {
        one.layer.layer: one.nearest_shift for one in rows if one.nearest_shift is not None
    }
    weights = {one.layer.layer: one.weight for one in rows}
    corrections = {one.layer.layer: one.shift for one in rows if one.shift is not None}
    best, steps = before, []
    if without is None:
        without = validate(before, setup.evaluator, "Evaluating nearest rounding", setup.progress, method)
    trials: list[tuple[ImprovementName, QuantPlan]] = []
    if correct_bias:
        trials.append(("bias correction", replace(before.plan, bias_corrections=nearest_corrections)))
    if round_weights:
        own = corrections if correct_bias else {}
        trials.append(("rounding", replace(before.plan, weights=weights, bias_corrections=own)))
    for name, plan in trials:
        candidate = replace(before, plan=plan)
        with_it = validate(candidate, setup.evaluator, f"Evaluating {name}", setup.progress, method)
        used = mean_decibels(with_it) > mean_decibels(without)
        notes = [] if used else ["it gained nothing here and was not used"]
        if overflowing:
            notes.append(
                f"the products of the inputs of {', '.join(overflowing)} exceed float32, so "
                f"{'it was' if len(overflowing) == 1 else 'they were'} left out"
            )
        note = "; ".join(notes)
        steps.append(_step(name, method, without, with_it, used=used, note=note))
        if used:
            best, without = candidate, with_it
    if not best.plan.weights:
        layers = [msgspec.structs.replace(one, rounded_db=one.nearest_db) for one in layers]
    return best, tuple(steps), tuple(layers)


def best_method(
    candidate: Candidate, evaluator: Evaluator, progress: Progress
) -> tuple[Candidate, tuple[MethodTrial, ...]]:
    """Return the candidate with the method whose logits are closest, and what each method left of them.

    A method that stays within the evaluator's limits for both targets goes before one that does not.
    """
    found = {
        method: validate(candidate, evaluator, f"Evaluating {method} ranges", progress, method)
        for method in METHODS
    }

    def rank(method: Method) -> tuple[int, float]:
        results = found[method]
        return -sum(bool(one.outside) for one in results.values()), mean_decibels(results)

    trials = tuple(
        MethodTrial(method=method, results={str(target): one for target, one in results.items()})
        for method, results in found.items()
    )
    return candidate.with_method(max(METHODS, key=rank)), trials


def _step(
    name: ImprovementName,
    method: Method,
    before: Mapping[TargetName, Validation],
    after: Mapping[TargetName, Validation],
    *,
    used: bool,
    note: str = "",
) -> Improvement:
    return Improvement(
        name=name,
        method=method,
        before_db={target: one.finite_decibels for target, one in before.items()},
        after_db={target: one.finite_decibels for target, one in after.items()},
        used=used,
        note=note,
    )


def _output_decibels(
    layer: Layer, weight: NDArray[np.float32], quantized: QuantizedWeight, moments: tuple[Moments, ...]
) -> float | None:
    """Return the SNR of a layer's output that quantizing its weights leaves; None without error.

    The mean is left out, and what inputs in different parts of a filter have in common.
    """
    real = by_input(weight.astype(np.float64), layer)
    error = real - by_input(quantized.real().astype(np.float64), layer)
    signal, noise = (
        sum(_power(rows.reshape(*rows.shape[:2], -1).astype(np.float32), one) for one in moments)
        for rows in (real, error)
    )
    return 10 * float(np.log10(signal / noise)) if signal > 0 and noise > 0 else None


def _power(filters: NDArray[np.float32], moments: Moments) -> float:
    rows = filters[moments.group, :, moments.part]
    return float(np.einsum("od,od->", rows @ moments.covariance, rows))
