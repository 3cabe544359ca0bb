"""Opening a bundle of a stranger in a process that may be lost, before this one opens it.

It finds what makes an engine crash, hang or take all memory. It is no sandbox: the process has this user's rights.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from resnet_export.runtime import errors
from resnet_export.runtime.bundle.manifest import Manifest, encode_manifest
from resnet_export.runtime.errors import BackendError, IntegrityError, RequestError
from resnet_export.runtime.select.spec import SessionSpec

__all__ = ["Told", "try_to_open"]

SECONDS = 60.0
# Besides the artifacts themselves: engines hold each a few times, and take 200 MB with an empty graph.
MEGABYTES = 1000
_COPIES = 8
_POLL = 0.02
_PROGRAM = "from resnet_export.runtime.trial_process import main; main()"


class Told(msgspec.Struct, frozen=True):
    """What the process says: the manifest that it read, or the name and text of its error."""

    manifest: bytes = b""
    error: str | None = None
    text: str = ""


def try_to_open(bundle: str | os.PathLike[str], manifest: Manifest, request: SessionSpec) -> None:
    """Open and run the bundle as `request` asks in another process, and return when that went well.

    Raises what opening raises there; BackendError when the process crashes, takes over a minute, or over 1 GB and
    8 times the artifacts; IntegrityError when it read another manifest; RequestError where no process can be started.
    """
    if not sys.executable:
        raise RequestError(
            "untrusted=True starts a Python process, and this program has no interpreter to start"
        )
    command = [sys.executable, "-c", _PROGRAM, os.fspath(Path(bundle).absolute())]
    megabytes = MEGABYTES + _COPIES * sum(artifact.bytes for artifact in manifest.artifacts) // 10**6
    said = _run(command, msgspec.json.encode(request), f"opening {os.fspath(bundle)}", megabytes, SECONDS)
    if said.error is not None:
        kind: Any = getattr(errors, said.error, BackendError)
        raise kind(said.text)
    if said.manifest != encode_manifest(manifest):
        raise IntegrityError(f"{os.fspath(bundle)} was replaced while it was tried; open it again")


def _run(command: Sequence[str], given: bytes, doing: str, megabytes: int, seconds: float) -> Told:
    """Run the process and return what it says. Raises BackendError when it is lost."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        try:
            output = _watch(child, given, doing, megabytes, seconds)
        finally:
            child.kill()
    try:
        return msgspec.json.decode(output, type=Told)
    except msgspec.DecodeError as error:
        status = child.returncode
        why = signal.Signals(-status).name if status < 0 else f"status {status}"
        raise BackendError(
            f"{doing} in a process of its own ended that process ({why}); do not use the bundle, or export it again"
        ) from error


def _watch(child: subprocess.Popen[bytes], given: bytes, doing: str, megabytes: int, seconds: float) -> bytes:
    ends = time.monotonic() + seconds
    pending: bytes | None = given
    while True:
        try:
            output, _ = child.communicate(pending, timeout=_POLL)
        except subprocess.TimeoutExpired:
            pending = None
        else:
            return output
        if time.monotonic() > ends:
            raise BackendError(
                f"{doing} in a process of its own took over {seconds:.0f} s; do not use the bundle"
            )
        if _resident(child.pid) > megabytes:
            raise BackendError(
                f"{doing} in a process of its own took over {megabytes:,} MB; do not use the bundle"
            )


def _resident(process: int) -> float:
    """Return the memory of a process in MB; 0 where the system does not tell."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
