"""Where compiled kernels and engines are kept for the next session: in the user's cache folder, never in a bundle.

They are native code that is valid for one artifact, one set of libraries and one GPU only, so each combination has a
folder of its own, named by a hash of all of it: what does not fit any more is not found.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from resnet_export.runtime.backends.routes import Route
from resnet_export.runtime.bundle.manifest import Artifact, Manifest
from resnet_export.runtime.select.choice import Choice
from resnet_export.runtime.select.host import HostFacts
from resnet_export.runtime.user_cache import private_folder

__all__ = ["KernelCache", "cache_key", "open_cache"]


class KernelCache(NamedTuple):
    """A folder that only this user writes to, or None and the reason why there is none, as a note of a session."""

    folder: Path | None
    note: str | None = None


def cache_key(manifest: Manifest, artifact: Artifact, route: Route, choice: Choice, host: HostFacts) -> str:
    """Return the hash, in hexadecimal, of everything that kernels compiled for this choice depend on.

    That is the artifact's bytes, the tensors and batch sizes, the backend with its options, every package of a backend
    with its version, and the GPU with its driver, or what the CPU can do. `resnet-export`'s own version stands for the
    options.
    """
    depends_on = {
        "artifact": artifact.sha256,
        "input": manifest.input,
        "outputs": manifest.outputs,
        "batch": manifest.batch,
        "backend": [route.backend, route.provider, choice.precision],
        "packages": host.packages,
        "options": _own_version(),
        "gpu": [gpu for gpu in host.gpus if choice.device == f"gpu:{gpu.index}"],
        "host": [host.system, host.machine, host.cuda, host.driver],
        "cpu": host.cpu_features if choice.device == "cpu" else (),
    }
    return hashlib.sha256(msgspec.json.encode(depends_on)).hexdigest()


def open_cache(
    manifest: Manifest, artifact: Artifact, route: Route, choice: Choice, host: HostFacts
) -> KernelCache:
    """Return the folder for what this choice compiles, made if need be. Raises nothing: it is as good without."""
    if not route.compiles:
        return KernelCache(None)
    try:
        key = cache_key(manifest, artifact, route, choice, host)
        folder = private_folder(f"{route.backend}-{key[:32]}")
    except (ImportError, OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        name = getattr(error, "filename", None)
        where = f"{name}: " if name else ""
        return KernelCache(
            None, f"compiles its kernels anew each time, without a cache folder ({where}{reason})"
        )
    return KernelCache(folder)


def _own_version() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("resnet-export")
    except metadata.PackageNotFoundError:
        return None
