"""What a user may ask of the builder, and the refusal of whatever a variant cannot honor.

There is no option for precision: that lives in the typed graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from resnet_export.runtime.bundle.engine_header import TITLES, Variant
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import RequestError


@dataclass(frozen=True)
class BuildOptions:
    """Options of the builder. The defaults suit every variant.

    Attributes:
        workspace_mib: the most device memory that a layer may use for scratch, in MiB; None: no limit.
        tf32: let float32 layers round their inputs to TF32's 10-bit mantissa. Off, because an fp32 engine is then no
            longer the fp32 graph.
        timing_cache: a file with kernel timings of earlier builds, read and updated (standard TensorRT). Beside the
            bundle, not in it: it is of no use on another device.
        hardware_compatibility: the GPUs besides the own one that the engine shall run on (standard TensorRT).
        version_compatible: also run on later versions of the same major version, and those of TensorRT 10 on 11
            (standard TensorRT).
        strip_weights: leave the weights out; the runtime puts them back from the ONNX artifact
            (standard TensorRT).
        refit: allow weights to be replaced later (standard TensorRT).
        sparse: use 2:4 structured sparsity where the weights have it (standard TensorRT).
        dla_core: run on this core of a Deep Learning Accelerator, with the GPU as fallback
            (standard TensorRT, Jetson).
    """

    workspace_mib: int | None = None
    tf32: bool = False
    timing_cache: Path | None = None
    hardware_compatibility: Literal["none", "same_compute_capability", "ampere+"] = "none"
    version_compatible: bool = False
    strip_weights: bool = False
    refit: bool = False
    sparse: bool = False
    dla_core: int | None = None

    def given(self) -> dict[str, str | int | float | bool]:
        """Return the options that differ from their defaults, JSON-ready, for the manifest.

        The timing cache is not among them: it is a file of the building host and leaves no trace in the engine.
        """
        return {
            option.name: getattr(self, option.name)
            for option in fields(self)
            if option.name != "timing_cache" and getattr(self, option.name) != option.default
        }


_STANDARD_ONLY = tuple(
    option.name for option in fields(BuildOptions) if option.name not in ("workspace_mib", "tf32")
)


def check_options(
    options: BuildOptions, variant: Variant, library: Any, profiles: tuple[BatchRange, ...]
) -> None:
    """Raise RequestError for an option that this variant or version would ignore or fail on.

    TensorRT for RTX 1.7 accepts most of them without an error and ignores them.
    """
    for reason in _objections(options, variant, library, profiles):
        raise RequestError(reason)


def _objections(
    options: BuildOptions, variant: Variant, library: Any, profiles: tuple[BatchRange, ...]
) -> Iterator[str]:
    title = TITLES[variant]
    for profile in profiles:
        if not profile.min <= profile.opt <= profile.max:
            yield (
                f"the batch sizes {profile.min},{profile.opt},{profile.max} do not ascend; give them as "
                "the smallest, the usual and the largest"
            )
    if options.workspace_mib is not None and options.workspace_mib < 1:
        yield f"workspace_mib is {options.workspace_mib}, expected at least 1"
    if variant == "tensorrt_rtx":
        for name in _STANDARD_ONLY:
            if getattr(options, name) != getattr(BuildOptions, name):
                yield (
                    f"{title} does not honor {name}; leave it out, or build with --engine tensorrt on "
                    "the device"
                )
        return
    if options.hardware_compatibility == "same_compute_capability" and not hasattr(
        library.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"
    ):
        yield (
            f"{title} {library.__version__} has no hardware compatibility level same_compute_capability; "
            "use ampere+ or a later version"
        )
    if options.dla_core is not None and any(profile.min != profile.max for profile in profiles):
        yield "a DLA core runs one batch size only; give --batch the same number three times"


def apply_options(options: BuildOptions, library: Any, builder: Any, config: Any) -> None:
    """Set `options`, already checked, on a builder configuration. Raises RequestError for a missing DLA core."""
    flags = library.BuilderFlag
    if options.tf32:
        config.set_flag(flags.TF32)
    else:
        config.clear_flag(flags.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.hardware_compatibility == "ampere+":
        config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
    elif options.hardware_compatibility == "same_compute_capability":
        config.hardware_compatibility_level = library.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    for wanted, flag in (
        (options.version_compatible, flags.VERSION_COMPATIBLE),
        (options.strip_weights, flags.STRIP_PLAN),
        (options.refit, flags.REFIT),
        (options.sparse, flags.SPARSE_WEIGHTS),
    ):
        if wanted:
            config.set_flag(flag)
    if options.dla_core is not None:
        if options.dla_core not in range(builder.num_DLA_cores):
            raise RequestError(
                f"dla_core is {options.dla_core}, this device has {builder.num_DLA_cores} DLA cores that "
                "TensorRT "
                f"{library.__version__} can use; leave it out to build for the GPU"
            )
        config.default_device_type = library.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(flags.GPU_FALLBACK)
