"""From figures to verdicts, with few images and with many."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from resnet_export.runtime.parity.criteria.criterion import Criterion, at_least, at_most
from resnet_export.runtime.parity.criteria.table import CRITERIA, Evidence, describe, evaluate
from resnet_export.runtime.parity.measure.comparison import Comparison, compare
from resnet_export.runtime.parity.measure.labels import Labeled
from resnet_export.runtime.parity.measure.metrics import Figures
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.precision import Tolerance


def flipped(images: int, flips: int, margin: float = 1.0, near_tie: float = 0.0) -> Comparison:
    """`images` of two classes, the first `flips` of which the candidate turns round."""
    b = np.tile([margin, 0.0], (images, 1))
    b[1::2] = b[1::2, ::-1]
    a = b.copy()
    a[:flips] = a[:flips, ::-1]
    return compare(b, a, near_tie=near_tie)


def named(criteria: tuple[Criterion, ...], name: str) -> Criterion:
    return next(criterion for criterion in criteria if criterion.name == name)


def labeled(both: int, reference: int, candidate: int, neither: int) -> Labeled:
    """The labeled half of a comparison with these counts."""
    right, wrong = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
    b = [right] * (both + reference) + [wrong] * (candidate + neither)
    a = [right] * both + [wrong] * reference + [right] * candidate + [wrong] * neither
    found = compare(np.array(b), np.array(a), labels=np.zeros(len(b), int)).labeled
    assert found is not None
    return found


def judge(figures: Figures, tolerance: Tolerance, *, untrained: bool = False) -> tuple[Criterion, ...]:
    return evaluate(Evidence(figures=figures, tolerance=tolerance, untrained=untrained))


def one(name: str, **evidence: Any) -> Criterion:
    found = CRITERIA[name](Evidence(**evidence))
    assert found is not None
    return found


def max_drop(found: Labeled, points: float) -> Criterion:
    return one("max_drop", labeled=found, spec=ParitySpec(data="photos", max_drop=points))


def min_agreement(found: Comparison, percent: float) -> Criterion:
    return one("min_agreement", figures=found.figures, spec=ParitySpec(min_agreement=percent))


def accuracy_drop(found: Labeled) -> Criterion:
    return one("accuracy_drop", labeled=found)


def labels_fit(found: Labeled) -> Criterion | None:
    return CRITERIA["labels_fit"](Evidence(labeled=found))


AGREEMENT = Tolerance(top1_agreement=0.99)


@pytest.mark.parametrize(
    ("images", "flips", "passes"),
    # 31 of 32 can come from a true 99 %, 30 cannot; with a thousand images the limit is sharp.
    [
        (32, 0, True),
        (32, 1, True),
        (32, 2, False),
        (1000, 16, True),
        (1000, 17, False),
        (100_000, 1100, False),
    ],
)
def test_agreement_fails_only_when_the_images_rule_the_limit_out(
    images: int, flips: int, passes: bool
) -> None:
    criterion = named(judge(flipped(images, flips).figures, AGREEMENT), "top1_agreement")
    assert criterion.passed is passes
    assert f"{images - flips} of {images} images" in criterion.detail


def test_near_ties_that_flip_are_named_and_count_as_agreement_only_when_told_to() -> None:
    figures = flipped(32, 8, margin=0.01, near_tie=0.02).figures
    strict = named(judge(figures, AGREEMENT), "top1_agreement")
    lenient = named(judge(figures, AGREEMENT, untrained=True), "top1_agreement")
    assert (strict.passed, strict.value) == (False, 0.75)
    assert (lenient.passed, lenient.value) == (True, 1.0)
    assert "24 of 32 images, 8 of the others near ties" in strict.detail


def test_each_limit_that_is_set_is_one_criterion_and_the_finite_check_always_is() -> None:
    figures = flipped(10, 0).figures
    assert [c.name for c in judge(figures, Tolerance())] == ["finite"]
    full = Tolerance(relative_error=1.0, centered_cosine=0.5, top1_agreement=0.5)
    assert [c.name for c in judge(figures, full)] == [
        "finite",
        "relative_error",
        "centered_cosine",
        "top1_agreement",
    ]


IMAGES = Tolerance(
    relative_error=0.1,
    centered_cosine=0.99,
    median_error=0.1,
    p90_error=0.2,
    p90_divergence=0.05,
    far_images=0.05,
)


def handful(images: int, lost: int, error: float = 0.01) -> Figures:
    """Two images of the handful that owns the energy, `lost` that keep nothing of their logits."""
    b = np.random.default_rng(0).normal(size=(images, 10))
    b[:2] *= 100
    a = b * (1 + error)
    a[:lost] = 0
    return compare(b, a).figures


def test_where_a_handful_of_images_owns_the_energy_single_images_decide_in_place_of_what_is_pooled() -> None:
    even = judge(flipped(10, 0).figures, IMAGES)
    assert [c.name for c in even] == ["finite", "relative_error", "centered_cosine"]
    uneven = judge(handful(100, 2), IMAGES)
    names = ["finite", "median_error", "p90_error", "p90_divergence", "far_images"]
    assert [c.name for c in uneven] == names
    assert all(c.passed for c in uneven)
    assert "a handful of images owns the energy" in uneven[1].detail


def test_without_limits_on_single_images_the_pooled_figures_decide_everywhere() -> None:
    pooled = msgspec.structs.replace(IMAGES, median_error=None)
    failed = [c.name for c in judge(handful(100, 2), pooled) if not c.passed]
    assert failed == ["relative_error", "centered_cosine"]


@pytest.mark.parametrize(
    ("images", "lost", "broken"),
    [
        (1000, 20, set()),  # 2 %
        (1000, 80, {"far_images"}),  # 8 %: more than a handful, though 90 % stay within the other limits
        (20, 2, set()),  # 10 % of 20 can come from 5 %
        (20, 8, {"p90_error", "far_images"}),
    ],
)
def test_a_handful_may_be_lost_and_more_may_not(images: int, lost: int, broken: set[str]) -> None:
    found = judge(handful(images, lost), msgspec.structs.replace(IMAGES, p90_divergence=None))
    assert {c.name for c in found if not c.passed} == broken


def test_an_error_that_all_images_have_fails_the_median() -> None:
    failed = {c.name for c in judge(handful(100, 0, error=0.15), IMAGES) if not c.passed}
    assert failed == {"median_error"}


def test_nan_fails_even_where_every_other_limit_holds() -> None:
    b = np.eye(4)
    a = b.copy()
    a[2, 2] = np.nan
    criteria = judge(compare(b, a).figures, Tolerance(relative_error=1.0, centered_cosine=0.0))
    assert [c.passed for c in criteria] == [False, True, True]


def test_a_figure_that_is_undefined_fails_its_limit() -> None:
    constant = compare(np.ones((5, 3)), np.ones((5, 3))).figures
    criterion = named(judge(constant, Tolerance(centered_cosine=0.9)), "centered_cosine")
    assert (criterion.passed, criterion.value) == (False, None)
    assert "the reference gives every image the same logits" in criterion.detail
    nothing = compare(np.eye(3), np.full((3, 3), np.nan)).figures
    assert not any(c.passed for c in judge(nothing, Tolerance(relative_error=1.0, centered_cosine=-1.0)))


@pytest.mark.parametrize(
    ("value", "most", "least"),
    [(1.0, True, True), (0.5, True, False), (2.0, False, True), (None, False, False)],
)
def test_a_value_at_the_limit_passes_on_both_sides(value: float | None, most: bool, least: bool) -> None:
    assert at_most("x", value, 1.0).passed is most
    assert at_least("x", value, 1.0).passed is least


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_no_limit_holds_for_what_is_not_finite(value: float) -> None:
    assert not at_most("x", value, 1e300).passed
    assert not at_least("x", value, -1e300).passed


def test_the_users_agreement_is_taken_at_its_word() -> None:
    assert min_agreement(flipped(100, 1), 99.0).passed
    assert not min_agreement(flipped(100, 2), 99.0).passed
    assert not min_agreement(flipped(100, 2, margin=0.01, near_tie=1.0), 99.0).passed


def test_the_users_drop_is_judged_by_what_was_observed() -> None:
    assert max_drop(labeled(9700, 100, 50, 150), 0.5).passed
    criterion = max_drop(labeled(9600, 200, 50, 150), 0.5)
    assert not criterion.passed
    assert criterion.value == pytest.approx(1.5)
    assert "98.00 % to 96.50 % on 10000 images" in criterion.detail


def test_without_a_limit_of_the_users_a_drop_fails_only_beyond_doubt() -> None:
    doubtful, certain = accuracy_drop(labeled(190, 6, 1, 3)), accuracy_drop(labeled(9500, 300, 50, 150))
    assert doubtful.value == certain.value == pytest.approx(2.5)
    assert (doubtful.passed, certain.passed) == (True, False)


def test_a_drop_that_the_images_resolve_says_nothing_about_their_number() -> None:
    for criterion in (max_drop(labeled(9900, 5, 5, 90), 0.5), max_drop(labeled(9000, 500, 50, 450), 0.5)):
        assert "too few" not in criterion.detail
        assert "too close" not in criterion.detail


def test_too_few_images_are_said_to_be_too_few_and_how_many_would_do() -> None:
    criterion = max_drop(labeled(30, 0, 0, 2), 0.5)
    assert criterion.passed
    assert "32 images are too few to resolve 0.5 points (about " in criterion.detail
    assert int(criterion.detail.split("about ")[1].split()[0]) > 1000


def test_a_strict_check_fails_what_the_images_cannot_tell_and_says_how_many_could() -> None:
    spec = ParitySpec(data="photos", max_drop=0.5, strict=True)
    doubtful = one("max_drop", labeled=labeled(30, 0, 0, 2), spec=spec)
    assert not doubtful.passed
    assert describe(doubtful).startswith("32 images are too few to resolve 0.5 points (about ")
    assert one("max_drop", labeled=labeled(9900, 5, 5, 90), spec=spec).passed
    lost = one("max_drop", labeled=labeled(9000, 500, 50, 450), spec=spec)
    assert describe(lost) == "accuracy drop 4.5 points, expected ≤ 0.5 points"


def test_a_drop_right_at_the_limit_is_said_to_be_close_even_with_many_images() -> None:
    assert "too close to 1 points for 50000 images" in max_drop(labeled(48_000, 1000, 500, 500), 1.0).detail


def test_a_limit_of_zero_is_never_resolved_by_equal_results() -> None:
    criterion = max_drop(labeled(1000, 0, 0, 0), 0.0)
    assert criterion.passed
    assert "nothing at all is lost" in criterion.detail


def test_labels_of_other_classes_fail_although_nothing_was_lost() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 10, 500)
    b = np.eye(10)[labels] + 0.1 * draw.normal(size=(500, 10))
    right, shifted = (compare(b, b, labels=given).labeled for given in (labels, (labels + 1) % 10))
    assert right is not None
    assert shifted is not None
    good, bad = labels_fit(right), labels_fit(shifted)
    assert good is not None
    assert good.passed
    assert bad is not None
    assert not bad.passed
    assert "the reference's top-1 accuracy is 0.00 % on 500 images" in bad.detail
    assert max_drop(shifted, 0.0).passed


def test_one_class_only_says_nothing_about_the_labels() -> None:
    assert labels_fit(labeled(5, 0, 0, 0)) is None


def test_figures_are_plain_values_that_compare_equal() -> None:
    assert isinstance(flipped(4, 1).figures, Figures)
    assert flipped(4, 1) == flipped(4, 1)
