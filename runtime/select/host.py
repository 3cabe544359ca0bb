"""What this machine offers, as plain facts that the resolver takes as an argument.

Nothing heavy is imported to find out: packages are looked up and not loaded, and GPUs are asked for through
the CUDA driver's own library, without a context and without any Python package.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from resnet_export.runtime.backends.libraries import import_library
from resnet_export.runtime.backends.routes import ROUTES
from resnet_export.runtime.errors import BackendError

# The instruction sets that decide which arithmetic an engine can use, as Linux names them (x86-64, then Arm).
CPU_FEATURES = (
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimdhp",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)

# A plain string: type checkers take sys.platform for a constant and skip the other branches.
_SYSTEM: str = sys.platform

# CUdevice_attribute, from the CUDA driver API reference.
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """An installed backend. `version` is None when no known distribution claims the module.

    `failure` says why the module cannot be imported; None when it can, or was not tried.
    """

    module: str
    distribution: str
    version: str | None
    failure: str | None = None


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU, as the CUDA driver numbers it. `compute_capability` is "8.6"-style; `memory` is in bytes."""

    index: int
    name: str
    compute_capability: str
    memory: int


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the resolver knows of a machine.

    `system` and `machine` are as Python names them ("linux", "x86_64"). `cpus` is the number of logical CPUs
    that this process may use, of `all_cpus` in the machine. `cpu_features` is the part of `CPU_FEATURES` that the
    CPU has, empty with `cpu_note` saying why where the system does not tell. `gpus` is empty with `gpu_note` saying
    why where there is none. `cuda` is the newest CUDA version that the driver serves ("13.0"), `driver` the driver's
    own version. `warnings` are sentences about an installation that is likely to misbehave.
    """

    system: str
    machine: str
    cpus: int
    all_cpus: int | None = None
    cpu_features: tuple[str, ...] = ()
    cpu_note: str | None = None
    packages: tuple[Package, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str | None = None
    cuda: str | None = None
    driver: str | None = None
    warnings: tuple[str, ...] = ()

    def package(self, module: str) -> Package | None:
        """Return the installed package that provides `module`, or None."""
        return next((package for package in self.packages if package.module == module), None)


def probe(*, imports: bool = False) -> HostFacts:
    """Look at this machine.

    With `imports` the packages of every backend that could run here are imported, too, to find those that cannot be.

    Initializes the CUDA driver where there is one, but creates no context; honours `CUDA_VISIBLE_DEVICES`.
    As after any use of CUDA, a process that forks afterwards cannot use the GPU in its children. Raises
    nothing: what cannot be found out is said in the notes.
    """
    import platform

    features, cpu_note = cpu_features()
    packages = find_packages()
    query = query_gpus()
    if imports:
        packages = try_imports(packages, gpu=bool(query.gpus))
    return HostFacts(
        system=_SYSTEM,
        machine=platform.machine(),
        cpus=usable_cpus(),
        all_cpus=os.cpu_count(),
        cpu_features=features,
        cpu_note=cpu_note,
        packages=packages,
        gpus=query.gpus,
        gpu_note=query.note,
        cuda=query.cuda,
        driver=_driver_version(),
        warnings=installation_warnings(packages),
    )


def usable_cpus() -> int:
    """Return how many CPUs this process can use, by its affinity (taskset) and its cgroup's quota (containers)."""
    if _SYSTEM != "linux":
        return os.cpu_count() or 1
    quota = cpu_quota()
    allowed = len(os.sched_getaffinity(0))
    return allowed if quota is None else min(allowed, max(math.ceil(quota), 1))


def cpu_quota(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the CPU time a second that the cgroups of this process allow, None where they set no limit.

    The limit is the smallest of the group's and its parents': `cpu.max` in cgroup v2, `cpu.cfs_quota_us` in v1.
    """
    limits = []
    try:
        lines = own.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, group = line.split(":", 2) if line.count(":") > 1 else ("", "-", "/")
        if controllers and "cpu" not in controllers.split(","):
            continue
        home = cgroups if not controllers else cgroups / "cpu"
        # A container may see its own group at the root, and the path that the host knows.
        folders = [home / group.lstrip("/"), *(home / group.lstrip("/")).parents]
        limits += [_quota_of(folder) for folder in folders if folder.is_relative_to(home)]
    return min((limit for limit in limits if limit is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii")
        return None if quota in ("max", "-1") or float(quota) <= 0 else float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cpu_features(path: Path = Path("/proc/cpuinfo")) -> tuple[tuple[str, ...], str | None]:
    """Return those of `CPU_FEATURES` that this processor has, and why they are not known where they are not."""
    if _SYSTEM != "linux":
        return (), f"CPU features are read from {path} on Linux only; this is {_SYSTEM}"
    try:
        return parse_cpuinfo(path.read_text(encoding="utf-8", errors="replace")), None
    except OSError as error:
        return (), f"{path} cannot be read: {error.strerror}"


def parse_cpuinfo(text: str) -> tuple[str, ...]:
    """Return the part of `CPU_FEATURES` that the first processor of a /proc/cpuinfo lists, in that order."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("flags", "features"):  # x86-64 writes "flags", Arm "Features"
            present = set(value.split())
            return tuple(feature for feature in CPU_FEATURES if feature in present)
    return ()


def find_packages() -> tuple[Package, ...]:
    """Return the installed backends, importing none. Two distributions of one module are two entries."""
    found: list[Package] = []
    for module, distributions in sorted({(route.module, route.packages) for route in ROUTES}):
        if not _is_installed(module):
            continue
        claims = [
            Package(module=module, distribution=name, version=version)
            for name, version in _versions(distributions)
        ]
        found += claims or [Package(module=module, distribution=module, version=None)]
    return tuple(found)


def try_imports(packages: tuple[Package, ...], *, gpu: bool) -> tuple[Package, ...]:
    """Return the packages with the failures of those that cannot be imported; those for GPUs only with `gpu`."""
    wanted = {route.module for route in ROUTES if gpu or route.device == "cpu"}
    failures: dict[str, str | None] = {}
    for module in {package.module for package in packages} & wanted:
        try:
            import_library(module)
        except BackendError as error:
            failures[module] = str(error)
    return tuple(
        msgspec.structs.replace(package, failure=failures.get(package.module)) for package in packages
    )


def _is_installed(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
    except ValueError:  # something put a module without a spec into sys.modules
        return module in sys.modules
    # A folder that happens to have the name is found too, as a namespace package without a file.
    return spec is not None and spec.origin is not None


def _versions(distributions: tuple[str, ...]) -> list[tuple[str, str]]:
    from importlib import metadata  # costs as much as msgspec, and only this function needs it

    found: list[tuple[str, str]] = []
    for name in distributions:
        try:
            found.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    return found


def installation_warnings(packages: tuple[Package, ...]) -> tuple[str, ...]:
    """Return a sentence for each combination of packages that is known to misbehave."""
    names = {package.distribution for package in packages}
    if {"onnxruntime", "onnxruntime-gpu"} <= names:
        return (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "uninstall both, then install the one you need",
        )
    return ()


class GpuQuery(NamedTuple):
    """What the CUDA driver said: the GPUs, the CUDA version that it serves, and why there is no GPU."""

    gpus: tuple[Gpu, ...]
    cuda: str | None
    note: str | None


class _DriverError(Exception):
    """A call into the CUDA driver returned an error code."""


def _load_driver() -> Any:
    if sys.platform == "win32":
        return ctypes.WinDLL("nvcuda.dll")
    return ctypes.CDLL("libcuda.so.1")


def query_gpus(load: Callable[[], Any] = _load_driver) -> GpuQuery:
    """Ask the CUDA driver for its GPUs; `load` returns its library. Raises nothing."""
    try:
        library = load()
    except (OSError, AttributeError) as error:
        return GpuQuery((), None, f"there is no NVIDIA driver ({error})")

    def call(function: str, *arguments: object) -> None:
        status = getattr(library, function)(*arguments)
        if status != 0:
            raise _DriverError(f"{function} returned {_error_name(library, status)}")

    cuda: str | None = None
    try:
        version, count = ctypes.c_int(), ctypes.c_int()
        call("cuDriverGetVersion", ctypes.byref(version))
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        call("cuInit", ctypes.c_uint(0))
        call("cuDeviceGetCount", ctypes.byref(count))
        gpus = tuple(_describe(call, index) for index in range(count.value))
    except _DriverError as error:
        return GpuQuery((), cuda, f"the NVIDIA driver found no usable GPU ({error})")
    except AttributeError as error:
        return GpuQuery((), cuda, f"the NVIDIA driver lacks a function that every driver has ({error})")
    return GpuQuery(gpus, cuda, None if gpus else "the NVIDIA driver lists no GPU")


def _describe(call: Callable[..., None], index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory = ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
    call("cuDeviceGetName", name, ctypes.c_int(len(name)), device)
    call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    call("cuDeviceGetAttribute", ctypes.byref(major), ctypes.c_int(_COMPUTE_CAPABILITY_MAJOR), device)
    call("cuDeviceGetAttribute", ctypes.byref(minor), ctypes.c_int(_COMPUTE_CAPABILITY_MINOR), device)
    return Gpu(
        index=index,
        name=name.value.decode("utf-8", "replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory=memory.value,
    )


def _error_name(library: Any, status: int) -> str:
    text = ctypes.c_char_p()
    try:
        if library.cuGetErrorName(ctypes.c_int(status), ctypes.byref(text)) == 0 and text.value:
            return f"{text.value.decode()} ({status})"
    except AttributeError:
        pass
    return f"error {status}"


def _driver_version() -> str | None:
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None
