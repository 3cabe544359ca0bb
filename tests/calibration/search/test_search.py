"""The search for the INT8 plan: what it tries, what it keeps in floating point, and when it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.methods import BY_IMAGE, METHODS, Method
from resnet_export.calibration.observe.table import decode_table, encode_table
from resnet_export.calibration.quantize.placement import TARGETS
from resnet_export.calibration.search.acceptance import most_sensitive_layers
from resnet_export.calibration.search.evaluate import Evaluator, Limits, run_float
from resnet_export.calibration.search.mixed_precision import (
    bisect,
    multiply_add_shares,
    rank_layers,
)
from resnet_export.calibration.search.search import SearchSpec, plan_from_table, plan_int8
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.errors import DatasetError, ExportError, RequestError
from resnet_export.runtime.parity.criteria.tolerances import Tolerances
from resnet_export.runtime.parity.report.search_report import ExclusionTrial, LayerSensitivity
from resnet_export.runtime.parity.report.search_text import sentences
from resnet_export.runtime.precision import Precision
from tests.calibration.improve.test_equalization import apart
from tests.residual_net import images, residual_net, with_weight

LAYERS = {"stem", "a.conv1", "a.conv2", "b.conv1", "b.conv2", "b.down", "fc"}


def photos(count: int = 32, labels: NDArray[np.int64] | None = None, seed: int = 1) -> Photos:
    """Graph inputs, with labels if they are given."""
    return Photos.of(images(count, seed), None, labels=labels)


def logits(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    return CpuSession(model.SerializeToString()).run(x)[0]


def hidden(model: onnx.ModelProto, layer: str, times: float) -> onnx.ModelProto:
    """The same function, its filters' greatest weight `times` as large: two equal inputs that cancel.

    The first two channels that the layer reads are made equal, and what is added to the weight of one is taken
    from the other's.
    """
    name = f"{layer}.weight"
    writer = {"a.conv1": "stem", "a.conv2": "a.conv1", "b.conv2": "b.conv1"}[layer]
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    for part in ("weight", "bias"):
        arrays[f"{writer}.{part}"][1] = arrays[f"{writer}.{part}"][0]
        model = with_weight(model, f"{writer}.{part}", arrays[f"{writer}.{part}"])
    huge = times * np.abs(arrays[name]).max() * np.linspace(0.9, 1.1, len(arrays[name]))[:, None, None]
    arrays[name][:, 0] += huge
    arrays[name][:, 1] -= huge
    return with_weight(model, name, arrays[name].astype(np.float32))


def test_every_method_and_every_improvement_is_tried_on_images_that_were_held_back() -> None:
    found = plan_int8(residual_net(), photos(64)).report
    assert (found.images, found.held_out) == (64, 16)
    assert [one.method for one in found.methods] == list(METHODS)
    assert [one.name for one in found.steps] == ["equalization", "bias correction", "rounding"]
    assert {one.layer for one in found.layers} == LAYERS
    best = max(found.methods, key=lambda one: sum(judged.decibels for judged in one.results.values()))
    assert found.method == best.method
    assert found.shippable


def test_the_table_counts_only_the_images_that_were_not_held_back() -> None:
    assert plan_int8(residual_net(), photos(64)).table.images == 48


def test_the_plan_improves_on_plain_rounding_on_images_that_nobody_saw() -> None:
    model, x = residual_net(), images(256, seed=77)
    plain = SearchSpec(method="minmax", equalize=False, correct_bias=False, round_weights=False)
    expected = logits(model, x).astype(np.float64)

    def noise(spec: SearchSpec) -> float:
        found = plan_int8(model, photos(64), spec)
        return sum(float(np.square(logits(found.graph(target), x) - expected).sum()) for target in TARGETS)

    assert noise(SearchSpec()) < 0.8 * noise(plain)


@pytest.mark.parametrize(
    ("spec", "steps"),
    [
        (SearchSpec(equalize=False), ["bias correction", "rounding"]),
        (SearchSpec(correct_bias=False), ["equalization", "rounding"]),
        (SearchSpec(round_weights=False), ["equalization", "bias correction"]),
        (SearchSpec(equalize=False, correct_bias=False, round_weights=False), []),
    ],
)
def test_each_improvement_can_be_left_out(spec: SearchSpec, steps: list[str]) -> None:
    found = plan_int8(residual_net(), photos(), spec)
    assert [one.name for one in found.report.steps] == steps
    assert bool(found.plan.equalization) == ("equalization" in steps)
    assert bool(found.plan.weights) <= ("rounding" in steps)


def test_two_searches_on_the_same_images_come_to_the_same_plan() -> None:
    one, other = (plan_int8(apart(residual_net(), 2.0), photos()) for _ in range(2))
    assert one.report == other.report
    assert encode_table(one.table) == encode_table(other.table)
    for target in TARGETS:
        assert one.graph(target).SerializeToString() == other.graph(target).SerializeToString()


def test_a_network_scaled_apart_comes_out_as_its_healthy_twin() -> None:
    model, x = residual_net(), images(256, seed=77)
    hostile, expected = apart(model, 3.0), logits(residual_net(), x).astype(np.float64)
    for target in TARGETS:
        twin, found = (logits(plan_int8(one, photos(64)).graph(target), x) for one in (model, hostile))
        twin_db, found_db = (
            10 * math.log10(np.square(expected).sum() / np.square(one - expected).sum())
            for one in (twin, found)
        )
        assert found_db > twin_db - 0.5


def test_a_table_brings_its_equalization_along() -> None:
    model = apart(residual_net(), 2.0)
    first = plan_int8(model, photos())
    again = plan_int8(model, photos(), table=decode_table(encode_table(first.table)))
    assert again.graph("cpu").SerializeToString() == first.graph("cpu").SerializeToString()
    alone = plan_from_table(model, first.table)
    assert len(alone.plan.equalization) == len(first.plan.equalization) > 0
    assert not alone.report.methods
    x = images(8)
    assert (logits(alone.graph("cpu"), x).argmax(axis=1) == logits(model, x).argmax(axis=1)).mean() >= 0.75


def test_a_table_without_equalization_is_used_as_it_is_and_that_is_said() -> None:
    model = residual_net()
    table = calibrate(model, [images(16)])
    found = plan_int8(model, photos(), table=table)
    assert not found.plan.equalization
    assert any("not equalized" in notice for notice in found.report.notices)


def test_a_layer_that_int8_cannot_hold_is_found_and_kept_in_floating_point() -> None:
    model = hidden(residual_net(), "a.conv2", 3000)
    found = plan_int8(model, photos(64), SearchSpec(equalize=False))
    assert found.report.shippable
    for target in TARGETS:
        assert "a.conv2" in found.plan.excluded_for(target)
    for ranking in found.report.rankings:
        assert ranking.layers[0].layer == "a.conv2"
    for budget in found.report.mixed_precision:
        assert budget.holds
        assert len(budget.path) <= 1 + math.ceil(math.log2(len(LAYERS)))
    assert set(found.times["latency_ratio"]) == {"cpu"}
    assert any("excluded from INT8: a.conv2" in line for line in sentences(found.report))


@pytest.mark.parametrize("keep", ["none", ("stem",)])
def test_with_the_kept_layers_given_a_collapse_is_refused_and_the_culprit_named(
    keep: str | tuple[str, ...],
) -> None:
    model = hidden(residual_net(), "a.conv2", 3000)
    found = plan_int8(model, photos(), SearchSpec(equalize=False, exclude=keep))  # type: ignore[arg-type]
    assert not found.report.shippable
    for verdict in found.report.verdicts:
        assert verdict.most_sensitive[0] == "a.conv2"
        assert "a.conv2" in verdict.sentence


def test_where_nothing_holds_the_plan_keeps_nothing_and_the_verdict_says_who_is_to_blame() -> None:
    model = residual_net()
    for layer in ("a.conv1", "a.conv2", "b.conv2"):  # 60 % of the multiply-adds
        model = hidden(model, layer, 3000)
    found = plan_int8(model, photos(), SearchSpec(equalize=False))
    assert not found.report.shippable
    assert [budget.excluded for budget in found.report.mixed_precision] == [(), ()]
    for verdict in found.report.verdicts:
        assert set(verdict.most_sensitive) <= {"a.conv1", "a.conv2", "b.conv2"}


def rarely_bright() -> Photos:
    """Rare bright images make up the logits' power; entropy clips them, and none of them is held out."""
    x = images(256)
    x[32::64] *= 300
    return Photos.of(x, None)


def often_bright() -> Photos:
    """Every eighth image is bright, more than a handful; none of them is held out, and the mean clips them."""
    x = images(256)
    x[::8] *= 6
    return Photos.of(x, None)


def test_auto_serves_the_many_and_names_the_handful_that_owns_the_energy() -> None:
    found = plan_int8(residual_net(), rarely_bright(), SearchSpec(equalize=False)).report
    assert found.shippable
    assert found.method in BY_IMAGE
    for verdict in found.verdicts:
        lost = verdict.validation
        assert lost.by_image.median_error is not None
        assert lost.by_image.median_error < 0.01
        assert lost.by_image.far == 4
        assert {image.index for image in lost.worst[:4]} == {32, 96, 160, 224}
        assert "relative error ≤" not in verdict.limit
        assert "median error of an image ≤ 0.064" in verdict.limit


def test_auto_leaves_a_method_that_collapses_on_all_images_for_one_that_holds() -> None:
    spec = SearchSpec(method="auto", exclude="none", equalize=False)
    found = plan_int8(residual_net(), often_bright(), spec).report
    assert found.shippable
    assert [one.method for one in found.methods][-len(METHODS) :] == list(METHODS)
    assert found.method != "mean"
    assert any(notice.startswith("with mean ranges INT8 is outside") for notice in found.notices)


@pytest.mark.parametrize("asked", METHODS)
def test_a_method_that_was_asked_for_is_obeyed_and_one_that_comes_closer_only_named(asked: Method) -> None:
    spec = SearchSpec(method=asked, exclude="none", equalize=False)
    found = plan_int8(residual_net(), rarely_bright(), spec).report
    assert (found.method, found.plan.method) == (asked, asked)
    if asked == "entropy":
        assert not found.shippable
        (notice,) = (notice for notice in found.notices if notice.startswith("with entropy ranges"))
        assert "which were asked for, INT8 is outside its limits" in notice
        assert "ranges come closer: use them, or --calib-method auto" in notice


def test_a_method_that_was_asked_for_and_holds_is_used_without_trying_others() -> None:
    found = plan_int8(residual_net(), photos(), SearchSpec(method="minmax")).report
    assert (found.method, found.methods, found.shippable) == ("minmax", (), True)


def test_a_budget_is_held_to_on_all_images_and_the_path_to_it_is_told() -> None:
    rng = np.random.default_rng(0)
    model = residual_net()
    labels = logits(model, images(160)).argmax(axis=1)
    labels = np.where(rng.random(160) < 0.1, rng.integers(0, 5, 160), labels)
    found = plan_int8(model, photos(160, labels), SearchSpec(limits=Limits(max_drop=0.0)))
    for verdict in found.report.verdicts:
        assert verdict.validation.images == 160
        assert verdict.validation.accuracy_drop is not None
        assert verdict.shippable == (verdict.validation.accuracy_drop <= 0)
        assert "accuracy drop ≤ 0" in verdict.limit
    assert any("160 images cannot tell less than" in notice for notice in found.report.notices)


@pytest.mark.parametrize(
    "limits",
    [Limits(), *(Limits(Tolerances.shipped(untrained=True, layers_in_series=d)) for d in (18, 50, 152))],
)
def test_the_search_leaves_a_fifth_of_the_error_that_parity_allows(limits: Limits) -> None:
    excluded, allowed = limits.tolerance, limits.parity
    assert allowed == limits.tolerances[Precision.INT8]
    assert None not in (
        excluded.relative_error,
        excluded.centered_cosine,
        allowed.relative_error,
        allowed.centered_cosine,
    )
    assert excluded.relative_error == pytest.approx(0.8 * allowed.relative_error)
    assert 1 - excluded.centered_cosine == pytest.approx(0.8**2 * (1 - allowed.centered_cosine))
    assert excluded.top1_agreement == allowed.top1_agreement


def test_few_images_are_used_for_both_and_that_is_said() -> None:
    found = plan_int8(residual_net(), photos(4)).report
    assert (found.images, found.held_out) == (4, 0)
    assert any("too few to hold any back" in notice for notice in found.notices)
    assert not any("held-out" in sentence for sentence in sentences(found))


def test_a_layer_to_keep_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(RequestError, match=r"layer9.*a\.conv1"):
        plan_int8(residual_net(), photos(), SearchSpec(exclude=("layer9",)))


def test_no_image_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no image"):
        plan_int8(residual_net(), photos(0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_an_error(value: float) -> None:
    weight = np.full((5, 16), 0.1, np.float32)
    weight[2, 3] = value
    with pytest.raises((ExportError, RequestError)):
        plan_int8(with_weight(residual_net(), "fc.weight", weight), photos())


def test_an_activation_that_overflows_on_a_real_image_is_an_error_that_names_it() -> None:
    weight = np.full((8, 3, 3, 3), 3e38, np.float32)
    with pytest.raises((ExportError, RequestError), match=r"infinite|NaN"):
        plan_int8(with_weight(residual_net(), "stem.weight", weight), photos())


def test_ranking_quantizes_one_layer_at_a_time_and_sorts_by_the_damage() -> None:
    model = hidden(residual_net(), "b.conv2", 300)
    table = calibrate(model, [images(16)], methods=("minmax",))
    plan = plan_from_table(model, table, SearchSpec(exclude="none")).plan
    found = rank_layers(
        model, plan.choose_ranges(table), plan, "cpu", Evaluator(run_float(model, photos(16)))
    )
    assert {one.layer for one in found} == LAYERS
    assert found[0].layer == "b.conv2"
    assert [one.severity for one in found] == sorted((one.severity for one in found), reverse=True)


def test_multiply_adds_are_shares_of_the_whole() -> None:
    found = multiply_add_shares(residual_net())
    assert sum(found.values()) == pytest.approx(1)
    # a.conv1: 8 × 8 × 3 × 3 at 8 × 8 positions; b.down: 16 × 8 at 4 × 4.
    assert found["a.conv1"] / found["b.down"] == pytest.approx(8 * 8 * 9 * 64 / (16 * 8 * 16))


def attempts(enough: int) -> Callable[[int], ExclusionTrial]:
    return lambda excluded: ExclusionTrial(
        excluded=excluded, outside=() if excluded >= enough else ("too much",)
    )


@given(st.integers(1, 500), st.integers(1, 600))
def test_bisection_finds_the_least_number_that_is_enough_in_logarithmic_time(most: int, enough: int) -> None:
    path = list(bisect(most, attempts(enough)))
    assert len(path) <= 1 + math.ceil(math.log2(most))
    holding = [one.excluded for one in path if one.holds]
    assert min(holding, default=None) == (enough if enough <= most else None)
    if enough > most:
        assert len(path) == 1


def test_the_most_sensitive_layers_make_up_most_of_the_error() -> None:
    def damage(layer: str, noise: float | None) -> LayerSensitivity:
        return LayerSensitivity(layer=layer, noise=noise, agreement=90, accuracy_drop=None, multiply_adds=0.1)

    assert most_sensitive_layers(
        (damage("a", 0.7), damage("b", 0.2), damage("c", 0.05), damage("d", 0.05))
    ) == ("a", "b")
    assert most_sensitive_layers((damage("x", None), damage("a", 0.7))) == ("x",)
    assert most_sensitive_layers(()) == ()


def test_the_evaluator_compares_with_the_float_network() -> None:
    model = residual_net()
    labels = logits(model, images(16)).argmax(axis=1)
    found = Evaluator(run_float(model, photos(16, labels)))(model)
    assert (found.agreement, found.snr_db, found.accuracy_drop, found.outside) == (100.0, None, 0.0, ())
    assert found.decibels == math.inf


ALIKE = {
    "identical images": lambda x: np.repeat(x[:1], 16, axis=0),
    "two images": lambda x: x[:2],
    "one pixel that changes": lambda x: np.concatenate([x[:1], *([x[:1] + np.float32(1e-6)] * 15)]),
    "channels that are constant": lambda x: np.broadcast_to(
        np.float32([[[[2.0]], [[0.0]], [[-1e-3]]]]), (16, 3, 16, 16)
    ),
    "bright images that differ in the last bits": lambda x: 1000 + np.float32(1e-4) * x[:16],
    "black images": lambda x: np.zeros_like(x[:16]),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_images_that_hardly_differ_are_quantized_like_others(kind: str) -> None:
    x = np.ascontiguousarray(ALIKE[kind](images(16)), np.float32)
    found = plan_int8(residual_net(), Photos.of(x, None))
    assert [step.name for step in found.report.steps] == ["equalization", "bias correction", "rounding"]
    for target in TARGETS:
        assert np.isfinite(logits(found.graph(target), x)).all()
    for weight in found.plan.weights.values():
        assert np.abs(weight.values).max() <= 127
    for correction in found.plan.bias_corrections.values():
        assert np.isfinite(correction).all()


@pytest.mark.parametrize(("spread", "alike"), [(1, True), (60, False)])
def test_crops_with_too_little_variety_are_named_as_such(spread: int, alike: bool) -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(60, 190, (1, 16, 16, 3))
    crops = (frame + rng.integers(-spread, spread + 1, (16, 16, 16, 3))).astype(np.uint8)
    found = plan_int8(residual_net(), Photos.of(crops, Preprocessing(resize=16, crop=16))).report
    assert any("calibration images hardly differ" in notice for notice in found.notices) == alike


def test_a_layer_whose_inputs_cannot_be_multiplied_keeps_its_nearest_weights_and_is_named() -> None:
    model = residual_net()
    for part, times in (("stem.weight", 1e20), ("stem.bias", 1e20), ("a.conv1.weight", 1e-20)):
        weight = next(onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.name == part)
        model = with_weight(model, part, (weight * times).astype(np.float32))
    found = plan_int8(model, photos(), SearchSpec(equalize=False))
    assert "a.conv1" not in found.plan.weights
    assert any("a.conv1" in step.note and "exceed float32" in step.note for step in found.report.steps)


@pytest.mark.parametrize("method", ["mean", "quantile"])
def test_ranges_over_images_serve_the_many_where_a_few_images_reach_far_beyond_them(method: Method) -> None:
    x = images(64)
    x[::16] *= 100
    few = np.isin(np.arange(64), range(0, 64, 16))
    model = residual_net()
    expected = logits(model, x).astype(np.float64)

    def median_error(chosen: Method) -> float:
        spec = SearchSpec(
            method=chosen, exclude="none", equalize=False, correct_bias=False, round_weights=False
        )
        found = logits(plan_from_table(model, calibrate(model, [x]), spec).graph("cpu"), x)
        errors = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        return float(np.median(errors[~few]))

    assert median_error(method) < median_error("minmax") / 2
