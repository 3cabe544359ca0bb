"""Compiled kernels lie in the user's cache folder, by all that they depend on; a bundle is never written to."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import openvino
import pytest

from resnet_export.runtime import loaded_model as loaded_model_module
from resnet_export.runtime import session as session_module
from resnet_export.runtime.backends.protocol import OpenRequest
from resnet_export.runtime.backends.routes import ROUTES, Route, find_route
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.kernel_cache import cache_key, open_cache
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.select.choice import Choice
from resnet_export.runtime.select.host import Gpu, HostFacts, Package
from resnet_export.runtime.session import open_session
from resnet_export.runtime.user_cache import private_folder, trim
from tests import tiny_bundle
from tests.tiny_bundle import FP16, FP32, INT8_CPU

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the folders are those of Linux")

ROUTE = find_route("onnxruntime-tensorrt", "TensorrtExecutionProvider")
ARTIFACT = tiny_bundle.artifact(FP16, b"graph")
MANIFEST = tiny_bundle.manifest([ARTIFACT])
GPU = Gpu(index=0, name="NVIDIA L4", compute_capability="8.9", memory=24 << 30)
HOST = HostFacts(
    system="linux",
    machine="x86_64",
    cpus=1,
    packages=(Package(module="onnxruntime", distribution="onnxruntime-gpu", version="1.31.1"),),
    gpus=(GPU, msgspec.structs.replace(GPU, index=1, name="NVIDIA A10")),
    cuda="13.0",
    driver="580.65.06",
)
CHOICE = Choice(
    artifact="fp16",
    backend=ROUTE.backend,
    provider=ROUTE.provider,
    device="gpu:0",
    precision=Precision.FP16,
)
FACTS: dict[str, Any] = {
    "manifest": MANIFEST,
    "artifact": ARTIFACT,
    "route": ROUTE,
    "choice": CHOICE,
    "host": HOST,
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def cache_of(home: Path) -> Path:
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "resnet-export"


replace = msgspec.structs.replace
OTHER_FACTS: dict[str, dict[str, Any]] = {
    "artifact": {"artifact": replace(ARTIFACT, sha256="f" * 64)},
    "input": {"manifest": tiny_bundle.manifest([ARTIFACT], uint8=True)},
    "batch": {"manifest": replace(MANIFEST, batch=BatchRange(min=1, opt=2, max=2))},
    "provider": {"route": find_route("onnxruntime-tensorrt-rtx", "NvTensorRTRTXExecutionProvider")},
    "precision": {"choice": replace(CHOICE, precision=Precision.INT8)},
    "GPU": {"choice": replace(CHOICE, device="gpu:1")},
    "version": {"host": replace(HOST, packages=(replace(HOST.packages[0], version="1.32.0"),))},
    "CUDA": {"host": replace(HOST, cuda="13.1")},
    "driver": {"host": replace(HOST, driver="590.1")},
    "machine": {"host": replace(HOST, machine="aarch64")},
    "CPU": {"choice": replace(CHOICE, device="cpu"), "host": replace(HOST, cpu_features=("avx2",))},
}


@pytest.mark.parametrize("changed", OTHER_FACTS)
def test_kernels_are_not_found_when_anything_that_they_depend_on_is_another(changed: str) -> None:
    assert cache_key(**FACTS) == cache_key(**FACTS)
    assert cache_key(**FACTS | OTHER_FACTS[changed]) != cache_key(**FACTS)


def test_kernels_are_found_wherever_the_bundle_lies_and_whatever_it_is_called() -> None:
    renamed = replace(ARTIFACT, name="another", file="another.onnx")
    made = replace(MANIFEST, artifacts=(renamed,), labels=tuple("abcde"))
    assert cache_key(**FACTS | {"artifact": renamed, "manifest": made}) == cache_key(**FACTS)


def test_the_folder_is_this_users_alone(home: Path) -> None:
    folder, note = open_cache(**FACTS)
    assert note is None
    assert folder is not None
    assert folder.parent == cache_of(home)
    assert [path.stat().st_mode & 0o077 for path in (folder, folder.parent)] == [0, 0]
    assert open_cache(**FACTS) == (folder, None)


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if not route.compiles], ids=lambda row: row.provider
)
def test_a_route_that_compiles_nothing_gets_no_folder(home: Path, route: Route) -> None:
    assert open_cache(**FACTS | {"route": route}) == (None, None)
    assert not home.exists()


def without_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does for a user without an entry


def with_a_file_in_the_way(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    cache_of(home).parent.mkdir(parents=True)
    cache_of(home).write_text("in the way")


def with_a_folder_for_everybody(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    cache_of(home).mkdir(parents=True)
    cache_of(home).chmod(0o777)


def without_permission(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)


def on_a_full_disk(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def full(self: Path, **_: object) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "mkdir", full)


def without_the_package(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setitem(sys.modules, "platformdirs", None)


TROUBLES = [
    without_home,
    with_a_file_in_the_way,
    with_a_folder_for_everybody,
    without_permission,
    on_a_full_disk,
    without_the_package,
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda call: call.__name__)
def test_a_folder_that_cannot_be_used_is_a_note_and_no_error(
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    trouble: Callable[[pytest.MonkeyPatch, Path], None],
) -> None:
    monkeypatch.chdir(home.parent)
    trouble(monkeypatch, home)
    folder, note = open_cache(**FACTS)
    assert folder is None
    assert note is not None
    assert note.startswith("compiles its kernels anew each time, without a cache folder (")
    assert "\n" not in note
    assert not (home.parent / "~").exists()


class Silent:
    """A backend that opens and does nothing."""

    provider = ROUTE.provider
    precision = Precision.FP16
    notes = ("its own note",)
    batch = None

    def close(self) -> None:
        pass


@pytest.mark.parametrize("usable", [True, False])
def test_a_session_gives_the_folder_to_its_backend_and_leaves_the_bundle_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path, usable: bool
) -> None:
    bundle = tiny_bundle.write(tmp_path / "bundle", [FP32, FP16])
    before = {path: path.stat().st_mtime_ns for path in (bundle, *bundle.rglob("*"))}
    given: list[OpenRequest] = []

    def keep(route: Route, request: OpenRequest) -> Silent:
        given.append(request)
        return Silent()

    monkeypatch.setattr(session_module, "probe", lambda: HOST)
    monkeypatch.setattr(loaded_model_module, "open_backend", keep)
    if not usable:
        with_a_file_in_the_way(monkeypatch, home)
    with open_session(bundle, backend=ROUTE.backend, artifact="fp16", device="cuda:0") as session:
        notes = session.choice.notes
    assert notes[0] == "its own note"
    (request,) = given
    if usable:
        assert request.cache is not None
        assert request.cache.is_relative_to(cache_of(home))
        assert len(notes) == 1
    else:
        assert request.cache is None
        assert "compiles its kernels anew each time" in notes[1]
        assert notes[1] in next(item.reason for item in session.trace if item.outcome == "chosen")
    assert {path: path.stat().st_mtime_ns for path in (bundle, *bundle.rglob("*"))} == before


# Models that OpenVINO compiled


def kept_models(home: Path) -> list[Path]:
    return sorted(cache_of(home).glob("openvino-*/*.model"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows with each model that OpenVINO compiles from its graph."""
    calls: list[Path] = []
    core = openvino.Core
    compile_model = core.compile_model
    monkeypatch.setattr(core, "compile_model", lambda *given: (calls.append(given), compile_model(*given))[1])
    return calls


@pytest.mark.parametrize("variant", [FP32, INT8_CPU], ids=lambda row: row.name)
def test_a_compiled_model_is_loaded_instead_of_compiled_again_and_computes_the_same(
    tmp_path: Path, home: Path, compiled: list[Path], variant: tiny_bundle.Variant
) -> None:
    bundle = tiny_bundle.write(tmp_path / "bundle", [FP32, INT8_CPU])
    batch = to_input(tiny_bundle.images(3), tiny_bundle.manifest([]).preprocessing)
    logits = []
    for opened in range(3):
        with open_session(bundle, backend="openvino", artifact=variant.name) as session:
            logits.append(session.run(batch))
            assert session.choice.notes == ()
        assert (len(compiled), len(kept_models(home))) == (1, 1), opened
    assert np.array_equal(logits[0], logits[1])
    assert np.array_equal(logits[0], logits[2])
    open_session(bundle, backend="openvino", artifact=variant.name, threads=1).close()
    assert len(compiled) == 2


def test_a_damaged_compiled_model_is_compiled_anew(tmp_path: Path, home: Path, compiled: list[Path]) -> None:
    bundle = tiny_bundle.write(tmp_path / "bundle")
    open_session(bundle, backend="openvino").close()
    (kept,) = kept_models(home)
    sound = kept.read_bytes()
    for damage in (b"", sound[:100], sound[:-1], sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:]):
        kept.write_bytes(damage)
        open_session(bundle, backend="openvino").close()
        assert kept.read_bytes()[:1] != b""
    assert len(compiled) == 5
    foreign = b"of another build of OpenVINO"
    kept.write_bytes(hashlib.sha256(foreign).digest() + foreign)
    open_session(bundle, backend="openvino").close()
    assert len(compiled) == 6


def test_nothing_is_kept_where_that_was_asked_for(tmp_path: Path, home: Path) -> None:
    bundle = tiny_bundle.write(tmp_path / "bundle")
    open_session(bundle, backend="openvino", cache=False).close()
    assert kept_models(home) == []


def test_a_model_that_cannot_be_kept_runs_all_the_same_and_says_so(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("resnet_export.runtime.backends.openvino.write_compiled", full)
    with open_session(tiny_bundle.write(tmp_path / "bundle"), backend="openvino") as session:
        (note,) = session.choice.notes
        assert "compiled anew each time: the compiled model cannot be kept" in note
        assert len(session.classify(tiny_bundle.images(2))) == 2


def test_what_was_used_longest_ago_makes_room(home: Path) -> None:
    folder = private_folder("openvino-1")
    for age, name in enumerate(("new", "middle", "old")):
        path = folder / f"{name}.model"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    (folder / "other").write_bytes(bytes(100))
    trim("openvino-*/*.model", 250)
    assert sorted(path.name for path in folder.iterdir()) == ["middle.model", "new.model", "other"]
