"""Opening a bundle and running it."""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.protocol import Backend, OpenRequest
from resnet_export.runtime.backends.routes import find_route, open_backend
from resnet_export.runtime.batching import MicroBatcher
from resnet_export.runtime.bundle.manifest import Manifest, read_artifact, read_stable
from resnet_export.runtime.bundle.recovery import locate
from resnet_export.runtime.errors import (
    BackendError,
    ImageError,
    NoBackendError,
    RequestError,
    SessionClosedError,
)
from resnet_export.runtime.kernel_cache import open_cache
from resnet_export.runtime.open_calls import Gate
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.prediction import Prediction
from resnet_export.runtime.preprocess import ImageSource, load
from resnet_export.runtime.runner import Request, Runner, describe
from resnet_export.runtime.select.choice import Choice, Considered
from resnet_export.runtime.select.host import HostFacts, probe
from resnet_export.runtime.select.resolver import explain, resolve
from resnet_export.runtime.select.spec import SessionSpec, parse_request

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Session", "open_session"]


def open_session(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    precision: str | Precision | None = None,
    artifact: str | None = None,
    device: int | str | None = None,
    threads: int | None = None,
) -> Session:
    """Open the bundle in the folder `path` with the best engine that this host has for it.

    Args:
        path: the folder that resnet-export wrote.
        backend: "onnxruntime", "openvino" or "tensorrt", and no other. Names are read in any case.
        precision: "fp32", "fp16", "bf16" or "int8": the arithmetic that has to run.
        artifact: the name of one artifact of the bundle, whatever its parity check said.
        device: "cpu", "gpu", or the index of a GPU; also as PyTorch spells them, "cuda" and "cuda:1".
        threads: number of CPU threads; by default the engine decides.

    What is None is chosen by the rules of `resnet_export.runtime.select.resolver`; `Session.trace` says why. A choice
    that cannot be opened is rejected for the next best, with the error in the trace, unless `backend` or
    `artifact` asked for it.

    Raises:
        RequestError: an argument is wrong.
        BundleError, SchemaError, IntegrityError: the bundle cannot be read, or is not what was exported. A
            damaged artifact is never rejected.
        NoBackendError: nothing on this host runs the bundle as asked.
        BackendError: what was asked for by name cannot be opened.
    """
    host = probe()
    for warning in host.warnings:
        warnings.warn(warning, RuntimeWarning, stacklevel=2)

    def load_bundle(manifest: Manifest) -> Session:
        request = parse_request(
            manifest, backend=backend, precision=precision, artifact=artifact, device=device, threads=threads
        )
        return _open(path, manifest, host, request)

    return read_stable(path, load_bundle)


class Session:
    """An opened bundle; made by `open_session`. All methods may be called from many threads at once.

    It belongs to the process that opened it: a fork of that process is refused, and so is pickling.
    """

    def __init__(
        self, manifest: Manifest, backend: Backend, choice: Choice, trace: tuple[Considered, ...]
    ) -> None:
        self._runner = Runner(manifest, backend, Gate())
        self._choice = choice
        self._trace = trace
        self._lock = threading.Lock()
        self._batcher: MicroBatcher[Request, list[Prediction]] | None = None
        self._closing = False
        # Nothing that runs later knows the session, so that one that is dropped without `close` is still collected.
        self._release: weakref.finalize[..., Session] = weakref.finalize(self, _close_backend, self._runner)
        self._release.atexit = False  # the process frees everything anyway

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._runner.manifest

    @property
    def choice(self) -> Choice:
        """What runs, with all that the engine has had to say of it until now."""
        return msgspec.structs.replace(self._choice, notes=(*self._runner.backend.notes, *self._choice.notes))

    @property
    def trace(self) -> tuple[Considered, ...]:
        """Every artifact on every engine, best first, and why it does or does not run."""
        return _with_notes(self._trace, self.choice.notes)

    def run(self, batch: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits of a batch: float32 [N, classes], in memory of their own.

        Args:
            batch: what the manifest's `input` says, N ≥ 1: float32 [N, 3, H, W], normalized (NCHW), or uint8
                [N, H, W, 3], raw RGB (NHWC). It may be strided. An ONNX artifact runs any N in one piece; an
                engine runs in pieces of at most its profile's maximum, and fills up to its minimum.

        Raises:
            RequestError: the batch has another dtype or shape.
            BackendError: the engine failed.
            SessionClosedError: the session is closed, or this process is a fork of the one that opened it.
        """
        return self._runner.run(batch)

    def run_on_device(self, batch: Any) -> Any:
        """Return the logits of a batch that lies on the GPU: float32 [N, classes] there, nothing is copied.

        Args:
            batch: what the manifest's `input` says, in C order, on the session's GPU; anything that speaks
                DLPack or `__cuda_array_interface__` (PyTorch, CuPy, JAX, Numba). So does the result.

        Raises:
            RequestError: the array does not fit, or what runs here takes arrays in host memory only.
            BackendError: the engine failed.
            SessionClosedError: the session is closed.
        """
        return self._runner.run_on_device(batch)

    def classify(self, images: Iterable[ImageSource], top: int = 5) -> list[list[Prediction]]:
        """Return the `top` most probable labels of each image, best first.

        Args:
            images: paths, bytes of image files, PIL images, or uint8 arrays [H, W], [H, W, 3] or [H, W, 4];
                consumed and run in batches of the manifest's `batch.opt`.
            top: how many labels; a network with fewer classes returns them all.

        Raises:
            RequestError: `top` is below 1, or `images` is one image instead of several.
            ImageError: an image cannot be decoded; the message says which.
            BackendError, SessionClosedError: as `run`.
        """
        _check_top(top)
        single = isinstance(images, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(
            images, "read"
        )
        flat = isinstance(images, np.ndarray) and images.ndim < 4
        if single or flat or not isinstance(images, Iterable):
            raise RequestError(
                f"classify takes several images and got one {type(images).__name__}; put it in a list"
            )
        crops = (
            load(image, self.manifest.preprocessing, name=_name(image, index))
            for index, image in enumerate(images)
        )
        predictions: list[list[Prediction]] = []
        for chunk in _chunks(crops, self.manifest.batch.opt):
            predictions += self._runner.classify([Request(crop, top) for crop in chunk])
        return predictions

    def submit(self, image: ImageSource, top: int = 5) -> Future[list[Prediction]]:
        """Return the future of one image's labels; requests from many threads run in batches.

        The image is decoded here, in the calling thread; an ImageError is raised by the future, and concerns
        no other. Batches have at most `batch.opt` images and wait at most 2 ms to fill. Blocks while four
        batches are waiting. `close` completes what was submitted.

        Raises RequestError when `top` is below 1, SessionClosedError when the session is closed.
        """
        _check_top(top)
        self._runner.gate.check_process()
        batcher = self._start_batcher()
        try:
            crop = load(image, self.manifest.preprocessing)
        except ImageError as error:
            from concurrent.futures import Future

            failed: Future[list[Prediction]] = Future()
            failed.set_exception(error)
            return failed
        return batcher.submit(Request(crop, top))

    def close(self) -> None:
        """Complete what was submitted, wait for running calls, and free the engine. Twice is harmless.

        Does nothing in a fork: the session belongs to the process that opened it.
        """
        if self._runner.gate.is_forked():
            return
        with self._lock:
            self._closing = True
            batcher = self._batcher
        if batcher is not None:
            batcher.close()
        self._release.detach()
        _close_backend(self._runner)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise RequestError(
            "a session cannot be pickled or copied, it holds an opened engine; give the path of the bundle to the "
            "other process and call open_session() there"
        )

    def __repr__(self) -> str:
        state = "closed" if self._runner.gate.closed else "open"
        takes = describe(self.manifest.input)
        return f"<Session {self.manifest.model.arch}: {self._choice}; takes {takes}; {state}>"

    def _start_batcher(self) -> MicroBatcher[Request, list[Prediction]]:
        with self._lock:
            if self._closing:
                raise SessionClosedError("the session is closed; open another with open_session()")
            if self._batcher is None:
                self._batcher = MicroBatcher(self._runner.classify, max_batch=self.manifest.batch.opt)
                self._release.detach()
                self._release = weakref.finalize(self, _close_later, self._batcher, self._runner)
                self._release.atexit = False
            return self._batcher


def _close_backend(runner: Runner) -> None:
    """Free the engine when no call uses it any more; the second time does nothing."""
    if runner.gate.close():
        runner.backend.close()


def _close_later(batcher: MicroBatcher[Request, list[Prediction]], runner: Runner) -> None:
    """Complete what was submitted, then free the engine, both in another thread: this one may be the batcher's."""

    def finish() -> None:
        batcher.close()
        _close_backend(runner)

    if not runner.gate.is_forked():
        threading.Thread(target=finish, name="resnet-export-closing", daemon=True).start()


def _open(
    path: str | os.PathLike[str],
    manifest: Manifest,
    host: HostFacts,
    request: SessionSpec,
) -> Session:
    failures: dict[Choice, str] = {}
    last: BackendError | None = None
    while True:
        resolution = resolve(manifest, host, request, failures)
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
        return Session(manifest, backend, msgspec.structs.replace(choice, notes=notes), resolution.trace)


def _open_choice(
    path: str | os.PathLike[str], manifest: Manifest, host: HostFacts, choice: Choice, asked: SessionSpec
) -> tuple[Backend, tuple[str, ...]]:
    artifact = manifest.artifact(choice.artifact)
    route = find_route(choice.backend, choice.provider)
    cache = open_cache(manifest, artifact, route, choice, host)
    gpu, _, index = choice.device.partition(":")
    request = OpenRequest(
        data=read_artifact(path, artifact),
        artifact=artifact,
        input=manifest.input,
        output=manifest.output,
        batch=manifest.batch,
        provider=choice.provider,
        precision=choice.precision,
        device=int(index) if gpu == "gpu" else None,
        threads=asked.threads,
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
    return backend, (cache.note,) if cache.note else ()


def _with_notes(trace: tuple[Considered, ...], notes: tuple[str, ...]) -> tuple[Considered, ...]:
    return tuple(
        msgspec.structs.replace(item, reason="; ".join([item.reason, *notes]))
        if item.outcome == "chosen"
        else item
        for item in trace
    )


def _check_top(top: int) -> None:
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise RequestError(f"top is {top!r}, expected a number from 1 on")


def _name(image: ImageSource, index: int) -> str | None:
    """What an error message calls an image: paths name themselves."""
    return None if isinstance(image, str | os.PathLike) else f"image {index}"


def _chunks(items: Iterable[NDArray[np.uint8]], size: int) -> Iterator[list[NDArray[np.uint8]]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk
