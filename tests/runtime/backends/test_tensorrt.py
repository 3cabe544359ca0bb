"""The TensorRT runner on doubles of NVIDIA's real bindings: no GPU, so nothing here shows that a GPU
agrees.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cuda.bindings import runtime as cudart
from numpy.typing import NDArray

from resnet_export.runtime.backends import tensorrt as runner
from resnet_export.runtime.backends.cuda import Cuda
from resnet_export.runtime.backends.protocol import OpenRequest
from resnet_export.runtime.backends.tensorrt_library import invalidity
from resnet_export.runtime.bundle.engine_header import read_header
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    Artifact,
    BatchRange,
    EngineInfo,
    TensorSpec,
    encode_manifest,
)
from resnet_export.runtime.errors import BackendError, IntegrityError, RequestError, SessionClosedError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.select.host import Gpu, GpuQuery, HostFacts, Package
from resnet_export.runtime.session import open_session
from tests import tiny_bundle
from tests.backend_runs import logits_of, on_device
from tests.fake_cuda import FakeCuda
from tests.fake_tensorrt import CLASSES, Behaviour, FakeLibrary, computed, logits, plan
from tests.nvidia_bindings import PINS, RTX

CLASSIC = list(PINS)
EVERY = [*CLASSIC, RTX]
SIDE = 4


class Rig:
    """A request, and the doubles that it is opened on."""

    def __init__(self, version: str, folder: Path) -> None:
        self.cuda = FakeCuda()
        self.how = Behaviour(self.cuda)
        self.library = FakeLibrary(version, self.how)
        self.folder = folder
        self.cache: Path | None = folder / "kernels"
        self.cache.mkdir(exist_ok=True)
        self.gpus = (Gpu(index=0, name="a GPU", compute_capability="8.6", memory=1 << 33),)

    def request(self, **engine: Any) -> OpenRequest:
        numbers = [int(part) for part in self.library.__version__.split(".")]
        data = plan((*numbers, 0)[:4], rtx_mask=4 if self.library.is_rtx else None)
        info = EngineInfo(
            variant="tensorrt_rtx" if self.library.is_rtx else "tensorrt",
            version=self.library.__version__,
            compute_capabilities=("8.6",),
            profiles=tuple(BatchRange(min=a, opt=b, max=c) for a, b, c in self.how.profiles),
            source="fp16",
            source_sha256="0" * 64,
        )
        uint8 = self.how.dtype == "UINT8"
        return OpenRequest(
            data=data,
            artifact=Artifact(
                name="engine",
                file="engines/it.engine",
                kind="engine",
                precision=Precision.FP16,
                target="tensorrt",
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                engine=msgspec.structs.replace(info, **engine),
            ),
            input=TensorSpec(
                name="input",
                dtype="uint8" if uint8 else "float32",
                layout="NHWC" if uint8 else "NCHW",
                shape=("N", *self.how.input_shape[1:]),
            ),
            outputs=tuple(
                TensorSpec(
                    name=name,
                    dtype="float32",
                    layout="NC",
                    shape=("N", CLASSES if name == "logits" else 1),
                )
                for name in sorted(self.how.outputs, key="logits".__ne__)
            ),
            batch=BatchRange(min=1, opt=4, max=8),
            provider=info.variant,
            precision=Precision.FP16,
            device=0,
            threads=None,
            bundle=self.folder,
            cache=self.cache,
        )

    def open(self, **engine: Any) -> runner.TensorRTBackend:
        return runner.open_backend(self.request(**engine))


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Rig]]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))

    def make(version: str) -> Rig:
        made = Rig(version, tmp_path)
        monkeypatch.setattr(runner, "load_library", lambda variant: made.library)
        monkeypatch.setattr(runner, "Cuda", lambda device: Cuda(device, made.cuda))
        monkeypatch.setattr(runner, "query_gpus", lambda: GpuQuery(made.gpus, "13.0", None))
        return made

    return make


def images(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize("version", EVERY)
def test_an_engine_is_loaded_run_and_freed(rig: Callable[[str], Rig], version: str) -> None:
    made = rig(version)
    backend = made.open()
    batch = images(3)
    np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)
    assert (backend.provider, backend.precision) == (
        "tensorrt_rtx" if version == RTX else "tensorrt",
        Precision.FP16,
    )
    assert backend.batch == BatchRange(min=1, opt=4, max=8)
    assert not made.cuda.is_clean()
    backend.close()
    backend.close()
    assert made.cuda.is_clean()
    with pytest.raises(SessionClosedError):
        logits_of(backend, batch)


@pytest.mark.parametrize("version", EVERY)
def test_the_first_run_makes_its_calls_in_the_documented_order(
    rig: Callable[[str], Rig], version: str
) -> None:
    made = rig(version)
    backend = made.open()
    logits_of(backend, images(2))
    order = [name for name in made.cuda.journal if name != "cudaSetDevice"]
    assert order == [
        "deserialize",
        "cudaStreamCreateWithFlags",
        "cudaMalloc",
        "cudaMalloc",
        "cudaHostAlloc",
        "cudaHostAlloc",
        "set_input_shape",
        "set_tensor_address",
        "set_tensor_address",
        "cudaMemcpyAsync",
        "execute_async_v3",
        "cudaMemcpyAsync",
        "cudaStreamSynchronize",
    ]
    backend.close()


def test_closing_frees_graphs_before_buffers_and_streams_last(rig: Callable[[str], Rig]) -> None:
    made = rig("11.4")
    backend = made.open()
    for _ in range(3):
        logits_of(backend, images(2))
    start = len(made.cuda.journal)
    backend.close()
    assert made.cuda.journal[start:] == [
        "cudaSetDevice",
        "cudaGraphExecDestroy",
        "cudaFree",
        "cudaFree",
        "cudaFreeHost",
        "cudaFreeHost",
        "cudaStreamDestroy",
    ]


@pytest.mark.parametrize("version", CLASSIC)
def test_a_shape_that_comes_again_runs_as_a_cuda_graph_with_new_data(
    rig: Callable[[str], Rig], version: str
) -> None:
    made = rig(version)
    backend = made.open()
    for seed in range(4):
        batch = images(2, seed)
        np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)
    # One plain run, one execution that the capture recorded, and then launches.
    assert made.cuda.journal.count("execute_async_v3") == 2
    assert made.cuda.journal.count("cudaGraphLaunch") == 3
    assert made.cuda.journal.count("cudaMalloc") == 2
    backend.close()


def test_tensorrt_for_rtx_captures_its_own_graphs(rig: Callable[[str], Rig]) -> None:
    made = rig(RTX)
    backend = made.open()
    for _ in range(4):
        logits_of(backend, images(2))
    assert made.library.config.cuda_graph_strategy == made.library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert "cudaStreamBeginCapture" not in made.cuda.journal
    assert made.cuda.journal.count("execute_async_v3") == 4
    backend.close()


def test_an_engine_that_cannot_be_captured_runs_without_graphs_and_says_so(
    rig: Callable[[str], Rig],
) -> None:
    made = rig("11.4")
    backend = made.open()
    logits_of(backend, images(2))
    made.cuda.broken["cudaGraphInstantiate"] = cudart.cudaError_t.cudaErrorNotSupported
    assert backend.notes == ()
    for seed in range(3):
        np.testing.assert_allclose(logits_of(backend, images(2, seed)), logits(images(2, seed)), rtol=1e-6)
    assert len(backend.notes) == 1
    assert "cudaErrorNotSupported" in backend.notes[0]
    backend.close()
    assert made.cuda.is_clean()


def test_each_shape_gets_a_context_of_its_own_until_there_are_enough(rig: Callable[[str], Rig]) -> None:
    made = rig("11.4")
    made.how.profiles = ((1, 4, 64),)
    backend = made.open()
    for count in (*range(1, 10), *range(1, 10)):
        batch = images(count)
        np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)
    assert len(made.how.contexts) == runner.CONTEXTS
    backend.close()
    assert made.cuda.is_clean()


def test_a_gpu_without_memory_for_another_context_makes_do_with_one(rig: Callable[[str], Rig]) -> None:
    made = rig("11.4")
    made.how.most_contexts = 1
    backend = made.open()
    for count in (1, 2, 3, 1):
        batch = images(count)
        np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)
    assert len(made.how.contexts) == 1
    backend.close()
    made.how.most_contexts = 0
    made.how.contexts.clear()
    other = made.open()
    with pytest.raises(BackendError, match="lack of GPU memory"):
        logits_of(other, images(1))
    other.close()
    assert made.cuda.is_clean()


@pytest.mark.parametrize(("count", "expected"), [(1, 0), (2, 1), (4, 1), (8, 1), (9, 1), (12, 2), (32, 2)])
def test_the_profile_tuned_for_the_nearest_batch_runs_it(
    rig: Callable[[str], Rig], count: int, expected: int
) -> None:
    made = rig("11.4")
    made.how.profiles = ((1, 1, 1), (2, 4, 16), (9, 16, 32))
    backend = made.open()
    batch = images(count)
    np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)
    calls = made.how.contexts[0].set_optimization_profile_async.call_args_list
    assert [call.args[0] for call in calls] == ([expected] if expected else [])
    backend.close()


def test_a_batch_between_two_profiles_is_filled_up_and_its_filling_thrown_away(
    rig: Callable[[str], Rig],
) -> None:
    made = rig("10.3")
    made.how.profiles = ((1, 1, 1), (8, 8, 8))
    backend = made.open()
    batch = images(3)
    np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)
    assert made.how.contexts[0].set_input_shape.call_args.args == ("input", (8, 3, SIDE, SIDE))
    with pytest.raises(RequestError, match="at most"):
        logits_of(backend, images(9))
    backend.close()


def test_raw_uint8_images_go_in_as_they_are(rig: Callable[[str], Rig]) -> None:
    made = rig("11.4")
    made.how.input_shape, made.how.dtype = (-1, SIDE, SIDE, 3), "UINT8"
    backend = made.open()
    batch = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)
    backend.close()


@pytest.mark.parametrize("version", EVERY)
def test_threads_share_the_engine_and_never_a_context(rig: Callable[[str], Rig], version: str) -> None:
    made = rig(version)
    backend = made.open()
    barrier = threading.Barrier(8)

    def work(seed: int) -> None:
        barrier.wait()
        for turn in range(20):
            batch = images(1 + (seed + turn) % 8, seed)
            np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert 1 <= len(made.how.contexts) <= runner.CONTEXTS
    assert len(set(made.how.concurrent)) > 1
    backend.close()
    assert made.cuda.is_clean()


@pytest.mark.parametrize("version", EVERY)
def test_a_failing_execution_poisons_its_own_context_only(rig: Callable[[str], Rig], version: str) -> None:
    made = rig(version)
    backend = made.open()
    logits_of(backend, images(2))
    made.how.refuse.add("execute_async_v3")
    with pytest.raises(BackendError, match="an illegal access"):
        logits_of(backend, images(3))
    made.how.refuse.clear()
    batch = images(2)
    np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)
    backend.close()
    assert made.cuda.is_clean()


def test_a_device_error_ends_the_context_that_saw_it(rig: Callable[[str], Rig]) -> None:
    made = rig("11.4")
    backend = made.open()
    logits_of(backend, images(2))
    (stream,) = made.cuda.streams
    made.cuda.broken_streams[stream] = cudart.cudaError_t.cudaErrorIllegalAddress
    with pytest.raises(BackendError, match=r"cudaStreamSynchronize failed on GPU 0: cudaErrorIllegalAddress"):
        logits_of(backend, images(2))
    assert stream not in made.cuda.streams
    batch = images(2)
    np.testing.assert_allclose(logits_of(backend, batch), logits(batch), rtol=1e-6)
    assert len(made.how.contexts) == 2
    backend.close()
    assert made.cuda.is_clean()


@pytest.mark.parametrize("method", ["set_input_shape", "set_tensor_address"])
def test_a_refused_call_is_an_error_and_not_a_wrong_result(rig: Callable[[str], Rig], method: str) -> None:
    made = rig("10.3")
    made.how.refuse.add(method)
    backend = made.open()
    with pytest.raises(BackendError, match="TensorRT refused"):
        logits_of(backend, images(2))
    backend.close()
    assert made.cuda.is_clean()


def test_closing_waits_for_a_running_call(rig: Callable[[str], Rig]) -> None:
    made = rig("11.4")
    backend = made.open()
    inside, proceed = threading.Event(), threading.Event()
    synchronize = made.cuda._cudaStreamSynchronize

    def slow(stream: Any) -> Any:
        inside.set()
        made.cuda.lock.release()  # let the other thread use the device meanwhile
        assert proceed.wait(10)
        made.cuda.lock.acquire()
        return synchronize(stream)

    made.cuda.__dict__["_cudaStreamSynchronize"] = slow
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(logits_of, backend, images(2))
        assert inside.wait(10)
        closing = pool.submit(backend.close)
        assert not closing.done()
        proceed.set()
        np.testing.assert_allclose(running.result(10), logits(images(2)), rtol=1e-6)
        closing.result(10)
    assert made.cuda.is_clean()


class OnDevice:
    """An array in "device" memory, as another library would offer it."""

    def __init__(self, cuda: FakeCuda, array: NDArray[Any], **interface: Any) -> None:
        self.pointer = cuda._allocate("device", array.nbytes)
        np.copyto(view(self.pointer, array.shape, array.dtype), array)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": array.dtype.str,
            "data": (self.pointer, True),
            "version": 3,
            **interface,
        }


def view(pointer: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    import ctypes

    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(pointer)).view(dtype).reshape(shape)


@pytest.mark.parametrize("version", EVERY)
def test_arrays_on_the_gpu_go_in_and_come_out_without_a_copy(rig: Callable[[str], Rig], version: str) -> None:
    made = rig(version)
    backend = made.open()
    batch = images(19)  # three pieces: the engine takes eight at most
    result = on_device(backend, OnDevice(made.cuda, batch))
    interface = result.__cuda_array_interface__
    found = view(interface["data"][0], interface["shape"], interface["typestr"])
    np.testing.assert_allclose(found, logits(batch), rtol=1e-6)
    assert made.cuda.copied == 0
    assert made.cuda.journal.count("execute_async_v3") == 3
    np.testing.assert_allclose(logits_of(backend, batch[:3]), logits(batch[:3]), rtol=1e-6)
    held = len(made.cuda.memory)
    del result
    assert len(made.cuda.memory) == held - 1
    backend.close()


@pytest.mark.parametrize("version", EVERY)
def test_several_outputs_come_by_name_whatever_their_order_in_the_engine(
    rig: Callable[[str], Rig], version: str
) -> None:
    made = rig(version)
    made.how.outputs = ("c5", "logits", "embedding")
    backend = made.open()
    batch = images(3)
    for names in (
        ("logits",),
        ("embedding", "logits"),
        ("c5",),
        ("c5",),
        ("c5",),
        ("logits", "c5", "embedding"),
    ):
        copied = made.cuda.copied
        found = backend.run(batch, names)
        for name, values in zip(names, found, strict=True):
            np.testing.assert_allclose(values, computed(name, batch), rtol=1e-6)
        launched = made.cuda.journal[-2] == "cudaGraphLaunch"
        if not launched:
            assert made.cuda.copied - copied == 1 + len(names), "only what was asked for is copied"
    found = backend.run_on_device(OnDevice(made.cuda, images(19)), ("c5", "logits"))
    for name, values in zip(("c5", "logits"), found, strict=True):
        interface = values.__cuda_array_interface__
        np.testing.assert_allclose(
            view(interface["data"][0], interface["shape"], interface["typestr"]),
            computed(name, images(19)),
            rtol=1e-6,
        )
    del found, values
    backend.close()
    assert len(made.cuda.memory) == 1, "all but the array that was given is free again"


@pytest.mark.parametrize("outputs", [("logits",), ("logits", "c4"), ("logits", "c5", "c4")])
def test_an_engine_with_other_outputs_than_the_manifest_says_is_refused(
    rig: Callable[[str], Rig], outputs: tuple[str, ...]
) -> None:
    made = rig("11.4")
    made.how.outputs = ("logits", "c5")
    request = made.request()
    made.how.outputs = outputs
    with pytest.raises(BackendError, match=r"has as output 'logits' .*the manifest says 'logits' .*'c5'"):
        runner.open_backend(request)


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        (np.zeros((2, 3, SIDE, SIDE), np.float64), {}, "expected float32"),
        (np.zeros((2, 3, SIDE, SIDE + 1), np.float32), {}, "expected float32"),
        (np.zeros((0, 3, SIDE, SIDE), np.float32), {}, "expected float32"),
        (np.zeros((2, 3, SIDE, SIDE), np.float32), {"strides": (4, 8, 16, 32)}, "C order"),
    ],
)
def test_an_array_on_the_gpu_that_does_not_fit_is_refused(
    rig: Callable[[str], Rig], array: NDArray[Any], change: dict[str, Any], message: str
) -> None:
    made = rig("11.4")
    backend = made.open()
    with pytest.raises(RequestError, match=message):
        on_device(backend, OnDevice(made.cuda, array, **change))
    with pytest.raises(RequestError, match="DLPack device"):
        on_device(backend, images(2))
    with pytest.raises(RequestError, match="neither"):
        on_device(backend, [1.0])
    assert made.how.contexts == [], "a wrong array cost an execution context"
    backend.close()


@pytest.mark.parametrize("version", EVERY)
def test_a_session_runs_the_engine_of_its_bundle(
    rig: Callable[[str], Rig], version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rig(version)
    made.how.input_shape = (-1, 3, tiny_bundle.SIDE, tiny_bundle.SIDE)
    bundle = tiny_bundle.write(made.folder / "bundle")
    source = tiny_bundle.artifact(tiny_bundle.FP32, (bundle / "model.fp32.onnx").read_bytes())
    request = made.request(source="fp32", source_sha256=source.sha256)
    engine = msgspec.structs.replace(request.artifact, precision=Precision.FP32)
    (bundle / "engines").mkdir()
    (bundle / engine.file).write_bytes(request.data)
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(tiny_bundle.manifest([source, engine])))
    variant = request.provider
    package = Package(module=variant, distribution=variant, version=made.library.__version__)
    facts = HostFacts(system="linux", machine="x86_64", cpus=2, packages=(package,), gpus=made.gpus)
    monkeypatch.setattr("resnet_export.runtime.session.probe", lambda: facts)
    batch = (
        np.random.default_rng(0).normal(size=(19, 3, tiny_bundle.SIDE, tiny_bundle.SIDE)).astype(np.float32)
    )
    with open_session(bundle) as session:
        assert (session.choice.artifact, session.choice.backend) == ("engine", "tensorrt")
        assert (session.choice.provider, session.choice.device) == (variant, "gpu:0")
        np.testing.assert_allclose(session.run(batch), logits(batch), rtol=1e-5, atol=1e-6)
        result = session.run_on_device(OnDevice(made.cuda, batch))
        assert result.shape == (19, tiny_bundle.CLASSES)
        del result
    with pytest.raises(SessionClosedError):
        session.run_on_device(OnDevice(made.cuda, batch))
    assert {kind for kind, _ in made.cuda.memory.values()} == {"device"}, (
        "only the test's own arrays are left"
    )
    assert not made.cuda.streams


def test_a_session_on_the_cpu_takes_no_arrays_on_the_gpu(tmp_path: Path) -> None:
    with (
        open_session(tiny_bundle.write(tmp_path / "bundle"), device="cpu") as session,
        pytest.raises(RequestError, match="takes arrays in host memory only"),
    ):
        session.run_on_device(images(1))


def test_the_kernels_of_tensorrt_for_rtx_are_kept_for_the_next_session(rig: Callable[[str], Rig]) -> None:
    made = rig(RTX)
    first = made.open()
    logits_of(first, images(1))
    first.close()
    (file,) = made.cache.iterdir()
    second = made.open()
    second.close()
    assert made.how.loaded_kernels == [b"compiled kernels"]
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    made.open().close()
    assert made.how.loaded_kernels == [b"compiled kernels"], "a damaged cache reached the library"
    assert file.read_bytes() != bytes(data), "the damaged cache was not replaced"


@pytest.mark.parametrize("lost", [False, True], ids=["never there", "gone meanwhile"])
def test_kernels_that_cannot_be_kept_are_compiled_again(rig: Callable[[str], Rig], lost: bool) -> None:
    made = rig(RTX)
    made.cache = made.cache / "gone" if lost else None
    backend = made.open()
    logits_of(backend, images(1))
    backend.close()
    assert made.cuda.is_clean()


@pytest.mark.parametrize("version", EVERY)
def test_an_engine_that_the_library_refuses_is_an_error_with_its_reason(
    rig: Callable[[str], Rig], version: str
) -> None:
    made = rig(version)
    made.how.loads = False
    with pytest.raises(BackendError, match="cannot load 'engine': magic tag mismatch"):
        made.open()
    assert made.cuda.is_clean()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"compute_capabilities": ("8.9",)}, "built for compute capability 8.9, this GPU has 8.6"),
        ({"version": "9.9.9"}, "the manifest says TensorRT 9.9.9"),
        ({"variant": "tensorrt_rtx"}, "the manifest says TensorRT for RTX"),
    ],
)
def test_an_engine_for_something_else_never_reaches_the_library(
    rig: Callable[[str], Rig], change: dict[str, Any], expected: str
) -> None:
    made = rig("11.4")
    with pytest.raises((BackendError, IntegrityError), match=expected):
        made.open(**change)
    assert made.how.given == []


def test_an_engine_needs_a_gpu(rig: Callable[[str], Rig]) -> None:
    made = rig("11.4")
    made.gpus = ()
    with pytest.raises(BackendError, match="this host has no usable GPU"):
        made.open()
    assert made.how.given == []


def test_an_engine_with_other_tensors_than_the_manifest_is_refused(rig: Callable[[str], Rig]) -> None:
    made = rig("11.4")
    request = made.request()
    made.how.input_shape = (-1, 3, SIDE, SIDE + 1)
    with pytest.raises(BackendError, match="the manifest says 'input' float32"):
        runner.open_backend(request)


def test_a_version_compatible_engine_may_bring_its_own_runtime(rig: Callable[[str], Rig]) -> None:
    made = rig("10.3")
    made.open().close()
    assert made.library.runtime.engine_host_code_allowed is not True
    made.open(options={"version_compatible": True}).close()
    assert made.library.runtime.engine_host_code_allowed is True
    assert read_header(made.how.given[-1]).variant == "tensorrt"


def test_an_engine_gets_no_other_weights_than_those_it_was_built_from(rig: Callable[[str], Rig]) -> None:
    made = rig("11.4")
    tiny_bundle.write(
        made.folder, [tiny_bundle.FP32, tiny_bundle.FP16]
    )  # it took the place of the engine's bundle
    with pytest.raises(IntegrityError, match=r"built from other weights \(000000000000\) than 'fp16' has"):
        made.open(options={"strip_weights": True})


@pytest.mark.parametrize(
    ("invalid", "kind", "expected"),
    [
        (("MALFORMED_ENGINE",), IntegrityError, "finds the engine 'engine' malformed"),
        (("UNSUPPORTED_CC",), BackendError, "on this host: unsupported cc"),
        (("VERSION_MISMATCH", "OLD_CUDA_DRIVER"), BackendError, "version mismatch and old cuda driver"),
    ],
)
def test_what_tensorrt_for_rtx_itself_refuses_is_not_loaded(
    rig: Callable[[str], Rig], invalid: tuple[str, ...], kind: type[Exception], expected: str
) -> None:
    made = rig(RTX)
    made.how.invalid = invalid
    with pytest.raises(kind, match=expected):
        made.open()
    assert made.how.given == []


def test_where_tensorrt_for_rtx_cannot_tell_the_engine_is_loaded(rig: Callable[[str], Rig]) -> None:
    made = rig(RTX)
    made.how.invalid = None
    made.open().close()
    assert len(made.how.given) == 1


def test_the_real_tensorrt_for_rtx_tells_a_malformed_engine_without_a_gpu() -> None:
    library = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    assert invalidity(library, bytes(64)) == ("MALFORMED_ENGINE",)
    assert invalidity(library, b"PK" + bytes(4000)) == ("MALFORMED_ENGINE",)
