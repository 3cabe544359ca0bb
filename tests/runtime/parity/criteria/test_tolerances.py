"""The table of limits, what may replace a limit, and the width of a near tie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pytest

from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.criteria.loosened import loosened
from resnet_export.runtime.parity.criteria.tolerances import (
    TABLE,
    UNTRAINED_INT8,
    Override,
    Overrides,
    Tolerances,
    checked_overrides,
    coarser,
    near_tie_width,
    parse_overrides,
)
from resnet_export.runtime.parity.measure.metrics import Metrics
from resnet_export.runtime.precision import Precision, Tolerance

UNTRAINED = tuple(
    Tolerances.shipped(untrained=True, layers_in_series=layers_in_series)
    for layers_in_series in UNTRAINED_INT8
)
SHIPPED = Tolerances.shipped()


def remarks(
    shipped: Tolerances, bundle: Mapping[str, Tolerance], user: Overrides | None = None
) -> tuple[str, ...]:
    return loosened(shipped, shipped.replaced(bundle, user), user or {})


@pytest.mark.parametrize("limits", [SHIPPED, *UNTRAINED])
def test_every_precision_has_limits_and_coarser_ones_are_never_tighter(
    limits: Tolerances,
) -> None:
    assert set(limits.rows) == set(Precision)
    order = sorted(Precision, key=lambda p: sum(coarser(p, q) is p for q in Precision))
    for fine, coarse in itertools.pairwise(order):
        for name in ("centered_cosine", "top1_agreement"):
            assert getattr(limits[fine], name) >= getattr(limits[coarse], name), (name, fine, coarse)
        assert limits[fine].relative_error < limits[coarse].relative_error, (fine, coarse)


def test_a_trained_network_is_never_held_to_looser_limits_than_an_untrained_one() -> None:
    for untrained, precision in itertools.product(UNTRAINED, Precision):
        for name in ("centered_cosine", "top1_agreement"):
            assert getattr(TABLE[precision], name) >= getattr(untrained[precision], name)
        assert TABLE[precision].relative_error <= untrained[precision].relative_error


def test_a_deeper_untrained_network_is_allowed_more_and_unknown_depths_have_the_limits_of_a_known_one() -> (
    None
):
    for shallow, deep in itertools.pairwise(limits[Precision.INT8] for limits in UNTRAINED):
        assert shallow.relative_error < deep.relative_error
        assert shallow.centered_cosine > deep.centered_cosine
    for unknown, known in ((1, 18), (20, 34), (51, 101), (1000, 152), (None, 18)):
        assert (
            Tolerances.shipped(untrained=True, layers_in_series=unknown)[Precision.INT8]
            == UNTRAINED_INT8[known]
        )
    assert Tolerances.shipped(untrained=False, layers_in_series=152) == Tolerances(TABLE)


def test_no_limit_is_looser_than_what_the_project_promises() -> None:
    assert TABLE[Precision.FP32].relative_error <= 1e-4
    for untrained in UNTRAINED:
        assert untrained[Precision.FP16].centered_cosine >= 0.9999
        assert untrained[Precision.FP16].top1_agreement >= 0.99
    assert TABLE[Precision.INT8].centered_cosine >= 0.99


@pytest.mark.parametrize(("untrained", "layers_in_series"), [(True, 18), (True, 101), (False, 50)])
def test_the_manifest_carries_the_table_in_its_own_words(untrained: bool, layers_in_series: int) -> None:
    made = Tolerances.shipped(untrained=untrained, layers_in_series=layers_in_series)
    carried = msgspec.json.decode(msgspec.json.encode(made.by_name()), type=dict[str, Tolerance])
    assert carried == made.by_name()
    assert SHIPPED.replaced(carried).rows == made.rows


@pytest.mark.parametrize(
    ("declared", "ran", "held_to"),
    [
        (Precision.FP32, Precision.FP32, Precision.FP32),
        (Precision.FP32, Precision.BF16, Precision.BF16),
        (Precision.FP16, Precision.FP32, Precision.FP16),
        (Precision.FP16, Precision.BF16, Precision.BF16),
        (Precision.INT8, Precision.FP32, Precision.INT8),
        (Precision.INT8, Precision.BF16, Precision.INT8),
    ],
)
def test_an_artifact_is_held_to_the_coarser_of_what_it_holds_and_what_ran(
    declared: Precision, ran: Precision, held_to: Precision
) -> None:
    assert coarser(declared, ran) is held_to


def test_the_bundles_limits_replace_the_tables_and_the_users_replace_both_key_by_key() -> None:
    bundle = {"fp16": Tolerance(relative_error=0.5, centered_cosine=0.9)}
    users = parse_overrides(b'{"fp16": {"centered_cosine": 0.8}}')
    assert SHIPPED.replaced(bundle)[Precision.FP16] == bundle["fp16"]
    found = SHIPPED.replaced(bundle, users)
    assert found[Precision.FP16] == Tolerance(relative_error=0.5, centered_cosine=0.8)
    assert found[Precision.INT8] == TABLE[Precision.INT8]


def test_null_drops_a_limit_and_silence_keeps_it() -> None:
    users = parse_overrides(b'{"fp16": {"top1_agreement": null}}')
    found = SHIPPED.replaced(None, users)[Precision.FP16]
    assert found.top1_agreement is None
    assert found.centered_cosine == TABLE[Precision.FP16].centered_cosine


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b'{"fp8": {}}',
        b'{"fp16": {"cosine": 0.9}}',
        b'{"fp16": {"top1_agreement": 99}}',
        b'{"fp16": {"relative_error": -1}}',
        b'{"fp16": {"centered_cosine": "high"}}',
        b'{"fp16": 0.5}',
        b"\xff",
    ],
)
def test_a_tolerance_file_that_is_not_understood_is_refused_and_says_what_is_expected(text: bytes) -> None:
    with pytest.raises(RequestError, match=r"limits\.json is not understood .* fp32, fp16, bf16, int8"):
        parse_overrides(text, "limits.json")


@pytest.mark.parametrize("precision", list(Precision))
def test_permitted_noise_flips_hardly_a_prediction_outside_the_near_tie_width(precision: Precision) -> None:
    draw = np.random.default_rng(0)
    b = draw.normal(size=(2000, 20))
    tolerance = TABLE[precision]
    width = near_tie_width(tolerance, b)
    # Noise that just uses up the tighter of the two limits.
    scale = math.inf
    if tolerance.centered_cosine is not None:
        scale = math.sqrt(1 - tolerance.centered_cosine**2)
    if tolerance.relative_error is not None:
        scale = min(scale, tolerance.relative_error)
    found = Metrics.of(b, b + scale * draw.normal(size=b.shape), near_tie=width).result()
    # Two standard deviations of a difference leave a few; the agreement limit leaves 1 %.
    assert found.images - found.top1 - found.near_tie_flips <= 0.004 * found.images
    assert width < np.median(np.diff(np.sort(b, axis=1)[:, -2:], axis=1)) * 2


def test_the_near_tie_width_is_in_logits_and_ignores_what_all_images_share() -> None:
    b = np.random.default_rng(0).normal(size=(50, 10))
    tolerance = Tolerance(centered_cosine=0.99)
    width = near_tie_width(tolerance, b)
    assert near_tie_width(tolerance, 7 * b) == pytest.approx(7 * width)
    assert near_tie_width(tolerance, b + 100 * np.arange(10)) == pytest.approx(width)


def test_without_a_limit_on_errors_nothing_is_a_near_tie() -> None:
    assert near_tie_width(Tolerance(top1_agreement=0.99), np.eye(3)) == 0


# Limits in place of a file


def test_limits_may_be_given_as_a_mapping_or_as_objects_and_mean_what_a_file_means() -> None:
    file = parse_overrides(b'{"fp16": {"centered_cosine": 0.9995, "top1_agreement": null}}')
    assert checked_overrides({"fp16": {"centered_cosine": 0.9995, "top1_agreement": None}}) == file
    assert (
        checked_overrides({"fp16": {"centered_cosine": np.float64(0.9995), "top1_agreement": None}}) == file
    )
    assert checked_overrides(file) == file
    assert (
        checked_overrides({Precision.FP16: Override(relative_error=1.0)})[Precision.FP16].relative_error == 1
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fp8": {}}, "fp8"),
        ({"fp16": {"cosine": 0.9}}, "cosine"),
        ({"fp16": {"relative_error": -5}}, ">= 0"),
        ({"fp16": {"relative_error": math.nan}}, ">= 0"),
        ({"fp16": {"relative_error": math.inf}}, "out of range"),
        ({"fp16": {"top1_agreement": 99}}, "<= 1"),
        ({"fp16": {"top1_agreement": "0.9"}}, "got `str`"),
        ({"fp16": 0.9}, "got `float`"),
        ({Precision.FP16: Override(relative_error=-5)}, ">= 0"),
        ({"fp8": Override()}, "fp8"),
        ({"fp16": {"relative_error": 1j}}, "of type complex"),
        ([], "got `array`"),
    ],
    ids=str,
)
def test_limits_in_place_of_a_file_are_refused_in_its_words(given: Any, said: str) -> None:
    with pytest.raises(
        RequestError, match=r"tolerances is not understood .*; expected a mapping that maps fp32"
    ) as found:
        checked_overrides(given)
    assert said in str(found.value)


@pytest.mark.parametrize(
    "data", [b'{"fp16": {}, "fp16": {}}', b'{"fp16": {"relative_error": 0.1, "relative_\\u0065rror": 0.2}}']
)
def test_a_repeated_key_is_refused_since_the_last_would_win_without_a_word(data: bytes) -> None:
    with pytest.raises(RequestError, match="repeats the key"):
        parse_overrides(data)


# Limits looser than the shipped ones


@pytest.mark.parametrize(("untrained", "layers_in_series"), [(False, 18), (True, 18), (True, 152)])
def test_the_shipped_limits_and_tighter_ones_are_not_remarked_on(
    untrained: bool, layers_in_series: int
) -> None:
    shipped = Tolerances.shipped(untrained=untrained, layers_in_series=layers_in_series)
    assert remarks(shipped, shipped.by_name()) == ()
    assert remarks(shipped, {}) == ()
    tight = parse_overrides(b'{"int8": {"relative_error": 0, "centered_cosine": 1, "top1_agreement": 1}}')
    assert remarks(shipped, shipped.by_name(), tight) == ()


def test_a_limit_that_is_looser_or_missing_is_named_with_who_loosened_it() -> None:
    bundle = SHIPPED.by_name()
    (said,) = remarks(SHIPPED, {**bundle, "fp32": Tolerance()})
    assert said == (
        "limits are looser than the shipped ones, by the bundle: fp32 relative error not checked in place of 0.0001, "
        "fp32 centered cosine similarity not checked in place of 0.9999999, fp32 top-1 agreement not checked in place "
        "of 99 %"
    )
    user = parse_overrides(b'{"fp32": {"relative_error": 0.5}, "int8": {"top1_agreement": null}}')
    assert remarks(SHIPPED, bundle, user) == (
        "limits are looser than the shipped ones, by --tolerance: fp32 relative error 0.5 in place of 0.0001, "
        "int8 top-1 agreement not checked in place of 95 %",
    )
    assert len(remarks(SHIPPED, {**bundle, "fp16": Tolerance()}, user)) == 2


def test_a_user_who_tightens_what_the_bundle_loosened_is_told_nothing() -> None:
    loose = {**SHIPPED.by_name(), "fp16": msgspec.structs.replace(TABLE[Precision.FP16], relative_error=9.0)}
    assert len(remarks(SHIPPED, loose)) == 1
    assert remarks(SHIPPED, loose, parse_overrides(b'{"fp16": {"relative_error": 0.01}}')) == ()


def test_an_untrained_row_is_looser_than_a_trained_networks() -> None:
    shallow, *_, deep = UNTRAINED
    assert len(remarks(SHIPPED, shallow.by_name())) == 1
    assert len(remarks(shallow, deep.by_name())) == 1
