"""The histogram against counting by hand, and its independence of batches, order and shares."""

from __future__ import annotations

import struct
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from resnet_export.calibration.observe.histogram import (
    BINS,
    NEGATIVE,
    Observer,
    TensorStats,
    bin_edges,
    by_sign,
    observe,
)

float32s = arrays.arrays(
    np.float32, st.integers(0, 40), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)


def counted_by_hand(values: NDArray[np.float32]) -> Counter[int]:
    return Counter(struct.unpack(">H", struct.pack(">f", float(value))[:2])[0] for value in values.ravel())


@settings(deadline=None)
@given(float32s)
def test_a_bin_counts_the_values_that_share_their_upper_sixteen_bits(values: NDArray[np.float32]) -> None:
    stats = observe(values)
    assert {int(bin): int(stats.counts[bin]) for bin in np.flatnonzero(stats.counts)} == counted_by_hand(
        values
    )
    assert stats.count == values.size


@settings(deadline=None)
@given(float32s)
def test_least_and_greatest_value_are_exact(values: NDArray[np.float32]) -> None:
    stats = observe(values)
    assert stats.low == min(values.tolist(), default=np.inf)
    assert stats.high == max(values.tolist(), default=-np.inf)


@settings(deadline=None)
@given(float32s, st.data())
def test_two_parts_merge_into_the_whole_in_either_order(
    values: NDArray[np.float32], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(values.size)))
    cut = data.draw(st.integers(0, values.size))
    one, other = (observe(values[np.array(part, int)]) for part in (order[:cut], order[cut:]))
    assert one.merge(other) == observe(values)
    assert other.merge(one) == observe(values)


def test_an_observer_sees_batches_as_it_sees_the_images_one_by_one() -> None:
    batch = np.random.default_rng(0).normal(size=(5, 4, 6, 6)).astype(np.float32)
    whole, single = Observer(), Observer()
    whole.update(batch)
    for image in batch:
        single.update(image)
    assert whole.stats() == single.stats()


def test_values_that_do_not_lie_in_a_row_are_counted_too() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert observe(array.transpose(2, 0, 1)[::2]) == observe(array[:, :, ::2].copy())


def test_what_was_handed_out_does_not_change_with_later_values() -> None:
    observer = Observer()
    observer.update(np.ones(3, np.float32))
    before = observer.stats()
    observer.update(np.ones(3, np.float32))
    assert before.count == 3


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, -np.nan])
def test_what_is_not_finite_is_counted_as_such(bad: float) -> None:
    stats = observe(np.array([1.0, bad, -2.0, 0.0], np.float32))
    assert stats.nonfinite == 1
    assert observe(np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max], np.float32)).nonfinite == 0


def test_a_nan_is_not_lost_among_later_numbers() -> None:
    stats = observe(np.array([np.nan], np.float32)).merge(observe(np.array([1.0], np.float32)))
    assert np.isnan(stats.low)
    assert np.isnan(stats.high)


def test_statistics_of_different_values_differ() -> None:
    assert observe(np.array([1.0], np.float32)) != observe(np.array([1.001], np.float32))
    assert observe(np.array([1.0], np.float32)) != observe(np.array([2.0], np.float32))
    assert observe(np.array([1.0], np.float32)) != "one"


def test_other_types_are_refused_because_their_bits_mean_something_else() -> None:
    with pytest.raises(TypeError, match="float64"):
        observe(np.zeros(3))  # type: ignore[arg-type]


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    image = np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    observer = Observer()
    observer.update(image)
    tracemalloc.start()
    try:
        observer.update(image)
        _, once = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(50):
            observer.update(image)
        excluded, often = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert often < once * 1.05 + 10_000
    assert excluded < 10_000


def test_every_magnitude_lies_between_the_edges_of_its_bin() -> None:
    edges = bin_edges()
    assert len(edges) == 32641
    assert np.all(np.diff(edges) > 0)
    for value in (1e-38, 0.3, 1.0, 1.0078125, 255.99, 3e38):
        (bin,) = np.flatnonzero(observe(np.array([value], np.float32)).counts)
        assert edges[bin] <= np.float32(value) < edges[bin + 1]


def test_the_sides_of_zero_are_told_apart_and_both_zeros_are_not() -> None:
    positive, negative = by_sign(observe(np.array([0.0, -0.0, 2.0, -2.0, -3.0], np.float32)))
    assert (positive.sum(), negative.sum()) == (3, 2)
    assert (positive[0], negative[0]) == (2, 0)


def test_nothing_seen_is_neutral() -> None:
    nothing = TensorStats(np.zeros(BINS, np.int64), np.inf, -np.inf)
    some = observe(np.array([-1.0, 5.0], np.float32))
    assert nothing.merge(some) == some
    assert Observer().stats() == nothing
    assert nothing.counts[NEGATIVE] == 0
