"""Intervals, tests and sample sizes, against scipy, scikit-learn and published worked examples."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm
from sklearn.calibration import calibration_curve
from sklearn.metrics import cohen_kappa_score

from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.measure.statistics import (
    Paired,
    Reliability,
    connor,
    drop_interval,
    images_needed,
    kappa,
    mcnemar,
    wilson,
)

counts = st.tuples(*[st.integers(0, 400)] * 4).filter(any)


@settings(max_examples=200, deadline=None)
@given(images=st.integers(1, 100_000), share=st.floats(0, 1), confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_the_wilson_interval_is_scipys(images: int, share: float, confidence: float) -> None:
    successes = round(share * images)
    found = wilson(successes, images, confidence)
    expected = binomtest(successes, images).proportion_ci(confidence, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= successes / images <= found.high <= 1


@pytest.mark.parametrize(("successes", "images"), [(1, 0), (-1, 5), (6, 5)])
def test_a_count_that_is_no_proportion_is_refused(successes: int, images: int) -> None:
    with pytest.raises(RequestError, match="no proportion"):
        wilson(successes, images)


@settings(max_examples=200, deadline=None)
@example(b=15, c=1060)  # 1.6e-290, where scipy's has underflowed to 0
@given(b=st.integers(0, 3000), c=st.integers(0, 3000))
def test_mcnemars_exact_test_is_scipys_binomial_test_at_one_half(b: int, c: int) -> None:
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    if expected == 0:  # by the definition, in whole numbers
        expected = float(Fraction(2 * sum(comb(b + c, k) for k in range(min(b, c) + 1)), 2 ** (b + c)))
    assert mcnemar(b, c) == pytest.approx(expected, rel=1e-9, abs=1e-290)


def test_mcnemars_test_stays_exact_for_large_data_sets() -> None:
    assert mcnemar(20_000, 20_500) == pytest.approx(binomtest(20_000, 40_500).pvalue, rel=1e-7)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        # Fagerland, Lydersen and Laake, "Statistical Analysis of Contingency Tables" (2017), chapter 8: complete
        # response before and after consolidation therapy; the R package contingencytables prints these figures.
        ((59, 6, 16, 80), -0.1186, -0.0046),
        # Newcombe 1998, Statistics in Medicine 17, 2635-2650, table II, method 10.
        ((36, 12, 2, 0), 0.0569, 0.3404),
    ],
)
def test_the_drop_interval_reproduces_published_examples(
    table: tuple[int, int, int, int], low: float, high: float
) -> None:
    found = drop_interval(Paired(*table))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


@settings(max_examples=200, deadline=None)
@given(table=counts)
def test_the_drop_interval_holds_the_drop_and_turns_round_with_the_sides(
    table: tuple[int, int, int, int],
) -> None:
    both, reference, candidate, neither = table
    found = drop_interval(Paired(both, reference, candidate, neither))
    turned = drop_interval(Paired(both, candidate, reference, neither))
    drop = (reference - candidate) / sum(table)
    assert -1 <= found.low <= drop <= found.high <= 1
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-12)


def test_without_a_discordant_image_the_interval_still_has_a_width() -> None:
    found = drop_interval(Paired(both=980, neither=20))
    assert found.low < -0.001
    assert found.high > 0.001


@pytest.mark.parametrize(
    ("truth", "most"),
    [
        ((0.93, 0.02, 0.01, 0.04), 0.99),
        ((0.60, 0.10, 0.05, 0.25), 0.97),
        # One discordant image or two: the continuity correction makes the interval wide, never narrow.
        ((0.985, 0.002, 0.001, 0.012), 1.0),
    ],
)
def test_the_drop_interval_covers_the_truth_as_often_as_it_says(
    truth: tuple[float, ...], most: float
) -> None:
    draws = np.random.default_rng(0).multinomial(500, truth, size=2000)
    drop = truth[1] - truth[2]
    intervals = [drop_interval(Paired(*map(int, row))) for row in draws]
    covered = np.mean([found.low <= drop <= found.high for found in intervals])
    assert 0.94 <= covered <= most  # 2,000 draws wander by 0.5 points


@pytest.mark.parametrize(
    ("discordant", "difference", "images"),
    [
        # powerandsamplesize.com, McNemar's Z-test, two-sided, after Connor 1987: p01 = 0.45, p10 = 0.05.
        (0.50, 0.40, 23),
        (0.45, 0.15, 155),
    ],
)
def test_the_sample_size_reproduces_published_examples(
    discordant: float, difference: float, images: int
) -> None:
    assert connor(discordant, difference) == images


def test_the_sample_size_has_the_power_that_it_promises() -> None:
    observed = Paired(both=900, reference=20, candidate=20, neither=60)
    drop = 0.01
    needed = images_needed(observed, drop)
    rate = (40 + norm.ppf(0.975) ** 2 / 2) / (1000 + norm.ppf(0.975) ** 2)
    lost, gained = (rate + drop) / 2, (rate - drop) / 2
    draws = np.random.default_rng(0).multinomial(needed, (lost, gained, 1 - rate), size=2000)
    found = np.mean([mcnemar(int(b), int(c)) < 0.05 for b, c, _ in draws])
    assert found == pytest.approx(0.80, abs=0.04)  # the exact test is a little conservative


def test_a_smaller_drop_and_more_discordance_need_more_images() -> None:
    few, many = Paired(both=990, reference=5, candidate=5), Paired(both=900, reference=50, candidate=50)
    assert images_needed(few, 0.01) < images_needed(few, 0.005) < images_needed(many, 0.005)
    assert images_needed(Paired(both=32), 0.005) > 1000


@pytest.mark.parametrize("drop", [0.0, -0.1, 1.5])
def test_no_number_of_images_resolves_a_drop_that_is_none(drop: float) -> None:
    with pytest.raises(RequestError, match="points cannot be resolved"):
        images_needed(Paired(both=10), drop)


@settings(max_examples=50, deadline=None)
@given(images=st.integers(1, 300), seed=st.integers(0, 2**31), parts=st.integers(1, 5))
def test_the_calibration_error_adds_up_bin_by_bin(images: int, seed: int, parts: int) -> None:
    draw = np.random.default_rng(seed)
    confidence, right = draw.uniform(size=images), draw.uniform(size=images) < 0.7
    total = Reliability.of(confidence[:0], right[:0])
    for c, r in zip(np.array_split(confidence, parts), np.array_split(right, parts), strict=True):
        total = total + Reliability.of(c, r)
    # scikit-learn gives accuracy and mean confidence of the bins that are not empty.
    accuracy, mean = calibration_curve(right, confidence, n_bins=15)
    sizes = np.histogram(confidence, np.linspace(0, 1, 16))[0]
    expected = (sizes[sizes > 0] / images * np.abs(accuracy - mean)).sum()
    assert total.ece() == pytest.approx(expected, abs=1e-12)


def test_a_bin_holds_its_upper_end_as_guo_et_al_define_it() -> None:
    bins = Reliability.of(np.array([0.0, 1 / 15, 2 / 15, 1.0]), np.array([True, True, True, False]))
    assert bins.count[[0, 1, 14]].tolist() == [2, 1, 1]


def test_without_images_there_is_no_calibration_error() -> None:
    assert Reliability.of(np.zeros(0), np.zeros(0, bool)).ece() is None


def test_kappa_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 5, 500)
    found = np.where(draw.uniform(size=500) < 0.6, labels, draw.integers(0, 5, 500))
    chance = sum(float((labels == c).mean() * (found == c).mean()) for c in range(5))
    assert kappa(float((labels == found).mean()), chance) == pytest.approx(cohen_kappa_score(labels, found))
