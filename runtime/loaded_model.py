"""A bundle's model on an opened backend: the checks before a call, the pieces of a batch, the labels after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.protocol import Backend, DeviceBackend, OpenRequest
from resnet_export.runtime.backends.routes import find_route, open_backend
from resnet_export.runtime.batching import BatchingSpec, MicroBatcher
from resnet_export.runtime.bundle.manifest import LOGITS, BatchRange, Manifest, TensorSpec, read_artifact
from resnet_export.runtime.bundle.recovery import locate
from resnet_export.runtime.errors import BackendError, NoBackendError, RequestError
from resnet_export.runtime.kernel_cache import KernelCache, open_cache
from resnet_export.runtime.prediction import Prediction, best
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.select.choice import Choice, Considered
from resnet_export.runtime.select.host import HostFacts
from resnet_export.runtime.select.profile import StoredProfile
from resnet_export.runtime.select.resolver import explain, resolve
from resnet_export.runtime.select.spec import SessionSpec

if TYPE_CHECKING:
    from resnet_export.runtime.observe import Reporter

__all__ = ["LoadedModel", "Request", "describe", "load_model"]


@dataclass(frozen=True)
class Request:
    """One image as the network takes it, an input batch without its first axis, and how many labels it wants."""

    tensor: NDArray[np.uint8] | NDArray[np.float32]
    top: int


class LoadedModel:
    """The part of a session that one bundle fills; `Session` documents what its methods raise.

    Attributes:
        manifest: what the bundle says about itself.
        batcher: the queue of single requests.
        reporter: tells an observer of batches and requests; None without one.
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        choice: Choice,
        trace: tuple[Considered, ...],
        batching: BatchingSpec | None = None,
        reporter: Reporter | None = None,
    ) -> None:
        self.manifest = manifest
        self.reporter = reporter
        self.batcher: MicroBatcher[Request, list[Prediction]] = MicroBatcher(
            self.classify, max_batch=manifest.batch.opt, spec=batching
        )
        self._backend = backend if reporter is None else reporter.watch(backend, choice)
        self._choice = choice
        self._trace = trace
        self._freeing = threading.Lock()
        self._freed = False

    @property
    def choice(self) -> Choice:
        """What runs, with all that the engine has had to say of it until now."""
        return msgspec.structs.replace(self._choice, notes=(*self._backend.notes, *self._choice.notes))

    @property
    def trace(self) -> tuple[Considered, ...]:
        """Every candidate, best first; the chosen one with the engine's notes."""
        notes = self.choice.notes
        return tuple(
            msgspec.structs.replace(item, reason="; ".join([item.reason, *notes]))
            if item.outcome == "chosen"
            else item
            for item in self._trace
        )

    def run(self, batch: np.ndarray, names: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        """Return the outputs of these names, float32 [N, …], of a batch that has yet to be checked."""
        specs = [self.manifest.output(name) for name in names]
        _check_batch(batch, self.manifest.input)
        limits = self._backend.batch
        if limits is None or limits.min <= len(batch) <= limits.max:
            outputs = self._backend.run(np.ascontiguousarray(batch), names)
        else:
            outputs = self._run_pieces(batch, names, limits)
        for spec, values in zip(specs, outputs, strict=True):
            expected = (len(batch), *spec.rest)
            if values.shape != expected:
                raise BackendError(
                    f"the artifact returned {spec.name} {list(values.shape)}, expected {list(expected)}; "
                    "export the bundle again"
                )
        return outputs

    def run_on_device(self, batch: Any, names: Sequence[str]) -> tuple[Any, ...]:
        """Return the outputs of these names, on the GPU, of a batch that lies there."""
        for name in names:
            self.manifest.output(name)
        if not isinstance(self._backend, DeviceBackend):
            raise RequestError(
                f"{self._backend.provider} takes arrays in host memory only; use run(), or an engine with "
                "backend='tensorrt'"
            )
        return self._backend.run_on_device(batch, names)

    def classify(self, requests: Sequence[Request]) -> list[list[Prediction] | BackendError]:
        """Return the labels of each image, run as one batch, or the error that concerns it alone."""
        (logits,) = self.run(np.stack([request.tensor for request in requests]), (LOGITS,))
        return [self._label(row, request.top) for row, request in zip(logits, requests, strict=True)]

    def warmup(self) -> None:
        """Run a batch of 1 and one of `batch.opt` images of zeros."""
        preprocessing = self.manifest.preprocessing
        for size in sorted({1, self.manifest.batch.opt}):
            zeros = np.zeros((size, *preprocessing.crop_shape), np.uint8)
            self.run(to_input(zeros, preprocessing), (LOGITS,))

    def close(self) -> None:
        """Complete what was submitted, and free the engine; no call may be under way. Twice is harmless."""
        self.batcher.close()
        with self._freeing:
            first, self._freed = not self._freed, True
        if first:
            self._backend.close()

    def _label(self, logits: NDArray[np.float32], top: int) -> list[Prediction] | BackendError:
        try:
            return best(logits, self.manifest.labels, top, self.manifest.model.activation)
        except BackendError as error:
            return error

    def _run_pieces(
        self, batch: np.ndarray, names: Sequence[str], limits: BatchRange
    ) -> tuple[NDArray[np.float32], ...]:
        parts: list[list[NDArray[np.float32]]] = []
        for start in range(0, len(batch), limits.max):
            piece = batch[start : start + limits.max]
            missing = max(limits.min - len(piece), 0)
            # Images do not influence each other, so any image will do to reach the smallest batch.
            filled = np.concatenate([piece, np.repeat(piece[-1:], missing, axis=0)])
            parts.append([values[: len(piece)] for values in self._backend.run(filled, names)])
        return tuple(np.concatenate(pieces) for pieces in zip(*parts, strict=True))


def load_model(
    path: str | os.PathLike[str],
    manifest: Manifest,
    host: HostFacts,
    request: SessionSpec,
    batching: BatchingSpec | None = None,
    stored: StoredProfile = StoredProfile(None),  # noqa: B008 — a frozen value
    reporter: Reporter | None = None,
) -> LoadedModel:
    """Open the best choice for `request`; one that cannot be opened is rejected for the next best.

    `stored` is what was measured of this bundle on this host; `reporter` tells an observer what is done with it.

    Raises BackendError, NoBackendError and BundleError, as `open_session` says.
    """
    failures: dict[Choice, str] = {}
    last: BackendError | None = None
    while True:
        resolution = resolve(manifest, host, request, failures, profile=stored.profile)
        choice = resolution.choice
        if choice is None:
            raise NoBackendError(explain(resolution, request), resolution.trace) from last
        try:
            backend, notes = _open_choice(path, manifest, host, choice, request)
        except BackendError as error:
            if request.backend is not None or request.artifact is not None:
                if choice.device == "cpu" or request.device is not None:
                    raise
                raise BackendError(f"{error}; device='cpu' keeps away from the GPU") from error
            failures[choice] = str(error)
            last = error
            continue
        if request.threads is not None and choice.device != "cpu":
            notes = (*notes, f"threads={request.threads} has no effect on a GPU")
        if stored.note is not None:
            notes = (*notes, stored.note)
        choice = msgspec.structs.replace(choice, notes=notes)
        return LoadedModel(manifest, backend, choice, resolution.trace, batching, reporter)


def _open_choice(
    path: str | os.PathLike[str], manifest: Manifest, host: HostFacts, choice: Choice, asked: SessionSpec
) -> tuple[Backend, tuple[str, ...]]:
    artifact = manifest.artifact(choice.artifact)
    route = find_route(choice.backend, choice.provider)
    cache = open_cache(manifest, artifact, route, choice, host) if asked.cache else KernelCache(None)
    # Left alone, ONNX Runtime starts a thread for every core of the machine, and OpenVINO knows no cgroups.
    limit = host.cpus if host.all_cpus is not None and host.cpus < host.all_cpus else None
    notes = [cache.note] if cache.note else []
    if limit is not None and asked.threads is None and choice.device == "cpu":
        notes.append(f"threads={limit}, as many as this process may use of {host.all_cpus} CPUs")
    gpu, _, index = choice.device.partition(":")
    request = OpenRequest(
        data=read_artifact(path, artifact, manifest.input.shape),
        artifact=artifact,
        input=manifest.input,
        outputs=manifest.outputs,
        batch=manifest.batch,
        provider=choice.provider,
        precision=choice.precision,
        device=int(index) if gpu == "gpu" else None,
        threads=asked.threads or limit,
        bundle=locate(path),
        cache=cache.folder,
    )
    backend = open_backend(route, request)
    if (backend.provider, backend.precision) != (choice.provider, choice.precision):
        backend.close()
        raise BackendError(
            f"{choice.backend} runs {artifact.name!r} with {backend.provider} in {backend.precision}, "
            f"it was asked for {choice.provider} in {choice.precision}"
        )
    return backend, tuple(notes)


def _check_batch(batch: Any, spec: TensorSpec) -> None:
    if not isinstance(batch, np.ndarray):
        raise RequestError(
            f"the batch is a {type(batch).__name__}, expected a numpy array {describe(spec)}; use numpy.asarray"
        )
    if batch.dtype != spec.dtype or batch.ndim != len(spec.shape) or batch.shape[1:] != spec.shape[1:]:
        raise RequestError(
            f"the batch is {batch.dtype} {list(batch.shape)}, expected {describe(spec)} ({spec.layout}); "
            "Session.classify makes such a batch from images of any size"
        )
    if len(batch) == 0:
        raise RequestError(f"the batch is empty, expected {describe(spec)} with N from 1 on")


def describe(spec: TensorSpec) -> str:
    """Return "float32 [N, 3, 224, 224]"."""
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"
