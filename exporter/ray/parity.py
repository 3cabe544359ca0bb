"""The parity gate on a Ray cluster: workers compute logits, and this process compares them in the order of the data.

So every figure is that of one process, bit for bit, as long as an engine gives the same logits on every node.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.exporter.ray.cluster import Cluster
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.files import read_regular
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    decode_manifest,
    read_artifact,
)
from resnet_export.runtime.bundle.recovery import locate
from resnet_export.runtime.errors import BackendError, RequestError
from resnet_export.runtime.parity.golden_check import CheckedRun
from resnet_export.runtime.parity.measure.comparison import Batch, ImageBatch
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.session import Session

__all__ = ["check_spreadable", "spread_over"]


@dataclass(frozen=True)
class _Opening:
    """What a worker opens for one run."""

    artifact: str
    backend: str
    provider: str
    precision: str
    device: str
    threads: int | None


@dataclass(frozen=True)
class _Work:
    """A bundle as bytes, which no node needs to have on disk, and the runs to open from it."""

    files: dict[str, bytes]
    runs: dict[str, _Opening]


@dataclass(frozen=True)
class _Answered:
    """In place of a batch's images: what each run made of them."""

    count: int
    logits: dict[str, NDArray[np.float32] | BackendError]

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True)
class _Recall:
    """In place of a runner: its answer."""

    key: str

    def __call__(self, answered: _Answered) -> NDArray[np.float32]:
        found = answered.logits[self.key]
        if isinstance(found, BackendError):
            raise found
        return found


def check_spreadable(spec: ParitySpec) -> None:
    """Raise RequestError for a check that a cluster cannot take part in."""
    if spec.data is None:
        raise RequestError("--ray was given without --data, which it is about; give validation images")
    for name in ("reference", "triton"):
        if getattr(spec, name) not in ("onnx", None):
            raise RequestError(f"--ray and --{name} contradict each other; give one of them")


def spread_over(
    cluster: Cluster,
    bundle: str | os.PathLike[str],
    threads: int | None,
    runs: tuple[CheckedRun, ...],
    batches: Iterator[ImageBatch],
) -> tuple[tuple[CheckedRun, ...], Iterator[ImageBatch]]:
    """Return runs and batches that compare as those given do, while the cluster computes."""
    opened = {run.entry.key: run for run in runs if run.runner is not None and run.entry.error is None}
    work = cluster.share(
        _Work(
            _files(bundle),
            {
                key: _Opening(
                    artifact=run.run.artifact.name,
                    backend=run.run.backend,
                    provider=run.run.provider,
                    precision=run.run.precision,
                    device=run.run.device,
                    threads=threads,
                )
                for key, run in opened.items()
            },
        )
    )
    held: deque[ImageBatch] = deque()

    def images() -> Iterator[NDArray[Any]]:
        for batch in batches:
            held.append(batch)
            yield batch.images

    def answered() -> Iterator[ImageBatch]:
        for logits in cluster.map(_answer, work, images()):
            batch = held.popleft()
            yield Batch(_Answered(len(batch.images), logits), batch.labels, batch.names)

    recalled = tuple(
        replace(run, runner=_Recall(run.entry.key)) if run.entry.key in opened else run for run in runs
    )
    return recalled, answered()


def _files(bundle: str | os.PathLike[str]) -> dict[str, bytes]:
    manifest = read_regular(locate(bundle) / MANIFEST_NAME, limit=MAX_MANIFEST_BYTES)
    contents = decode_manifest(manifest).contents()
    return {MANIFEST_NAME: manifest} | {file.file: read_artifact(bundle, file) for file in contents}


# Sessions of a worker process, by manifest and run: opening one costs more than a batch.
_sessions: dict[tuple[bytes, str], Session] = {}
_folders: dict[bytes, Path] = {}


def _answer(work: _Work, images: NDArray[Any]) -> dict[str, NDArray[np.float32] | BackendError]:
    found: dict[str, NDArray[np.float32] | BackendError] = {}
    for key, run in work.runs.items():
        try:
            found[key] = _session(work, key, run).run(images)
        except BackendError as error:
            found[key] = error
    return found


def _session(work: _Work, key: str, run: _Opening) -> Session:
    manifest = work.files[MANIFEST_NAME]
    if (manifest, key) not in _sessions:
        session = open_session(
            _folder(work),
            backend=run.backend,
            precision=run.precision,
            artifact=run.artifact,
            device=run.device,
            threads=run.threads,
        )
        if session.choice.provider != run.provider:
            provider = session.choice.provider
            session.close()
            raise BackendError(
                f"a worker runs {run.artifact} with {provider}, and this host with {run.provider}"
            )
        _sessions[manifest, key] = session
    return _sessions[manifest, key]


def _folder(work: _Work) -> Path:
    manifest = work.files[MANIFEST_NAME]
    if manifest not in _folders:
        folder = Path(tempfile.mkdtemp(prefix="resnet-export-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for file, data in work.files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        _folders[manifest] = folder
    return _folders[manifest]
