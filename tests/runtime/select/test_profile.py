"""What was measured on a host decides what runs there; where a profile lies, and what it is about."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.host import Gpu, HostFacts, Package
from resnet_export.runtime.select.profile import (
    HostProfile,
    Measurement,
    profile_key,
    read_profile,
    save_profile,
)
from resnet_export.runtime.select.resolver import resolve
from resnet_export.runtime.select.spec import SessionSpec, parse_request
from tests import tiny_bundle
from tests.tiny_bundle import FP32, INT8_CPU, passed

replace = msgspec.structs.replace

HOST = HostFacts(
    system="linux",
    machine="x86_64",
    cpus=4,
    cpu_features=("avx512_vnni",),
    packages=(
        Package(module="onnxruntime", distribution="onnxruntime", version="1.31.1"),
        Package(module="openvino", distribution="openvino", version="2026.4.1"),
    ),
    gpu_note="there is no NVIDIA driver",
)
ROUTES = {"onnxruntime": "CPUExecutionProvider", "openvino": "CPU"}
MANIFEST = tiny_bundle.manifest(
    [
        tiny_bundle.artifact(FP32, b"fp32"),
        tiny_bundle.artifact(INT8_CPU, b"int8", tuple(passed(INT8_CPU, *route) for route in ROUTES.items())),
    ]
)


def measured(*rows: tuple[str, str, int, float]) -> HostProfile:
    """A profile of (artifact, backend, batch, milliseconds)."""
    return HostProfile(
        created="2026-11-25",
        measurements=tuple(
            Measurement(
                artifact=artifact,
                backend=backend,
                provider=ROUTES[backend],
                precision=Precision.INT8 if artifact == "int8.cpu" else Precision.FP32,
                batch=batch,
                milliseconds=milliseconds,
            )
            for artifact, backend, batch, milliseconds in rows
        ),
    )


PROFILE = measured(
    ("int8.cpu", "openvino", 1, 1.8),
    ("int8.cpu", "onnxruntime", 1, 1.0),
    ("fp32", "openvino", 1, 2.5),
    ("fp32", "onnxruntime", 1, 3.0),
    ("int8.cpu", "openvino", 8, 4.0),
    ("int8.cpu", "onnxruntime", 8, 6.0),
    ("fp32", "openvino", 8, 16.0),
    ("fp32", "onnxruntime", 8, 12.0),
)


@pytest.mark.parametrize(
    ("prefer", "choice", "reason"),
    [
        (
            "latency",
            ("int8.cpu", "onnxruntime"),
            "1 ms for a batch of 1, measured on this host on 2026-11-25",
        ),
        (
            "throughput",
            ("int8.cpu", "openvino"),
            "2000 images/s (4 ms for a batch of 8), measured on this host on 2026-11-25",
        ),
        ("accuracy", ("fp32", "openvino"), "2.5 ms for a batch of 1, measured on this host on 2026-11-25"),
    ],
)
def test_what_was_measured_decides_by_what_is_preferred(
    prefer: Any, choice: tuple[str, str], reason: str
) -> None:
    found = resolve(MANIFEST, HOST, SessionSpec(prefer=prefer), profile=PROFILE)
    assert (found.choice.artifact, found.choice.backend) == choice
    (chosen,) = (item for item in found.trace if item.outcome == "chosen")
    assert chosen.reason == reason
    usable = [item.reason for item in found.trace if item.outcome == "usable"]
    assert len(usable) == 3
    assert all("measured on this host" in text for text in usable)


def test_without_a_profile_the_table_decides_and_accuracy_is_still_preferred() -> None:
    choices = {
        prefer: resolve(MANIFEST, HOST, SessionSpec(prefer=prefer)).choice.artifact
        for prefer in ("latency", "throughput", "accuracy")
    }
    assert choices == {"latency": "int8.cpu", "throughput": "int8.cpu", "accuracy": "fp32"}


def test_what_was_not_measured_comes_after_all_that_was_and_says_so() -> None:
    found = resolve(MANIFEST, HOST, SessionSpec(), profile=measured(("fp32", "onnxruntime", 1, 9.0)))
    assert (found.choice.artifact, found.choice.backend) == ("fp32", "onnxruntime")
    (other,) = (item for item in found.trace if (item.artifact, item.backend) == ("int8.cpu", "openvino"))
    assert other.reason.endswith("; not measured on this host")


def test_the_fastest_is_not_chosen_against_its_parity_verdict_or_the_request() -> None:
    failed = (passed(INT8_CPU, "onnxruntime", "CPUExecutionProvider", ok=False),)
    manifest = replace(
        MANIFEST, artifacts=(MANIFEST.artifacts[0], replace(MANIFEST.artifacts[1], parity=failed))
    )
    found = resolve(manifest, HOST, SessionSpec(), profile=PROFILE)
    assert (found.choice.artifact, found.choice.backend) == ("fp32", "openvino")
    found = resolve(
        MANIFEST, HOST, SessionSpec(precision=Precision.FP32, backend="onnxruntime"), profile=PROFILE
    )
    assert (found.choice.artifact, found.choice.backend) == ("fp32", "onnxruntime")


@pytest.mark.parametrize("value", ["speed", "", 3, None])
def test_another_preference_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match="expected one of latency, throughput, accuracy"):
        parse_request(MANIFEST, prefer=value)
    assert parse_request(MANIFEST, prefer=" Throughput").prefer == "throughput"


# Keeping it


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_profile_is_found_again_for_the_same_bundle_host_and_threads_only() -> None:
    save_profile(PROFILE, MANIFEST, HOST, 2)
    assert read_profile(MANIFEST, HOST, 2) == (PROFILE, None)
    assert read_profile(MANIFEST, HOST, None) == (None, None)


GPU = Gpu(index=0, name="NVIDIA L4", compute_capability="8.9", memory=24 << 30)


@pytest.mark.parametrize(
    "other",
    [
        {
            "manifest": tiny_bundle.manifest(
                [tiny_bundle.artifact(FP32, b"other bytes"), MANIFEST.artifacts[1]]
            )
        },
        {"manifest": tiny_bundle.manifest(MANIFEST.artifacts[:1])},
        {"host": replace(HOST, cpus=2)},
        {"host": replace(HOST, cpu_features=())},
        {"host": replace(HOST, packages=(replace(HOST.packages[0], version="1.32.0"), HOST.packages[1]))},
        {"host": replace(HOST, gpus=(GPU,))},
        {"threads": 1},
    ],
    ids=["bytes", "artifacts", "CPUs", "features", "version", "GPU", "threads"],
)
def test_whatever_changes_a_measurement_changes_the_key(other: dict[str, Any]) -> None:
    facts: dict[str, Any] = {"manifest": MANIFEST, "host": HOST, "threads": None}
    assert profile_key(**facts | other) != profile_key(**facts)
    tried = replace(HOST, packages=tuple(replace(package, failure=None) for package in HOST.packages))
    assert profile_key(MANIFEST, tried, None) == profile_key(**facts)


@pytest.mark.parametrize(
    "damage", [b"", b"{}", b"not JSON", b'{"created": 3, "measurements": []}', b"\xff" * 10]
)
def test_a_damaged_profile_is_not_used_and_says_so(damage: bytes) -> None:
    path = save_profile(PROFILE, MANIFEST, HOST, None)
    path.write_bytes(damage)
    found = read_profile(MANIFEST, HOST, None)
    assert found.profile is None
    assert found.note.startswith(f"the host profile {path} cannot be read (")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are those of POSIX")
def test_a_profile_that_others_could_write_is_neither_saved_nor_read(cache: Path) -> None:
    path = save_profile(PROFILE, MANIFEST, HOST, None)
    path.parent.chmod(0o777)
    assert read_profile(MANIFEST, HOST, None).profile is None
    with pytest.raises(RequestError, match=r"cannot be saved .*other users can write to it"):
        save_profile(PROFILE, MANIFEST, HOST, None)


def test_without_a_cache_folder_nothing_is_read_and_saving_says_why(
    monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    assert read_profile(MANIFEST, HOST, None) == (None, None)
    with pytest.raises(RequestError, match="the host profile cannot be saved"):
        save_profile(PROFILE, MANIFEST, HOST, None)
