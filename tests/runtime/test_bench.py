"""Timing runs every artifact on every backend, in turns, and says what it left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_export.runtime.bench import bench
from resnet_export.runtime.errors import BundleError, RequestError
from resnet_export.runtime.precision import Precision


def test_every_artifact_is_timed_on_every_backend_at_every_batch_size(resnet18_bundle: Path) -> None:
    found = bench(resnet18_bundle, batches=(1, 3), rounds=3)
    runs = {(timing.artifact, timing.backend, timing.batch) for timing in found.timings}
    assert runs == {
        (artifact, backend, batch)
        for artifact in ("fp32", "fp16")
        for backend in ("onnxruntime", "openvino")
        for batch in (1, 3)
    }
    assert all(timing.low <= timing.milliseconds <= timing.high for timing in found.timings)


def test_the_first_fp32_run_is_what_the_others_are_compared_with(resnet18_bundle: Path) -> None:
    found = bench(resnet18_bundle, batches=(2,), rounds=3)
    first = next(timing for timing in found.timings if timing.precision is Precision.FP32)
    assert first.speedup == 1.0
    for timing in found.timings:
        assert timing.speedup == pytest.approx(first.milliseconds / timing.milliseconds)


def test_what_cannot_run_here_is_listed_with_its_reason(resnet18_bundle: Path) -> None:
    found = bench(resnet18_bundle, batches=(1,), rounds=1, backends=("onnxruntime", "tensorrt"))
    assert {timing.backend for timing in found.timings} == {"onnxruntime"}
    assert all(item.reason for item in found.skipped)


def test_an_unknown_artifact_or_backend_is_refused(resnet18_bundle: Path) -> None:
    with pytest.raises(BundleError, match="int4"):
        bench(resnet18_bundle, artifacts=("int4",))
    with pytest.raises(RequestError, match="tpu"):
        bench(resnet18_bundle, backends=("tpu",))
