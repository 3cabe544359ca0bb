"""ONNX Runtime's GPU providers: what they are asked for, and the binding of memory, which the CPU has too."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from resnet_export.runtime.backends.onnxruntime_gpu import CUDA, GRAPHS, RTX, TENSORRT, BoundBackend
from resnet_export.runtime.backends.protocol import OpenRequest
from resnet_export.runtime.backends.routes import ROUTES, Route, open_backend
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.errors import BackendError
from resnet_export.runtime.preprocess import to_input
from tests import tiny_bundle
from tests.backend_runs import logits_of
from tests.tiny_bundle import FP16, FP32, INT8, Variant

ROUTE = {route.provider: route for route in ROUTES if route.provider in (CUDA, TENSORRT, RTX)}


def request_for(
    route: Route,
    variant: Variant,
    cache: Path | None = None,
    *,
    uint8: bool = False,
    further: bool = False,
) -> OpenRequest:
    data = tiny_bundle.graph(variant, uint8=uint8, further=further)
    artifact = tiny_bundle.artifact(variant, data)
    manifest = tiny_bundle.manifest([artifact], uint8=uint8, further=further)
    return OpenRequest(
        data=data,
        artifact=artifact,
        input=manifest.input,
        outputs=manifest.outputs,
        batch=manifest.batch,
        provider=route.provider,
        precision=variant.precision,
        device=0,
        threads=1,
        bundle=Path(),
        cache=cache,
    )


def bound(
    variant: Variant = FP32, *, uint8: bool = False, graphs: bool = False, further: bool = False
) -> BoundBackend:
    """The artifact on ONNX Runtime's CPU provider, with bound memory as on a GPU."""
    request = request_for(ROUTE[CUDA], variant, uint8=uint8, further=further)
    session = onnxruntime.InferenceSession(request.data, providers=["CPUExecutionProvider"])
    return BoundBackend(session, request, (), device="cpu", graphs=graphs)


def batch_of(count: int, *, uint8: bool = False, seed: int = 0) -> Any:
    return to_input(tiny_bundle.images(count, seed), tiny_bundle.manifest([], uint8=uint8).preprocessing)


@pytest.mark.parametrize("uint8", [False, True])
def test_bound_memory_gives_the_logits_of_the_reference_evaluator(uint8: bool) -> None:
    backend = bound(uint8=uint8)
    reference = ReferenceEvaluator(tiny_bundle.graph(FP32, uint8=uint8))
    for count in (1, 3, 2, 3, 9):
        batch = batch_of(count, uint8=uint8, seed=count)
        (expected,) = reference.run(None, {"input": batch})
        np.testing.assert_allclose(logits_of(backend, batch), expected, rtol=1e-4, atol=1e-4)


def test_logits_are_not_overwritten_by_the_next_run() -> None:
    backend = bound()
    first = logits_of(backend, batch_of(2, seed=1))
    excluded = first.copy()
    logits_of(backend, batch_of(2, seed=2))
    np.testing.assert_array_equal(first, excluded)


def test_threads_do_not_share_what_is_bound() -> None:
    backend = bound()
    batches = [batch_of(1 + seed % 3, seed=seed) for seed in range(12)]
    expected = [logits_of(backend, batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(
            pool.map(lambda batch: logits_of(backend, batch), batches * 5), expected * 5, strict=True
        ):
            np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_only_the_first_batch_sizes_get_a_graph_of_their_own() -> None:
    backend = bound(graphs=True)
    asked = {}
    for count in range(1, GRAPHS + 3):
        key = (count, ("logits",))
        made = backend._bind(batch_of(count), key)
        asked[count] = made.options.get_run_config_entry("gpu_graph_id")
        assert (backend._bind(batch_of(count), key) is made) == (count <= GRAPHS)
    assert list(asked.values()) == ["1", "2", "3", "4", "-1", "-1"]
    assert logits_of(backend, batch_of(GRAPHS + 1)).shape == (GRAPHS + 1, tiny_bundle.CLASSES)


def test_further_outputs_are_bound_too_each_set_by_itself() -> None:
    backend = bound(further=True)
    graph = onnx.load_from_string(tiny_bundle.graph(further=True))
    for seed, names in enumerate([("c2",), ("logits",), ("embedding", "c2"), ("c2",), ("logits",)]):
        batch = batch_of(2, seed=seed)
        expected = dict(
            zip(
                ("logits", "c2", "embedding"),
                ReferenceEvaluator(graph).run(None, {"input": batch}),
                strict=True,
            )
        )
        for name, values in zip(names, backend.run(batch, names), strict=True):
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, atol=1e-4)


def test_a_failed_run_is_an_error_of_the_backend_and_the_next_one_works() -> None:
    backend = bound()
    with pytest.raises(BackendError, match="failed to run artifact 'fp32'"):
        logits_of(backend, np.zeros((2, 3, 5), np.float32))
    assert logits_of(backend, batch_of(2)).shape == (2, tiny_bundle.CLASSES)
    backend.close()
    with pytest.raises(BackendError):
        logits_of(backend, batch_of(3))


class Asked:
    """Records what a session would be opened with, and opens one on the CPU instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, refuse: int = 0) -> None:
        self.calls: list[dict[str, Any]] = []
        real = onnxruntime.InferenceSession

        def open_on_the_cpu(data: bytes, **arguments: Any) -> Any:
            self.calls.append(arguments)
            if len(self.calls) <= refuse:
                raise RuntimeError("This session cannot use the CUDA graph feature as requested")
            providers = arguments["providers"]
            name = providers[0][0] if providers else RTX
            session = real(data, providers=["CPUExecutionProvider"])
            session.get_providers = lambda: [name]  # type: ignore[method-assign]
            return session

        monkeypatch.setattr(onnxruntime, "InferenceSession", open_on_the_cpu)
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, TENSORRT])
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda directory: None)

    def entry(self, call: int, key: str) -> str:
        value: str = self.calls[call]["sess_options"].get_session_config_entry(key)
        return value


def test_cuda_is_asked_for_graphs_full_precision_and_no_help_of_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked(monkeypatch)
    backend = open_backend(ROUTE[CUDA], request_for(ROUTE[CUDA], FP32))
    options = {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1"}
    assert asked.calls[0]["providers"] == [(CUDA, options)]
    assert asked.entry(0, "session.disable_cpu_ep_fallback") == "1"
    assert (backend.provider, backend.batch, backend.notes) == (CUDA, None, ())


def test_an_artifact_that_no_graph_can_hold_runs_without_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, refuse=1)
    backend = open_backend(ROUTE[CUDA], request_for(ROUTE[CUDA], FP16))
    assert "enable_cuda_graph" not in asked.calls[1]["providers"][0][1]
    assert "runs without CUDA graphs" in backend.notes[0]
    assert "cannot use the CUDA graph feature" in backend.notes[0]


def test_an_artifact_that_cuda_cannot_open_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch, refuse=2)
    with pytest.raises(BackendError, match="cannot open artifact 'fp16'"):
        open_backend(ROUTE[CUDA], request_for(ROUTE[CUDA], FP16))
    assert len(asked.calls) == 2


@pytest.mark.parametrize(("variant", "int8"), [(FP16, "0"), (INT8, "1")])
def test_the_tensorrt_provider_gets_precision_profile_and_its_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variant: Variant, int8: str
) -> None:
    asked = Asked(monkeypatch)
    request = request_for(ROUTE[TENSORRT], variant, tmp_path)
    backend = open_backend(ROUTE[TENSORRT], request)
    folder = tmp_path
    assert asked.calls[0]["providers"] == [
        (
            TENSORRT,
            {
                "device_id": "0",
                "trt_fp16_enable": "1",
                "trt_int8_enable": int8,
                "trt_profile_min_shapes": "input:1x3x16x16",
                "trt_profile_opt_shapes": "input:4x3x16x16",
                "trt_profile_max_shapes": "input:8x3x16x16",
                "trt_engine_cache_enable": "1",
                "trt_engine_cache_path": str(folder),
                "trt_engine_cache_prefix": request.artifact.sha256[:16],
                "trt_timing_cache_enable": "1",
                "trt_timing_cache_path": str(folder),
            },
        )
    ]
    assert backend.batch == BatchRange(min=1, opt=4, max=8)


def test_without_a_cache_folder_the_tensorrt_provider_is_given_none(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    open_backend(ROUTE[TENSORRT], request_for(ROUTE[TENSORRT], FP16))
    assert not [name for name in asked.calls[0]["providers"][0][1] if "cache" in name]


def plugin(monkeypatch: pytest.MonkeyPatch, devices: int) -> list[tuple[Any, ...]]:
    """A double of NVIDIA's plug-in for ONNX Runtime; returns what is done with it."""
    done: list[tuple[Any, ...]] = []
    fake = SimpleNamespace(get_ep_name=lambda: RTX, get_library_path=lambda: "lib.so")
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", fake)
    found: list[Any] = []

    def register(name: str, path: str) -> None:
        done.append((name, path))
        found.extend(SimpleNamespace(ep_name=name, number=number) for number in range(devices))

    monkeypatch.setattr(onnxruntime, "get_ep_devices", lambda: found)
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", register)

    class Options(onnxruntime.SessionOptions):  # type: ignore[misc]
        def add_provider_for_devices(self, chosen: list[Any], options: dict[str, str]) -> None:
            done.append(([device.number for device in chosen], options))

    monkeypatch.setattr(onnxruntime, "SessionOptions", Options)
    return done


def test_the_plugin_for_rtx_is_registered_once_and_given_the_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Asked(monkeypatch)
    done = plugin(monkeypatch, devices=2)
    for _ in range(2):
        backend = open_backend(ROUTE[RTX], request_for(ROUTE[RTX], FP16, tmp_path))
        assert backend.batch == BatchRange(min=1, opt=4, max=8)
    options = {
        "nv_profile_min_shapes": "input:1x3x16x16",
        "nv_profile_opt_shapes": "input:4x3x16x16",
        "nv_profile_max_shapes": "input:8x3x16x16",
        "enable_cuda_graph": "1",
        "nv_runtime_cache_path": str(tmp_path),
    }
    assert done == [(RTX, "lib.so"), ([0], options), ([0], options)]
    assert logits_of(backend, batch_of(2)).shape == (2, tiny_bundle.CLASSES)


def test_a_gpu_that_the_plugin_does_not_offer_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Asked(monkeypatch)
    plugin(monkeypatch, devices=0)
    with pytest.raises(BackendError, match="offers 0 devices"):
        open_backend(ROUTE[RTX], request_for(ROUTE[RTX], FP16, tmp_path))


@pytest.mark.parametrize("provider", [TENSORRT, RTX])
def test_fp32_is_refused_where_it_would_become_tf32(provider: str) -> None:
    with pytest.raises(BackendError, match="rounds fp32 to TF32"):
        open_backend(ROUTE[provider], request_for(ROUTE[provider], FP32))


def test_a_missing_plugin_is_an_error_of_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(BackendError, match="onnxruntime_ep_nv_tensorrt_rtx"):
        open_backend(ROUTE[RTX], request_for(ROUTE[RTX], FP16, tmp_path))
