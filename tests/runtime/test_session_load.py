"""Sessions under everything at once, and for long: every answer right, nothing left behind."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from resnet_export.runtime.batching import BatchingSpec
from resnet_export.runtime.errors import RequestTimeoutError
from resnet_export.runtime.session import Session, open_session
from tests import tiny_bundle

TIMEOUT = 120
THREADS = 64
IMAGES = 32
BACKENDS = ["onnxruntime", "openvino"]

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory and descriptors are read from /proc")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.write(tmp_path_factory.mktemp("load") / "bundle")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident() -> int:
    """Resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mixed_requests(session: Expected, images: np.ndarray, count: int, seed: int) -> dict[str, int]:
    """Send `count` requests of random kinds and sizes, some canceled and some with a deadline; count what came of each.

    Raises AssertionError for an answer that is not what the session gives a single thread.
    """
    draw = np.random.default_rng(seed)
    expected = session.expected
    outcomes = dict.fromkeys(("run", "classify", "submit", "canceled", "late"), 0)
    for _ in range(count):
        kind = draw.choice(["run", "classify", "submit", "cancel", "deadline"], p=[0.3, 0.3, 0.25, 0.1, 0.05])
        chosen = draw.integers(0, len(images), int(draw.integers(1, 9)))
        if kind == "run":
            logits = session.run(session.batch[chosen])
            np.testing.assert_allclose(logits, session.logits[chosen], rtol=1e-4, atol=1e-4)
            outcomes["run"] += 1
            continue
        if kind == "classify":
            rows = session.classify(list(images[chosen]), top=3)
            outcomes["classify"] += 1
        else:
            index = chosen[0]
            timeout = float(draw.uniform(0.0005, 0.01)) if kind == "deadline" else None
            future = session.submit(images[index], top=3, timeout=timeout)
            canceled = kind == "cancel" and future.cancel()
            try:
                rows, chosen = [future.result(TIMEOUT)], [index]
            except CancelledError:
                assert canceled
                outcomes["canceled"] += 1
                continue
            except RequestTimeoutError:
                assert timeout is not None
                outcomes["late"] += 1
                continue
            assert not canceled
            outcomes["submit"] += 1
        for row, index in zip(rows, chosen, strict=True):
            assert [one.index for one in row] == [one.index for one in expected[index]]
            assert [one.probability for one in row] == pytest.approx(
                [one.probability for one in expected[index]], rel=1e-3, abs=1e-5
            )
    return outcomes


class Expected:
    """A session, with what it answers to a single thread."""

    def __init__(self, session: Session, images: np.ndarray) -> None:
        self.session = session
        self.run, self.classify, self.submit = session.run, session.classify, session.submit
        self.expected = session.classify(images, top=3)
        self.batch = np.concatenate([session.preprocess(image) for image in images])
        self.logits = session.run(self.batch)


def load(bundle: Path, backend: str, *, threads: int, requests: int) -> None:
    images = tiny_bundle.images(IMAGES)
    before = threading.active_count()
    with open_session(bundle, backend=backend, threads=1, batching=BatchingSpec(queue_size=64)) as session:
        known = Expected(session, images)
        with ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(mixed_requests, known, images, requests, seed) for seed in range(threads)]
            outcomes = [future.result() for future in futures]
    total = {name: sum(one[name] for one in outcomes) for name in outcomes[0]}
    assert sum(total.values()) == threads * requests
    assert all(total.values()), total
    assert threading.active_count() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_mixed_requests_of_many_threads_get_the_answers_of_a_single_one(bundle: Path, backend: str) -> None:
    load(bundle, backend, threads=16, requests=40)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_64_threads_with_1000_mixed_requests_each_get_the_answers_of_a_single_one(
    bundle: Path, backend: str
) -> None:
    load(bundle, backend, threads=THREADS, requests=1000)


def assert_flat(work: Callable[[int], None], *, warm: int, count: int, limit: int) -> None:
    """Assert that `count` calls after `warm` others leave at most `limit` bytes, and no descriptor or thread."""
    for turn in range(warm):
        work(turn)
    gc.collect()
    before, open_files, threads = resident(), descriptors(), threading.active_count()
    for turn in range(count):
        work(turn)
    gc.collect()
    assert (descriptors(), threading.active_count()) == (open_files, threads)
    assert resident() - before < limit, f"{(resident() - before) / 1e6:.1f} MB more"


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_20_000_requests_leave_nothing_in_memory(bundle: Path, backend: str) -> None:
    images = tiny_bundle.images(8)
    with open_session(bundle, backend=backend, threads=1) as session:
        batch = np.concatenate([session.preprocess(image) for image in images])

        def work(turn: int) -> None:
            session.run(batch[: turn % 8 + 1])
            session.classify([images[turn % 8]])
            futures = [session.submit(image) for image in images[:2]]
            futures[1].cancel()
            futures[0].result(TIMEOUT)

        assert_flat(work, warm=1000, count=5000, limit=8_000_000)


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_opening_and_closing_2_000_times_leaves_nothing_behind(bundle: Path, backend: str) -> None:
    image = tiny_bundle.images(1)[0]

    def work(turn: int) -> None:
        with open_session(bundle, backend=backend, threads=1) as session:
            session.submit(image).result(TIMEOUT)

    assert_flat(work, warm=200, count=2000, limit=16_000_000)
