"""A session that gets another bundle while it serves: between two requests, or not at all."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, encode_manifest, read_manifest
from resnet_export.runtime.errors import (
    IntegrityError,
    RequestError,
    ResnetExportError,
    SchemaError,
    SessionClosedError,
)
from resnet_export.runtime.session import Session, open_session
from tests import tiny_bundle
from tests.tiny_bundle import CLASSES, SIDE

TIMEOUT = 20
OTHER_LABELS = ("pug", "boxer", "beagle", "collie", "whippet")


def write(folder: Path, *, other: bool = False, resize: int = SIDE) -> Path:
    """Write a bundle; the `other` one has other weights and labels."""
    shutil.rmtree(folder, ignore_errors=True)
    data = tiny_bundle.graph(seed=1) if other else tiny_bundle.graph()
    tiny_bundle.write(folder, graphs={"fp32": data})
    manifest = read_manifest(folder)
    manifest = replace(
        manifest,
        labels=OTHER_LABELS if other else manifest.labels,
        preprocessing=replace(manifest.preprocessing, resize=resize),
    )
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest))
    return folder


def swap(folder: Path, new: Path) -> None:
    """Put `new` where `folder` is, as an export does."""
    old = folder.with_name("old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    new.rename(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle")


@pytest.fixture
def session(folder: Path) -> Session:
    return open_session(folder, backend="onnxruntime", threads=1)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_after_a_reload_the_new_bundle_is_served(folder: Path, tmp_path: Path, session: Session) -> None:
    images = tiny_bundle.images(3)
    with session, open_session(write(tmp_path / "new", other=True), backend="onnxruntime", threads=1) as new:
        before, expected = session.classify(images), new.classify(images)
        swap(folder, tmp_path / "new")
        assert session.classify(images) == before
        session.reload()
        assert session.classify(images) == expected
        assert [session.submit(image).result(TIMEOUT) for image in images] == expected
        assert session.labels == OTHER_LABELS


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (
            lambda folder: (folder / "model.fp32.onnx").write_bytes(b"not what the manifest says"),
            IntegrityError,
        ),
        (lambda folder: (folder / MANIFEST_NAME).write_bytes(b'{"schema": 99}'), SchemaError),
        (shutil.rmtree, ResnetExportError),
    ],
    ids=["artifact", "manifest", "gone"],
)
def test_a_bundle_that_cannot_be_opened_changes_nothing(
    folder: Path, session: Session, damage: Callable[[Path], object], error: type[Exception]
) -> None:
    images = tiny_bundle.images(2)
    with session:
        expected = session.classify(images)
        damage(folder)
        for _ in range(2):
            with pytest.raises(error):
                session.reload()
        assert session.classify(images) == expected
        write(folder, other=True)
        session.reload()
        assert session.labels == OTHER_LABELS


def test_a_model_that_opens_and_does_not_run_is_never_served(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resnet_export.runtime.loaded_model import LoadedModel

    freed: list[LoadedModel] = []
    close = LoadedModel.close
    with session:
        monkeypatch.setattr(LoadedModel, "warmup", lambda _: pytest.fail("it does not run"))
        monkeypatch.setattr(LoadedModel, "close", lambda model: (freed.append(model), close(model)))
        with pytest.raises(pytest.fail.Exception):
            session.reload()
        assert len(freed) == 1
        assert len(session.classify(tiny_bundle.images(1))) == 1


def test_every_answer_under_load_is_wholly_of_one_bundle(
    folder: Path, tmp_path: Path, session: Session
) -> None:
    # The second bundle resizes to another size, so that crops that were cut for the first would show.
    draw = np.random.default_rng(0)
    images = list(draw.integers(0, 256, (6, 40, 50, 3), np.uint8))
    answers = []
    for other in (False, True):
        path = write(tmp_path / "reference", other=other, resize=2 * SIDE if other else SIDE)
        with open_session(path, backend="onnxruntime", threads=1) as reference:
            answers.append([[p.label for p in row] for row in reference.classify(images)])
    stop = threading.Event()

    def work(start: int) -> int:
        count = 0
        while not stop.is_set():
            index = (start + count) % len(images)
            if start % 2:
                row = session.submit(images[index]).result(TIMEOUT)
            else:
                row = session.classify(images[index : index + 2])[0]
            assert [p.label for p in row] in (answers[0][index], answers[1][index])
            count += 1
        return count

    with session, ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, start) for start in range(4)]
        try:
            for turn in range(8):
                other = turn % 2 == 0
                write(tmp_path / "next", other=other, resize=2 * SIDE if other else SIDE)
                swap(folder, tmp_path / "next")
                session.reload()
                assert session.labels == (OTHER_LABELS if other else tiny_bundle.LABELS)
        finally:
            stop.set()
        assert all(worker.result(TIMEOUT) > 0 for worker in workers)


def test_a_callback_may_reload(session: Session) -> None:
    reloaded = threading.Event()
    with session:
        session.submit(tiny_bundle.images(1)[0]).add_done_callback(
            lambda _: (session.reload(), reloaded.set())
        )
        assert reloaded.wait(TIMEOUT)
        assert len(session.submit(tiny_bundle.images(1)[0]).result(TIMEOUT)) == CLASSES


def test_a_closed_session_is_not_reloaded_or_watched(session: Session) -> None:
    session.close()
    for call in (session.reload, session.watch):
        with pytest.raises(SessionClosedError):
            call()


# Watching


def test_a_watched_session_follows_its_folder_through_whatever_lies_there(
    folder: Path, tmp_path: Path, session: Session
) -> None:
    said: list[ResnetExportError | None] = []
    images = tiny_bundle.images(2)
    with session:
        session.watch(0.01, on_reload=said.append)
        expected = session.classify(images)
        shutil.rmtree(folder)
        time.sleep(0.05)
        assert session.classify(images) == expected
        # As a slow copy fills it: the manifest comes first, its artifacts later.
        write(tmp_path / "new", other=True)
        folder.mkdir()
        shutil.copy(tmp_path / "new" / MANIFEST_NAME, folder)
        until(lambda: any(isinstance(error, IntegrityError) for error in said))
        assert session.classify(images) == expected
        shutil.copy(tmp_path / "new" / "model.fp32.onnx", folder)
        until(lambda: None in said)
        assert session.labels == OTHER_LABELS


def test_a_folder_in_which_nothing_changes_is_left_alone(folder: Path, session: Session) -> None:
    said: list[ResnetExportError | None] = []
    with session:
        served = session._served.current
        session.watch(0.01, on_reload=said.append)
        os.utime(folder / MANIFEST_NAME)
        time.sleep(0.1)
        assert session._served.current is served
    assert said == []


def test_what_happens_is_logged_where_nobody_asked(
    folder: Path, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    with session, caplog.at_level("INFO", "resnet_export"):
        session.watch(0.01)
        (folder / MANIFEST_NAME).write_bytes(b"{}")
        until(lambda: "goes on with the bundle that it has" in caplog.text)
        write(folder, other=True)
        until(lambda: "serves a new bundle" in caplog.text)


@pytest.mark.parametrize("interval", [0, -1, "1", True])
def test_an_interval_that_is_no_time_is_refused(session: Session, interval: object) -> None:
    with session, pytest.raises(RequestError, match="interval is"):
        session.watch(interval)


def test_watching_ends_with_the_session_however_it_ends(folder: Path) -> None:
    before = threading.active_count()
    with open_session(folder, backend="onnxruntime", threads=1) as session:
        session.watch(0.01)
        session.watch(0.02)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    session = open_session(folder, backend="onnxruntime", threads=1)
    session.watch(0.01)
    gone = weakref.ref(session)
    del session
    until(lambda: gc.collect() >= 0 and gone() is None and threading.active_count() == before)


def test_a_callback_of_the_watcher_may_close_the_session(folder: Path, session: Session) -> None:
    session.watch(0.01, on_reload=lambda _: session.close())
    write(folder, other=True)
    until(lambda: repr(session).endswith("closed>"))


ENDS = """
import signal, sys, threading, numpy
from resnet_export.runtime import open_session
session = open_session(sys.argv[1], threads=1)
session.watch(0.01)
image = numpy.zeros((16, 16, 3), numpy.uint8)
futures = [session.submit(image) for _ in range(20)]
stream = session.stream([image] * 100)
next(stream)
print("open", flush=True)
"""


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("signal.raise_signal(signal.SIGINT)", -2),
        ("raise ZeroDivisionError", 1),
        ("del session, stream", 0),
    ],
    ids=["end", "exit", "SIGINT", "error", "collected"],
)
def test_a_program_that_watches_streams_and_waits_ends_as_it_should(
    folder: Path, ending: str, status: int
) -> None:
    program = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + ENDS + ending
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "open\n"), done.stderr
    assert done.stderr == "" or done.stderr.splitlines()[-1] in ("KeyboardInterrupt", "ZeroDivisionError")


SPAWNED = """
import multiprocessing, sys, numpy
from resnet_export.runtime import open_session

def work(path, queue):
    with open_session(path, threads=1) as session:
        queue.put(session.classify([numpy.zeros((16, 16, 3), numpy.uint8)])[0][0].label)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with open_session(sys.argv[1], threads=1) as session:
        session.submit(numpy.zeros((16, 16, 3), numpy.uint8)).result(20)
        workers = [context.Process(target=work, args=(sys.argv[1], queue)) for _ in range(2)]
        for worker in workers: worker.start()
        labels = {queue.get(timeout=60) for _ in workers}
        for worker in workers: worker.join()
        print(labels == {session.classify([numpy.zeros((16, 16, 3), numpy.uint8)])[0][0].label})
"""


def test_a_spawned_worker_opens_a_session_of_its_own(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    done = subprocess.run([sys.executable, script, folder], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("True\n", "")
