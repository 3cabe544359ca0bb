"""Work ahead keeps the order, holds few items and leaves no thread."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_export.runtime.ahead import chunks, map_ahead

TIMEOUT = 20


def test_results_come_in_order_whichever_is_ready_first() -> None:
    first_may_end = threading.Event()

    def slow_first(item: int) -> int:
        if item == 0:
            assert first_may_end.wait(TIMEOUT)
        if item == 3:
            first_may_end.set()
        return item * item

    with closing(map_ahead(slow_first, range(10), ahead=5, workers=2)) as found:
        assert list(found) == [item * item for item in range(10)]


def test_items_are_taken_only_as_far_ahead_as_was_said() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for item in itertools.count():
            taken.append(item)
            yield item

    with closing(map_ahead(str, endless(), ahead=3, workers=2)) as found:
        for number in range(20):
            assert next(found) == str(number)
            assert len(taken) <= number + 4


@given(st.lists(st.integers(), max_size=40), st.integers(1, 5))
def test_results_come_in_the_order_of_the_items(items: list[int], workers: int) -> None:
    found = map_ahead(lambda item: 2 * item, items, ahead=workers, workers=workers)
    assert list(found) == [2 * item for item in items]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_items_are_taken_than_are_worked_on_and_one(workers: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(100):
            taken.append(item)
            yield item

    results = map_ahead(lambda item: item, items(), ahead=workers, workers=workers)
    assert next(results) == 0
    assert len(taken) == workers + 1
    results.close()
    assert len(taken) == workers + 1


def test_an_error_is_raised_in_its_place_after_the_results_before_it() -> None:
    results = map_ahead(lambda item: 6 // item, [1, 2, 0, 3], ahead=2, workers=2)
    assert [next(results), next(results)] == [6, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_error_is_raised_in_its_turn() -> None:
    found = map_ahead(lambda item: 1 // item, [2, 1, 0, 1], ahead=3, workers=2)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.parametrize("count", [0, 1])
def test_no_thread_is_started_for_a_single_item(count: int) -> None:
    threads = {threading.current_thread()}
    assert (
        list(map_ahead(lambda _: threading.current_thread(), range(count), ahead=3, workers=2))
        == [*threads][:count]
    )


def test_no_thread_is_left_when_the_iterator_is_closed_early() -> None:
    before = threading.active_count()
    found = map_ahead(str, range(100), ahead=8, workers=4)
    next(found)
    assert threading.active_count() > before
    found.close()
    assert threading.active_count() == before


def test_chunks_are_full_but_for_the_last() -> None:
    assert list(chunks(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
