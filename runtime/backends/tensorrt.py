"""Engines of TensorRT 10, TensorRT 11 and TensorRT for RTX, run from many threads without torch.

The order of opening: the hash was checked by whoever read the file, then the header is held against the
manifest, and only then does the native library see the bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.compiled_file import read_compiled, write_compiled
from resnet_export.runtime.backends.context_pool import ContextPool, EngineShape, ExecutionContext
from resnet_export.runtime.backends.cuda import Cuda
from resnet_export.runtime.backends.device_array import DeviceArray, view_device_array
from resnet_export.runtime.backends.protocol import OpenRequest
from resnet_export.runtime.backends.signature import Tensor, check_signature
from resnet_export.runtime.backends.tensorrt_library import (
    errors_of,
    invalidity,
    load_library,
    make_runtime,
    process_log,
)
from resnet_export.runtime.bundle.engine_header import TITLES, check_header, engine_mismatch
from resnet_export.runtime.bundle.manifest import BatchRange, EngineInfo, read_artifact, read_manifest
from resnet_export.runtime.errors import BackendError, DependencyError, IntegrityError, RequestError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.host import query_gpus

# Contexts cost device memory each; more than a few do not make one GPU faster.
CONTEXTS = 4


class TensorRTBackend:
    """One engine. Threads share it through a pool of execution contexts."""

    def __init__(
        self,
        request: OpenRequest,
        library: Any,
        cuda: Cuda,
        runtime: Any,
        engine: Any,
        kernels: _Kernels | None,
    ) -> None:
        info = _engine_info(request)
        self.provider: str = request.provider
        self.precision: Precision = request.artifact.precision
        self._title = f"{TITLES[info.variant]} {info.version}"
        self._name = request.artifact.name
        self._log = process_log(library)
        self._cuda = cuda
        self._runtime = runtime  # an engine must not outlive the runtime that loaded it
        self._engine = engine
        self._kernels = kernels
        self._profiles = _profiles(engine, request.input.name)
        self._shape = EngineShape(
            input=request.input.name,
            input_rest=request.input.rest,
            dtype=np.dtype(request.input.dtype),
            outputs={output.name: output.rest for output in request.outputs},
        )
        self._graph_errors: dict[str, None] = {}
        self._pool = ContextPool(self._make_context, CONTEXTS)

    @property
    def batch(self) -> BatchRange | None:
        """See `Backend.batch`."""
        profiles = self._profiles
        return BatchRange(
            min=min(profile.min for profile in profiles),
            opt=profiles[0].opt,
            max=max(profile.max for profile in profiles),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Backend.notes`."""
        return tuple(f"runs without CUDA graphs: {error}" for error in self._graph_errors)

    def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        """See `Backend.run`. A batch below the smallest of the fitting profile is filled up."""
        count = len(batch)
        index = self._profile(count)
        missing = max(self._profiles[index].min - count, 0)
        if missing:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        with self._failures(), self._pool.borrow(len(batch)) as context:
            found = context.run(batch, index, tuple(outputs))
            if context.graph_error is not None:
                self._graph_errors[str(context.graph_error)] = None
        return tuple(values[:count] for values in found)

    def run_on_device(self, array: Any, outputs: Sequence[str]) -> tuple[DeviceArray, ...]:
        """Return the outputs of these names, float32 [N, …] on the GPU, of an input that lies there: nothing is copied.

        `array` has the manifest's input type and shape, in C order, and speaks DLPack or
        `__cuda_array_interface__`. Raises RequestError for any other, BackendError.
        """
        with self._failures():
            # Checked before a context is borrowed, so that a wrong array costs none.
            view = view_device_array(array, self._cuda)
            try:
                self._check_view(view.shape, view.dtype)
                pieces = self._pieces(view.shape[0])
                # An engine writes every output that it has, asked for or not.
                found = {
                    name: DeviceArray(self._cuda, (view.shape[0], *rest))
                    for name, rest in self._shape.outputs.items()
                }
                with self._pool.borrow(0) as context:
                    for start, count, index in pieces:
                        images = view.pointer + self._shape.input_bytes(start)
                        targets = {
                            name: output.pointer + self._shape.output_bytes(name, start)
                            for name, output in found.items()
                        }
                        context.run_on_device(images, targets, count, index)
            finally:
                view.release()
            return tuple(found[name] for name in outputs)

    def close(self) -> None:
        """See `Backend.close`. Contexts go before buffers, the engine before its runtime."""
        if self._engine is None:
            return
        self._cuda.enter()
        try:
            self._pool.close()
        finally:
            if self._kernels is not None:
                self._kernels.save()
                self._kernels = None
            self._engine = None
            self._runtime = None

    def _make_context(self) -> ExecutionContext:
        self._cuda.enter()
        config = None if self._kernels is None else self._kernels.config
        engine = self._engine
        native = (
            engine.create_execution_context() if config is None else engine.create_execution_context(config)
        )
        if native is None:
            raise BackendError("no execution context could be created, most likely for lack of GPU memory")
        # TensorRT for RTX captures graphs itself, when its configuration says so.
        return ExecutionContext(self._cuda, native, self._shape, graphs=config is None)

    def _profile(self, count: int) -> int:
        """The index of the profile to run `count` images with: of those that take them, the one tuned for the
        nearest batch; else the smallest larger one.
        """
        ranges = list(enumerate(self._profiles))
        fitting = [
            (abs(batch.opt - count), index) for index, batch in ranges if batch.min <= count <= batch.max
        ]
        larger = [(batch.min, index) for index, batch in ranges if batch.min > count]
        if not fitting and not larger:
            raise RequestError(f"the batch has {count} images, the engine takes at most {self.batch}")
        return min(fitting or larger)[1]

    def _pieces(self, count: int) -> Sequence[tuple[int, int, int]]:
        """Split `count` images into (start, count, profile)."""
        most = max(profile.max for profile in self._profiles)
        pieces = []
        for start in range(0, count, most):
            size = min(most, count - start)
            index = self._profile(size)
            if size < self._profiles[index].min:
                raise RequestError(
                    f"the last {size} of {count} images are less than the engine's smallest batch "
                    f"{self._profiles[index].min}; give a multiple of it, or arrays in host memory"
                )
            pieces.append((start, size, index))
        return pieces

    def _check_view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        rest = self._shape.input_rest
        if dtype != self._shape.dtype or len(shape) != 1 + len(rest) or shape[1:] != rest or shape[0] < 1:
            raise RequestError(
                f"the array is {dtype} {list(shape)}, expected {self._shape.dtype} [N, "
                f"{', '.join(map(str, rest))}]"
            )

    @contextlib.contextmanager
    def _failures(self) -> Any:
        """Add to an error of TensorRT what its log says."""
        self._cuda.enter()
        with self._log.capture() as messages:
            try:
                yield
            except BackendError as error:
                if not messages:
                    raise
                raise BackendError(
                    f"{self._title} failed on {self._name!r}: {error} ({errors_of(messages)})"
                ) from error


class _Kernels:
    """TensorRT for RTX compiles kernels when an engine first runs; this keeps them, and asks for CUDA graphs."""

    def __init__(self, library: Any, engine: Any, request: OpenRequest) -> None:
        self._path = None if request.cache is None else request.cache / "runtime-cache.kernels"
        self.config = engine.create_runtime_config()
        self.config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        self._cache = self.config.create_runtime_cache()
        kernels = None if self._path is None else read_compiled(self._path)
        if kernels is not None:
            self._cache.deserialize(kernels)  # False for kernels it cannot use: they are compiled again
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Keep the kernels for the next session, where there is a folder for them."""
        kernels = None if self._path is None else self._cache.serialize()
        if self._path is not None and kernels is not None:
            with contextlib.suppress(OSError):  # without them the next session compiles again
                write_compiled(self._path, bytes(memoryview(kernels)))


def open_backend(request: OpenRequest) -> TensorRTBackend:
    """Open an engine. Raises IntegrityError when it is not what the manifest says, and BackendError."""
    info = _engine_info(request)
    check_header(request.data, info)
    if request.precision != request.artifact.precision:
        raise BackendError(
            f"the engine {request.artifact.name!r} runs in {request.artifact.precision}, not in "
            f"{request.precision}"
        )
    try:
        library = load_library("tensorrt_lean" if request.provider == "tensorrt_lean" else info.variant)
    except DependencyError as error:
        raise BackendError(str(error)) from error
    device = request.device or 0
    gpu = next((gpu.compute_capability for gpu in query_gpus().gpus if gpu.index == device), None)
    mismatch = engine_mismatch(info, installed=library.__version__, device=gpu)
    if mismatch is not None or gpu is None:
        raise BackendError(f"the engine {request.artifact.name!r} was {mismatch}")
    _check_validity(library, request, info)
    cuda = Cuda(device)
    cuda.enter()
    with process_log(library).capture() as messages:
        runtime = make_runtime(library, info.options)
        engine = runtime.deserialize_cuda_engine(request.data)
        if engine is None:
            raise BackendError(
                f"{TITLES[info.variant]} {library.__version__} cannot load {request.artifact.name!r}: "
                f"{errors_of(messages)}"
            )
        if info.options.get("strip_weights"):
            _refit(library, engine, request, info, messages)
        check_signature(request, *_tensors(library, engine))
        kernels = _Kernels(library, engine, request) if info.variant == "tensorrt_rtx" else None
    return TensorRTBackend(request, library, cuda, runtime, engine, kernels)


def _check_validity(library: Any, request: OpenRequest, info: EngineInfo) -> None:
    """Load no engine that TensorRT for RTX itself would not take: of a later version only it can read the header."""
    reasons = invalidity(library, request.data)
    if "MALFORMED_ENGINE" in reasons:
        raise IntegrityError(
            f"{TITLES[info.variant]} {library.__version__} finds the engine {request.artifact.name!r} malformed; "
            "export the bundle again"
        )
    if reasons:
        found = " and ".join(reason.lower().replace("_", " ") for reason in reasons)
        raise BackendError(
            f"{TITLES[info.variant]} {library.__version__} does not take the engine {request.artifact.name!r} on this "
            f"host: {found}; build it again with `resnet-export build BUNDLE`"
        )


def _engine_info(request: OpenRequest) -> EngineInfo:
    if request.artifact.engine is None:
        raise BackendError(f"artifact {request.artifact.name!r} is not an engine")
    return request.artifact.engine


def _refit(library: Any, engine: Any, request: OpenRequest, info: EngineInfo, messages: list[Any]) -> None:
    """Put the weights of the ONNX artifact into an engine that was built without them.

    They must be those that it was built from: others of the same shapes would fit and answer wrongly. Raises
    IntegrityError.
    """
    source = read_manifest(request.bundle).artifact(info.source)
    if source.sha256 != info.source_sha256:
        raise IntegrityError(
            f"the engine {request.artifact.name!r} was built from other weights ({info.source_sha256[:12]}) than "
            f"{source.name!r} has ({source.sha256[:12]}); build it again with `resnet-export build BUNDLE`"
        )
    refitter = library.Refitter(engine, process_log(library))
    onnx_refitter = library.OnnxParserRefitter(refitter, process_log(library))
    if (
        not onnx_refitter.refit_from_bytes(read_artifact(request.bundle, source))
        or not refitter.refit_cuda_engine()
    ):
        raise BackendError(
            f"the weights of {info.source!r} do not fit the engine {request.artifact.name!r}: "
            f"{errors_of(messages)}"
        )


def _tensors(library: Any, engine: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The engine's inputs and outputs."""
    dtypes = {library.DataType.FLOAT: "float32", library.DataType.UINT8: "uint8"}
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        dtype = engine.get_tensor_dtype(name)
        shape = tuple(None if extent < 0 else int(extent) for extent in engine.get_tensor_shape(name))
        tensor = Tensor(name, dtypes.get(dtype, str(dtype)), shape)
        is_input = engine.get_tensor_mode(name) == library.TensorIOMode.INPUT
        (inputs if is_input else outputs).append(tensor)
    return inputs, outputs


def _profiles(engine: Any, name: str) -> tuple[BatchRange, ...]:
    """The batch sizes of the engine's optimization profiles."""
    found = []
    for index in range(engine.num_optimization_profiles):
        least, usual, most = (int(shape[0]) for shape in engine.get_tensor_profile_shape(name, index))
        found.append(BatchRange(min=least, opt=usual, max=most))
    return tuple(found)
