"""Work in threads comes out in order, takes no more than it needs, and fails where it failed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_export.calibration.observe.in_threads import in_threads


@given(st.lists(st.integers(), max_size=40), st.integers(1, 5))
def test_results_come_in_the_order_of_the_items(items: list[int], threads: int) -> None:
    assert list(in_threads(lambda item: 2 * item, items, threads)) == [2 * item for item in items]


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_items_are_taken_than_are_worked_on_and_one(threads: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = in_threads(lambda item: item, items(), threads)
    assert next(results) == 0
    assert len(taken) == threads + 1
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == threads + 1


def test_an_error_is_raised_in_its_place() -> None:
    results = in_threads(lambda item: 6 // item, [1, 2, 0, 3], 2)
    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
