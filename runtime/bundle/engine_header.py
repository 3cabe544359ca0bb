"""What an engine file says about itself, read before any native library sees its bytes.

An engine is executable code for one variant and version of TensorRT and one family of GPUs. Three checks
keep a wrong one away from the library that would run it: the hash (`manifest.read_file`), the header, and
the host's variant, version and compute capability.

Both headers are little-endian. Standard TensorRT ("ftrt"): the tag at 0, a serialization version at 4, the
four bytes of the library version at 24, as read by `trtexec --getPlanVersionOnly` (NVIDIA/TensorRT,
samples/common/sampleEngines.cpp). TensorRT for RTX ("vtrt"): the same, and the size of the file (u64) at 16
and a mask of compute capabilities (u64) at 32; observed in version 1.7.1, not documented by NVIDIA.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from resnet_export.runtime.bundle.manifest import EngineInfo
from resnet_export.runtime.errors import IntegrityError

Variant = Literal["tensorrt", "tensorrt_rtx"]

TITLES: dict[Variant, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}
INSTALL: dict[Variant, str] = {
    "tensorrt": "pip install 'resnet-export[tensorrt]'",
    "tensorrt_rtx": "pip install 'resnet-export[tensorrt-rtx]'",
}

HEADER_BYTES = 64
# The newest versions whose headers were read. What a later one writes may be laid out otherwise.
_NEWEST_READ: dict[Variant, tuple[int, ...]] = {"tensorrt": (11, 4), "tensorrt_rtx": (1, 7, 1)}
# The major versions that run version-compatible engines of an earlier one too (NVIDIA's support matrix of TensorRT 11).
_ALSO_RUNS = {("tensorrt", 11): 10}
_TAGS: dict[bytes, Variant] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
# The bits of the mask in the header of TensorRT for RTX 1.7.1.
_CAPABILITY_BITS = {1: "7.5", 2: "8.0", 4: "8.6", 8: "8.9", 16: "12.0", 32: "12.1"}


@dataclass(frozen=True)
class EngineHeader:
    """The header of an engine file.

    Attributes:
        variant: which library wrote it.
        version: that library's version; the build number is kept modulo 256, since it is one byte.
        compute_capabilities: "8.6"-style strings; empty for standard TensorRT, whose header does not say.
    """

    variant: Variant
    version: tuple[int, int, int, int]
    compute_capabilities: tuple[str, ...]


def read_header(data: bytes) -> EngineHeader:
    """Read the header of an engine. Raises IntegrityError for anything that is not a whole engine file."""
    tag = data[:4]
    if tag not in _TAGS:
        found = "it is empty" if not data else f"it starts with {tag!r}"
        raise IntegrityError(
            f"the file is not a TensorRT engine ({found}, an engine starts with b'ftrt' or b'vtrt'); "
            "export the bundle again"
        )
    if len(data) < HEADER_BYTES:
        raise IntegrityError(
            f"the engine is cut off ({len(data)} bytes, its header alone has {HEADER_BYTES}); "
            "export the bundle again"
        )
    variant = _TAGS[tag]
    serialization, size, mask = struct.unpack_from("<I8xQ8xQ", data, 4)
    if serialization != 0:
        raise IntegrityError(
            f"the engine has serialization version {serialization}, this version of resnet-export reads 0; "
            "build the engine again with `resnet-export build BUNDLE`"
        )
    version: tuple[int, int, int, int] = struct.unpack_from("<4B", data, 24)
    if variant == "tensorrt":
        return EngineHeader(variant, version, ())
    if size != len(data):
        raise IntegrityError(
            f"the engine has {len(data)} bytes, its header says {size}; the file was cut off or appended to: "
            "export the bundle again"
        )
    names = [name for bit, name in _CAPABILITY_BITS.items() if mask & bit]
    if unknown := mask & ~sum(_CAPABILITY_BITS):
        names.append(f"unknown ({unknown:#x})")
    return EngineHeader(variant, version, tuple(names))


def check_header(data: bytes, info: EngineInfo) -> EngineHeader | None:
    """Return the header of an engine; None, not described, where a later version than those read here wrote it so.

    Raises IntegrityError when it is not a whole engine, or contradicts what the manifest says about it.
    """
    try:
        header = read_header(data)
        _compare(header, info)
    except IntegrityError:
        newest = _NEWEST_READ[info.variant]
        new_layout = _TAGS.get(data[:4]) in (None, info.variant) and len(data) >= HEADER_BYTES
        if new_layout and parse_version(info.version)[: len(newest)] > newest:
            return None
        raise
    return header


def _compare(header: EngineHeader, info: EngineInfo) -> None:
    expected = parse_version(info.version)
    if header.variant != info.variant or not _same_version(header.version, expected):
        raise IntegrityError(
            f"the engine was written by {TITLES[header.variant]} {format_version(header.version)}, the "
            f"manifest says {TITLES[info.variant]} {info.version}; export the bundle again"
        )
    if header.variant == "tensorrt_rtx" and set(header.compute_capabilities) != set(
        info.compute_capabilities
    ):
        found = ", ".join(header.compute_capabilities) or "unknown"
        raise IntegrityError(
            f"the engine is for compute capability {found}, the manifest says "
            f"{', '.join(info.compute_capabilities)}; export the bundle again"
        )


def engine_mismatch(info: EngineInfo, *, installed: str | None, device: str | None) -> str | None:
    """Say why an engine cannot run here, with what was expected and what was found; None when it can.

    `installed` is the version of the engine's own variant on this host (None: not installed), `device` the compute
    capability of the GPU ("8.6"; None: no GPU). An engine runs on the version that built it or, built version
    compatible, on a later one of the same major version, those of TensorRT 10 on 11 as well; and on the compute
    capabilities that it was built for or, built hardware compatible, on every GPU from Ampere (8.0) on (TensorRT
    developer guide, "Version Compatibility" and "Hardware Compatibility"; support matrix of TensorRT 11).
    """
    title, targets = TITLES[info.variant], ", ".join(info.compute_capabilities)
    if installed is None:
        return f"built by {title} {info.version}, which is not installed here ({INSTALL[info.variant]})"
    built, found = parse_version(info.version), parse_version(installed)
    if not built:
        return f"built by {title} {info.version!r}, which is no version; this host has {installed}"
    if info.options.get("version_compatible"):
        later = found[:1] and _ALSO_RUNS.get((info.variant, found[0])) == built[0]
        if not later and (found[:1] != built[:1] or found < built):
            majors = [
                built[0],
                *(new for (v, new), old in _ALSO_RUNS.items() if v == info.variant and old == built[0]),
            ]
            named = " and ".join(map(str, majors))
            return f"built for {title} {named} from {info.version} on, this host has {installed}"
    elif not _same_version(built, found):
        return f"built by {title} {info.version}, this host has {installed}"
    if device is None:
        return f"built for compute capability {targets}, this host has no usable GPU"
    if info.options.get("hardware_compatibility") == "ampere+":
        if parse_version(device) < (8, 0):
            return f"built for compute capability 8.0 and later, this GPU has {device}"
    elif device not in info.compute_capabilities:
        return f"built for compute capability {targets}, this GPU has {device}"
    return None


def parse_version(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: "10.13.3.9.post1" becomes (10, 13, 3, 9)."""
    numbers: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


def format_version(version: tuple[int, ...]) -> str:
    """The inverse of `parse_version`."""
    return ".".join(str(number) for number in version)


def _same_version(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Bindings and packages report three numbers or four; a header holds each in one byte."""
    return len(one) > 1 < len(other) and all(
        a % 256 == b % 256 for a, b in zip(one[:4], other[:4], strict=False)
    )
