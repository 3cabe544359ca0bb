"""The CUDA layer: the real bindings where there is no driver, and a double that checks every call's form."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from cuda.bindings import runtime as cudart

from resnet_export.runtime.backends.cuda import Cuda, host_view, load_runtime
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.select.host import query_gpus
from tests.fake_cuda import FakeCuda


@pytest.mark.skipif(bool(query_gpus().gpus), reason="this host has a GPU")
def test_without_a_driver_the_real_bindings_answer_with_an_error_that_names_the_call() -> None:
    with pytest.raises(BackendError, match=r"CUDA's cudaMalloc failed on GPU 0: cudaError\w+ \(\d+\)"):
        Cuda(0).allocate(16)


def test_missing_bindings_are_an_error_with_the_way_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendError, match="pip install cuda-bindings"):
        load_runtime()


def test_host_memory_is_seen_as_an_array_of_any_type() -> None:
    fake = FakeCuda()
    pointer = Cuda(0, fake).allocate_pinned(24)
    view = host_view(pointer, (2, 3), np.dtype(np.float32))
    view[:] = np.arange(6).reshape(2, 3)
    assert host_view(pointer, (24,), np.dtype(np.uint8)).tobytes() == view.tobytes()


def test_a_capture_that_fails_midway_is_ended_and_its_graph_destroyed() -> None:
    fake = FakeCuda()
    cuda = Cuda(0, fake)
    stream = cuda.create_stream()
    with pytest.raises(ZeroDivisionError), cuda.capture(stream):
        raise ZeroDivisionError
    assert fake.journal[-2:] == ["cudaStreamEndCapture", "cudaGraphDestroy"]
    fake.broken["cudaGraphInstantiate"] = cudart.cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(BackendError, match="cudaGraphInstantiate"), cuda.capture(stream):
        pass
    cuda.destroy_stream(stream)
    assert fake.is_clean()


def test_every_function_that_the_layer_calls_exists_in_the_real_bindings() -> None:
    import ast
    import inspect

    from resnet_export.runtime.backends import cuda

    names = {
        node.value
        for node in ast.walk(ast.parse(inspect.getsource(cuda)))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda")
    }
    functions = {name for name in names if name.isalnum()}
    assert len(functions) > 12
    assert [name for name in functions if not callable(getattr(cudart, name, None))] == []
