"""Micro-batching, with stand-ins for the network that record what they were given."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future, wait
from typing import Any

import pytest

from resnet_export.runtime.batching import BatchingSpec, MicroBatcher
from resnet_export.runtime.errors import (
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    SessionClosedError,
)
from resnet_export.runtime.request_future import RequestFuture

TIMEOUT = 20


class Doubler:
    """Doubles numbers; remembers the batches; stops in front of each until `go` is set."""

    def __init__(self, *, blocked: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.entered = threading.Event()
        if not blocked:
            self.go.set()

    def __call__(self, items: list[int]) -> list[int]:
        self.entered.set()
        assert self.go.wait(TIMEOUT)
        self.batches.append(items)
        if any(item < 0 for item in items):
            raise ValueError("negative")
        return [2 * item for item in items]


def results(futures: list[Future[int]]) -> list[int]:
    return [future.result(TIMEOUT) for future in futures]


def test_each_future_gets_the_result_of_its_own_item() -> None:
    network = Doubler()
    batcher = MicroBatcher(network, max_batch=4)
    answers: dict[int, int] = {}

    def client(first: int) -> None:
        for item in range(first, first + 50):
            answers[item] = batcher.submit(item).result(TIMEOUT)

    threads = [threading.Thread(target=client, args=(start,)) for start in range(0, 400, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    batcher.close()
    assert answers == {item: 2 * item for item in range(400)}
    assert all(1 <= len(batch) <= 4 for batch in network.batches)
    assert sorted(item for batch in network.batches for item in batch) == list(range(400))


def test_requests_that_wait_together_run_together_in_order() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=4, spec=BatchingSpec(max_delay=0, queue_size=100))
    first = batcher.submit(0)
    assert network.entered.wait(TIMEOUT)
    futures = [batcher.submit(item) for item in range(1, 11)]
    network.go.set()
    assert results([first, *futures]) == [2 * item for item in range(11)]
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]
    batcher.close()


def test_a_full_batch_does_not_wait_for_the_delay() -> None:
    network = Doubler()
    batcher = MicroBatcher(network, max_batch=2, spec=BatchingSpec(max_delay=10 * TIMEOUT))
    assert results([batcher.submit(1), batcher.submit(2)]) == [2, 4]
    batcher.close()


def test_closing_does_not_wait_for_the_delay() -> None:
    network = Doubler()
    batcher = MicroBatcher(network, max_batch=8, spec=BatchingSpec(max_delay=10 * TIMEOUT))
    future = batcher.submit(1)
    batcher.close()
    assert future.result(0) == 2


def test_an_error_reaches_every_future_of_its_batch_and_no_other() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=2, spec=BatchingSpec(max_delay=0, queue_size=100))
    first = batcher.submit(1)
    assert network.entered.wait(TIMEOUT)
    futures = [batcher.submit(item) for item in (2, -1, 3, 4)]
    network.go.set()
    assert first.result(TIMEOUT) == 2
    for future in futures[:2]:
        with pytest.raises(ValueError, match="negative"):
            future.result(TIMEOUT)
    assert results(futures[2:]) == [6, 8]
    batcher.close()


def test_a_network_that_returns_too_few_results_fails_its_futures_and_hangs_none() -> None:
    batcher: MicroBatcher[int, int] = MicroBatcher(
        lambda items: items[1:], max_batch=2, spec=BatchingSpec(max_delay=0)
    )
    with pytest.raises(ValueError, match="gave 0 results"):
        batcher.submit(1).result(TIMEOUT)
    batcher.close()


def test_no_thread_runs_before_the_first_request_and_none_after_closing() -> None:
    before = threading.active_count()
    batcher = MicroBatcher(Doubler(), max_batch=2)
    assert threading.active_count() == before
    batcher.submit(1).result(TIMEOUT)
    assert threading.active_count() == before + 1
    batcher.close()
    assert threading.active_count() == before


def test_closing_completes_what_was_submitted_and_refuses_what_comes_later() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=2, spec=BatchingSpec(queue_size=100))
    futures = [batcher.submit(item) for item in range(7)]
    closers = [threading.Thread(target=batcher.close) for _ in range(2)]
    for closer in closers:
        closer.start()
    network.go.set()
    for closer in closers:
        closer.join(TIMEOUT)
    assert all(future.done() for future in futures)
    assert results(futures) == [2 * item for item in range(7)]
    with pytest.raises(SessionClosedError):
        batcher.submit(7)
    batcher.close()


def test_submitting_blocks_while_the_queue_is_full() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1, spec=BatchingSpec(max_delay=0, queue_size=2))
    futures = [batcher.submit(0)]
    assert network.entered.wait(TIMEOUT)
    futures += [batcher.submit(1), batcher.submit(2)]
    late = threading.Thread(target=lambda: futures.append(batcher.submit(3)))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    network.go.set()
    late.join(TIMEOUT)
    assert results(futures) == [0, 2, 4, 6]
    batcher.close()


def test_a_submission_that_is_blocked_when_the_batcher_closes_is_refused() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1, spec=BatchingSpec(max_delay=0, queue_size=1))
    futures = [batcher.submit(0)]
    assert network.entered.wait(TIMEOUT)
    futures.append(batcher.submit(1))
    refused: list[Exception] = []

    def late() -> None:
        try:
            batcher.submit(2)
        except SessionClosedError as error:
            refused.append(error)

    blocked = threading.Thread(target=late)
    blocked.start()
    blocked.join(0.05)
    closer = threading.Thread(target=batcher.close)
    closer.start()
    blocked.join(TIMEOUT)
    assert len(refused) == 1
    network.go.set()
    closer.join(TIMEOUT)
    assert results(futures) == [0, 2]


def test_a_cancelled_request_never_reaches_the_network() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1, spec=BatchingSpec(max_delay=0, queue_size=10))
    first = batcher.submit(0)
    assert network.entered.wait(TIMEOUT)
    second, third = batcher.submit(1), batcher.submit(2)
    assert second.cancel()
    network.go.set()
    assert results([first, third]) == [0, 4]
    with pytest.raises(CancelledError):
        second.result(0)
    batcher.close()
    assert network.batches == [[0], [2]]


def test_a_lone_client_never_waits_for_company() -> None:
    network = Doubler()
    batcher = MicroBatcher(network, max_batch=8, spec=BatchingSpec(max_delay=10 * TIMEOUT))
    for item in range(5):
        assert batcher.submit(item).result(TIMEOUT) == 2 * item
    batcher.close()
    assert network.batches == [[item] for item in range(5)]


def test_clients_that_come_back_after_a_batch_share_the_next_one() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=8, spec=BatchingSpec(max_delay=10 * TIMEOUT))
    first = batcher.submit(0)
    assert network.entered.wait(TIMEOUT)
    futures = [batcher.submit(item) for item in (1, 2)]
    first.add_done_callback(lambda _: futures.append(batcher.submit(3)))
    network.go.set()
    assert results([first, *futures[:2]]) == [0, 2, 4]
    assert results([batcher.submit(item) for item in (4, 5, 6)]) == [8, 10, 12]
    batcher.close()
    assert network.batches == [[0], [1, 2, 3], [4, 5, 6]]


def test_a_client_that_is_left_alone_waits_no_longer_than_the_delay() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=8, spec=BatchingSpec(max_delay=0.01))
    futures = [batcher.submit(0)]
    assert network.entered.wait(TIMEOUT)
    futures += [batcher.submit(item) for item in (1, 2)]
    network.go.set()
    assert results([*futures, batcher.submit(3)]) == [0, 2, 4, 6]
    batcher.close()


def test_an_error_that_is_returned_for_one_item_concerns_its_future_alone() -> None:
    batcher: MicroBatcher[int, int] = MicroBatcher(
        lambda items: [ValueError(str(item)) if item < 0 else item for item in items], max_batch=8
    )
    futures = [batcher.submit(item) for item in (1, -2, 3)]
    assert [futures[0].result(TIMEOUT), futures[2].result(TIMEOUT)] == [1, 3]
    with pytest.raises(ValueError, match="-2"):
        futures[1].result(TIMEOUT)
    batcher.close()


def test_a_full_queue_that_rejects_says_so_and_takes_requests_again_later() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1, spec=BatchingSpec(queue_size=2, when_full="reject"))
    futures = [batcher.submit(0)]
    assert network.entered.wait(TIMEOUT)
    futures += [batcher.submit(1), batcher.submit(2)]
    with pytest.raises(QueueFullError, match="2 requests are waiting, which is what queue_size allows"):
        batcher.submit(3)
    network.go.set()
    assert results(futures) == [0, 2, 4]
    assert batcher.submit(3).result(TIMEOUT) == 6
    batcher.close()


def test_a_canceled_request_gives_its_place_in_a_full_queue_to_another() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1, spec=BatchingSpec(queue_size=2, when_full="reject"))
    first = batcher.submit(0)
    assert network.entered.wait(TIMEOUT)
    second, third = batcher.submit(1), batcher.submit(2)
    assert second.cancel()
    fourth = batcher.submit(3)
    assert wait([second], TIMEOUT).not_done == set()
    network.go.set()
    assert results([first, third, fourth]) == [0, 4, 6]
    batcher.close()
    assert network.batches == [[0], [2], [3]]


def test_a_request_that_times_out_in_the_queue_never_runs() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1, spec=BatchingSpec(queue_size=10))
    first = batcher.submit(0)
    assert network.entered.wait(TIMEOUT)
    late = batcher.submit(1, RequestFuture(0.01))
    with pytest.raises(RequestTimeoutError, match=r"no result after its timeout of 0.01 s"):
        late.result()
    assert late.done()
    network.go.set()
    batcher.close()
    assert first.result(0) == 0
    assert isinstance(late.exception(), RequestTimeoutError)
    assert network.batches == [[0]]


def test_a_request_that_nobody_waits_for_times_out_as_well() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1, spec=BatchingSpec(queue_size=10))
    batcher.submit(0)
    assert network.entered.wait(TIMEOUT)
    failed: list[BaseException | None] = []
    late = batcher.submit(1, RequestFuture(0.01))
    late.add_done_callback(lambda future: failed.append(future.exception()))
    time.sleep(0.02)
    network.go.set()
    batcher.close()
    assert [type(error) for error in failed] == [RequestTimeoutError]
    assert network.batches == [[0]]


def test_a_request_that_runs_at_its_deadline_releases_who_waits_and_has_its_result_later() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1)
    future = batcher.submit(4, RequestFuture(0.01))
    assert network.entered.wait(TIMEOUT)
    with pytest.raises(RequestTimeoutError):
        future.result()
    with pytest.raises(RequestTimeoutError):
        future.exception()
    network.go.set()
    batcher.close()
    assert future.result() == 8


def test_a_submission_that_finds_no_room_before_its_deadline_times_out() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1, spec=BatchingSpec(queue_size=1))
    futures = [batcher.submit(0)]
    assert network.entered.wait(TIMEOUT)
    futures.append(batcher.submit(1))
    with pytest.raises(RequestTimeoutError):
        batcher.submit(2, RequestFuture(0.01)).result(TIMEOUT)
    network.go.set()
    assert results(futures) == [0, 2]
    batcher.close()


def test_waiting_for_less_than_the_deadline_is_an_ordinary_timeout() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1)
    future = batcher.submit(1, RequestFuture(TIMEOUT))
    with pytest.raises(TimeoutError) as caught:
        future.result(0.01)
    assert not isinstance(caught.value, RequestTimeoutError)
    network.go.set()
    assert future.result() == 2
    batcher.close()


def test_retiring_with_cancellation_runs_nothing_that_has_not_begun() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1)
    first = batcher.submit(0)
    assert network.entered.wait(TIMEOUT)
    others = [batcher.submit(1), batcher.submit(2)]
    batcher.retire(cancel=True)
    network.go.set()
    batcher.close()
    assert first.result(0) == 0
    assert all(future.cancelled() for future in others)
    assert network.batches == [[0]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_batch": 0}, "max_batch is 0, expected a number from 1 on"),
        ({"queue_size": 1.5}, "queue_size is 1.5"),
        ({"max_delay": -1}, "max_delay is -1, expected seconds from 0 on"),
        ({"max_delay": float("nan")}, "max_delay is nan"),
        ({"when_full": "drop"}, "when_full is 'drop', expected 'block' or 'reject'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(RequestError, match=expected):
        BatchingSpec(**settings)


def test_a_callback_may_submit_and_close_without_a_deadlock() -> None:
    network = Doubler(blocked=True)
    batcher = MicroBatcher(network, max_batch=1, spec=BatchingSpec(max_delay=0, queue_size=1))
    inner: list[Future[int]] = []
    closed = threading.Event()

    def callback(_: Future[int]) -> None:
        inner.extend(batcher.submit(item) for item in (10, 11))
        batcher.close()
        closed.set()

    batcher.submit(0).add_done_callback(callback)
    network.go.set()
    assert closed.wait(TIMEOUT)
    assert wait(inner, TIMEOUT).not_done == set()
    assert results(inner) == [20, 22]
    batcher.close()


def test_a_batcher_that_is_forgotten_after_closing_is_collected() -> None:
    batcher = MicroBatcher(Doubler(), max_batch=1)
    batcher.submit(1).result(TIMEOUT)
    batcher.close()
    gone = weakref.ref(batcher)
    del batcher
    gc.collect()
    assert gone() is None


def test_an_idle_worker_does_not_keep_the_interpreter_alive() -> None:
    program = (
        "from resnet_export.runtime.batching import MicroBatcher\n"
        "batcher = MicroBatcher(lambda items: items, max_batch=2)\n"
        "print(batcher.submit(1).result())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert (done.stdout, done.stderr) == ("1\n", "")
