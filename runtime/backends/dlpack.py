"""DLPack capsules, read and made with ctypes: the way arrays change libraries without a copy.

The structures are those of dlpack.h before version 1 (capsule name "dltensor"), which every library still
speaks: https://dmlc.github.io/dlpack/latest/c_api.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

KDL_CPU = 1
KDL_CUDA = 2
KDL_CUDA_MANAGED = 13

_NAME = b"dltensor"
_USED = b"used_dltensor"
_CODES = {"i": 0, "u": 1, "f": 2}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    pass


_Deleter = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_api = ctypes.pythonapi
_new = _api.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, _Destructor)
_get = _api.PyCapsule_GetPointer
_get.restype, _get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_rename = _api.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
# The destructor sees a capsule that is being freed, which must not become a Python reference again.
_is_raw = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_get_raw = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)


@dataclass(frozen=True)
class Imported:
    """What a capsule describes. `strides` are in elements, None for C order; call `release` when done with it."""

    pointer: int
    device: tuple[int, int]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype[Any]
    release: Callable[[], None]


def import_capsule(capsule: Any) -> Imported:
    """Take over a capsule that some array's `__dlpack__` returned. Raises ValueError for a type that numpy
    lacks.
    """
    address = _get(capsule, _NAME)
    managed = _Managed.from_address(address)
    tensor = managed.tensor
    kind = {code: letter for letter, code in _CODES.items()}.get(tensor.dtype.code)
    if kind is None or tensor.dtype.bits % 8 or tensor.dtype.lanes != 1:
        raise ValueError(
            f"DLPack type (code {tensor.dtype.code}, {tensor.dtype.bits} bits) has no numpy equal"
        )
    _rename(capsule, _USED)

    def release() -> None:
        if managed.deleter:
            managed.deleter(ctypes.byref(managed))

    return Imported(
        pointer=(tensor.data or 0) + tensor.byte_offset,
        device=(tensor.device.type, tensor.device.id),
        shape=tuple(tensor.shape[: tensor.ndim]),
        strides=tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None,
        dtype=np.dtype(f"{kind}{tensor.dtype.bits // 8}"),
        release=release,
    )


# What capsules refer to, until their consumers call the deleter.
_alive: dict[int, tuple[_Managed, Any, Any]] = {}


def _delete(managed: Any) -> None:
    _alive.pop(ctypes.addressof(managed.contents), None)


def _destroy(capsule: int) -> None:
    if _is_raw(capsule, _NAME):  # nobody took it
        _alive.pop(_get_raw(capsule, _NAME), None)


_deleter = _Deleter(_delete)
_destructor = _Destructor(_destroy)


def export_capsule(
    pointer: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: tuple[int, int], owner: Any
) -> Any:
    """Return a capsule for C-ordered memory, which keeps `owner` alive until its consumer is done."""
    extents = (ctypes.c_int64 * len(shape))(*shape)
    managed = _Managed(
        tensor=_Tensor(
            data=pointer,
            device=_Device(*device),
            ndim=len(shape),
            dtype=_DataType(_CODES[dtype.kind], dtype.itemsize * 8, 1),
            shape=ctypes.cast(extents, ctypes.POINTER(ctypes.c_int64)),
            strides=None,
            byte_offset=0,
        ),
        context=None,
        deleter=_deleter,
    )
    address = ctypes.addressof(managed)
    _alive[address] = (managed, extents, owner)
    return _new(address, _NAME, _destructor)
