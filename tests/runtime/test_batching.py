"""Micro-batching, with stand-ins for the network that record what they were given."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError, Future, wait

import pytest

from resnet_export.runtime.batching import BatchingSpec, MicroBatcher
from resnet_export.runtime.errors import SessionClosedError

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
