"""A small bundle with every kind of file in it, in as many versions as a test wants. Nothing in it runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

from resnet_export.exporter.bundle.staging import Bundle, Staging, staging
from resnet_export.runtime.bundle.golden import Golden, encode_golden
from resnet_export.runtime.bundle.manifest import (
    Artifact,
    BatchRange,
    EngineInfo,
    ExcludedLayer,
    FileInfo,
    GoldenInfo,
    GraphInfo,
    Manifest,
    ModelInfo,
    Preprocessing,
    Provenance,
    TensorSpec,
    Verdict,
    WeightsInfo,
)
from resnet_export.runtime.precision import Precision, Tolerance

CLASSES, SIDE = 5, 8


def golden(version: int) -> Golden:
    draw = np.random.default_rng(version)
    logits = {stage: draw.normal(size=(3, CLASSES)).astype(np.float32) for stage in ("eager", "onnx", "fp16")}
    return Golden(draw.integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8), logits)


def contents(version: int, size: int = 2000) -> dict[str, bytes]:
    """The files of one version, by name; the graph takes `size` bytes."""
    draw = np.random.default_rng(version)
    return {
        "model.onnx": _graph(draw.bytes(size)),
        "model.fp16.onnx": _graph(draw.bytes(size // 2)),
        "engines/rtx.engine": draw.bytes(size // 2),
        "engines/rtx.layers.json": b'{"version": %d}\n' % version,
        "golden.npz": encode_golden(golden(version)),
        "report.json": b'{"version": %d}\n' % version,
    }


def manifest(version: int, files: dict[str, bytes] | None = None) -> Manifest:
    """The manifest of one version; which one it is stands in its notices."""
    files = contents(version) if files is None else files
    info = {name: _info(name, data) for name, data in files.items()}
    return Manifest(
        schema=1,
        model=ModelInfo(
            arch="resnet18",
            num_classes=CLASSES,
            parameters=11_179_077,
            weights=WeightsInfo(source="untrained", name="resnet18", seed=version),
        ),
        graph=GraphInfo(layers_in_series=18, multiply_adds=1_000_000),
        input=TensorSpec(name="input", dtype="float32", layout="NCHW", shape=("N", 3, SIDE, SIDE)),
        outputs=(TensorSpec(name="logits", dtype="float32", layout="NC", shape=("N", CLASSES)),),
        batch=BatchRange(min=1, opt=2, max=4),
        preprocessing=Preprocessing(resize=9, crop=SIDE),
        labels=("tench", "goldfish", "great white shark", "tiger shark", "hammerhead, Zygaena"),
        tolerances={"fp32": Tolerance(relative_error=1e-4), "fp16": Tolerance(centered_cosine=0.9999)},
        artifacts=(
            Artifact(
                name="fp32",
                kind="onnx",
                precision=Precision.FP32,
                target="any",
                **_fields(info["model.onnx"]),
            ),
            Artifact(
                name="fp16",
                kind="onnx",
                precision=Precision.FP16,
                target="any",
                excluded=(
                    ExcludedLayer(
                        node="/fc/Gemm", module="fc", precision=Precision.FP32, reason="reaches 70,000"
                    ),
                ),
                parity=(
                    Verdict(
                        backend="openvino",
                        provider="CPU",
                        precision=Precision.BF16,
                        passed=False,
                        detail="no",
                    ),
                ),
                **_fields(info["model.fp16.onnx"]),
            ),
            Artifact(
                name="rtx-fp16",
                kind="engine",
                precision=Precision.FP16,
                target="tensorrt",
                engine=EngineInfo(
                    variant="tensorrt_rtx",
                    version="1.7.1.116",
                    compute_capabilities=("8.6", "8.9"),
                    profiles=(BatchRange(min=1, opt=2, max=4),),
                    source="fp16",
                    source_sha256=info["model.fp16.onnx"].sha256,
                    options={"workspace": 1 << 28, "sparse": False},
                    build_seconds=0.7,
                    layers="engines/rtx.layers.json",
                ),
                **_fields(info["engines/rtx.engine"]),
            ),
        ),
        golden=GoldenInfo(
            count=3, source="bundled", stages=("eager", "onnx", "fp16"), **_fields(info["golden.npz"])
        ),
        modules={"/conv1/Conv": "conv1", "/fc/Gemm": "fc"},
        provenance=Provenance(
            created="2026-03-01T12:00:00+00:00",
            versions={"torch": "2.13.0"},
            exporter="dynamo",
            opset=20,
            notices=(f"version {version}",),
        ),
        files=(info["engines/rtx.layers.json"], info["report.json"]),
    )


def fill(stage: Staging, version: int, size: int = 2000) -> Bundle:
    """Write one version into an open staging and commit it."""
    files = contents(version, size)
    for name, data in files.items():
        stage.write(name, data)
    return stage.commit(manifest(version, files))


def write(out: Path, version: int, size: int = 2000, *, force: bool = True) -> Bundle:
    with staging(out, force=force, bytes_needed=4 * size) as stage:
        return fill(stage, version, size)


def version_of(found: Manifest) -> int:
    return int(found.provenance.notices[0].removeprefix("version "))


def _graph(data: bytes) -> bytes:
    """A graph of the size of `data`, which computes nothing: its constant holds the end of it."""

    def model(content: bytes) -> bytes:
        constant = numpy_helper.from_array(np.frombuffer(content, np.uint8), "constant")
        graph = helper.make_graph([], "sample", [], [], [constant])
        found: bytes = helper.make_model(graph, ir_version=10).SerializeToString()
        return found

    return model(data[len(model(data)) - len(data) :])


def _info(name: str, data: bytes) -> FileInfo:
    return FileInfo(file=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _fields(info: FileInfo) -> dict[str, object]:
    return {"file": info.file, "bytes": info.bytes, "sha256": info.sha256}
