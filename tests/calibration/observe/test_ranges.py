"""Each method against an oracle that works on the values themselves instead of their histogram."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from scipy.stats import entropy as kullback_leibler

from resnet_export.calibration.observe.entropy import BINS, divergences, even_bins, least_divergence
from resnet_export.calibration.observe.histogram import Observer, TensorStats, by_sign, observe
from resnet_export.calibration.observe.methods import METHODS, Method
from resnet_export.calibration.observe.ranges import PERCENTILE, Range, find_range, percentile
from resnet_export.calibration.quantize.grid import affine_grid, symmetric_grid
from resnet_export.runtime.errors import RequestError
from tests.grids import round_trip

Values = NDArray[np.float32]
RNG = np.random.default_rng(0)

SAMPLES: dict[str, Values] = {
    "relu": np.maximum(RNG.normal(size=200_000), 0).astype(np.float32),
    "normal": RNG.normal(size=200_000).astype(np.float32),
    "shifted": (RNG.normal(size=200_000) + 1.5).astype(np.float32),
    "heavy": RNG.standard_t(3, size=200_000).astype(np.float32),
    "negative": -np.abs(RNG.normal(size=50_000)).astype(np.float32),
}

every_method = pytest.mark.parametrize("method", METHODS)
every_sample = pytest.mark.parametrize("name", SAMPLES)


@every_method
@settings(max_examples=40, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        st.integers(1, 50),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_a_range_holds_zero_and_nothing_that_was_not_seen(method: Method, values: Values) -> None:
    found = find_range(observe(values), method)
    assert min(0.0, values.min()) <= found.low <= 0.0 <= found.high <= max(0.0, values.max())
    assert 0.0 <= found.amax <= np.abs(values).max()
    for grid in (symmetric_grid(found), affine_grid(found)):
        assert 0 < grid.scale < np.inf
        assert np.isfinite(round_trip(grid, values)).all()


@every_sample
def test_minmax_is_exact(name: str) -> None:
    values = SAMPLES[name]
    assert find_range(observe(values), "minmax") == Range(
        amax=pytest.approx(np.abs(values).max(), rel=1e-7),
        low=pytest.approx(min(values.min(), 0), rel=1e-7),
        high=pytest.approx(max(values.max(), 0), rel=1e-7),
    )


@every_sample
@pytest.mark.parametrize("percent", [99.0, 99.9, PERCENTILE])
def test_a_percentile_is_that_of_the_sorted_values_within_a_bin(name: str, percent: float) -> None:
    values = SAMPLES[name]
    found = percentile(observe(values), percent)

    beyond = round((1 - percent / 100) * len(values))

    for got, magnitudes in (
        (found.amax, np.abs(values)),
        (-found.low, -values[values < 0]),
        (found.high, values[values > 0]),
    ):
        if beyond >= len(magnitudes):
            assert got == 0.0
        else:
            # Between two neighbors in the order, but for the width of a bin, which is at most 1/128.
            ordered = np.sort(magnitudes)[::-1]
            assert ordered[beyond] * (1 - 1 / 128) <= got <= ordered[beyond - 1] * (1 + 1 / 128)


@every_sample
def test_no_clip_on_a_fine_ladder_has_a_smaller_error_than_the_mse_range(name: str) -> None:
    values = SAMPLES[name]
    found = find_range(observe(values), "mse")
    limits = find_range(observe(values), "minmax")
    shares = np.linspace(0.1, 1, 91)

    def error(grid_range: Range, *, signed: bool) -> float:
        grid = (symmetric_grid if signed else affine_grid)(grid_range)
        return float(np.square(round_trip(grid, values).astype(np.float64) - values).mean())

    symmetric = min(
        error(Range(amax=limits.amax * share, low=0.0, high=0.0), signed=True) for share in shares
    )
    assert error(found, signed=True) <= symmetric * 1.02
    affine = min(
        error(Range(amax=0.0, low=limits.low * low, high=limits.high * high), signed=False)
        for low in (shares[::9] if limits.low else [0.0])
        for high in (shares[::9] if limits.high else [0.0])
    )
    assert error(found, signed=False) <= affine * 1.02


def migacz(bins: NDArray[np.float64], beyond: float, excluded: int, levels: int) -> float:
    """One candidate, step by step as the slides have it."""
    reference = bins[:excluded].copy()
    reference[-1] += beyond + bins[excluded:].sum()
    candidate = np.zeros(excluded)
    level_of = np.arange(excluded) * levels // excluded
    for level in range(levels):
        members = np.flatnonzero((level_of == level) & (bins[:excluded] > 0))
        if len(members):
            candidate[members] = bins[:excluded][level_of == level].sum() / len(members)
    if candidate.sum() == 0:
        return float("inf")
    return float(kullback_leibler(reference, candidate))


@pytest.mark.parametrize("levels", [128, 256])
@pytest.mark.parametrize("name", ["relu", "heavy"])
def test_all_divergences_at_once_are_those_of_the_slides_one_by_one(name: str, levels: int) -> None:
    values = SAMPLES[name]
    positive, negative = by_sign(observe(values))
    bins, beyond = even_bins(positive + negative, float(np.abs(values).max()))
    bins[1500:1600] = 0  # a gap, in which a candidate's last bin is empty
    found = divergences(bins, beyond, levels)
    assert len(found) == BINS - levels + 1
    for excluded in (levels, levels + 1, 777, 1500, 1501, 1555, 1601, BINS):
        assert found[excluded - levels] == pytest.approx(
            migacz(bins, beyond, excluded, levels), rel=1e-9, abs=1e-12
        )


def test_even_bins_count_what_a_histogram_of_the_values_counts() -> None:
    values = SAMPLES["relu"]
    positive, _ = by_sign(observe(values))
    bins, beyond = even_bins(positive, float(values.max()))
    expected, _ = np.histogram(values[values > 0], BINS, (0, values.max()))
    assert beyond == pytest.approx(0, abs=1e-6)
    assert bins.sum() == pytest.approx(expected.sum())
    # Bins share values with their neighbors within 1/128 of the magnitude; blocks of 64 hardly do.
    blocks, blocks_expected = bins.reshape(-1, 64).sum(axis=1), expected.reshape(-1, 64).sum(axis=1)
    assert np.abs(blocks - blocks_expected).max() < 0.005 * expected.sum()


def test_an_outlier_does_not_stretch_the_entropy_range() -> None:
    values = SAMPLES["relu"]
    alone = find_range(observe(values), "entropy")
    beside = find_range(observe(np.append(values, np.float32(1e4))), "entropy")
    assert beside.amax < 2 * alone.amax
    assert beside.high < 2 * alone.high


@pytest.mark.parametrize("value", [1.0, -2.5, 1e-42, 3e38, 0.0])
@every_method
def test_a_constant_tensor_keeps_its_value_and_its_grids_stay_finite(method: Method, value: float) -> None:
    values = np.full(100, value, np.float32)
    found = find_range(observe(values), method)
    if abs(value) > 2.0**-133:
        assert found.amax == pytest.approx(abs(values[0]), rel=0.01)
    assert 0 < affine_grid(found).scale < np.inf
    assert 0 < symmetric_grid(found).scale < np.inf


def test_more_levels_let_the_affine_range_of_a_relu_be_wider() -> None:
    found = find_range(observe(SAMPLES["relu"]), "mse")
    assert found.high > found.amax * 1.03


def test_the_divergence_of_nothing_is_not_searched() -> None:
    counts = np.zeros(32640, np.int64)
    counts[0] = 10
    assert least_divergence(counts, 0.0, 128) == 0.0


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@every_method
def test_a_tensor_that_is_not_finite_is_refused_with_the_count(method: Method, bad: float) -> None:
    stats = observe(np.array([1.0, bad, bad], np.float32))
    with pytest.raises(RequestError, match="2 of 3 values are infinite or NaN"):
        find_range(stats, method)


@every_method
def test_a_tensor_that_was_never_seen_is_refused(method: Method) -> None:
    with pytest.raises(RequestError, match="no value was seen"):
        find_range(Observer().stats(), method)


def by_image(*groups: NDArray[np.float32]) -> TensorStats:
    observer = Observer()
    for values in groups:
        observer.update(values, image=True)
    return observer.stats()


def test_a_few_images_with_huge_activations_do_not_widen_the_range_of_the_others() -> None:
    """A hundred images reach to about 1, ten of them to 54."""
    rng = np.random.default_rng(0)
    tops = np.concatenate([rng.uniform(0.8, 1.2, 91), np.full(9, 54.0)])
    stats = by_image(*(np.array([0, top / 2, top], np.float32) for top in tops))
    assert find_range(stats, "minmax").high == 54
    assert find_range(stats, "mean").high == pytest.approx(tops.mean(), rel=0.004)
    assert find_range(stats, "quantile").high == pytest.approx(np.sort(tops)[89], rel=0.004)


@settings(deadline=None)
@given(
    st.lists(
        arrays.arrays(np.float32, st.integers(1, 6), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 8),
)
# The middle of the greatest value's bin lies beyond the greatest value, and within the least one's magnitude.
@example(
    [np.array([9.953038e29], np.float32), np.array([9.953038e29, -9.953039e29], np.float32)],
    0,
)
def test_ranges_over_images_follow_numpy_and_merge_bit_for_bit_in_any_order(
    groups: list[NDArray[np.float32]], cut: int
) -> None:
    whole = by_image(*groups)
    assert by_image(*groups[cut:]).merge(by_image(*groups[:cut])) == whole
    lows = np.array([min(float(one.min()), 0.0) for one in groups])
    highs = np.array([max(float(one.max()), 0.0) for one in groups])
    tiny = 1e-35  # bins of denormals are wide
    for method, expected in (
        ("mean", (lows.mean(), highs.mean())),
        (
            "quantile",
            (-np.quantile(-lows, 0.9, method="inverted_cdf"), np.quantile(highs, 0.9, method="inverted_cdf")),
        ),
    ):
        found = find_range(whole, cast(Method, method))
        assert (found.low, found.high) == pytest.approx(expected, rel=0.004, abs=tiny)
        assert found.amax == max(-found.low, found.high)
        assert find_range(by_image(*reversed(groups)), cast(Method, method)) == found


@pytest.mark.parametrize("method", ["mean", "quantile"])
def test_values_that_were_not_counted_by_image_are_one_image(method: Method) -> None:
    stats = observe(np.array([-1, 3], np.float32))
    assert find_range(stats, method) == find_range(stats, "minmax")
