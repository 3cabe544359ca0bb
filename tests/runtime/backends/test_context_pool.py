"""Execution contexts lent to threads: what happens when there are too few, and when making one fails."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from resnet_export.runtime.backends.context_pool import ContextPool
from resnet_export.runtime.backends.tensorrt_library import process_log
from resnet_export.runtime.errors import BackendError, SessionClosedError

WAIT = 10  # seconds until something that should happen counts as hanging


class Context:
    """What the pool sees of an execution context."""

    def __init__(self, *, fails: BaseException | None = None) -> None:
        self.batch = 0
        self.closed = False
        self.fails = fails

    def close(self) -> None:
        self.closed = True
        if self.fails is not None:
            raise self.fails


def pool_of(make: Callable[[], Any], size: int = 4) -> ContextPool:
    return ContextPool(make, size)


def limited(most: int) -> tuple[Callable[[], Context], list[Context]]:
    """A factory with memory for `most` contexts, and the list of those it made."""
    made: list[Context] = []

    def make() -> Context:
        if len(made) >= most:
            raise BackendError("out of memory")
        made.append(Context())
        return made[-1]

    return make, made


@pytest.mark.parametrize("most", [1, 2, 3])
def test_where_memory_holds_fewer_contexts_than_threads_the_others_wait(most: int) -> None:
    make, made = limited(most)
    pool = pool_of(make)
    go = threading.Event()
    inside = threading.Semaphore(0)

    def use() -> int:
        with pool.borrow(1) as context:
            inside.release()
            assert go.wait(WAIT)
            return id(context)

    with ThreadPoolExecutor(most + 2) as threads:
        running = [threads.submit(use) for _ in range(most + 2)]
        for _ in range(most):
            assert inside.acquire(timeout=WAIT)
        assert not inside.acquire(timeout=0.1)
        assert not any(future.done() for future in running), "a thread got an error instead of waiting"
        go.set()
        assert {future.result(WAIT) for future in running} == {id(context) for context in made}
    pool.close()
    assert all(context.closed for context in made)


@pytest.mark.parametrize(
    "error", [BackendError("no"), MemoryError(), RuntimeError("no"), KeyboardInterrupt()]
)
def test_a_context_that_cannot_be_made_is_not_counted(error: BaseException) -> None:
    def refuse() -> Context:
        raise error

    pool = pool_of(refuse, 1)
    for _ in range(3):
        with pytest.raises(type(error)), pool.borrow(1):
            pass
    closing = threading.Thread(target=pool.close, daemon=True)
    closing.start()
    closing.join(WAIT)
    assert not closing.is_alive(), "close waits for a context that was never made"


def test_threads_that_all_fail_to_make_the_first_context_all_say_so() -> None:
    together = threading.Barrier(4)
    met = threading.Event()

    def refuse() -> Context:
        if not met.is_set():  # later tries are not made together
            together.wait(WAIT)
            met.set()
        raise BackendError("out of memory")

    def use() -> None:
        with pool.borrow(1):
            pass

    pool = pool_of(refuse)
    with ThreadPoolExecutor(4) as threads:
        for future in [threads.submit(use) for _ in range(4)]:
            assert isinstance(future.exception(WAIT), BackendError)
    pool.close()


@pytest.mark.parametrize("error", [None, BackendError("broken"), RuntimeError("broken")])
def test_a_context_that_failed_is_closed_forgotten_and_replaced(error: BaseException | None) -> None:
    made: list[Context] = []

    def make() -> Context:
        made.append(Context(fails=error if not made else None))
        return made[-1]

    pool = pool_of(make, 1)
    with pytest.raises(ValueError, match="first"), pool.borrow(1):
        raise ValueError("first")
    with pool.borrow(1) as context:
        assert context is made[1]  # type: ignore[comparison-overlap]
    pool.close()
    assert [context.closed for context in made] == [True, True]


def test_closing_closes_every_context_whatever_one_of_them_raises() -> None:
    made: list[Context] = []

    def make() -> Context:
        made.append(Context(fails=RuntimeError("stuck") if not made else None))
        return made[-1]

    pool = pool_of(make)
    with pool.borrow(1), pool.borrow(2):
        pass
    with pytest.raises(RuntimeError, match="stuck"):
        pool.close()
    assert [context.closed for context in made] == [True, True]
    with pytest.raises(SessionClosedError), pool.borrow(1):
        pass


def test_captures_of_the_log_by_many_threads_leave_nothing_behind_and_lose_nothing() -> None:
    library = ModuleType("library")
    library.ILogger = type("ILogger", (), {})  # type: ignore[attr-defined]
    log = process_log(library)
    severity = SimpleNamespace(name="ERROR")

    def use(thread: int) -> None:
        for turn in range(300):
            text = f"{thread}.{turn}"
            with log.capture() as messages:
                log.log(severity, text)
            assert text in [message.text for message in messages]

    with ThreadPoolExecutor(8) as threads:
        for future in [threads.submit(use, thread) for thread in range(8)]:
            future.result(60)
    assert not log.captures


def test_garbage_that_captures_while_it_is_collected_leaves_nothing_behind() -> None:
    library = ModuleType("library")
    library.ILogger = type("ILogger", (), {})  # type: ignore[attr-defined]
    log = process_log(library)
    severity = SimpleNamespace(name="ERROR")

    class Engine:
        def __init__(self) -> None:
            self.myself = self  # only the collector frees it

        def __del__(self) -> None:
            with log.capture():
                log.log(severity, "destroyed")

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for turn in range(300):
            Engine()
            with log.capture() as messages:
                log.log(severity, str(turn))
            assert str(turn) in [message.text for message in messages]
    finally:
        gc.set_threshold(*before)
    gc.collect()
    assert not log.captures
