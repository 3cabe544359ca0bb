"""What an engine file may and may not be before a native library sees it."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resnet_export.runtime.backends import tensorrt as runner
from resnet_export.runtime.bundle.engine_header import (
    EngineHeader,
    check_header,
    engine_mismatch,
    format_version,
    parse_version,
    read_header,
)
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    Artifact,
    BatchRange,
    EngineInfo,
    encode_manifest,
    read_artifact,
)
from resnet_export.runtime.errors import BackendError, BundleError, IntegrityError, NoBackendError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.host import Gpu, HostFacts, Package
from resnet_export.runtime.session import open_session
from tests import tiny_bundle

MASKS = {"7.5": 1, "8.0": 2, "8.6": 4, "8.9": 8, "12.0": 16, "12.1": 32, "new": 64}


def engine(
    tag: bytes = b"vtrt",
    version: tuple[int, int, int, int] = (1, 7, 1, 116),
    capabilities: tuple[str, ...] = ("8.6",),
    size: int = 4096,
    serialization: int = 0,
) -> bytes:
    """An engine file with a right header and a random body."""
    mask = sum(MASKS[name] for name in capabilities)
    head = struct.pack("<4sIQQ4B4sQ", tag, serialization, 2, size, *version, tag, mask)
    return head + random.Random(0).randbytes(size - len(head))


def info(**changes: Any) -> EngineInfo:
    known: dict[str, Any] = {
        "variant": "tensorrt_rtx",
        "version": "1.7.1.116",
        "compute_capabilities": ("8.6",),
        "profiles": (BatchRange(min=1, opt=4, max=8),),
        "source": "fp16",
        "source_sha256": "0" * 64,
    }
    return EngineInfo(**(known | changes))


def test_a_header_tells_variant_version_and_compute_capabilities() -> None:
    assert read_header(engine(capabilities=("7.5", "8.9", "12.1"))) == EngineHeader(
        "tensorrt_rtx", (1, 7, 1, 116), ("7.5", "8.9", "12.1")
    )
    unknown = bytearray(engine())
    unknown[32] |= 64
    assert read_header(bytes(unknown)).compute_capabilities == ("8.6", "unknown (0x40)")
    assert read_header(engine(b"ftrt", (10, 3, 0, 26))) == EngineHeader("tensorrt", (10, 3, 0, 26), ())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\x08\x0a\x12\x07pytorch", "starts with"),
        (b"PK\x03\x04", "starts with"),
        (b"vtrt", "cut off"),
        (engine()[:63], "cut off"),
        (engine()[:-1], "its header says 4096"),
        (engine() + b"\0", "its header says 4096"),
        (engine(serialization=1), "serialization version 1"),
    ],
)
def test_what_is_no_whole_engine_is_refused_in_a_sentence(data: bytes, message: str) -> None:
    with pytest.raises(IntegrityError, match=message):
        read_header(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (engine(b"ftrt"), "written by TensorRT 1.7.1.116, the manifest says"),
        (engine(version=(1, 7, 2, 116)), "1.7.2.116"),
        (engine(capabilities=("8.9",)), "compute capability 8.9, the manifest says 8.6"),
        (engine(capabilities=("8.6", "new")), r"unknown \(0x40\)"),
        (engine(capabilities=()), "compute capability unknown"),
    ],
)
def test_a_header_that_contradicts_the_manifest_is_refused(data: bytes, message: str) -> None:
    assert check_header(engine(), info()) == EngineHeader("tensorrt_rtx", (1, 7, 1, 116), ("8.6",))
    with pytest.raises(IntegrityError, match=message):
        check_header(data, info())


def test_a_manifest_without_a_version_vouches_for_nothing() -> None:
    with pytest.raises(IntegrityError):
        check_header(engine(), info(version="unknown"))


LATER = {"tensorrt_rtx": ["1.7.2.3", "1.8.0.10", "2.0.0.1"], "tensorrt": ["11.5.0.1", "12.0.0.0"]}


TAGS = {"tensorrt_rtx": b"vtrt", "tensorrt": b"ftrt"}


@pytest.mark.parametrize("variant", list(LATER))
@pytest.mark.parametrize(
    "change",
    [
        {"tag": b"wtrt"},
        {"serialization": 1},
        {"version": (0, 0, 0, 0)},
        {"capabilities": ("new",), "serialization": 2},
    ],
    ids=["tag", "serialization", "version", "capability"],
)
def test_a_header_that_a_later_version_lays_out_otherwise_is_not_described(
    variant: str, change: dict[str, Any]
) -> None:
    data = engine(**({"tag": TAGS[variant]} | change)) + b"appendix"
    for version in LATER[variant]:
        assert check_header(data, info(variant=variant, version=version)) is None
    with pytest.raises(IntegrityError):
        check_header(
            data, info(variant=variant, version="1.7.1.117" if variant == "tensorrt_rtx" else "11.4.0.1")
        )
    with pytest.raises(IntegrityError, match=r"cut off|not a TensorRT engine"):
        check_header(data[:63], info(variant=variant, version="12.0.0.0"))


@pytest.mark.parametrize(("variant", "other"), [("tensorrt", b"vtrt"), ("tensorrt_rtx", b"ftrt")])
def test_an_engine_of_the_other_variant_is_refused_whatever_its_version(variant: str, other: bytes) -> None:
    with pytest.raises(IntegrityError, match="the manifest says"):
        check_header(engine(other), info(variant=variant, version="99.0.0.0"))


def test_a_later_version_with_the_layout_known_is_described() -> None:
    later = engine(version=(1, 8, 0, 10))
    assert check_header(later, info(version="1.8.0.10")) == EngineHeader(
        "tensorrt_rtx", (1, 8, 0, 10), ("8.6",)
    )


@pytest.mark.parametrize(
    ("changes", "installed", "device", "expected"),
    [
        ({}, "1.7.1.116", "8.6", None),
        ({}, None, "8.6", "not installed here"),
        ({}, "1.7.2.3", "8.6", "built by TensorRT for RTX 1.7.1.116, this host has 1.7.2.3"),
        ({}, "1.7.1.116", None, "no usable GPU"),
        ({}, "1.7.1.116", "8.9", "built for compute capability 8.6, this GPU has 8.9"),
        ({"compute_capabilities": ("8.6", "8.9")}, "1.7.1.116", "8.9", None),
        # A package may report fewer numbers than the library, or a suffix.
        ({"variant": "tensorrt", "version": "10.13.3.9"}, "10.13.3.9.post1", "8.6", None),
        ({"variant": "tensorrt", "version": "10.3.0.26"}, "10.3.0", "8.6", None),
        ({"variant": "tensorrt", "version": "10.3.0"}, "unknown", "8.6", "this host has unknown"),
        ({"variant": "tensorrt", "version": "10.3.0"}, "11.3.0", "8.6", "this host has 11.3.0"),
        ({"version": "1.7.1.116", "options": {"version_compatible": True}}, "1.9.0.2", "8.6", None),
        ({"options": {"version_compatible": True}}, "1.6.0.2", "8.6", "from 1.7.1.116 on"),
        (
            {"variant": "tensorrt", "version": "10.3.0", "options": {"version_compatible": True}},
            "11.4.0",
            "8.6",
            None,
        ),
        (
            {"variant": "tensorrt", "version": "10.3.0", "options": {"version_compatible": True}},
            "12.0.0",
            "8.6",
            "built for TensorRT 10 and 11 from 10.3.0 on, this host has 12.0.0",
        ),
        (
            {"variant": "tensorrt", "version": "11.4.0", "options": {"version_compatible": True}},
            "10.16.0",
            "8.6",
            "built for TensorRT 11 from 11.4.0 on, this host has 10.16.0",
        ),
        (
            {"variant": "tensorrt", "version": "8.6.1", "options": {"version_compatible": True}},
            "10.3.0",
            "8.6",
            "built for TensorRT 8 from 8.6.1 on",
        ),
        ({"options": {"version_compatible": True}}, "2.0.0.2", "8.6", "this host has 2.0.0.2"),
        ({"options": {"hardware_compatibility": "ampere+"}}, "1.7.1.116", "12.0", None),
        (
            {"options": {"hardware_compatibility": "ampere+"}},
            "1.7.1.116",
            "7.5",
            "8.0 and later, this GPU has 7.5",
        ),
    ],
)
def test_a_mismatch_names_what_was_expected_and_what_was_found(
    changes: dict[str, Any], installed: str | None, device: str | None, expected: str | None
) -> None:
    reason = engine_mismatch(info(**changes), installed=installed, device=device)
    if expected is None:
        assert reason is None
    else:
        assert reason is not None
        assert expected in reason


def test_versions_are_read_and_written_back() -> None:
    assert parse_version("10.13.3.9.post1") == (10, 13, 3, 9)
    assert parse_version("nightly") == ()
    assert format_version((10, 3, 0)) == "10.3.0"


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """`count` different damages: single bits, headers, ends, foreign bytes."""
    rng = random.Random(seed)
    for number in range(count):
        kind = ("bit", "header bit", "cut", "longer", "foreign head", "zeros", "empty", "swapped")[number % 8]
        changed = bytearray(data)
        if kind in ("bit", "header bit"):
            where = rng.randrange(64 if kind == "header bit" else len(data))
            changed[where] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del changed[rng.randrange(len(data)) :]
        elif kind == "longer":
            changed += rng.randbytes(rng.randrange(1, 100))
        elif kind == "foreign head":
            changed[: rng.randrange(4, 64)] = rng.randbytes(rng.randrange(4, 64))
        elif kind == "zeros":
            start = rng.randrange(len(data))
            changed[start : start + 64] = bytes(min(64, len(data) - start) or 1)
        elif kind == "empty":
            changed = bytearray(rng.randrange(2))
        else:
            middle = rng.randrange(1, len(data))
            changed = changed[middle:] + changed[:middle]
        if bytes(changed) != data:
            yield f"{number}: {kind}", bytes(changed)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The tiny network's fp32 graph, with an fp16 engine for a GPU of compute capability 8.6 beside it."""
    folder = tiny_bundle.write(tmp_path / "tiny")
    add_engine(folder, engine(), info(source="fp32", source_sha256=tiny_artifact(folder).sha256))
    return folder


def tiny_artifact(folder: Path) -> Artifact:
    return tiny_bundle.artifact(tiny_bundle.FP32, (folder / "model.fp32.onnx").read_bytes())


def add_engine(folder: Path, data: bytes, what: EngineInfo, name: str = "engine") -> Artifact:
    made = Artifact(
        name=name,
        file="engines/it.engine",
        kind="engine",
        precision=Precision.FP32,
        target="tensorrt",
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        engine=what,
    )
    (folder / "engines").mkdir(exist_ok=True)
    (folder / made.file).write_bytes(data)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(tiny_bundle.manifest([tiny_artifact(folder), made])))
    return made


@pytest.fixture
def rtx_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """This host, with a GPU and TensorRT for RTX 1.7.1 that is never reached; returns what was loaded of
    it.
    """
    facts = HostFacts(
        system="linux",
        machine="x86_64",
        cpus=2,
        packages=(
            Package(module="tensorrt_rtx", distribution="tensorrt-rtx-cu13", version="1.7.1.116"),
            Package(module="onnxruntime", distribution="onnxruntime", version="1.31.1"),
        ),
        gpus=(Gpu(index=0, name="NVIDIA A10", compute_capability="8.6", memory=24 << 30),),
    )
    loaded: list[str] = []

    def load(variant: str) -> Any:
        loaded.append(variant)
        raise BackendError("the native library was reached")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr("resnet_export.runtime.session.probe", lambda: facts)
    monkeypatch.setattr(runner, "load_library", load)
    return loaded


def test_no_damaged_engine_reaches_the_native_library(bundle: Path, rtx_host: list[str]) -> None:
    with pytest.raises(BackendError, match="was reached"):
        open_session(bundle, backend="tensorrt")
    assert rtx_host == ["tensorrt_rtx"], "the undamaged engine does reach it, or this test shows nothing"
    file = bundle / "engines" / "it.engine"
    damages = list(mutations(engine(), 300))
    assert len(damages) > 290
    for name, data in damages:
        file.write_bytes(data)
        with pytest.raises(IntegrityError) as caught:
            open_session(bundle, backend="tensorrt")
        assert "engines/it.engine" in str(caught.value), name
    assert rtx_host == ["tensorrt_rtx"]


def test_a_renamed_or_missing_engine_is_refused(bundle: Path, rtx_host: list[str]) -> None:
    file = bundle / "engines" / "it.engine"
    file.rename(file.with_name("other.engine"))
    with pytest.raises(IntegrityError, match=r"it\.engine"):
        open_session(bundle, backend="tensorrt")
    file.write_bytes((bundle / "model.fp32.onnx").read_bytes())
    with pytest.raises(IntegrityError, match=r"it\.engine"):
        open_session(bundle)
    assert rtx_host == []


def header_fields(data: bytes) -> tuple[object, ...]:
    return data[:8], data[16:28], data[32:40], len(data)


def test_a_foreign_file_with_a_right_hash_is_stopped_by_its_header(bundle: Path, rtx_host: list[str]) -> None:
    what = info(source="fp32", source_sha256=tiny_artifact(bundle).sha256)
    refused = 0
    for name, data in mutations(engine(), 200, seed=1):
        if not data or header_fields(data) == header_fields(engine()):
            continue  # the manifest knows no empty files; a changed body is what the hash is for
        made = add_engine(bundle, data, what)
        assert read_artifact(bundle, made) == data
        with pytest.raises(IntegrityError):
            open_session(bundle, backend="tensorrt")
        refused += 1
        assert rtx_host == [], name
    assert refused > 60


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"compute_capabilities": ("8.9",)}, "built for compute capability 8.9, this GPU has 8.6"),
        ({"version": "1.6.0.99"}, "built by TensorRT for RTX 1.6.0.99, this host has 1.7.1.116"),
        ({"variant": "tensorrt", "version": "10.3.0"}, "needs the package tensorrt, which is not installed"),
    ],
)
def test_an_engine_for_another_host_is_passed_over_by_name(
    bundle: Path, rtx_host: list[str], changes: dict[str, Any], expected: str
) -> None:
    what = info(source="fp32", source_sha256=tiny_artifact(bundle).sha256, **changes)
    add_engine(bundle, engine(), what)
    with open_session(bundle) as session:
        assert session.choice.backend == "onnxruntime"
        assert session.run(tiny_bundle_input()).shape == (2, tiny_bundle.CLASSES)
        (considered,) = [item for item in session.trace if item.artifact == "engine"]
    assert considered.outcome == "rejected"
    assert expected in considered.reason
    with pytest.raises(NoBackendError, match="nothing on this host") as caught:
        open_session(bundle, backend="tensorrt")
    assert expected in str(caught.value)
    assert rtx_host == []


def tiny_bundle_input() -> Any:
    import numpy as np

    return np.zeros((2, 3, tiny_bundle.SIDE, tiny_bundle.SIDE), np.float32)


def test_every_refusal_is_an_error_of_the_bundle() -> None:
    assert issubclass(IntegrityError, BundleError)
