"""The improvements that INT8 gets before its ranges are chosen: equalized channels and better-rounded weights.

Each is tried on the held-out images beside the same graph without it, and used unless it does harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.improve import equalization as equalizing
from resnet_export.calibration.improve.bias_correction import bias_correction
from resnet_export.calibration.improve.channel_scaling import by_input
from resnet_export.calibration.improve.input_moments import Moments, input_moments
from resnet_export.calibration.improve.weight_rounding import round_weight
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.methods import BY_IMAGE, METHODS, Method
from resnet_export.calibration.observe.table import CalibrationTable, Factors
from resnet_export.calibration.quantize.grid import QuantizedWeight, quantize_weight
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.quantize.plan import QuantPlan
from resnet_export.calibration.quantize.qdq import quantize
from resnet_export.calibration.quantize.topology import Layer, Topology
from resnet_export.calibration.search.evaluate import Evaluator
from resnet_export.calibration.search.mixed_precision import multiply_add_shares
from resnet_export.runtime.bundle.schema import TargetName
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

_SAME_FUNCTION = 60.0  # dB: float32 arithmetic in another order leaves 120 and more
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
        fitted: the images that ranges are fitted to.
        usual: up to `ROUNDING_IMAGES` of them that channels and weights are fitted to, without the handful that owns
            the energy of the logits, if there is one: sums and maxima over images would be theirs alone.
        evaluator: the images that were held out.
        method: of the ranges, in comparisons.
        threads: for ONNX Runtime; None means all processors.
        progress: told about every pass and trial.
    """

    fitted: Photos
    usual: Photos
    evaluator: Evaluator
    method: Method
    threads: int | None
    progress: Progress


def validate(
    candidate: Candidate, evaluator: Evaluator, title: str, progress: Progress, method: Method | None = None
) -> dict[TargetName, Validation]:
    """Return how the graphs of all targets do, with ranges by `method` (None: the plan's)."""
    return {
        target: evaluator(candidate.graph(target, method=method), target)
        for target in progress(TARGETS, title, len(TARGETS))
    }


def mean_decibels(found: Mapping[TargetName, Validation]) -> float:
    """Return the mean over the targets of an image's SNR, by which candidates are compared."""
    return float(np.mean([one.decibels for one in found.values()]))


def calibrate_candidate(model: onnx.ModelProto, plan: QuantPlan, setup: TrialSetup) -> Candidate:
    """Calibrate the network as it is."""
    return Candidate(model, _table(model, None, setup), plan)


Validations = Mapping[TargetName, Validation]


def choose_probe(candidate: Candidate, setup: TrialSetup) -> tuple[TrialSetup, Validations]:
    """Return the setup with the method of `PROBES` that does best, and how the candidate does with it.

    Under ranges that a handful of images decides, what an improvement does for all others would drown.
    """
    found = {
        method: validate(candidate, setup.evaluator, f"Evaluating {method} ranges", setup.progress, method)
        for method in PROBES
    }
    best = max(PROBES, key=lambda method: mean_decibels(found[method]))
    return replace(setup, method=best), found[best]


def equalize(
    before: Candidate, setup: TrialSetup, without: Validations | None
) -> tuple[Candidate, Improvement, Validations | None]:
    """Return the network with its channels equalized and calibrated anew, unless that does harm.

    `without` is how the candidate does before, None where that is not known yet. The last is how the returned
    candidate does with the setup's ranges, None where nothing was tried.
    """
    method = setup.method
    seen = setup.usual.sample(equalizing.IMAGES)
    stats = equalizing.observe_channels(
        before.model, seen.inputs(), threads=setup.threads, progress=setup.progress
    )
    model, done = equalizing.equalize(before.model, stats)
    if not done:
        note = "no layers can be equalized"
        return before, _step("equalization", method, {}, {}, used=False, note=note), without
    if (same := setup.evaluator(model).decibels) < _SAME_FUNCTION:
        note = f"the equalized float network is only within {same:.1f} dB of the network; it was not used"
        return before, _step("equalization", method, {}, {}, used=False, note=note), without
    table = _table(model, before.model, setup)
    factors = tuple(Factors.of(one.producers, one.consumers, one.factors) for one in done)
    table = msgspec.structs.replace(table, equalization=factors)
    after = Candidate(model, table, replace(before.plan, equalization=done))
    if without is None:
        without = validate(before, setup.evaluator, "Evaluating without equalization", setup.progress, method)
    with_it = validate(after, setup.evaluator, "Evaluating equalization", setup.progress, method)
    used = mean_decibels(with_it) > mean_decibels(without) - _HARM
    note = "" if used else f"it cost more than {_HARM:g} dB and was not used"
    step = _step("equalization", method, without, with_it, used=used, note=note)
    return (after, step, with_it) if used else (before, step, without)


def round_weights(
    before: Candidate,
    setup: TrialSetup,
    without: Validations | None,
    *,
    correct_bias: bool,
    round_weights: bool,
) -> tuple[Candidate, tuple[Improvement, ...], tuple[QuantizedLayer, ...]]:
    """Return the candidate with corrected biases and compensated rounding, what each gained, and the layers.

    Either can be left out. `without` is how the candidate does before, None where that is not known yet.
    """
    method = setup.method
    sample = setup.usual
    topology = Topology(before.model)
    names = [layer.name for layer in topology.layers]
    shares = multiply_add_shares(before.model, topology)
    layers: list[QuantizedLayer] = []
    overflowing: list[str] = []
    weights: dict[str, QuantizedWeight] = {}
    corrections: dict[str, NDArray[np.float32]] = {}
    nearest_corrections: dict[str, NDArray[np.float32]] = {}
    moments = input_moments(before.model, names, sample.inputs, images=len(sample), threads=setup.threads)
    for layer, found in setup.progress(moments, "Rounding weights", len(names)):
        if not all(one.finite for one in found):
            overflowing.append(layer.name)
            continue
        weight = topology.constant(layer.weight)
        nearest = quantize_weight(weight, layer.axis)
        if layer.bias_input is not None:
            nearest_corrections[layer.name] = bias_correction(layer, weight, nearest, found)
        chosen = nearest
        corrected = correct_bias and layer.bias_input is not None
        if round_weights:
            chosen = round_weight(layer, weight, found, centered=corrected)
            weights[layer.name] = chosen
            if corrected:
                corrections[layer.name] = bias_correction(layer, weight, chosen, found)
        layers.append(
            QuantizedLayer(
                layer=layer.name,
                operator=layer.node.op_type,
                multiply_adds=shares[layer.name],
                nearest_db=_output_decibels(layer, weight, nearest, found),
                rounded_db=_output_decibels(layer, weight, chosen, found),
                excluded={},
            )
        )
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


def _table(model: onnx.ModelProto, source: onnx.ModelProto | None, setup: TrialSetup) -> CalibrationTable:
    return calibrate(
        model,
        setup.fitted.inputs(),
        methods=METHODS,
        source=source,
        total=len(setup.fitted),
        threads=setup.threads,
        progress=setup.progress,
    )


def _step(
    name: ImprovementName,
    method: Method,
    before: Mapping[TargetName, Validation],
    after: Mapping[TargetName, Validation],
    *,
    used: bool,
    note: str,
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
