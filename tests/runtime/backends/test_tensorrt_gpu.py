"""Engines on a real GPU, against ONNX's reference evaluator. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from resnet_export.exporter.engine.build import add_engines
from resnet_export.exporter.engine.targets import family, sm
from resnet_export.exporter.spec import EngineChoice
from resnet_export.runtime.precision import Precision
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.select.host import probe
from resnet_export.runtime.session import open_session
from tests import engine_bundle, tiny_bundle

pytestmark = pytest.mark.gpu

# The signal-to-noise ratio that the artifact itself reaches on CPU engines, with a margin.
LEAST_DECIBELS = {Precision.FP16: 50, Precision.INT8: 50}


@pytest.mark.parametrize("precision", list(LEAST_DECIBELS))
@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_computes_what_its_graph_says(
    tmp_path: Path, engine: EngineChoice, precision: Precision
) -> None:
    host = probe()
    if not host.gpus:
        pytest.skip(f"needs an NVIDIA GPU: {host.gpu_note}")
    gpu = host.gpus[0]
    if host.package(engine.replace("-", "_")) is None:
        pytest.skip(f"{engine} is not installed")
    if engine == "tensorrt-rtx" and not family(gpu.compute_capability).rtx:
        pytest.skip(f"TensorRT for RTX does not serve {sm(gpu.compute_capability)} ({gpu.name})")
    bundle = engine_bundle.write(tmp_path / "tiny")
    add_engines(bundle, engine=engine, gpu=(sm(gpu.compute_capability),), host=host)
    variant = {Precision.FP16: tiny_bundle.FP16, Precision.INT8: tiny_bundle.INT8}[precision]
    reference = ReferenceEvaluator(tiny_bundle.graph(variant))
    preprocessing = tiny_bundle.manifest([]).preprocessing
    with open_session(bundle, backend="tensorrt", precision=precision) as session:
        for count in (1, 3, 8, 8, 8, 20):  # the same size again runs as a CUDA graph, 20 in pieces
            batch = to_input(tiny_bundle.images(count, seed=count), preprocessing)
            (expected,) = reference.run(None, {"input": batch})
            noise = ((session.run(batch) - expected) ** 2).sum()
            assert 10 * np.log10((expected**2).sum() / max(noise, 1e-30)) > LEAST_DECIBELS[precision]
