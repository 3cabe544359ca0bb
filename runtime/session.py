"""Opening a bundle and running it."""

from __future__ import annotations

import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.ahead import chunks, map_ahead
from resnet_export.runtime.batching import BatchingSpec
from resnet_export.runtime.bundle.manifest import LOGITS, Manifest, Preprocessing, read_manifest, read_stable
from resnet_export.runtime.errors import ImageError, RequestError, ResnetExportError, SessionClosedError
from resnet_export.runtime.loaded_model import LoadedModel, Request, describe, load_model
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.prediction import Prediction
from resnet_export.runtime.preprocess import ColorOrder, ImageSource, is_one_image, load, to_input
from resnet_export.runtime.select.choice import Choice, Considered
from resnet_export.runtime.select.host import HostFacts, probe, usable_cpus
from resnet_export.runtime.select.profile import StoredProfile, read_profile, save_profile
from resnet_export.runtime.select.spec import Preference, SessionSpec, parse_request
from resnet_export.runtime.served_model import ServedModel
from resnet_export.runtime.watcher import FolderWatcher

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from resnet_export.runtime.observe import SessionObserver

__all__ = ["Session", "open_session"]

OnError: TypeAlias = Literal["raise", "return"]
"""What becomes of an image that cannot be classified: its error is raised, or stands in its place."""

_DECODE_AHEAD = 2  # batches
_DECODERS = 8  # threads, where there are as many CPUs


def open_session(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    precision: str | Precision | None = None,
    artifact: str | None = None,
    device: int | str | None = None,
    threads: int | None = None,
    prefer: Preference = "latency",
    tune: bool = False,
    cache: bool = True,
    batching: BatchingSpec | None = None,
    verify: str | os.PathLike[str] | None = None,
    untrusted: bool = False,
    observer: SessionObserver | None = None,
) -> Session:
    """Open the bundle in the folder `path` with the best engine that this host has for it.

    Args:
        path: the folder that resnet-export wrote.
        backend: "onnxruntime", "openvino" or "tensorrt", and no other. Names are read in any case.
        precision: "fp32", "fp16", "bf16" or "int8": the arithmetic that has to run.
        artifact: the name of one artifact of the bundle, whatever its parity check said.
        device: "cpu", "gpu", or the index of a GPU; also as PyTorch spells them, "cuda" and "cuda:1".
        threads: number of CPU threads; by default the engine decides.
        prefer: what the best engine is: the one with the shortest "latency" of a small batch, with the highest
            "throughput", or with the most exact precision ("accuracy") and then the shortest latency.
        tune: measure on this host what is best, unless that was done before for this bundle and these packages; takes
            from seconds to a minute, and is kept in the user's cache. `resnet-export bench --save` does the same.
        cache: keep what the engine compiles in the user's cache folder, so that the bundle opens quicker the next time.
        batching: how `Session.submit` collects requests: batch size, delay, queue, and what a full queue does.
        verify: the PEM file of a public key: open only what its owner signed, see
            `resnet_export.runtime.verify_signature`. Needs cryptography (the extra `verify`).
        untrusted: open and run the bundle in another process first, which may crash, hang or take all memory in place
            of this one; takes a second or two more. It is no sandbox.
        observer: told of latencies, batch sizes, queue depth, errors and what runs; see
            `resnet_export.runtime.SessionObserver`.

    What is None is chosen by the rules of `resnet_export.runtime.select.resolver`; `Session.trace` says why. A choice
    that cannot be opened is rejected for the next best, with the error in the trace, unless `backend` or
    `artifact` asked for it.

    Raises:
        RequestError: an argument is wrong.
        BundleError, SchemaError, IntegrityError: the bundle cannot be read, or is not what was exported. A
            damaged artifact is never rejected. SignatureError: it is not what the owner of `verify` signed.
        NoBackendError: nothing on this host runs the bundle as asked.
        BackendError: what was asked for by name cannot be opened.
    """
    host = probe()
    for warning in host.warnings:
        warnings.warn(warning, RuntimeWarning, stacklevel=2)

    reporter = None
    if observer is not None:
        from resnet_export.runtime.observe import Reporter

        reporter = Reporter(observer)

    def load_from(folder: str | os.PathLike[str]) -> LoadedModel:
        def load_manifest(manifest: Manifest) -> LoadedModel:
            if verify is not None:
                from resnet_export.runtime.bundle.signature import require_signed

                require_signed(folder, verify, manifest)
            request = parse_request(
                manifest,
                backend=backend,
                precision=precision,
                artifact=artifact,
                device=device,
                threads=threads,
                prefer=prefer,
                cache=cache,
            )
            if untrusted:
                from resnet_export.runtime.trial import try_to_open

                try_to_open(folder, manifest, request)
            stored = _profile(folder, manifest, host, request, tune=tune)
            return load_model(folder, manifest, host, request, batching, stored, reporter)

        return read_stable(folder, load_manifest)

    model = load_from(path)
    home = Path(path).absolute()  # the working folder may be another by the time of a reload
    return Session(model, partial(load_from, home), home)


class Session:
    """An opened bundle; made by `open_session`. All methods may be called from many threads at once.

    It belongs to the process that opened it: a fork of that process is refused, and so is pickling.

    Wherever images are taken, they are paths, bytes of image files, open binary files, PIL images, or uint8 arrays
    [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], of NumPy or of anything that speaks DLPack in host memory. **Arrays are
    RGB unless `color="bgr"` says otherwise: OpenCV's frames are BGR.**
    """

    def __init__(
        self, model: LoadedModel, load_again: Callable[[], LoadedModel], path: str | os.PathLike[str]
    ) -> None:
        self._served = ServedModel(model)
        self._load_again = load_again
        self._path = path
        self._reloading = threading.Lock()
        self._watcher: FolderWatcher | None = None
        self._on_reload: Callable[[ResnetExportError | None], object] = _log_reload
        # Nothing that runs later knows the session, so that one that is dropped without `close` is still collected.
        self._release = weakref.finalize(self, self._served.close_later)
        self._release.atexit = False  # the process frees everything anyway

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._served.current.manifest

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, by index."""
        return self.manifest.labels

    @property
    def choice(self) -> Choice:
        """What runs, with all that the engine has had to say of it until now."""
        return self._served.current.choice

    @property
    def trace(self) -> tuple[Considered, ...]:
        """Every artifact on every engine, best first, and why it does or does not run."""
        return self._served.current.trace

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
        with self._served.use() as model:
            return model.run(batch, (LOGITS,))[0]

    def run_outputs(
        self, batch: NDArray[np.float32] | NDArray[np.uint8], names: Sequence[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return outputs of a batch by name: float32 [N, …] each, in memory of their own, from one run.

        Args:
            batch: as for `run`.
            names: which of the manifest's `outputs` ("logits", "embedding", "c5", …); None means all of them.

        Raises what `run` does, and RequestError for a name that is not among the outputs.
        """
        with self._served.use() as model:
            wanted = _names(names, model.manifest)
            return dict(zip(wanted, model.run(batch, wanted), strict=True))

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
        with self._served.use() as model:
            return model.run_on_device(batch, (LOGITS,))[0]

    def run_outputs_on_device(self, batch: Any, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return outputs of a batch that lies on the GPU by name: float32 [N, …] there, nothing is copied.

        `batch` is as for `run_on_device`, `names` as for `run_outputs`. Raises what these raise.
        """
        with self._served.use() as model:
            wanted = _names(names, model.manifest)
            return dict(zip(wanted, model.run_on_device(batch, wanted), strict=True))

    def preprocess(
        self, image: ImageSource, *, color: ColorOrder | None = None
    ) -> NDArray[np.float32] | NDArray[np.uint8]:
        """Return what `run` takes, with N = 1: the image decoded, resized, cropped and, where it has to be, normalized.

        `np.concatenate` makes a batch of several. Raises ImageError, and RequestError for another `color`.
        """
        _check_color(color)
        preprocessing = self.manifest.preprocessing
        return _tensor(image, preprocessing, color)[None]

    def warmup(self) -> None:
        """Run a batch of 1 and one of `batch.opt` images of zeros: what engines do on first use is then done.

        Raises BackendError, SessionClosedError.
        """
        with self._served.use() as model:
            model.warmup()

    @overload
    def classify(
        self,
        images: Iterable[ImageSource],
        top: int = 5,
        *,
        color: ColorOrder | None = None,
        on_error: Literal["raise"] = "raise",
    ) -> list[list[Prediction]]: ...

    @overload
    def classify(
        self,
        images: Iterable[ImageSource],
        top: int = 5,
        *,
        color: ColorOrder | None = None,
        on_error: Literal["return"],
    ) -> list[list[Prediction] | ResnetExportError]: ...

    def classify(
        self,
        images: Iterable[ImageSource],
        top: int = 5,
        *,
        color: ColorOrder | None = None,
        on_error: OnError = "raise",
    ) -> Sequence[list[Prediction] | ResnetExportError]:
        """Return the `top` most probable labels of each image, best first.

        Args:
            images: images of any sizes, see `Session`; consumed and run in batches of the manifest's `batch.opt`. The
                next two batches are decoded, in threads, while one runs.
            top: how many labels; a network with fewer classes returns them all.
            color: the order of an array's channels, "rgb" or "bgr" (OpenCV).
            on_error: "raise" the first error, or "return" each in the place of its image's labels, so that one bad
                image does not cost the others. An error has the image's `index` among `images`, and its `path`.

        Raises:
            RequestError: `top` is below 1, or `images` is one image instead of several.
            ImageError: an image cannot be decoded; the message says which.
            BackendError, SessionClosedError: as `run`.
        """
        return list(self.stream(images, top, color=color, on_error=on_error))

    def stream(
        self,
        images: Iterable[ImageSource],
        top: int = 5,
        *,
        color: ColorOrder | None = None,
        on_error: OnError = "raise",
    ) -> Iterator[list[Prediction] | ResnetExportError]:
        """Yield what `classify` returns, batch by batch: for more images than fit into memory, or without end.

        At most three batches of images are held at once. Raises as `classify` does; wrong arguments, before iteration.
        """
        _check_top(top)
        _check_color(color)
        if on_error not in get_args(OnError):
            raise RequestError(f"on_error is {on_error!r}, expected 'raise' or 'return'")
        if is_one_image(images) or not isinstance(images, Iterable):
            raise RequestError(
                f"classify takes several images and got one {type(images).__name__}; put it in a list"
            )
        self._served.check_open()
        return self._stream(images, top, color, on_error)

    def submit(
        self,
        image: ImageSource,
        top: int = 5,
        *,
        color: ColorOrder | None = None,
        timeout: float | None = None,
    ) -> Future[list[Prediction]]:
        """Return the future of one image's labels; requests from many threads run in batches.

        The image is decoded here, in the calling thread; an ImageError is raised by the future, and concerns
        no other. `open_session(batching=…)` sets how batches are collected and how many requests may wait. A future
        can be canceled until its batch runs. `close` completes what was submitted.

        Args:
            image, top, color: as for `classify`.
            timeout: seconds from now after which the future raises RequestTimeoutError; what is still queued then
                never runs.

        Raises:
            RequestError: `top` is below 1, `timeout` or `color` is wrong.
            QueueFullError: the queue is full, and `when_full` is "reject"; with "block" this waits for room.
            SessionClosedError: the session is closed.
        """
        _check_top(top)
        _check_color(color)
        _check_timeout(timeout)
        from resnet_export.runtime.request_future import RequestFuture

        future: RequestFuture[list[Prediction]] = RequestFuture(timeout)
        with self._served.use() as model:
            if model.reporter is not None:
                model.reporter.follow(future, model.batcher)
            try:
                tensor = _tensor(image, model.manifest.preprocessing, color)
            except ImageError as error:
                future.set_exception(_locate(error, None, image))
                return future
            try:
                return model.batcher.submit(Request(tensor, top), future)
            except ResnetExportError as error:
                if not future.done():
                    future.set_exception(error)  # for whoever observes it
                raise

    async def aclassify(
        self,
        image: ImageSource,
        top: int = 5,
        *,
        color: ColorOrder | None = None,
        timeout: float | None = None,
    ) -> list[Prediction]:
        """Return one image's labels without blocking the event loop, batched with all other requests.

        The image is decoded, and room in the queue is waited for, in asyncio's own threads. A task that is canceled
        takes its request out of the queue. Arguments as for `submit`.

        Raises what `submit` and its future raise.
        """
        import asyncio

        from resnet_export.runtime.request_future import RequestFuture

        _check_timeout(timeout)
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        submitting = loop.run_in_executor(
            None, partial(self.submit, image, top, color=color, timeout=timeout)
        )
        try:
            async with asyncio.timeout(timeout):
                try:
                    future = await asyncio.shield(submitting)
                except asyncio.CancelledError:
                    submitting.add_done_callback(_cancel_submitted)
                    raise
                return await asyncio.wrap_future(future)
        except TimeoutError as error:
            if (
                timeout is None
                or time.monotonic() - started < timeout
                or isinstance(error, ResnetExportError)
            ):
                raise
            raise RequestFuture(timeout).timed_out() from None

    def reload(self) -> None:
        """Open the bundle's folder again, as this session was opened, and serve what lies there from the next call on.

        The new model is opened and warmed up beside the old one, which goes on serving, completes what was submitted to
        it, and is then freed. Whatever is raised, the old one stays.

        Raises what `open_session` raises, and SessionClosedError.
        """
        self._served.check_open()
        with self._reloading:
            model = self._load_again()
            try:
                model.warmup()
            except BaseException:
                model.close()
                raise
            self._served.replace(model)

    def watch(
        self,
        interval: float = 1.0,
        *,
        on_reload: Callable[[ResnetExportError | None], object] | None = None,
    ) -> None:
        """Reload whenever another bundle is put into the folder, until the session is closed.

        A bundle that cannot be opened is tried again when its files change, and now and then; the old one goes on
        serving meanwhile. A second call changes the settings.

        Args:
            interval: seconds between two looks at the folder.
            on_reload: called in the watching thread after each attempt, with None or with what `reload` raised. By
                default both are logged, to the logger "resnet_export".

        Raises:
            RequestError: `interval` is not above 0.
            SessionClosedError: the session is closed.
        """
        if isinstance(interval, bool) or not isinstance(interval, int | float) or not interval > 0:
            raise RequestError(f"interval is {interval!r}, expected seconds above 0")
        self._served.check_open()
        self._stop_watching()
        self._on_reload = on_reload or _log_reload
        self._watcher = FolderWatcher(self._path, self._follow, interval=interval)

    def close(self, *, drain: bool = True) -> None:
        """Complete what was submitted, wait for running calls, and free the engine. Twice is harmless.

        With `drain=False` requests that do not run yet are canceled. Does nothing in a fork: the session belongs to the
        process that opened it.
        """
        self._release.detach()
        if not self._served.is_forked():
            self._stop_watching()
        self._served.close(drain=drain)

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
        state = "closed" if self._served.closed else "open"
        takes = describe(self.manifest.input)
        return f"<Session {self.manifest.model.arch}: {self.choice}; takes {takes}; {state}>"

    def _follow(self) -> None:
        """Reload if the folder holds another bundle than the one that is served, and tell the user."""
        try:
            if read_manifest(self._path) == self.manifest:
                return
            self.reload()
        except SessionClosedError:
            return
        except ResnetExportError as error:
            self._on_reload(error)
            raise
        self._on_reload(None)

    def _stop_watching(self) -> None:
        if self._watcher is not None:
            self._watcher.stop()

    def _stream(
        self, images: Iterable[ImageSource], top: int, color: ColorOrder | None, on_error: OnError
    ) -> Iterator[list[Prediction] | ResnetExportError]:
        def decode(numbered: tuple[int, ImageSource]) -> _Decoded:
            index, image = numbered
            preprocessing = self.manifest.preprocessing
            try:
                tensor = _tensor(image, preprocessing, color, _name(image, index))
            except ImageError as error:
                return _Decoded(image, index, preprocessing, error)
            return _Decoded(image, index, preprocessing, tensor)

        size = self.manifest.batch.opt
        workers = min(usable_cpus(), _DECODERS)
        ahead = map_ahead(decode, enumerate(images), ahead=_DECODE_AHEAD * size, workers=workers)
        with closing(ahead) as decoded:
            for chunk in chunks(decoded, size):
                with self._served.use() as model:
                    current = model.manifest.preprocessing
                    # After a reload, images that were prepared for the model before may be of another size.
                    fitting = [
                        one if one.preprocessing == current else decode((one.index, one.image))
                        for one in chunk
                    ]
                    requests = [
                        Request(one.tensor, top) for one in fitting if isinstance(one.tensor, np.ndarray)
                    ]
                    labels = iter(model.classify(requests) if requests else ())
                for one in fitting:
                    result = one.tensor if isinstance(one.tensor, ImageError) else next(labels)
                    if isinstance(result, ResnetExportError):
                        _locate(result, one.index, one.image)
                        if on_error == "raise":
                            raise result
                    yield result


def _profile(
    folder: str | os.PathLike[str], manifest: Manifest, host: HostFacts, request: SessionSpec, *, tune: bool
) -> StoredProfile:
    """Return what was measured of this bundle on this host; with `tune`, measured now if it was not before."""
    stored = read_profile(manifest, host, request.threads)
    if stored.profile is not None or not tune:
        return stored
    from resnet_export.runtime import bench

    profile = bench.tune(folder, manifest, host, request)
    try:
        save_profile(profile, manifest, host, request.threads)
    except RequestError as error:
        return StoredProfile(profile, str(error))
    return StoredProfile(profile)


@dataclass(frozen=True)
class _Decoded:
    """One image of a stream as the network takes it, prepared as `preprocessing` says, or why it cannot be."""

    image: ImageSource
    index: int
    preprocessing: Preprocessing
    tensor: NDArray[np.uint8] | NDArray[np.float32] | ImageError


def _cancel_submitted(submitting: asyncio.Future[Future[list[Prediction]]]) -> None:
    """Cancel a request that was submitted after its task had been canceled."""
    if not submitting.cancelled() and submitting.exception() is None:
        submitting.result().cancel()


def _tensor(
    image: ImageSource, preprocessing: Preprocessing, color: ColorOrder | None, name: str | None = None
) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Return an image as the network takes it: an input batch without its first axis."""
    batch = to_input(load(image, preprocessing, color=color, name=name)[None], preprocessing)
    tensor: NDArray[np.uint8] | NDArray[np.float32] = batch[0]
    return tensor


def _log_reload(error: ResnetExportError | None) -> None:
    import logging

    logger = logging.getLogger("resnet_export")
    if error is None:
        logger.info("the session serves a new bundle")
    else:
        logger.warning("the session goes on with the bundle that it has: %s", error)


def _names(names: Sequence[str] | None, manifest: Manifest) -> tuple[str, ...]:
    """Return the outputs that are asked for, each once."""
    if isinstance(names, str):
        raise RequestError(f"names is {names!r}, expected several; put it in a list")
    return tuple(
        dict.fromkeys(output.name for output in manifest.outputs) if names is None else dict.fromkeys(names)
    )


def _check_top(top: int) -> None:
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise RequestError(f"top is {top!r}, expected a number from 1 on")


def _check_color(color: ColorOrder | None) -> None:
    if color is not None and color not in get_args(ColorOrder):
        raise RequestError(f"color is {color!r}, expected 'rgb', or 'bgr' for OpenCV's frames")


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and (
        isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0
    ):
        raise RequestError(f"timeout is {timeout!r}, expected seconds above 0")


def _name(image: ImageSource, index: int) -> str | None:
    """What an error message calls an image: paths name themselves."""
    return None if isinstance(image, str | os.PathLike) else f"image {index}"


def _locate(error: ResnetExportError, index: int | None, image: ImageSource) -> ResnetExportError:
    """Say in `error` which image it concerns, and return it."""
    error.index = index
    error.path = os.fsdecode(image) if isinstance(image, str | os.PathLike) else None
    return error
