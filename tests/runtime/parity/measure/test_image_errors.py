"""What single images lose: quantiles that add up, and a handful of images that is seen and does not decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_export.runtime.parity.measure.comparison import compare, compare_all
from resnet_export.runtime.parity.measure.image_errors import Sketch, image_errors, usual
from resnet_export.runtime.parity.measure.metrics import Metrics
from tests.runtime.parity.measure.test_comparison import rows

sizes = st.lists(st.just(0.0) | st.floats(1e-30, 1e30), min_size=1, max_size=60)


@given(sizes, st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_a_quantile_is_the_least_value_that_so_many_stay_within(values: list[float], share: float) -> None:
    found = Sketch.of(np.array(values)).within(share)
    expected = float(np.quantile(values, share, method="inverted_cdf"))
    assert found == pytest.approx(expected, rel=0.004, abs=1e-37)


@given(sizes, st.integers(0, 60))
def test_parts_add_up_to_the_whole(values: list[float], cut: int) -> None:
    whole = Sketch.of(np.array(values))
    joined = Sketch.of(np.array(values[:cut])) + Sketch.of(np.array(values[cut:]))
    assert np.array_equal(whole.bins, joined.bins)
    assert np.array_equal(whole.counts, joined.counts)


def heavy_tailed(images: int = 200, few: int = 2) -> np.ndarray:
    logits = np.random.default_rng(0).normal(size=(images, 10))
    logits[:few] *= 40
    return logits


def test_a_handful_of_images_owns_what_is_pooled_and_not_what_is_counted_by_image() -> None:
    b = heavy_tailed()
    noise = np.random.default_rng(1).normal(size=b.shape)
    clipped, coarse = b + 0.01 * noise, b + 0.1 * noise
    clipped[:2] *= 0.1  # wrong where b is huge, near everywhere else
    one, other = (Metrics.of(b, a).result() for a in (clipped, coarse))
    assert one.snr_db is not None
    assert other.snr_db is not None
    assert one.snr_db < other.snr_db
    assert one.by_image.noise < other.by_image.noise / 50
    assert one.by_image.far == 2
    assert not one.by_image.even
    assert Metrics.of(b[2:], coarse[2:]).result().by_image.even


def test_usual_images_are_all_unless_a_handful_owns_the_energy() -> None:
    b = heavy_tailed()
    assert list(np.flatnonzero(~usual(b))) == [0, 1]
    assert usual(b[2:]).all()
    assert usual(np.zeros((3, 4))).all()


def test_an_image_without_logits_is_lost_unless_nothing_is_added_to_it() -> None:
    b, a = np.array([[0.0, 0], [0, 0], [3, 4], [1, 0]]), np.array([[0.0, 0], [1, 0], [3, 4], [np.nan, 0]])
    assert list(image_errors(b, a)) == [0, math.inf, 0, math.inf]
    found = Metrics.of(b, a).result().by_image
    assert (found.median_error, found.p90_error, found.far) == (0, None, 2)
    assert found.noise == pytest.approx(0.5)  # an image that is lost keeps nothing, where most have no error


def test_the_ten_worst_images_are_named_with_their_predictions_however_they_come_in_batches() -> None:
    b = heavy_tailed(60)
    a = b + 1e-3 * np.random.default_rng(1).normal(size=b.shape)
    a[[7, 31, 50]] = -b[[7, 31, 50]]
    a[20] = np.nan
    labels = b.argmax(axis=1)
    names = tuple(f"{index}.jpg" for index in range(60))
    whole = compare(b, a, labels=labels, names=names).worst
    assert [image.index for image in whole[:4]] == [20, 7, 31, 50]
    assert (whole[0].error, whole[0].candidate, whole[1].error) == (None, -1, 2.0)
    assert (whole[1].name, whole[1].label) == ("7.jpg", int(labels[7]))
    assert whole[1].reference != whole[1].candidate == int(b[7].argmin())
    assert len(whole) == 10
    parts = compare_all(lambda part: b[part], {"a": lambda part: a[part]}, rows(b, [7, 13, 40], labels))["a"]
    assert [image.index for image in parts.worst] == [image.index for image in whole]  # type: ignore[union-attr]


@given(sizes)
def test_the_typical_error_is_the_root_mean_square_with_the_tail_counted_at_four_medians(
    values: list[float],
) -> None:
    errors = np.array(values)
    most = 4 * np.quantile(errors, 0.5, method="inverted_cdf") or 1.0
    expected = math.sqrt(np.mean(np.square(np.minimum(errors, most))))
    assert Sketch.of(errors).typical() == pytest.approx(expected, rel=0.01, abs=1e-37)


def test_lost_images_count_at_four_medians_unless_half_of_them_are_lost() -> None:
    assert Sketch.of(np.array([1.0] * 8 + [math.inf] * 2)).typical() == pytest.approx(2, rel=0.004)
    assert Sketch.of(np.array([1.0] + [math.inf] * 2)).typical() is None
