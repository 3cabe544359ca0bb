"""The figures of a comparison, against oracles that nobody here wrote and against two-pass formulas."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import spatial, special, stats
from sklearn.metrics import top_k_accuracy_score

from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.parity.measure.metrics import Figures, Metrics, predictions, relative_error

Logits = NDArray[np.float32]


def pair(
    images: int, classes: int, noise: float = 0.1, offset: float = 0.0, seed: int = 0
) -> tuple[Logits, Logits]:
    draw = np.random.default_rng(seed)
    reference = draw.normal(size=(images, classes)) + offset * draw.normal(size=classes)
    return reference.astype(np.float32), (reference + noise * draw.normal(size=reference.shape)).astype(
        np.float32
    )


def joined(reference: Logits, candidate: Logits, cuts: list[int], **options: Any) -> Figures:
    """The figures of the same images in batches that end at `cuts`."""
    edges = sorted({0, len(reference), *(cut % len(reference) for cut in cuts)})
    parts = [
        Metrics.of(reference[low:high], candidate[low:high], **options)
        for low, high in itertools.pairwise(edges)
    ]
    return functools.reduce(operator.add, parts).result()


def test_every_error_figure_equals_an_independent_implementation() -> None:
    b, a = pair(50, 20)
    found = Metrics.of(b, a).result()
    x, y = a.astype(np.float64), b.astype(np.float64)
    assert found.max_abs == np.abs(x - y).max()
    assert found.mean_abs == pytest.approx(np.abs(x - y).mean(), rel=1e-12)
    assert found.relative_error == pytest.approx(np.linalg.norm(x - y) / np.linalg.norm(y), rel=1e-12)
    assert found.cosine == pytest.approx(1 - spatial.distance.cosine(x.ravel(), y.ravel()), rel=1e-12)
    mean = y.mean(axis=0)
    centered = 1 - spatial.distance.cosine((x - mean).ravel(), (y - mean).ravel())
    assert found.centered_cosine == pytest.approx(centered, rel=1e-12)
    assert found.snr_db == pytest.approx(10 * math.log10((y**2).sum() / ((x - y) ** 2).sum()), rel=1e-12)
    kl = stats.entropy(special.softmax(y, axis=1), special.softmax(x, axis=1), axis=1)
    assert found.mean_kl == pytest.approx(kl.mean(), rel=1e-9)


def test_agreement_equals_scikit_learns_top_k_accuracy_with_the_reference_as_truth() -> None:
    b, a = pair(400, 12, noise=1.0)
    found = Metrics.of(b, a).result()
    truth, labels = b.argmax(axis=1), np.arange(12)
    assert 0 < found.top1 < found.top5 < 400
    assert found.top1 == top_k_accuracy_score(truth, a, k=1, labels=labels, normalize=False)
    assert found.top5 == top_k_accuracy_score(truth, a, k=5, labels=labels, normalize=False)
    assert found.reference_classes == len(np.unique(truth))
    assert found.candidate_classes == len(np.unique(a.argmax(axis=1)))


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(1, 40),
    classes=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    offset=st.sampled_from([0.0, 1.0, 1e3]),
    cuts=st.lists(st.integers(0, 1000), max_size=6),
)
def test_the_figures_do_not_depend_on_how_the_images_were_batched(
    images: int, classes: int, seed: int, offset: float, cuts: list[int]
) -> None:
    b, a = pair(images, classes, offset=offset, seed=seed)
    whole, parts = Metrics.of(b, a).result(), joined(b, a, cuts)
    figures = [
        {**msgspec.structs.asdict(one), **msgspec.structs.asdict(one.by_image)} for one in (whole, parts)
    ]
    for name, expected in figures[0].items():
        found = figures[1][name]
        if isinstance(expected, float):
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-12), name
        elif name != "by_image":  # whose fields stand beside it
            assert found == expected, name


@settings(max_examples=60, deadline=None)
@given(
    images=st.integers(2, 40),
    classes=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    offset=st.sampled_from([0.0, 10.0, 1e4]),
    batch=st.integers(1, 7),
)
def test_the_streamed_centered_cosine_equals_the_two_pass_one_even_under_a_huge_mean(
    images: int, classes: int, seed: int, offset: float, batch: int
) -> None:
    b, a = pair(images, classes, offset=offset, seed=seed)
    found = joined(b, a, list(range(0, images, batch))).centered_cosine
    mean = b.astype(np.float64).mean(axis=0)
    x, y = a - mean, b - mean
    expected = float((x * y).sum() / math.sqrt(float((x * x).sum()) * float((y * y).sum())))
    assert found == pytest.approx(expected, abs=1e-11)


def test_the_centered_cosine_sees_what_the_plain_one_does_not() -> None:
    draw = np.random.default_rng(0)
    shared = 100 * draw.normal(size=10)
    b = shared + draw.normal(size=(64, 10))
    a = shared + draw.normal(size=(64, 10))  # nothing in common but what is common to all images
    found = Metrics.of(b, a).result()
    assert found.cosine is not None
    assert found.cosine > 0.999
    assert found.centered_cosine is not None
    assert abs(found.centered_cosine) < 0.3


def test_a_constant_shift_of_the_candidate_lowers_the_centered_cosine() -> None:
    b, _ = pair(64, 10)
    found = Metrics.of(b, b + 1).result()
    mean = b.mean(axis=0, dtype=np.float64)
    x, y = b + 1 - mean, b - mean
    assert found.centered_cosine == pytest.approx((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
    assert found.centered_cosine < 0.8


def test_identical_logits_have_no_error_and_no_ratio_to_it() -> None:
    b, _ = pair(10, 4)
    found = Metrics.of(b, b).result()
    assert (found.max_abs, found.mean_abs, found.relative_error, found.mean_kl) == (0, 0, 0, 0)
    assert found.snr_db is None
    assert found.cosine == pytest.approx(1)
    assert found.centered_cosine == pytest.approx(1)
    assert found.top1 == found.top5 == 10


@pytest.mark.parametrize("batches", [1, 3])
def test_a_reference_that_never_varies_has_no_centered_cosine(batches: int) -> None:
    row = np.float32([0.1, 29.3, -7.7])
    b = np.tile(row, (9, 1))
    a = b + np.random.default_rng(0).normal(size=b.shape).astype(np.float32)
    found = joined(b, a, list(range(0, 9, 9 // batches)))
    assert found.centered_cosine is None
    assert found.cosine is not None


def test_the_smallest_difference_that_float32_can_hold_counts_as_variation() -> None:
    b = np.full((10_000, 8), 29.0, np.float32)
    b[0, 0] = np.nextafter(np.float32(29), np.float32(30))
    assert Metrics.of(b, b).result().centered_cosine == pytest.approx(1)


def test_a_reference_of_zeros_has_neither_relative_error_nor_cosine() -> None:
    found = Metrics.of(np.zeros((2, 3)), np.ones((2, 3))).result()
    assert (found.relative_error, found.cosine, found.centered_cosine, found.snr_db) == (None,) * 4
    assert found.max_abs == 1


def test_of_equal_winners_in_the_reference_either_is_right() -> None:
    b = np.float32([[1, 1, 0]] * 3)
    a = np.float32([[2, 0, 0], [0, 2, 0], [0, 0, 2]])
    found = Metrics.of(b, a).result()
    assert found.top1 == 2
    assert predictions(b, a).flipped.tolist() == [False, False, True]


def test_equal_logits_of_the_candidate_fall_to_the_lower_class_as_argmax_has_it() -> None:
    b = np.float32([[1, 0, 0], [0, 1, 0]])
    a = np.zeros((2, 3), np.float32)
    assert Metrics.of(b, a).result().top1 == 1


def test_a_candidate_that_says_the_same_of_everything_does_not_agree() -> None:
    b, _ = pair(300, 10)
    found = Metrics.of(b, np.zeros_like(b)).result()
    assert found.top1 == (b.argmax(axis=1) == 0).sum()
    assert found.candidate_classes == 1
    assert found.centered_cosine is not None
    assert abs(found.centered_cosine) < 0.2


def test_fifth_place_counts_for_the_top_five_and_sixth_does_not() -> None:
    b = np.zeros((2, 8), np.float32)
    b[:, 7] = 1
    a = np.float32([[5, 4, 3, 2, 0, 0, 0, 1], [5, 4, 3, 2, 1.5, 0, 0, 1]])
    assert predictions(b, a).rank.tolist() == [4, 5]
    assert Metrics.of(b, a).result().top5 == 1


def test_with_at_most_five_classes_every_finite_image_is_in_the_top_five() -> None:
    b, a = pair(20, 3, noise=5)
    a[4] = np.nan
    assert Metrics.of(b, a).result().top5 == 19


def test_the_margin_is_what_the_reference_lost_and_decides_about_near_ties() -> None:
    b = np.float32([[1.0, 0.75], [3.0, 0.0], [1.0, 0.0]])
    a = np.float32([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    assert predictions(b, a).margin.tolist() == [0.25, 3.0, 0.0]
    found = Metrics.of(b, a, near_tie=0.25).result()
    assert (found.top1, found.near_tie_flips) == (1, 1)
    assert Metrics.of(b, a).result().near_tie_flips == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_images_with_non_finite_logits_are_counted_disagree_and_spoil_no_other_figure(bad: float) -> None:
    b, a = pair(12, 6)
    clean = Metrics.of(b[1:], a[1:]).result()
    a[0, 3] = bad
    found = Metrics.of(b, a).result()
    assert found.non_finite == 1
    assert found.images == 12
    assert found.relative_error == clean.relative_error
    assert found.centered_cosine == clean.centered_cosine
    assert found.mean_kl == clean.mean_kl
    assert (found.top1, found.near_tie_flips) == (clean.top1, 0)
    assert predictions(b, a).candidate[0] == -1


def test_a_batch_without_a_finite_image_leaves_the_others_alone() -> None:
    b, a = pair(8, 6)
    clean = Metrics.of(b[:4], a[:4])
    a[4:] = np.nan
    both = Metrics.of(b[4:], a[4:]) + clean
    assert both.result().relative_error == clean.result().relative_error
    assert both.result().non_finite == 4


def test_without_any_finite_image_every_error_is_undefined() -> None:
    b, a = pair(3, 4)
    found = Metrics.of(b, np.full_like(a, np.nan)).result()
    errors = ("max_abs", "mean_abs", "relative_error", "cosine", "centered_cosine", "snr_db", "mean_kl")
    assert all(getattr(found, name) is None for name in errors)
    assert (found.non_finite, found.top1, found.top5) == (3, 0, 0)


def test_the_largest_float32_logits_overflow_nothing() -> None:
    huge = np.finfo(np.float32).max
    b = np.float32([[huge, -huge], [-huge, huge]])
    found = Metrics.of(b, -b).result()
    assert found.relative_error == pytest.approx(2)
    assert found.centered_cosine == pytest.approx(-1)
    assert found.mean_kl is not None
    assert math.isfinite(found.mean_kl)


@pytest.mark.parametrize(
    ("reference", "candidate", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), "same images over the same classes"),
        (np.zeros((2, 3)), np.zeros((3, 3)), "same images over the same classes"),
        (np.zeros(3), np.zeros(3), r"expected \[images, classes\]"),
        (np.zeros((0, 3)), np.zeros((0, 3)), "not empty"),
        (np.full((1, 3), np.nan), np.zeros((1, 3)), "must be finite"),
    ],
)
def test_logits_that_cannot_be_compared_are_refused(
    reference: NDArray[np.float64], candidate: NDArray[np.float64], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        Metrics.of(reference, candidate)


def test_metrics_of_different_models_are_not_joined() -> None:
    with pytest.raises(RequestError, match="3 and over 4 classes"):
        Metrics.of(*pair(2, 3)) + Metrics.of(*pair(2, 4))


@pytest.mark.parametrize(
    ("candidate", "reference", "error"),
    [
        ([[3.0, 4.0]], [[3.0, 4.0]], 0.0),
        ([[0.0, 0.0]], [[0.0, 0.0]], 0.0),
        ([[0.0, 1.0]], [[0.0, 0.0]], None),
        ([[3.0, 4.5]], [[3.0, 4.0]], 0.1),
        ([[np.nan, 4.0]], [[3.0, 4.0]], None),
        ([[3.0, 4.0]], [[np.inf, 4.0]], None),
    ],
)
def test_a_relative_error_is_zero_for_equal_arrays_and_none_where_it_is_undefined(
    candidate: list[list[float]], reference: list[list[float]], error: float | None
) -> None:
    assert relative_error(candidate, reference) == (None if error is None else pytest.approx(error))
