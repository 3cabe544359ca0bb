"""ONNX Runtime and OpenVINO behind the protocol, held against ONNX's own reference evaluator."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state

from resnet_export.runtime.backends.protocol import Backend, OpenRequest, native_error
from resnet_export.runtime.backends.routes import ROUTES, Route, open_backend
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.select.host import probe
from tests import tiny_bundle
from tests.backend_runs import logits_of
from tests.tiny_bundle import FP16, FP32, INT8, INT8_CPU, Variant

CPU_ROUTES = tuple(route for route in ROUTES if route.device == "cpu")
CUDA_ROUTE = next(route for route in ROUTES if route.provider == "CUDAExecutionProvider")
every_backend = pytest.mark.parametrize("route", CPU_ROUTES, ids=[route.backend for route in CPU_ROUTES])


def request_for(
    route: Route,
    variant: Variant = FP32,
    *,
    uint8: bool = False,
    data: bytes | None = None,
    precision: Precision | None = None,
    threads: int | None = 1,
) -> OpenRequest:
    data = tiny_bundle.graph(variant, uint8=uint8) if data is None else data
    artifact = tiny_bundle.artifact(variant, data)
    manifest = tiny_bundle.manifest([artifact], uint8=uint8)
    return OpenRequest(
        data=data,
        artifact=artifact,
        input=manifest.input,
        outputs=manifest.outputs,
        batch=manifest.batch,
        provider=route.provider,
        precision=precision or variant.precision,
        device=0 if route.device == "gpu" else None,
        threads=threads,
        bundle=Path(),
    )


def batch_of(count: int, *, uint8: bool = False, seed: int = 0) -> NDArray[np.uint8] | NDArray[np.float32]:
    return to_input(tiny_bundle.images(count, seed), tiny_bundle.manifest([], uint8=uint8).preprocessing)


def decibels(found: np.ndarray, expected: np.ndarray) -> float:
    noise = float(np.sum((found.astype(np.float64) - expected) ** 2))
    return 10 * float(np.log10(np.sum(expected.astype(np.float64) ** 2) / max(noise, 1e-300)))


# 24 bits of mantissa are 144 dB, 11 bits 66; a bias or scale that goes wrong costs tens of dB.
@every_backend
@pytest.mark.parametrize(
    ("variant", "uint8", "least"),
    [(FP32, False, 110), (FP32, True, 110), (FP16, False, 55), (INT8, False, 55), (INT8_CPU, False, 75)],
    ids=["fp32", "fp32 from uint8", "fp16", "int8 for TensorRT", "int8 for CPUs"],
)
@pytest.mark.parametrize("count", [1, 3, 9])
def test_a_backend_computes_what_the_reference_evaluator_computes(
    route: Route, variant: Variant, uint8: bool, least: float, count: int
) -> None:
    request = request_for(route, variant, uint8=uint8)
    batch = batch_of(count, uint8=uint8)
    (expected,) = ReferenceEvaluator(onnx.load_from_string(request.data)).run(None, {"input": batch})
    backend = open_backend(route, request)
    found = logits_of(backend, batch)
    assert (found.shape, found.dtype) == ((count, tiny_bundle.CLASSES), np.float32)
    assert decibels(found, expected) > least
    assert (backend.provider, backend.precision) == (route.provider, variant.precision)
    backend.close()


def test_openvino_runs_bf16_when_asked_and_only_then() -> None:
    if not {"avx512_bf16", "amx_bf16", "bf16"} & set(probe().cpu_features):
        pytest.skip("this CPU has no bf16 arithmetic")
    (route,) = (route for route in CPU_ROUTES if Precision.BF16 in route.also)
    batch = batch_of(3)
    (expected,) = ReferenceEvaluator(onnx.load_from_string(tiny_bundle.graph())).run(None, {"input": batch})
    backend = open_backend(route, request_for(route, precision=Precision.BF16))
    assert backend.precision == Precision.BF16
    assert 25 < decibels(logits_of(backend, batch), expected) < 75
    backend.close()


def test_onnxruntime_does_not_pretend_to_run_another_precision() -> None:
    (route,) = (route for route in CPU_ROUTES if route.backend == "onnxruntime")
    with pytest.raises(BackendError, match="runs artifact 'fp32' in fp32, not in bf16"):
        open_backend(route, request_for(route, precision=Precision.BF16))


def test_the_optimizer_that_corrupts_fp16_scales_is_off_and_said_to_be() -> None:
    (route,) = (route for route in CPU_ROUTES if route.backend == "onnxruntime")
    notes = {
        variant.name: open_backend(route, request_for(route, variant)).notes for variant in tiny_bundle.ALL
    }
    assert "WeightBiasQuantization is off" in notes["int8"][0]
    assert [notes[name] for name in ("fp32", "fp16", "int8.cpu")] == [()] * 3


@every_backend
def test_logits_belong_to_the_caller(route: Route) -> None:
    backend = open_backend(route, request_for(route))
    first = logits_of(backend, batch_of(2, seed=1))
    excluded = first.copy()
    second = logits_of(backend, batch_of(2, seed=2))
    assert np.array_equal(first, excluded)
    assert not np.shares_memory(first, second)
    first[:] = 0
    assert np.array_equal(logits_of(backend, batch_of(2, seed=1)), excluded)
    backend.close()
    assert np.array_equal(second, second.copy())


@every_backend
def test_an_input_that_may_not_be_written_runs_and_is_not_written(route: Route) -> None:
    backend = open_backend(route, request_for(route))
    batch = batch_of(2)
    expected = logits_of(backend, batch)
    batch.flags.writeable = False
    assert np.array_equal(logits_of(backend, batch), expected)
    backend.close()


@every_backend
def test_threads_do_not_disturb_each_other(route: Route) -> None:
    backend = open_backend(route, request_for(route))
    batches = [batch_of(1 + index % 3, seed=index) for index in range(8)]
    expected = [logits_of(backend, batch) for batch in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(25):
            if not np.array_equal(logits_of(backend, batches[index]), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    backend.close()
    assert wrong == []


def test_the_number_of_threads_reaches_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = {route.backend: route for route in CPU_ROUTES}
    taken: list[int] = []
    real = onnxruntime.InferenceSession

    def spy(*args: object, sess_options: onnxruntime.SessionOptions, **kwargs: object) -> object:
        taken.append(sess_options.intra_op_num_threads)
        return real(*args, sess_options=sess_options, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    for threads in (2, None):
        open_backend(routes["onnxruntime"], request_for(routes["onnxruntime"], threads=threads)).close()
    assert taken == [2, 0]
    backend = open_backend(routes["openvino"], request_for(routes["openvino"], threads=2))
    assert backend._compiled.latency.get_property("INFERENCE_NUM_THREADS") == 2


@every_backend
@pytest.mark.parametrize("data", [b"", b"junk", tiny_bundle.graph()[:900]], ids=["empty", "junk", "cut off"])
def test_what_cannot_be_opened_is_a_backend_error_of_one_line(route: Route, data: bytes) -> None:
    with pytest.raises(BackendError, match="'fp32'") as caught:
        open_backend(route, request_for(route, data=data))
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


def renamed(data: bytes) -> bytes:
    return data.replace(b"logits", b"scores")


@every_backend
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (renamed(tiny_bundle.graph()), "as output 'scores' float32"),
        (tiny_bundle.graph(uint8=True), r"as input 'input' uint8 \[N, 16, 16, 3\]"),
        (tiny_bundle.graph(batch=4), r"as input 'input' float32 \[4, 3, 16, 16\]"),
    ],
    ids=["other name", "other input", "fixed batch"],
)
def test_a_graph_that_is_not_the_manifests_is_refused(route: Route, data: bytes, expected: str) -> None:
    if "scores" in expected and route.backend == "openvino":
        expected = "as output "  # it may report the name of a tensor that the last node only copies
    with pytest.raises(BackendError, match=f"{expected}.*the manifest says"):
        open_backend(route, request_for(route, data=data))


@every_backend
def test_a_failed_run_leaves_the_backend_usable(route: Route) -> None:
    backend = open_backend(route, request_for(route))
    expected = logits_of(backend, batch_of(2))
    for _ in range(3):
        with pytest.raises(BackendError, match="failed to run artifact 'fp32'") as caught:
            logits_of(backend, np.zeros((1, 4, tiny_bundle.SIDE, tiny_bundle.SIDE), np.float32))
        assert caught.value.__cause__ is not None
    assert np.array_equal(logits_of(backend, batch_of(2)), expected)
    backend.close()


def exceptions_of(*modules: object) -> list[type[Exception]]:
    found = {
        value
        for module in modules
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Exception) and not issubclass(value, Warning | UnicodeError | ExceptionGroup)
    }
    return sorted(found, key=lambda kind: kind.__name__)


NATIVE = exceptions_of(onnxruntime_pybind11_state, openvino, openvino._pyopenvino, builtins)


def raiser(kind: type[BaseException]) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise kind("native trouble")

    return fail


def test_the_native_exceptions_are_known() -> None:
    names = {kind.__name__ for kind in NATIVE}
    assert {"Fail", "InvalidArgument", "InvalidGraph", "EPFail", "RuntimeError", "ValueError"} <= names


@every_backend
@pytest.mark.parametrize("kind", NATIVE, ids=lambda kind: kind.__name__)
def test_whatever_a_backend_raises_arrives_as_a_backend_error(
    monkeypatch: pytest.MonkeyPatch, route: Route, kind: type[Exception]
) -> None:
    module = importlib.import_module(route.runner)
    request = request_for(route)
    if route.backend == "onnxruntime":
        running = module.OnnxRuntimeBackend(SimpleNamespace(run=raiser(kind)), request, ())
        monkeypatch.setattr(onnxruntime, "InferenceSession", raiser(kind))
    else:
        requests: queue.SimpleQueue[object] = queue.SimpleQueue()
        requests.put(SimpleNamespace(infer=raiser(kind)))
        running = module.OpenVinoBackend(SimpleNamespace(requests=lambda hint: requests), request)
        monkeypatch.setattr(openvino, "Core", raiser(kind))
    for call in (lambda: logits_of(running, batch_of(1)), lambda: open_backend(route, request)):
        with pytest.raises(BackendError, match="native trouble") as caught:
            call()
        assert type(caught.value.__cause__) is kind


@every_backend
def test_an_interrupt_is_not_an_error_of_the_backend(monkeypatch: pytest.MonkeyPatch, route: Route) -> None:
    owner, name = {"onnxruntime": (onnxruntime, "InferenceSession"), "openvino": (openvino, "Core")}[
        route.backend
    ]
    monkeypatch.setattr(owner, name, raiser(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_backend(route, request_for(route))


@every_backend
def test_a_package_that_cannot_be_imported_is_a_backend_error(
    monkeypatch: pytest.MonkeyPatch, route: Route
) -> None:
    real = importlib.import_module

    def fail(name: str, *rest: str) -> object:
        if name == route.module:
            raise RuntimeError("Could not determine home directory.")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(
        BackendError, match=f"{route.module} is installed but cannot be imported: Could not determine"
    ):
        open_backend(route, request_for(route))


# A GPU that was asked for and a CPU that answers


def test_a_build_without_the_cuda_provider_is_refused_without_a_warning() -> None:
    if CUDA_ROUTE.provider in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has the CUDA provider")
    with pytest.raises(BackendError, match="has no CUDAExecutionProvider; install onnxruntime-gpu"):
        open_backend(CUDA_ROUTE, request_for(CUDA_ROUTE))


def test_a_cuda_provider_that_is_listed_and_does_not_load_is_an_error_and_no_cpu_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[dict[str, object]] = []

    def silently_on_the_cpu(data: bytes, **kwargs: object) -> object:
        asked.append(kwargs)
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    trouble = [
        "Failed to load libcublas.so.13: no file",
        "Failed to load libcurand.so.10: no file",
        "Install CUDA.",
    ]
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda directory: print(*trouble, sep="\n"))
    monkeypatch.setattr(onnxruntime, "InferenceSession", silently_on_the_cpu)
    expected = (
        r"runs CPUExecutionProvider instead, because libcublas\.so\.13 and libcurand\.so\.10 cannot be loaded"
    )
    with pytest.raises(BackendError, match=expected):
        open_backend(CUDA_ROUTE, request_for(CUDA_ROUTE))
    assert asked[0]["providers"] == [
        ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"})
    ]
    assert asked[0]["enable_fallback"] == 0
    assert capsys.readouterr().out == ""


def test_other_threads_may_print_while_libraries_are_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def slow(directory: str) -> None:
        print("Failed to load libcublas.so.13: no file")
        other = threading.Thread(target=lambda: builtins.print("the other thread's line"))
        other.start()
        other.join()

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", slow)
    with pytest.raises(BackendError):
        open_backend(CUDA_ROUTE, request_for(CUDA_ROUTE))
    assert set(capsys.readouterr().out.splitlines()) == {"the other thread's line"}


def test_openvino_that_takes_another_precision_than_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    (route,) = (route for route in CPU_ROUTES if route.backend == "openvino")
    compiled = SimpleNamespace(
        get_property=lambda _: SimpleNamespace(get_type_name=lambda: "bf16"), inputs=[], outputs=[]
    )
    core = SimpleNamespace(read_model=lambda data: data, compile_model=lambda *_: compiled)
    monkeypatch.setattr(openvino, "Core", lambda: core)
    with pytest.raises(BackendError, match="would run artifact 'fp32' in bf16, it was asked for f32"):
        open_backend(route, request_for(route))


# Calls that overlap on OpenVINO

OPENVINO_ROUTE = next(route for route in CPU_ROUTES if route.backend == "openvino")


def hints_of(monkeypatch: pytest.MonkeyPatch, *, fails: str = "") -> list[object]:
    """The performance hints that OpenVINO is given from now on; it refuses to compile for `fails`."""
    hints: list[object] = []
    real = openvino.Core.compile_model

    def compile_model(core: object, model: object, device: str, config: dict[str, object]) -> object:
        hints.append(config["PERFORMANCE_HINT"])
        if hints[-1] == fails:
            raise RuntimeError("no memory")
        return real(core, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    return hints


def overlapping(backend: Backend, calls: int = 32) -> list[NDArray[np.float32]]:
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda index: logits_of(backend, batch_of(1 + index % 4)), range(calls)))


def test_openvino_compiles_for_throughput_once_and_only_when_calls_overlap(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hints = hints_of(monkeypatch)
    backend = open_backend(OPENVINO_ROUTE, request_for(OPENVINO_ROUTE, threads=2))
    alone = [logits_of(backend, batch_of(1 + index % 4)) for index in range(32)]
    assert hints == ["LATENCY"]
    with backend._requests(), backend._requests():  # type: ignore[attr-defined]
        pass
    assert hints == ["LATENCY", "THROUGHPUT"]
    for found, expected in zip(overlapping(backend), alone, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert hints == ["LATENCY", "THROUGHPUT"]
    assert backend.notes == ()
    backend.close()


def test_openvino_with_one_thread_never_compiles_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    hints = hints_of(monkeypatch)
    overlapping(open_backend(OPENVINO_ROUTE, request_for(OPENVINO_ROUTE, threads=1)))
    assert hints == ["LATENCY"]


def test_overlapping_calls_run_one_by_one_where_openvino_cannot_compile_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hints_of(monkeypatch, fails="THROUGHPUT")
    backend = open_backend(OPENVINO_ROUTE, request_for(OPENVINO_ROUTE, threads=2))
    with backend._requests(), backend._requests():  # type: ignore[attr-defined]
        pass
    assert len(overlapping(backend)) == 32
    (note,) = backend.notes
    assert note == "overlapping calls run one by one: OpenVINO cannot compile it for throughput: no memory"


# The table and the protocol


def test_every_route_opens_through_the_same_function() -> None:
    for route in ROUTES:
        parameters = inspect.signature(importlib.import_module(route.runner).open_backend).parameters
        assert list(parameters) == ["request"]
    assert len({(route.backend, route.provider) for route in ROUTES}) == len(ROUTES)


@every_backend
def test_a_backend_has_everything_that_the_protocol_names(route: Route) -> None:
    backend: Backend = open_backend(route, request_for(route))
    public = {name for name in vars(Backend) if not name.startswith("_")}
    assert public == {"batch", "close", "notes", "precision", "provider", "run"}
    assert all(hasattr(backend, name) for name in public)
    assert backend.batch is None
    backend.close()


def test_a_native_message_becomes_one_line_of_readable_length() -> None:
    assert str(native_error("opening", ValueError("a\n  b"))) == "opening: a b"
    assert str(native_error("opening", KeyError())) == "opening: KeyError"
    assert len(str(native_error("opening", ValueError("x" * 10_000)))) < 400


def test_requests_and_routes_are_values() -> None:
    for value in (request_for(CPU_ROUTES[0]), CPU_ROUTES[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.provider = "another"
