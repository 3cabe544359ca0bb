"""The tiny bundle with golden outputs in it, so that parity can be checked; faults can be put into any artifact."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from resnet_export.runtime.bundle.golden import Golden, encode_golden
from resnet_export.runtime.bundle.manifest import MANIFEST_NAME, WeightsInfo, encode_manifest, read_manifest
from resnet_export.runtime.parity.criteria.tolerances import Tolerances
from resnet_export.runtime.precision import Precision, Tolerance
from resnet_export.runtime.preprocess import normalize
from tests import tiny_bundle
from tests.tiny_bundle import ALL, FP32, SIDE, Variant

COUNT = 32


def crops(count: int = COUNT, seed: int = 1) -> NDArray[np.uint8]:
    """Crops that differ as much as photographs do, in color and contrast: uint8 [count, SIDE, SIDE, 3]."""
    draw = np.random.default_rng(seed)
    color = draw.integers(0, 256, (count, 1, 1, 3))
    contrast = draw.integers(5, 120, (count, 1, 1, 3))
    pattern = draw.uniform(-1, 1, (count, 4, 4, 3)).repeat(SIDE // 4, 1).repeat(SIDE // 4, 2)
    return np.clip(color + contrast * pattern, 0, 255).astype(np.uint8)


def graph(variant: Variant = FP32, *, batch: int | str = "N") -> bytes:
    """The tiny network with a bias that makes it predict different classes for different crops."""
    model = onnx.load_from_string(tiny_bundle.graph(variant, batch=batch))
    last = model.graph.node[-1]
    model.graph.initializer.append(numpy_helper.from_array(_bias(), "bias"))
    model.graph.node.insert(
        len(model.graph.node) - 1,
        helper.make_node("Sub", [last.input[0], "bias"], ["centered"], name="/bias"),
    )
    last.input[0] = "centered"
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def logits(images: NDArray[np.uint8], data: bytes | None = None) -> NDArray[np.float32]:
    """What ONNX Runtime, driven by nothing of this project, makes of uint8 crops [N, SIDE, SIDE, 3]."""
    session = onnxruntime.InferenceSession(
        data or graph(), providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
    )
    inputs = normalize(images, tiny_bundle.manifest([]).preprocessing)
    found: NDArray[np.float32] = session.run(None, {"input": inputs})[0]
    return found


def write(
    folder: Path,
    variants: Sequence[Variant] = ALL,
    *,
    graphs: Mapping[str, bytes] | None = None,
    recorded: Mapping[str, NDArray[np.float32]] | None = None,
    tolerances: Mapping[str, Tolerance] | None = None,
    trained: bool = False,
) -> Path:
    """Write a bundle of clean artifacts, `graphs` excepted, and logits of every stage, `recorded` excepted."""
    clean = {variant.name: graph(variant) for variant in variants}
    tiny_bundle.write(folder, variants, graphs=clean | dict(graphs or {}))
    images = crops()
    stages = dict.fromkeys(("eager", "onnx", "simplified"), logits(images))
    stages |= {v.name: logits(images, clean[v.name]) for v in variants if v.precision is not Precision.FP32}
    stages |= recorded or {}
    data = encode_golden(Golden(images, stages))
    (folder / "golden.npz").write_bytes(data)
    manifest = read_manifest(folder)
    golden = msgspec.structs.replace(
        manifest.golden,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        count=COUNT,
        stages=tuple(stages),
    )
    model = manifest.model
    if trained:
        weights = WeightsInfo(source="file", name="tiny.pth", sha256="1" * 64)
        model = msgspec.structs.replace(model, weights=weights)
    changed = msgspec.structs.replace(
        manifest,
        golden=golden,
        model=model,
        tolerances=dict(
            Tolerances.shipped(untrained=not trained).by_name() if tolerances is None else tolerances
        ),
    )
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(changed))
    return folder


@functools.cache
def _bias() -> NDArray[np.float32]:
    """The mean logits of the tiny network on other crops than the golden ones."""
    return logits(crops(200, seed=2), tiny_bundle.graph(FP32)).mean(axis=0)
