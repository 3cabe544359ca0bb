"""DLPack capsules against the two implementations at hand: numpy's and torch's, on the CPU."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from resnet_export.runtime.backends import dlpack
from resnet_export.runtime.backends.cuda import Cuda
from resnet_export.runtime.backends.device_array import DeviceArray, view_device_array
from resnet_export.runtime.backends.dlpack import KDL_CPU, KDL_CUDA, export_capsule, import_capsule
from resnet_export.runtime.errors import RequestError
from tests.fake_cuda import FakeCuda

DTYPES = st.sampled_from([np.float32, np.float16, np.float64, np.uint8, np.int8, np.int32, np.int64])


class Exported:
    """What a consumer of `__dlpack__` expects, around memory of numpy."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return KDL_CPU, 0

    def __dlpack__(self, **_: Any) -> Any:
        return export_capsule(
            self.array.ctypes.data, self.array.shape, self.array.dtype, (KDL_CPU, 0), self.array
        )


@given(DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=4))))
def test_numpy_reads_what_is_exported(array: np.ndarray) -> None:
    found = np.from_dlpack(Exported(array))
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)
    assert np.shares_memory(found, array)


@given(DTYPES.flatmap(lambda dtype: arrays.arrays(dtype, arrays.array_shapes(max_dims=4))), st.booleans())
def test_what_numpy_exports_is_read(array: np.ndarray, transposed: bool) -> None:
    given = array.T if transposed else array
    found = import_capsule(given.__dlpack__())
    assert (found.pointer, found.shape, found.dtype) == (given.ctypes.data, given.shape, given.dtype)
    assert found.device == (KDL_CPU, 0)
    if found.strides is not None:
        extents = zip(given.shape, found.strides, given.strides, strict=True)
        assert all(size == 1 or mine * given.itemsize == theirs for size, mine, theirs in extents)
    found.release()


def test_torch_reads_what_is_exported_and_the_other_way_round() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert torch.equal(torch.from_dlpack(Exported(array)), torch.from_numpy(array))
    tensor = torch.arange(6).reshape(2, 3)
    found = import_capsule(tensor.__dlpack__())
    assert (found.pointer, found.shape, found.dtype) == (tensor.data_ptr(), (2, 3), np.dtype(np.int64))
    found.release()


class Owner:
    """Something that can be watched."""


@pytest.mark.parametrize("consumed", [True, False])
def test_the_owner_lives_as_long_as_the_capsule_or_its_consumer(consumed: bool) -> None:
    owner = Owner()
    watched = weakref.ref(owner)
    array = np.arange(4, dtype=np.float32)
    capsule = export_capsule(array.ctypes.data, (4,), array.dtype, (KDL_CPU, 0), owner)
    del owner
    assert watched() is not None
    if consumed:
        found = import_capsule(capsule)
        del capsule
        assert watched() is not None
        found.release()
    else:
        del capsule
    assert watched() is None
    assert dlpack._alive == {}


def test_a_capsule_is_consumed_once() -> None:
    capsule = np.arange(3).__dlpack__()
    import_capsule(capsule).release()
    with pytest.raises(ValueError, match="PyCapsule"):
        import_capsule(capsule)


def test_a_type_that_numpy_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no numpy equal"):
        import_capsule(torch.zeros(2, dtype=torch.bfloat16).__dlpack__())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool], ids=str)
def test_an_array_of_a_type_that_numpy_or_the_network_lacks_is_refused_before_it_costs_a_context(
    dtype: torch.dtype,
) -> None:
    class Tensor:
        def __dlpack_device__(self) -> tuple[int, int]:
            return KDL_CUDA, 0

        def __dlpack__(self, *, stream: int) -> Any:
            return torch.zeros(2, dtype=dtype).__dlpack__()

    with pytest.raises(RequestError, match=r"cannot be read: DLPack type .* has no numpy equal"):
        view_device_array(Tensor(), Cuda(0, FakeCuda()))


class OnGpu:
    """A tensor that claims to be on a GPU, with numpy's memory."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (KDL_CUDA, 0)) -> None:
        self.array, self.device, self.streams = array, device, list[Any]()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: int) -> Any:
        self.streams.append(stream)
        return export_capsule(
            self.array.ctypes.data, self.array.shape, self.array.dtype, self.device, self.array
        )


def test_an_array_is_complete_when_it_is_read() -> None:
    fake = FakeCuda()
    cuda = Cuda(0, fake)
    array = OnGpu(np.zeros((2, 3), np.float32))
    view = view_device_array(array, cuda)
    assert (view.shape, view.dtype) == ((2, 3), np.dtype(np.float32))
    assert (array.streams, fake.journal) == ([1], ["cudaStreamSynchronize"])
    view.release()
    for device in (KDL_CUDA, 1), (KDL_CPU, 0):
        with pytest.raises(RequestError, match="DLPack device"):
            view_device_array(OnGpu(np.zeros(2), device), cuda)


def test_a_result_outlives_its_array_for_as_long_as_somebody_reads_it() -> None:
    fake = FakeCuda()
    array = DeviceArray(Cuda(0, fake), (2, 5))
    assert array.__dlpack_device__() == (KDL_CUDA, 0)
    found = import_capsule(array.__dlpack__(stream=1, max_version=(1, 0)))
    assert (found.pointer, found.shape, found.device) == (array.pointer, (2, 5), (KDL_CUDA, 0))
    del array
    assert fake.memory
    found.release()
    assert fake.is_clean()
