"""An export may die at any moment: the old bundle or the new one stands there afterwards, whole.

Two kinds of death. At every step: a child process ends itself before the n-th thing that it does to the file
system, one later each time, until it gets through. At random: a child replaces the
bundle over and over until it is killed. Both for the atomic exchange and for the two renames that stand in
where it does not exist. After each death the bundle is opened, every hash checked, and the next export must
succeed and leave nothing but its bundle.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest

from resnet_export.exporter.bundle import atomic_replace as replace_module
from resnet_export.exporter.bundle.staging import check_output, extending
from resnet_export.runtime.bundle.manifest import verify_bundle
from resnet_export.runtime.errors import BundleError, IntegrityError, RequestError
from tests import sample_bundle
from tests.sample_bundle import version_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# The audit events of what changes a file system. The exchange is a foreign function and has none, but the look-up
# of its name just before it does, and the folder that is opened to be flushed after it.
CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.utime",
    "ctypes.dlsym",
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_DIRECTORY", 0)
SEED = 20260301
KILLS = 60


@pytest.fixture(params=["exchange", "two steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "two steps":
        monkeypatch.setattr(replace_module, "exchange", lambda *_: False)
    return str(request.param)


def child(act: Callable[[], object]) -> int:
    """Run `act` in a forked process and return its id. Nothing of the test run's own clean-up happens there."""
    with warnings.catch_warnings():
        # Python 3.12 warns when other tests have left threads; the child uses none of what they hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        act()
        status = 0
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Wait for a child; return its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying_at(step: int, act: Callable[[], object]) -> None:
    """Run `act` and end the process, as SIGKILL would, before its `step`-th change of the file system."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in CHANGES or (event == "open" and arguments[2] & WRITING):
            if count == step:
                os._exit(77)
            count += 1

    sys.addaudithook(watch)
    act()


def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that the kernel has: flushing, which is for power cuts, only costs time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def replace_it(out: Path, version: int) -> object:
    return sample_bundle.write(out, version)


def extend_it(out: Path, version: int) -> object:
    with extending(out) as stage:
        assert stage.base is not None
        provenance = msgspec.structs.replace(stage.base.provenance, notices=(f"version {version}",))
        return stage.commit(msgspec.structs.replace(stage.base, provenance=provenance))


@pytest.mark.parametrize("act", [replace_it, extend_it], ids=["replacing", "extending"])
def test_a_death_at_any_step_leaves_the_old_or_the_new_bundle_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, act: Callable[[Path, int], object]
) -> None:
    no_flush(monkeypatch)
    out = tmp_path / "out"
    sample_bundle.write(out, 0)
    (out / "notes.md").write_text("the user's")
    replaced = []
    for step in itertools.count():
        old, new = 2 * step, 2 * step + 1
        status = ended(child(lambda: dying_at(step, lambda: act(out, new))))  # noqa: B023
        found = version_of(verify_bundle(out))
        assert found in (old, new)
        replaced.append(found == new)
        assert (out / "notes.md").read_text() == "the user's"
        sample_bundle.write(out, new + 1)
        assert version_of(verify_bundle(out)) == new + 1
        assert names(tmp_path) == ["out"], f"litter after a death at step {step}"
        if status == 0:
            break
        assert status == 77
    # Both outcomes were seen, the one after the other.
    assert replaced == sorted(replaced)
    assert set(replaced) == {False, True}
    assert replaced.count(True) > 5


def test_a_death_at_any_step_of_a_first_export_leaves_nothing_or_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_flush(monkeypatch)
    out = tmp_path / "out"
    made = []
    for step in itertools.count():
        status = ended(child(lambda: dying_at(step, lambda: sample_bundle.write(out, 1, force=False))))  # noqa: B023
        made.append(out.exists())
        if out.exists():
            assert version_of(verify_bundle(out)) == 1
        check_output(out, force=True)
        assert set(names(tmp_path)) <= {"out"}, f"litter after a death at step {step}"
        if out.exists():
            shutil.rmtree(out)
        if status == 0:
            break
        assert status == 77
    assert made == sorted(made)
    assert set(made) == {False, True}


def test_a_death_while_sweeping_never_turns_what_is_half_deleted_into_a_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_flush(monkeypatch)
    monkeypatch.setattr(replace_module, "exchange", lambda *_: False)
    out = tmp_path / "out"
    outcomes = set()
    for step in itertools.count():
        sample_bundle.write(out, 1)
        ended(child(dying_before_the_first_rename(out)))
        assert (tmp_path / ".out.staging" / "journal.json").exists()
        status = ended(child(lambda: dying_at(step, lambda: check_output(out, force=True))))  # noqa: B023
        shutil.rmtree(out)
        # The journal may still offer the new bundle, but only as long as all of it is there.
        try:
            outcomes.add(version_of(verify_bundle(out)))
        except IntegrityError:
            raise
        except BundleError:
            outcomes.add(0)
        check_output(out, force=True)
        if status == 0:
            break
        assert status == 77
    assert outcomes == {0, 2}


def dying_before_the_first_rename(out: Path) -> Callable[[], None]:
    def die() -> None:
        sys.addaudithook(lambda event, _: os._exit(77) if event == "os.rename" else None)
        sample_bundle.write(out, 2)

    return die


def exporting_for_ever(out: Path, first: int, done: int) -> NoReturn:
    for version in range(first, sys.maxsize):
        sample_bundle.write(out, version, size=200_000)
        os.write(done, version.to_bytes(8))
    raise AssertionError


def test_a_kill_at_a_random_moment_leaves_the_old_or_the_new_bundle_whole(tmp_path: Path, way: str) -> None:
    draw = random.Random(SEED)
    out = tmp_path / "out"
    sample_bundle.write(out, 0, size=200_000)
    version = 0
    dirty = 0
    for _ in range(KILLS if way == "exchange" else KILLS // 2):
        reading, writing = os.pipe()
        pid = child(lambda: exporting_for_ever(out, version + 1, writing))  # noqa: B023
        os.close(writing)
        time.sleep(draw.uniform(0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        with os.fdopen(reading, "rb") as pipe:
            acknowledged = int.from_bytes(pipe.read()[-8:] or version.to_bytes(8))
        dirty += names(tmp_path) != ["out"]
        version = version_of(verify_bundle(out))
        # What the export reported as done is never lost again.
        assert version in (acknowledged, acknowledged + 1)
    assert dirty > 0, "no kill hit an export under way"
    sample_bundle.write(out, version + 1)
    assert names(tmp_path) == ["out"]


def test_a_reader_sees_a_whole_bundle_at_any_moment_of_a_hundred_replacements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    no_flush(monkeypatch)
    out = tmp_path / "out"
    sample_bundle.write(out, 0)
    pid = child(lambda: [sample_bundle.write(out, version) for version in range(1, 101)])
    seen = []
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        seen.append(version_of(verify_bundle(out)))
    seen.append(version_of(verify_bundle(out)))
    assert seen == sorted(seen)
    assert seen[-1] == 100
    assert len(set(seen)) > 5


def test_several_writers_take_turns_or_are_refused_and_never_mix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    no_flush(monkeypatch)
    out = tmp_path / "out"
    sample_bundle.write(out, 0)

    def writer(which: int) -> None:
        for turn in range(10):
            with refused_only_for_a_rival():
                sample_bundle.write(out, 100 * which + turn)

    for pid in [child(lambda which=which: writer(which)) for which in (1, 2, 3)]:  # type: ignore[misc]
        assert ended(pid) == 0
    assert version_of(verify_bundle(out)) >= 100
    assert names(tmp_path) == ["out"]


@contextlib.contextmanager
def refused_only_for_a_rival() -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        assert "another process is writing this bundle" in str(error)  # noqa: PT017


def test_the_lock_of_a_killed_export_is_free_at_once(tmp_path: Path) -> None:
    out = tmp_path / "out"
    reading, writing = os.pipe()

    def hold() -> None:
        with sample_bundle.staging(out) as stage:
            stage.write("model.onnx", b"half")
            os.write(writing, b"!")
            time.sleep(600)

    pid = child(hold)
    try:
        assert os.read(reading, 1) == b"!"
        with pytest.raises(RequestError, match="another process is writing"):
            check_output(out)
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        os.close(reading)
        os.close(writing)
    assert names(tmp_path) == [".out.staging"]
    check_output(out)
    assert names(tmp_path) == []
