"""Which TensorRT serves which GPU, and what this host can build of what was asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from resnet_export.exporter.spec import EngineChoice
from resnet_export.runtime.bundle.engine_header import INSTALL, TITLES, Variant
from resnet_export.runtime.errors import DependencyError, RequestError, ResnetExportError
from resnet_export.runtime.select.host import HostFacts


@dataclass(frozen=True)
class GpuFamily:
    """The GPUs of one compute capability.

    Standard TensorRT serves all of them, and builds only on the GPU itself.

    Attributes:
        compute_capability: "8.6".
        devices: for messages.
        cards: a pattern of their names, in lower case, without separators, maker and form factor.
        rtx: TensorRT for RTX builds for them, ahead of time and anywhere.
    """

    compute_capability: str
    devices: str
    cards: str
    rtx: bool


# Compute capabilities: developer.nvidia.com/cuda-gpus. The last column is what the builder of TensorRT for
# RTX 1.7.1 accepts; it refuses every other capability.
FAMILIES = (
    GpuFamily("7.5", "T4, RTX 20 series", r"t4g?|titanrtx|rtx20[678]0|gtx16[356]0|quadrortx[3-8]000", True),
    GpuFamily("8.0", "A100, A30", r"a100x?|a800|a30x?", True),
    GpuFamily(
        "8.6", "A10, A40, RTX 30 series", r"a(2|10g?|16|40)|(geforce)?rtx30[5-9]0|(rtx)?a[2-6]\d00", True
    ),
    GpuFamily("8.7", "Jetson Orin", r"(jetson)?(agx|nx|nano)?orin(agx|nx|nano)?", False),
    GpuFamily("8.9", "L4, L40S, RTX 40 series", r"l4|l20|l40s?|rtx40[5-9]0|rtx[2-6]\d00ada", True),
    GpuFamily("9.0", "H100, H200, GH200", r"g?h(20|100|200|800)", False),
    GpuFamily("10.0", "B200, GB200", r"g?b(100|200)", False),
    GpuFamily("10.3", "B300, GB300", r"g?b300", False),
    GpuFamily("11.0", "Jetson Thor", r"(jetson)?(agx)?thor|jetsont[45]000", False),
    GpuFamily("12.0", "RTX 50 series, RTX PRO Blackwell", r"rtx50[5-9]0|rtxpro[2-6]\d00(blackwell)?", True),
    GpuFamily("12.1", "DGX Spark", r"(dgx)?spark|gb10", True),
)

_CAPABILITY = re.compile(r"(?:(?:sm|compute)_?)?(\d{1,2})\.?(\d)[af]?(?:\+ptx)?")
# What nvidia-smi and shops add to the name of a card: the maker, how it is built in, how much memory it has.
_NOT_THE_CARD = re.compile(
    r"nvidia|geforce|tesla|laptop|mobile|max-?q|gpu|generation|developer kit|workstation|edition|server|tensor core"
    r"|\bnvgpu\b|\bpcie\b|\bsxm\d*|\bhbm\w*|\bnvl\d*|\b\d+ ?gb\b|\bsff\b|(?<=\d{4})( ?(ti|super|d))+\b"
)
_SEPARATOR = re.compile(r"[\W_]+")

# Turing is left out unless it is asked for: TensorRT for RTX refuses fp32 Q/DQ graphs there.
DEFAULT_RTX_TARGETS = tuple(
    family.compute_capability for family in FAMILIES if family.rtx and family.compute_capability != "7.5"
)

# What each choice may build with, the first that serves a GPU here first.
_VARIANTS: dict[EngineChoice, tuple[Variant, ...]] = {
    "auto": ("tensorrt_rtx", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx",),
    "tensorrt": ("tensorrt",),
}

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
    """Return the compute capability ("8.6") of a `--gpu` value.

    Understood are the spellings that nvcc, PyTorch and CMake have of a compute capability ("sm86", "sm_86",
    "compute_86", "8.6", "86", "9.0a", "8.6+PTX"), and names of cards as NVIDIA's list and nvidia-smi write them
    ("RTX 3090", "NVIDIA A100-SXM4-80GB"). Raises RequestError.
    """
    match = _CAPABILITY.fullmatch(target.strip().lower())
    card = _SEPARATOR.sub("", _NOT_THE_CARD.sub("", target.lower()))
    for row in FAMILIES:
        if f"{match[1]}.{match[2]}" == row.compute_capability if match else re.fullmatch(row.cards, card):
            return row.compute_capability
    known = ", ".join(_named(row.compute_capability) for row in FAMILIES)
    raise RequestError(f"--gpu has {target!r}, expected one or more of {known}")


def sm(compute_capability: str) -> str:
    """The inverse of `parse_target`: "8.6" becomes "sm86"."""
    return "sm" + compute_capability.replace(".", "")


def family(compute_capability: str) -> GpuFamily:
    """Return the row of `FAMILIES`; a capability that it lacks gets a row that only standard TensorRT serves."""
    for row in FAMILIES:
        if row.compute_capability == compute_capability:
            return row
    return GpuFamily(compute_capability, "unknown to this version", "", rtx=False)


def plan_engines(choice: EngineChoice, gpu: tuple[str, ...], host: HostFacts) -> EnginePlan:
    """Decide what to build for `--engine choice --gpu gpu,...` on `host`.

    Of the GPUs asked for, those that this host can build for are planned, and a note says how to get each of the
    others; where that is all of them, it is an error. `auto` without GPUs makes do with what there is. Raises
    RequestError, or DependencyError for a missing package.
    """
    targets = tuple(dict.fromkeys(parse_target(target) for target in gpu))
    if choice == "none":
        if targets:
            raise RequestError("--engine none builds nothing, so --gpu has no meaning; leave one of them out")
        return EnginePlan(())
    if not targets and choice == "auto":
        return _plan_host(host)
    if not targets and choice == "tensorrt" and not host.gpus:
        raise _obstacle("tensorrt", (), host)
    own = tuple(gpu.compute_capability for gpu in host.gpus[:1])
    targets = targets or (DEFAULT_RTX_TARGETS if choice == "tensorrt-rtx" else own)
    variants = _VARIANTS[choice]
    builds: dict[Variant, list[str]] = {}
    missed: dict[tuple[Variant, bool], list[str]] = {}
    for target in targets:
        here = next((variant for variant in variants if _builds(variant, target, host)), None)
        if here is not None:
            builds.setdefault(here, []).append(target)
            continue
        rtx = family(target).rtx
        standard = "tensorrt_rtx" not in variants or (
            not rtx and bool(own) and host.package("tensorrt") is not None
        )
        missed.setdefault(("tensorrt" if standard else "tensorrt_rtx", rtx), []).append(target)
    obstacles = [_obstacle(variant, tuple(found), host) for (variant, _), found in missed.items()]
    if not builds:
        raise obstacles[0] if len(obstacles) == 1 else RequestError("; ".join(map(str, obstacles)))
    return EnginePlan(
        tuple(PlannedBuild(variant, tuple(found)) for variant, found in builds.items()),
        tuple(
            f"no engine was built for {', '.join(map(sm, found))}: {obstacle}"
            for found, obstacle in zip(missed.values(), obstacles, strict=True)
        ),
    )


def _builds(variant: Variant, target: str, host: HostFacts) -> bool:
    """Whether `variant` builds for a compute capability on this host."""
    if host.package(variant) is None:
        return False
    if variant == "tensorrt_rtx":
        return family(target).rtx
    return bool(host.gpus) and host.gpus[0].compute_capability == target


def _plan_host(host: HostFacts) -> EnginePlan:
    """`auto` without GPUs: whatever this host can build."""
    builds, notes = [], []
    if host.package("tensorrt_rtx") is not None:
        builds.append(PlannedBuild("tensorrt_rtx", DEFAULT_RTX_TARGETS))
    else:
        notes.append(
            f"no {TITLES['tensorrt_rtx']} engine was built: it is not installed; install it with "
            f"{INSTALL['tensorrt_rtx']} and run `resnet-export build BUNDLE`"
        )
    if host.gpus and host.package("tensorrt") is not None:
        builds.append(PlannedBuild("tensorrt", (host.gpus[0].compute_capability,)))
    else:
        missing = "this host has no NVIDIA GPU" if not host.gpus else "it is not installed"
        notes.append(
            f"no {TITLES['tensorrt']} engine was built: it builds only on the GPU that will run it, and "
            f"{missing}; for data-center GPUs and Jetson, {_FINISH}"
        )
    return EnginePlan(tuple(builds), tuple(notes), required=False)


def _obstacle(variant: Variant, targets: tuple[str, ...], host: HostFacts) -> ResnetExportError:
    """Return why `variant` does not build for `targets` here, and what to do."""
    title = TITLES[variant]
    if variant == "tensorrt_rtx":
        if refused := [target for target in targets if not family(target).rtx]:
            served = ", ".join(sm(row.compute_capability) for row in FAMILIES if row.rtx)
            return RequestError(
                f"{title} does not serve {', '.join(map(_named, refused))}, it builds for {served}; TensorRT serves "
                f"it and builds only on the device: {_FINISH}"
            )
    elif not host.gpus:
        wanted = f" ({', '.join(map(_named, targets))})" if targets else ""
        return RequestError(
            f"{title} builds only on the GPU that will run the engine{wanted}, and this host has none "
            f"({host.gpu_note}); {_FINISH}, or use --engine tensorrt-rtx for RTX GPUs"
        )
    elif foreign := [target for target in targets if target != host.gpus[0].compute_capability]:
        return RequestError(
            f"{title} builds only for the GPU that it runs on, here {sm(host.gpus[0].compute_capability)} "
            f"({host.gpus[0].name}), not for {', '.join(map(_named, foreign))}; {_FINISH}"
        )
    return DependencyError(f"{title} is not installed; install it with {INSTALL[variant]}")


def _named(compute_capability: str) -> str:
    return f"{sm(compute_capability)} ({family(compute_capability).devices})"
