"""What was measured on this host: it decides in place of the order that the table of routes gives.

A profile is about the artifacts of one bundle, by their bytes, on one kind of host with its packages, for one number of
threads: all of that is hashed into the name of its file in the user's cache folder, so that one that does not fit any
more is not found. `resnet-export bench --save` and `open_session(tune=True)` write it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec

from resnet_export.runtime.bundle.atomic_write import write_file
from resnet_export.runtime.bundle.files import read_regular
from resnet_export.runtime.bundle.manifest import Manifest
from resnet_export.runtime.errors import RequestError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.candidate import Candidate
from resnet_export.runtime.select.host import HostFacts
from resnet_export.runtime.select.spec import Preference
from resnet_export.runtime.user_cache import private_folder

__all__ = ["HostProfile", "Measurement", "StoredProfile", "profile_key", "read_profile", "save_profile"]

_FOLDER = "profiles"
_MAX_BYTES = 1 << 20


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One candidate at one batch size: the median time of a call, in milliseconds."""

    artifact: str
    backend: str
    provider: str
    precision: Precision
    batch: int
    milliseconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput of one caller: batch over median time."""
        return 1000 * self.batch / self.milliseconds


class HostProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All measurements, and the day on which they were taken ("2026-11-25")."""

    created: str
    measurements: tuple[Measurement, ...]

    def find(self, candidate: Candidate, prefer: Preference) -> Measurement | None:
        """Return the measurement that counts: of the smallest batch, or of the highest throughput; None without any."""
        name = (
            candidate.artifact.name,
            candidate.route.backend,
            candidate.route.provider,
            candidate.precision,
        )
        rows = [
            row
            for row in self.measurements
            if (row.artifact, row.backend, row.provider, row.precision) == name and row.milliseconds > 0
        ]
        if prefer == "throughput":
            return max(rows, key=lambda row: row.images_per_second, default=None)
        return min(rows, key=lambda row: row.batch, default=None)


class StoredProfile(NamedTuple):
    """The profile of a bundle on this host, or None; and why one that is there cannot be used."""

    profile: HostProfile | None
    note: str | None = None


def profile_key(manifest: Manifest, host: HostFacts, threads: int | None) -> str:
    """Return the hash, in hexadecimal, of everything that the measurements depend on."""
    depends_on = {
        "artifacts": {artifact.name: artifact.sha256 for artifact in manifest.artifacts},
        "input": manifest.input,
        "host": [host.system, host.machine, host.cpus, host.cpu_features],
        "packages": [(package.distribution, package.version) for package in host.packages],
        "gpus": [host.gpus, host.cuda, host.driver],
        "threads": threads,
    }
    return hashlib.sha256(msgspec.json.encode(depends_on)).hexdigest()


def read_profile(manifest: Manifest, host: HostFacts, threads: int | None) -> StoredProfile:
    """Return what was measured of this bundle on this kind of host. Raises nothing."""
    path: Path | None = None
    try:
        path = _path(manifest, host, threads)
        return StoredProfile(msgspec.json.decode(read_regular(path, limit=_MAX_BYTES), type=HostProfile))
    except FileNotFoundError:
        return StoredProfile(None)
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # msgspec's errors are ValueErrors
        if path is None:  # no cache folder, so nothing was saved either
            return StoredProfile(None)
        return StoredProfile(
            None,
            f"the host profile {path} cannot be read ({error}); `resnet-export bench --save` measures anew",
        )


def save_profile(profile: HostProfile, manifest: Manifest, host: HostFacts, threads: int | None) -> Path:
    """Write the profile for later sessions, and return its path. Raises RequestError where there is no place for it."""
    try:
        path = _path(manifest, host, threads)
        write_file(path, msgspec.json.format(msgspec.json.encode(profile), indent=1))
    except (ImportError, OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RequestError(
            f"the host profile cannot be saved ({reason}); set XDG_CACHE_HOME to a folder that this user may write"
        ) from error
    return path


def _path(manifest: Manifest, host: HostFacts, threads: int | None) -> Path:
    return private_folder(_FOLDER) / f"{profile_key(manifest, host, threads)[:32]}.json"
