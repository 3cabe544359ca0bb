"""Arrays that live on a GPU: what other libraries hand in, and what is handed back to them, without a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from resnet_export.runtime.backends.cuda import Cuda
from resnet_export.runtime.backends.dlpack import KDL_CUDA, KDL_CUDA_MANAGED, export_capsule, import_capsule
from resnet_export.runtime.errors import BackendError, RequestError

_LEGACY_STREAM = 1  # CUDA's legacy default stream, as DLPack and the CUDA runtime number it


@dataclass(frozen=True)
class DeviceView:
    """A C-ordered array on a GPU that belongs to somebody else; call `release` when done with it."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    release: Callable[[], None]


class DeviceArray:
    """A float32 result on a GPU. It frees its memory when nothing refers to it any more.

    PyTorch, CuPy, JAX and Numba take it without a copy, through `__dlpack__` or `__cuda_array_interface__`.
    """

    def __init__(self, cuda: Cuda, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype = np.dtype(np.float32)
        self._cuda = cuda
        self.pointer = 0
        self.pointer = cuda.allocate(max(self.nbytes, 1))

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.pointer, False),
            "strides": None,
            "version": 3,
            "stream": None,  # the work that wrote it is done
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return KDL_CUDA, self._cuda.device

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        # The array is complete, so any stream may read it; newer keywords (max_version, copy) ask for
        # nothing else.
        del stream
        return export_capsule(self.pointer, self.shape, self.dtype, self.__dlpack_device__(), self)

    def __del__(self) -> None:
        pointer, self.pointer = self.pointer, 0
        if pointer:
            with contextlib.suppress(BackendError):  # CUDA may be gone already, and its memory with it
                self._cuda.free(pointer)


def view_device_array(array: Any, cuda: Cuda) -> DeviceView:
    """Return `array`, which lies on the GPU of `cuda`; whatever writes it is done when this returns.

    Takes everything with `__dlpack__` on a CUDA device, or with `__cuda_array_interface__`. Raises
    RequestError for an array elsewhere, one that is not C-contiguous, or one of a type that numpy lacks (bfloat16).
    """
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        kind, index = array.__dlpack_device__()
        if kind not in (KDL_CUDA, KDL_CUDA_MANAGED) or (kind == KDL_CUDA and index != cuda.device):
            raise RequestError(
                f"the array is on DLPack device ({kind}, {index}), expected ({KDL_CUDA}, {cuda.device}); "
                "copy it there"
            )
        # The producer makes the stream that it is told wait for the array, and this waits for the stream.
        capsule = array.__dlpack__(stream=_LEGACY_STREAM)
        cuda.synchronize(_LEGACY_STREAM)
        try:
            found = import_capsule(capsule)
        except ValueError as error:
            raise RequestError(f"the array cannot be read: {error}; convert it first") from error
        view = DeviceView(found.pointer, found.shape, found.dtype, found.release)
        steps = (
            None if found.strides is None else tuple(step * found.dtype.itemsize for step in found.strides)
        )
    elif hasattr(array, "__cuda_array_interface__"):
        interface = array.__cuda_array_interface__
        if interface.get("stream"):
            cuda.synchronize(interface["stream"])
        shape, dtype = tuple(interface["shape"]), np.dtype(interface["typestr"])
        view, steps = DeviceView(interface["data"][0], shape, dtype, lambda: None), interface.get("strides")
    else:
        raise RequestError(
            f"{type(array).__name__} has neither __dlpack__ nor __cuda_array_interface__; give a numpy "
            "array or an array on the GPU"
        )
    if steps is not None and not _is_c_order(view.shape, tuple(steps), view.dtype.itemsize):
        view.release()
        raise RequestError(f"the array has strides {tuple(steps)}, expected C order; make it contiguous")
    return view


def _is_c_order(shape: tuple[int, ...], steps: tuple[int, ...], itemsize: int) -> bool:
    expected = itemsize
    for extent, step in zip(reversed(shape), reversed(steps), strict=True):
        if extent > 1 and step != expected:
            return False
        expected *= extent
    return True
