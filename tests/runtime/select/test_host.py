"""What the host probe finds, held against the operating system, pip and a CUDA driver written for the test."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import msgspec
import pytest

from resnet_export.runtime.backends.routes import ROUTES
from resnet_export.runtime.select import host
from resnet_export.runtime.select.host import (
    Gpu,
    HostFacts,
    Package,
    cpu_quota,
    find_packages,
    installation_warnings,
    parse_cpuinfo,
    probe,
    query_gpus,
    usable_cpus,
)

X86 = """\
processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu sse2 fma avx2 f16c avx512f avx_vnni avx512_bf16 avx512_vnni

processor\t: 1
flags\t\t: amx_int8
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd evtstrm asimdhp asimddp bf16 i8mm\nCPU part\t: 0xd4f\n"

# Two devices as the CUDA driver API describes them, with the prototypes of its reference manual.
DRIVER = """
#include <stddef.h>
#include <string.h>
static int ready;
int cuDriverGetVersion(int *version) { *version = 12090; return 0; }
int cuInit(unsigned int flags) { ready = flags == 0; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return ready ? 0 : 3; }
int cuDeviceGet(int *device, int ordinal) { *device = 70 + ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, device == 70 ? "NVIDIA L4" : "NVIDIA H200", length);
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(device - 69) << 36; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    if (attribute == 75) *value = device == 70 ? 8 : 9;
    else if (attribute == 76) *value = device == 70 ? 9 : 0;
    else return 1;
    return 0;
}
"""


class Driver:
    """A CUDA driver in which one function fails."""

    def __init__(self, failing: str, status: int, name: bytes | None = None) -> None:
        self._failing, self._status, self._name = failing, status, name

    def __getattr__(self, function: str) -> object:
        if function == "cuGetErrorName":
            if self._name is None:
                raise AttributeError(function)
            return self._error_name
        return lambda *_: self._status if function == self._failing else 0

    def _error_name(self, status: ctypes.c_int, text: object) -> int:
        text._obj.value = self._name
        return 0


def test_the_features_of_the_first_processor_are_read_in_a_fixed_order() -> None:
    assert parse_cpuinfo(X86) == ("f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16")
    assert parse_cpuinfo(ARM) == ("asimd", "asimdhp", "asimddp", "bf16", "i8mm")
    assert parse_cpuinfo("model name : something else\n") == ()


def test_where_the_system_does_not_tell_the_features_it_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    features, note = host.cpu_features(tmp_path / "absent")
    assert features == ()
    assert "cannot be read: No such file" in note
    monkeypatch.setattr(host, "_SYSTEM", "darwin")
    assert host.cpu_features() == (
        (),
        "CPU features are read from /proc/cpuinfo on Linux only; this is darwin",
    )


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for a stand-in CUDA driver")
def test_gpus_are_read_through_the_c_interface_of_the_driver(tmp_path: Path) -> None:
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    query = query_gpus(lambda: ctypes.CDLL(str(library)))
    assert query.gpus == (
        Gpu(index=0, name="NVIDIA L4", compute_capability="8.9", memory=1 << 36),
        Gpu(index=1, name="NVIDIA H200", compute_capability="9.0", memory=2 << 36),
    )
    assert (query.cuda, query.note) == ("12.9", None)


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        (Driver("cuInit", 100, b"CUDA_ERROR_NO_DEVICE"), "cuInit returned CUDA_ERROR_NO_DEVICE (100)"),
        (Driver("cuInit", 803), "cuInit returned error 803"),
        (Driver("cuDriverGetVersion", 34, b"CUDA_ERROR_STUB_LIBRARY"), "CUDA_ERROR_STUB_LIBRARY (34)"),
        (Driver("nothing", 1), "lists no GPU"),
        (object(), "lacks a function"),
    ],
)
def test_a_driver_without_a_usable_gpu_is_a_reason_and_no_exception(driver: object, expected: str) -> None:
    query = query_gpus(lambda: driver)
    assert query.gpus == ()
    assert expected in query.note


def test_no_driver_is_a_reason_and_no_exception() -> None:
    query = query_gpus(lambda: ctypes.CDLL("libcuda-that-is-not-there.so"))
    assert query.gpus == ()
    assert query.note.startswith("there is no NVIDIA driver (libcuda-that-is-not-there.so")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        (
            "0::/a/b\n",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "400000 100000"},
            2,
        ),
        ("0::/docker/1234\n", {"cpu.max": "300000 100000"}, 3),
        (
            "3:cpuset:/\n1:cpu,cpuacct:/box\n",
            {"cpu/box/cpu.cfs_quota_us": "50000", "cpu/box/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"cpu.max": "nonsense"}, None),
        ("nonsense", {}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_a_container_is_the_smallest_on_its_way_to_the_root(
    tmp_path: Path, own: str, files: dict[str, str], expected: float | None
) -> None:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "own") == expected


def test_without_cgroups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "cgroup", tmp_path / "own") is None


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system sets no affinity")
def test_no_more_cpus_are_used_than_affinity_and_quota_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "cpu_quota", lambda: 1.2)
    assert usable_cpus() == min(2, len(os.sched_getaffinity(0)))
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert usable_cpus() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_the_probe_agrees_with_pip_and_the_operating_system() -> None:
    facts = probe()
    assert (facts.system, facts.machine) == (sys.platform, platform.machine())
    assert facts.cpus == len(os.sched_getaffinity(0)) if sys.platform == "linux" else facts.cpus >= 1
    for package in facts.packages:
        assert package.version == metadata.version(package.distribution)
    assert {"onnxruntime", "openvino"} <= {package.module for package in facts.packages}
    assert facts.package("openvino").version == metadata.version("openvino")
    assert facts.package("torch") is None
    assert bool(facts.gpus) != bool(facts.gpu_note)


def test_the_facts_survive_json() -> None:
    facts = probe()
    assert msgspec.json.decode(msgspec.json.encode(facts), type=HostFacts) == facts


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder as the only place where packages are installed, and none of the backends imported yet."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in {route.module for route in ROUTES}:
        monkeypatch.delitem(sys.modules, module, raising=False)
    return tmp_path


def install(folder: Path, module: str, *distributions: tuple[str, str]) -> None:
    (folder / module).mkdir()
    (folder / module / "__init__.py").write_text("raise RuntimeError('a probe imports nothing')\n")
    for name, version in distributions:
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_packages_are_found_without_being_imported(site: Path) -> None:
    install(site, "tensorrt", ("tensorrt", "10.13.3"))
    install(site, "openvino")
    assert find_packages() == (
        Package(module="openvino", distribution="openvino", version=None),
        Package(module="tensorrt", distribution="tensorrt", version="10.13.3"),
    )


def test_a_folder_with_the_name_of_a_backend_is_not_the_backend(site: Path) -> None:
    (site / "openvino").mkdir()
    assert find_packages() == ()


def test_both_builds_of_onnxruntime_side_by_side_are_warned_about(site: Path) -> None:
    install(site, "onnxruntime", ("onnxruntime", "1.31.1"), ("onnxruntime-gpu", "1.30.0"))
    packages = find_packages()
    assert [package.distribution for package in packages] == ["onnxruntime-gpu", "onnxruntime"]
    assert "uninstall both" in installation_warnings(packages)[0]
    assert installation_warnings(packages[:1]) == ()
