"""Timing runs every artifact on every backend, in turns, and says what it left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from resnet_export.runtime import bench as bench_module
from resnet_export.runtime.bench import bench
from resnet_export.runtime.errors import BundleError, RequestError
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.session import open_session


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


# Choosing by what was measured


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("prefer", ["latency", "throughput"])
def test_a_session_opens_what_was_fastest_when_the_bench_was_saved(
    resnet18_bundle: Path, cache: Path, prefer: str
) -> None:
    found = bench(resnet18_bundle, batches=(1, 4), rounds=3, threads=1, save=True)
    assert Path(found.profile).is_relative_to(cache)
    # Simulated fp16 is as good as any other that has passed its parity check.
    size = 1 if prefer == "latency" else None
    fastest = max(
        (timing for timing in found.timings if size in (None, timing.batch)),
        key=lambda timing: timing.images_per_second,
    )
    with open_session(resnet18_bundle, threads=1, prefer=prefer) as session:
        assert (session.choice.artifact, session.choice.backend) == (fastest.artifact, fastest.backend)
        (chosen,) = (item for item in session.trace if item.outcome == "chosen")
        assert "measured on this host" in chosen.reason
    with open_session(resnet18_bundle, threads=2) as session:
        assert not any("measured on this host" in item.reason for item in session.trace)


def test_tuning_measures_once_and_is_remembered(
    resnet18_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(resnet18_bundle, precision="fp32", threads=1, tune=True) as session:
        measured = [item for item in session.trace if "measured on this host on" in item.reason]
        assert {(item.artifact, item.backend) for item in measured} == {
            ("fp32", "onnxruntime"),
            ("fp32", "openvino"),
        }
        assert measured[0].outcome == "chosen"
    monkeypatch.setattr(bench_module, "tune", lambda *_: pytest.fail("measured again"))
    with open_session(resnet18_bundle, precision="fp32", threads=1, tune=True) as session:
        assert [item for item in session.trace if "measured on this host on" in item.reason] == measured


def test_what_cannot_be_kept_is_used_all_the_same_and_said(
    resnet18_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "file"))
    with open_session(resnet18_bundle, precision="fp32", threads=1, tune=True) as session:
        assert any("the host profile cannot be saved" in note for note in session.choice.notes)
        (chosen,) = (item for item in session.trace if item.outcome == "chosen")
        assert "measured on this host on" in chosen.reason


def test_a_ranking_of_a_part_is_not_saved(resnet18_bundle: Path) -> None:
    with pytest.raises(RequestError, match="ranks all artifacts and backends"):
        bench(resnet18_bundle, backends=("onnxruntime",), save=True)
