"""Which TensorRT serves which GPU, and what this host can build of what was asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from resnet_export.exporter.spec import EngineChoice
from resnet_export.runtime.bundle.engine_header import INSTALL, TITLES, Variant
from resnet_export.runtime.errors import DependencyError, RequestError
from resnet_export.runtime.select.host import HostFacts


@dataclass(frozen=True)
class GpuFamily:
    """The GPUs of one compute capability. `rtx`: TensorRT for RTX builds for them, ahead of time and anywhere.

    Standard TensorRT serves all of them, and builds only on the GPU itself.
    """

    compute_capability: str
    devices: str
    rtx: bool


# Compute capabilities: developer.nvidia.com/cuda-gpus. The last column is what the builder of TensorRT for
# RTX 1.7.1 accepts; it refuses every other capability.
FAMILIES = (
    GpuFamily("7.5", "T4, RTX 20 series", rtx=True),
    GpuFamily("8.0", "A100, A30", rtx=True),
    GpuFamily("8.6", "A10, A40, RTX 30 series", rtx=True),
    GpuFamily("8.7", "Jetson Orin", rtx=False),
    GpuFamily("8.9", "L4, L40S, RTX 40 series", rtx=True),
    GpuFamily("9.0", "H100, H200, GH200", rtx=False),
    GpuFamily("10.0", "B200, GB200", rtx=False),
    GpuFamily("10.3", "B300, GB300", rtx=False),
    GpuFamily("11.0", "Jetson Thor", rtx=False),
    GpuFamily("12.0", "RTX 50 series, RTX PRO Blackwell", rtx=True),
    GpuFamily("12.1", "DGX Spark", rtx=True),
)

# Turing is left out unless it is asked for: TensorRT for RTX refuses fp32 Q/DQ graphs there.
DEFAULT_RTX_TARGETS = tuple(
    family.compute_capability for family in FAMILIES if family.rtx and family.compute_capability != "7.5"
)

_FINISH = "copy the bundle to the device and run `resnet-export build BUNDLE --engine tensorrt` there"


@dataclass(frozen=True)
class PlannedBuild:
    """One call of the builder per precision. `targets` are compute capabilities ("8.6")."""

    variant: Variant
    targets: tuple[str, ...]


@dataclass(frozen=True)
class EnginePlan:
    """What will be built, and a sentence for each thing that will not be, with the way to get it.

    `required`: the engines were asked for by name, so a build that fails is an error and not one more note.
    """

    builds: tuple[PlannedBuild, ...]
    notes: tuple[str, ...] = ()
    required: bool = True


def parse_target(target: str) -> str:
    """Return the compute capability ("8.6") of a `--gpu` value ("sm86"). Raises RequestError."""
    match = re.fullmatch(r"sm(\d+)(\d)", target.strip().lower())
    capability = f"{match[1]}.{match[2]}" if match else None
    if capability is None or capability not in {family.compute_capability for family in FAMILIES}:
        known = ", ".join(f"{sm(family.compute_capability)} ({family.devices})" for family in FAMILIES)
        raise RequestError(f"--gpu has {target!r}, expected one or more of {known}")
    return capability


def sm(compute_capability: str) -> str:
    """The inverse of `parse_target`: "8.6" becomes "sm86"."""
    return "sm" + compute_capability.replace(".", "")


def family(compute_capability: str) -> GpuFamily:
    """Return the row of `FAMILIES`; a capability that it lacks gets a row that only standard TensorRT serves."""
    for row in FAMILIES:
        if row.compute_capability == compute_capability:
            return row
    return GpuFamily(compute_capability, "unknown to this version", rtx=False)


def available_flavours(host: HostFacts) -> dict[Variant, str]:
    """Return the builders that can build something on this host, with their versions.

    TensorRT for RTX builds anywhere it is installed; standard TensorRT needs an NVIDIA GPU as well.
    """
    found: dict[Variant, str] = {}
    rtx, classic = host.package("tensorrt_rtx"), host.package("tensorrt")
    if rtx is not None:
        found["tensorrt_rtx"] = rtx.version or "unknown version"
    if classic is not None and host.gpus:
        found["tensorrt"] = classic.version or "unknown version"
    return found


def plan_engines(choice: EngineChoice, gpu: tuple[str, ...], host: HostFacts) -> EnginePlan:
    """Decide what to build for `--engine choice --gpu gpu,...` on `host`.

    What is asked for by name (an engine, a GPU) is planned or refused; only `auto` without GPUs makes do
    with what there is, and says in its notes what is missing. Raises RequestError, or DependencyError for a
    missing package.
    """
    targets = tuple(dict.fromkeys(parse_target(target) for target in gpu))
    if choice == "none":
        if targets:
            raise RequestError("--engine none builds nothing, so --gpu has no meaning; leave one of them out")
        return EnginePlan(())
    if choice == "tensorrt-rtx":
        _require_package("tensorrt_rtx", host)
        _require_rtx(targets)
        return EnginePlan((PlannedBuild("tensorrt_rtx", targets or DEFAULT_RTX_TARGETS),))
    if choice == "tensorrt":
        own = _own_capability(targets, host)
        _require_package("tensorrt", host)
        return EnginePlan((PlannedBuild("tensorrt", (own,)),))
    return _plan_targets(targets, host) if targets else _plan_host(host)


def _plan_targets(targets: tuple[str, ...], host: HostFacts) -> EnginePlan:
    """`auto` with GPUs: each target goes to the variant that can build for it here."""
    available = available_flavours(host)
    rtx = tuple(target for target in targets if family(target).rtx and "tensorrt_rtx" in available)
    rest = tuple(target for target in targets if target not in rtx)
    builds = [PlannedBuild("tensorrt_rtx", rtx)] if rtx else []
    if rest:
        if all(family(target).rtx for target in rest) and "tensorrt" not in available:
            _require_package("tensorrt_rtx", host)
        if "tensorrt" not in available:
            _require_rtx(rest)
        builds.append(PlannedBuild("tensorrt", (_own_capability(rest, host),)))
    return EnginePlan(tuple(builds))


def _plan_host(host: HostFacts) -> EnginePlan:
    """`auto` without GPUs: whatever this host can build."""
    available = available_flavours(host)
    builds, notes = [], []
    if "tensorrt_rtx" in available:
        builds.append(PlannedBuild("tensorrt_rtx", DEFAULT_RTX_TARGETS))
    else:
        notes.append(
            f"no {TITLES['tensorrt_rtx']} engine was built: it is not installed; install it with "
            f"{INSTALL['tensorrt_rtx']} and run `resnet-export build BUNDLE`"
        )
    if "tensorrt" in available:
        builds.append(PlannedBuild("tensorrt", (host.gpus[0].compute_capability,)))
    else:
        missing = "this host has no NVIDIA GPU" if not host.gpus else "it is not installed"
        notes.append(
            f"no {TITLES['tensorrt']} engine was built: it builds only on the GPU that will run it, and "
            f"{missing}; "
            f"for data-centre GPUs and Jetson, {_FINISH}"
        )
    return EnginePlan(tuple(builds), tuple(notes), required=False)


def _require_package(variant: Variant, host: HostFacts) -> None:
    if host.package(variant) is None:
        raise DependencyError(f"{TITLES[variant]} is not installed; install it with {INSTALL[variant]}")


def _require_rtx(targets: tuple[str, ...]) -> None:
    refused = [target for target in targets if not family(target).rtx]
    if refused:
        named = ", ".join(f"{sm(target)} ({family(target).devices})" for target in refused)
        served = ", ".join(sm(row.compute_capability) for row in FAMILIES if row.rtx)
        raise RequestError(
            f"{TITLES['tensorrt_rtx']} does not serve {named}, it builds for {served}; TensorRT serves it "
            "and builds "
            f"only on the device: leave it out of --gpu, {_FINISH}"
        )


def _own_capability(targets: tuple[str, ...], host: HostFacts) -> str:
    """Return the compute capability of the GPU that standard TensorRT builds on and for."""
    if not host.gpus:
        wanted = ", ".join(f"{sm(target)} ({family(target).devices})" for target in targets)
        raise RequestError(
            f"{TITLES['tensorrt']} builds only on the GPU that will run the "
            f"engine{f' ({wanted})' if wanted else ''}, "
            f"and this host has none ({host.gpu_note}); {_FINISH}, or use --engine tensorrt-rtx for RTX GPUs"
        )
    own = host.gpus[0].compute_capability
    foreign = [target for target in targets if target != own]
    if foreign:
        named = ", ".join(f"{sm(target)} ({family(target).devices})" for target in foreign)
        raise RequestError(
            f"{TITLES['tensorrt']} builds only for the GPU that it runs on, here {sm(own)} "
            f"({host.gpus[0].name}), "
            f"not for {named}; {_FINISH}"
        )
    return own
