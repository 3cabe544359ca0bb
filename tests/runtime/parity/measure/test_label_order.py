"""Labels that stand for each other are found, and a network that is merely weak is not taken for them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_export.runtime.parity.criteria.criterion import Criterion
from resnet_export.runtime.parity.criteria.table import CRITERIA, Evidence, describe
from resnet_export.runtime.parity.measure.comparison import Tally
from resnet_export.runtime.parity.measure.label_order import exchanged
from resnet_export.runtime.parity.measure.labels import Labeled


def pairs(labels: np.ndarray, predicted: np.ndarray) -> Counter[tuple[int, int]]:
    return Counter(zip(labels.tolist(), predicted.tolist(), strict=True))


def classes(count: int, each: int = 20) -> np.ndarray:
    return np.repeat(np.arange(count), each)


@given(st.permutations(range(8)), st.floats(0.7, 1.0), st.integers(0, 10))
def test_any_permutation_of_the_labels_is_found_whole(order: list[int], accuracy: float, seed: int) -> None:
    truth = classes(8)
    draw = np.random.default_rng(seed)
    predicted = np.where(draw.random(len(truth)) < accuracy, truth, draw.integers(0, 8, len(truth)))
    found = exchanged(pairs(np.array(order)[truth], predicted))
    moved = {label for label in range(8) if order[label] != label}
    assert {label for cycle in found for label in cycle} == moved
    for cycle in found:
        assert cycle[0] == min(cycle)
        assert all(order[after] == label for label, after in zip(cycle, (*cycle[1:], cycle[0]), strict=True))


@given(st.floats(0.0, 1.0), st.integers(0, 1000))
def test_a_network_that_confuses_a_class_with_another_is_not_taken_for_exchanged_labels(
    share: float, seed: int
) -> None:
    truth = classes(5, 200)
    draw = np.random.default_rng(seed)
    predicted = np.where((truth == 3) & (draw.random(len(truth)) < share), 4, truth)
    assert exchanged(pairs(truth, predicted)) == ()


@pytest.mark.parametrize("seed", range(5))
def test_a_network_that_guesses_is_not_taken_for_exchanged_labels(seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth = classes(50, 4)
    assert exchanged(pairs(truth, draw.integers(0, 50, len(truth)))) == ()


def test_a_few_images_do_not_accuse() -> None:
    assert exchanged({(0, 1): 1, (1, 0): 1, (2, 2): 9}) == ()
    assert exchanged({(0, 1): 6, (1, 0): 6, (2, 2): 9}) == ((0, 1),)


def labels_order(labeled: Labeled | None, names: tuple[str, ...] = ()) -> Criterion:
    found = CRITERIA["labels_order"](Evidence(labeled=labeled, class_names=names))
    assert found is not None
    return found


def test_two_exchanged_classes_fail_a_criterion_of_their_own_that_names_them() -> None:
    truth = classes(6)
    logits = np.eye(6, dtype=np.float32)[truth]
    table = np.array([0, 4, 2, 3, 1, 5])
    halves = [slice(0, 50), slice(50, None)]
    good = sum_of(Tally.of(logits[half], logits[half], truth[half]) for half in halves)
    bad = sum_of(Tally.of(logits[half], logits[half], table[truth][half]) for half in halves)
    right, wrong = (labels_order(one.comparison().labeled) for one in (good, bad))
    assert right.passed
    assert (wrong.passed, wrong.value) == (False, 2)
    assert describe(wrong) == "the labels of 2 classes are exchanged (1 → 4 → 1), expected 0"
    assert "rename the folders" in wrong.detail
    named = labels_order(bad.comparison().labeled, ("zero", "one", "two", "three", "four", "five"))
    assert "(one → four → one)" in describe(named)


def sum_of(parts: object) -> Tally:
    first, *others = parts  # type: ignore[misc]
    for other in others:
        first = first + other
    assert isinstance(first, Tally)
    return first
