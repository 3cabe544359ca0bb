"""ONNX Runtime: the CPU provider, and what every provider of it has in common.

`onnxruntime.get_available_providers()` lists what was compiled in, not what works, and a session whose
provider does not load runs on the CPU without an error. So the opened session is asked what it really uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnet_export.runtime.backends.libraries import import_library
from resnet_export.runtime.backends.protocol import OpenRequest, native_error
from resnet_export.runtime.backends.signature import Tensor, check_signature
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.precision import Precision

CPU = "CPUExecutionProvider"

# OrtLoggingLevel: whatever is worse than a warning also arrives as an exception.
_FATAL = 4
_DTYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}

_NOT_LOADED = "Failed to load "  # how preload_dlls begins the line about a library

_WEIGHT_BIAS = "WeightBiasQuantization"
_WEIGHT_BIAS_NOTE = f"{_WEIGHT_BIAS} is off: it divides biases by fp16 scales, and the quotients overflow"


class OnnxRuntimeBackend:
    """One ONNX artifact in an `onnxruntime.InferenceSession`, which is safe to run from many threads."""

    batch: BatchRange | None = None

    def __init__(self, session: Any, request: OpenRequest, notes: tuple[str, ...]) -> None:
        self._session = session
        self._input = request.input.name
        self._name = request.artifact.name
        self.provider: str = request.provider
        self.precision: Precision = request.precision
        self.notes = notes

    def run(self, batch: np.ndarray, outputs: Sequence[str]) -> tuple[NDArray[np.float32], ...]:
        """See `Backend.run`."""
        try:
            return tuple(self._session.run(list(outputs), {self._input: batch}))
        except Exception as error:
            raise native_error(f"ONNX Runtime failed to run artifact {self._name!r}", error) from error

    def close(self) -> None:
        """See `Backend.close`."""
        self._session = None


def open_backend(request: OpenRequest) -> OnnxRuntimeBackend:
    """Open an ONNX artifact with the CPU provider. Raises BackendError."""
    return OnnxRuntimeBackend(*open_session(request, {}))


def open_session(
    request: OpenRequest,
    provider_options: dict[str, str],
    configure: Callable[[Any, Any], None] | None = None,
    *,
    plugin: bool = False,
) -> tuple[Any, OpenRequest, tuple[str, ...]]:
    """Open an ONNX artifact with `request.provider`, and no other in its place.

    `configure` is called with the onnxruntime module and the session options before the session is made; for a
    provider that is a `plugin` it registers its library and adds its devices. Returns the session, the request,
    and what a user should know. Raises BackendError.
    """
    name = request.artifact.name
    if request.precision != request.artifact.precision:
        raise BackendError(
            f"ONNX Runtime runs artifact {name!r} in {request.artifact.precision}, not in {request.precision}"
        )
    onnxruntime = import_library("onnxruntime")
    if not plugin and request.provider not in onnxruntime.get_available_providers():
        raise BackendError(
            f"this build of ONNX Runtime ({onnxruntime.__version__}) has no {request.provider}; install "
            "onnxruntime-gpu for the providers that use a GPU"
        )
    disabled = _disabled_optimizers(request)
    try:
        missing = [] if plugin or request.provider == CPU else _preload(onnxruntime)
        options = _options(onnxruntime, request)
        if configure is not None:
            configure(onnxruntime, options)
        session = onnxruntime.InferenceSession(
            request.data,
            sess_options=options,
            providers=None if plugin else [(request.provider, provider_options)],
            disabled_optimizers=disabled,
            # Otherwise a failing provider is replaced by the CPU's, with a line on standard output.
            enable_fallback=0,
        )
    except Exception as error:
        raise native_error(f"ONNX Runtime cannot open artifact {name!r}", error) from error
    used = session.get_providers()
    if request.provider not in used:
        reason = f"{' and '.join(missing)} cannot be loaded" if missing else "its libraries did not load"
        raise BackendError(
            f"ONNX Runtime was asked for {request.provider} and runs {', '.join(used)} instead, because {reason}; "
            "install CUDA and cuDNN (pip install 'onnxruntime-gpu[cuda,cudnn]')"
        )
    # The wrapper keeps the serialized model for changing providers later, which never happens here.
    session._model_bytes = None
    check_signature(request, _tensors(session.get_inputs()), _tensors(session.get_outputs()))
    return session, request, (_WEIGHT_BIAS_NOTE,) if disabled else ()


def _options(onnxruntime: Any, request: OpenRequest) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    if request.threads is not None:
        options.intra_op_num_threads = request.threads
    return options


def _disabled_optimizers(request: OpenRequest) -> list[str]:
    # Seen in ONNX Runtime 1.31. Graphs for CPUs have fp32 scales, and need this optimizer to reach the INT8
    # kernels.
    quantized = request.artifact.precision == Precision.INT8
    return [_WEIGHT_BIAS] if quantized and request.artifact.target != "cpu" else []


def _preload(onnxruntime: Any) -> list[str]:
    """Load CUDA and cuDNN from pip's packages, where they are, and return the names of those not found anywhere."""
    preload = getattr(onnxruntime, "preload_dlls", None)
    if preload is None:
        return []
    printed: list[str] = []

    def collect(*words: object, sep: str | None = " ", **_: object) -> None:
        printed.append((sep or " ").join(map(str, words)))

    # It prints what it misses. A copy of it with a `print` of our own leaves the other threads' standard output alone.
    quiet = FunctionType(
        preload.__code__,
        preload.__globals__ | {"print": collect},
        None,
        preload.__defaults__,
        preload.__closure__,
    )
    quiet(directory="")
    failures = [line for text in printed for line in text.splitlines() if line.startswith(_NOT_LOADED)]
    return [line.removeprefix(_NOT_LOADED).partition(":")[0] for line in failures]


def _tensors(arguments: Any) -> list[Tensor]:
    return [
        Tensor(
            name=argument.name,
            dtype=_DTYPES.get(argument.type, argument.type),
            shape=tuple(size if isinstance(size, int) else None for size in argument.shape),
        )
        for argument in arguments
    ]
