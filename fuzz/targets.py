"""What is fed: one class per kind of file, with an undamaged one to begin from."""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
from onnx import helper, numpy_helper

from fuzz.mutations import damage_bytes, damage_json, damage_onnx
from resnet_export.runtime import open_session
from resnet_export.runtime.bundle.engine_header import check_header
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    BatchRange,
    EngineInfo,
    encode_manifest,
    read_manifest,
    verify_bundle,
)
from resnet_export.runtime.preprocess import load
from tests import parity_bundle, tiny_bundle

__all__ = ["KINDS", "Target"]

Feed = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """Undamaged files, how they are damaged, and what reads them; `feed` may raise what `errors.py` lists, no more."""

    files: tuple[bytes, ...]
    damage: Callable[[Random, bytes], bytes]
    feed: Feed


def _manifests(folder: Path) -> Target:
    bundle = parity_bundle.write(folder / "manifest")

    def feed(data: bytes) -> None:
        (bundle / MANIFEST_NAME).write_bytes(data)
        verify_bundle(bundle)
        with open_session(bundle, device="cpu", threads=1) as session:
            _run(session)

    return Target(((bundle / MANIFEST_NAME).read_bytes(),), damage_json, feed)


def _graphs(folder: Path) -> Target:
    bundle = parity_bundle.write(folder / "onnx")
    manifest = read_manifest(bundle)
    graphs = {variant.name: tiny_bundle.graph(variant) for variant in tiny_bundle.ALL}

    def feed(data: bytes) -> None:
        artifact = manifest.artifacts[zlib.crc32(data) % len(manifest.artifacts)]
        _mend(bundle, manifest, artifact.name, data)
        for backend in ("onnxruntime", "openvino"):
            with open_session(
                bundle, backend=backend, artifact=artifact.name, device="cpu", threads=1
            ) as session:
                _run(session)

    return Target((*graphs.values(), _many_operators()), damage_onnx, feed)


def _many_operators() -> bytes:
    """A graph with the tensors of the tiny network, and operators that a chain of convolutions has not."""
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), f"constant{len(constants)}"))
        return constants[-1].name

    def add(kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        made = [f"{kind}{len(nodes)}.{index}" for index in range(outputs)]
        nodes.append(helper.make_node(kind, inputs, made, **attributes))
        return made[0]

    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    x = add("Pad", "input", constant([0, 0, 1, 1, 0, 0, 1, 1]), constant(np.float32(0)))  # [N, 3, 18, 18]
    x = add("BatchNormalization", x, *(constant(value) for value in (ones, zeros, zeros, ones)))
    x = add("Slice", x, constant([0, 0]), constant([16, 16]), constant([2, 3]), constant([2, 2]))
    x = add("Clip", x, constant(np.float32(-3)), constant(np.float32(3)))  # [N, 3, 8, 8]
    x = add("Concat", x, add("HardSwish", x), add("Sigmoid", x), axis=1)
    x = add("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    x = add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)  # [N, 9, 4, 4]
    x = add(
        "ConvTranspose", x, constant(np.full((9, 4, 2, 2), 0.1, np.float32)), strides=[2, 2]
    )  # [N, 4, 8, 8]
    x = add("Resize", x, "", constant(np.array([1, 1, 0.5, 0.5], np.float32)), mode="nearest")  # [N, 4, 4, 4]
    x = add("DepthToSpace", x, blocksize=2)  # [N, 1, 8, 8]
    x = add("Split", add("Squeeze", x, constant([1])), outputs=2, axis=2, num_outputs=2)  # [N, 8, 4]
    x = add("LayerNormalization", x, constant(np.ones(4, np.float32)), axis=-1)
    x = add("MatMul", x, add("Transpose", x, perm=[0, 2, 1]))  # [N, 8, 8]
    x = add("Softmax", add("Unsqueeze", x, constant([1])), axis=-1)
    x = add("Where", add("Greater", x, constant(np.float32(0.1))), x, add("Tile", x, constant([1, 1, 1, 1])))
    x = add("ReduceMean", x, constant([1, 2]), keepdims=0)  # [N, 8]
    x = add("Gather", x, constant(np.arange(6)), axis=1)
    x = add("Reshape", add("Expand", x, constant([1, 6])), constant([0, -1]))
    weight = np.ones((6, tiny_bundle.CLASSES), np.float32)
    nodes.append(helper.make_node("Gemm", [x, constant(weight)], ["logits"]))
    shape = ["N", 3, tiny_bundle.SIDE, tiny_bundle.SIDE]
    graph = helper.make_graph(
        nodes,
        "many",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", tiny_bundle.CLASSES])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def _golden(folder: Path) -> Target:
    bundle = parity_bundle.write(folder / "golden")
    manifest = read_manifest(bundle)

    def feed(data: bytes) -> None:
        (bundle / manifest.golden.file).write_bytes(data)
        golden = msgspec.structs.replace(manifest.golden, **_facts(data))
        changed = msgspec.structs.replace(manifest, golden=golden)
        (bundle / MANIFEST_NAME).write_bytes(encode_manifest(changed))
        read_golden(bundle)

    return Target(((bundle / manifest.golden.file).read_bytes(),), damage_bytes, feed)


def _tables(_: Path) -> Target:
    from resnet_export.calibration.observe.histogram import observe
    from resnet_export.calibration.observe.ranges import find_range
    from resnet_export.calibration.observe.table import build, decode_table, encode_table

    values = np.random.default_rng(0).normal(size=500).astype(np.float32)
    facts = {"graph": "0" * 64, "observed": "0" * 64, "data": "0" * 64}
    table = build(
        {"t": observe(values), "u": observe(np.abs(values))}, **facts, images=2, methods=("mse", "minmax")
    )

    def feed(data: bytes) -> None:
        for entry in decode_table(data).tensors.values():
            find_range(entry.stats(), "mse")

    return Target((encode_table(table),), damage_json, feed)


def _engines(_: Path) -> Target:
    infos = {
        b"vtrt": _engine("tensorrt_rtx", "1.7.1.116"),
        b"ftrt": _engine("tensorrt", "11.4.0.106"),
    }
    body = np.random.default_rng(0).bytes(2000)
    header = struct.pack("<4sI8xQ4B4xQ", b"vtrt", 0, 64 + len(body), 1, 7, 1, 116, 4).ljust(64, b"\0")
    standard = struct.pack("<4sI16x4B", b"ftrt", 0, 11, 4, 0, 106).ljust(64, b"\0")

    def feed(data: bytes) -> None:
        check_header(data, infos.get(data[:4], infos[b"vtrt"]))
        from resnet_export.runtime.backends.tensorrt_library import invalidity, load_library

        invalidity(load_library("tensorrt_rtx"), data)

    return Target((header + body, standard + body), damage_bytes, feed)


def _engine(variant: Literal["tensorrt", "tensorrt_rtx"], version: str) -> EngineInfo:
    return EngineInfo(
        variant=variant,
        version=version,
        compute_capabilities=("8.6",),
        profiles=(BatchRange(),),
        source="fp16",
        source_sha256="0" * 64,
    )


def _images(_: Path) -> Target:
    from PIL import Image

    steps = tiny_bundle.manifest([]).preprocessing
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    files = []
    for kind, image in (
        ("JPEG", picture),
        ("PNG", picture),
        ("PNG", picture.convert("P")),
        ("GIF", picture),
        ("WEBP", picture),
        ("TIFF", picture.convert("CMYK")),
        ("BMP", picture.convert("L")),
        ("PPM", picture),
        ("PNG", picture.convert("I;16")),
    ):
        stream = io.BytesIO()
        image.save(stream, kind)
        files.append(stream.getvalue())
    return Target(tuple(files), damage_bytes, lambda data: load(data, steps))


def _checkpoints(folder: Path) -> Target:
    import torch
    from safetensors.torch import save

    from resnet_export.exporter.models.checkpoint import load_weights
    from resnet_export.exporter.models.resnet import build
    from resnet_export.exporter.models.zoo import ZOO
    from resnet_export.exporter.spec import ModelSpec

    state = build(ZOO["resnet20"], 4).state_dict()
    files = [save(state)]
    for new in (True, False):
        stream = io.BytesIO()
        torch.save(
            {"state_dict": state, "epoch": 3, "arch": "resnet20"}, stream, _use_new_zipfile_serialization=new
        )
        files.append(stream.getvalue())
    path = folder / "weights.pth"

    def feed(data: bytes) -> None:
        path.write_bytes(data)
        load_weights(ModelSpec(weights=str(path)))

    return Target(tuple(files), damage_bytes, feed)


def _run(session: Any) -> None:
    spec = session.manifest.input
    shape = (2, *spec.shape[1:])
    if np.prod(shape, dtype=np.float64) < 2**22:
        session.run(np.zeros(shape, spec.dtype))


def _facts(data: bytes) -> dict[str, object]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _mend(bundle: Path, manifest: Any, name: str, data: bytes) -> None:
    """Write the artifact's new bytes, and a manifest that says so."""
    artifacts = tuple(
        msgspec.structs.replace(artifact, **_facts(data)) if artifact.name == name else artifact
        for artifact in manifest.artifacts
    )
    (bundle / manifest.artifact(name).file).write_bytes(data)
    changed = msgspec.structs.replace(manifest, artifacts=artifacts)
    (bundle / MANIFEST_NAME).write_bytes(encode_manifest(changed))


KINDS: Mapping[str, Callable[[Path], Target]] = {
    "manifest": _manifests,
    "onnx": _graphs,
    "golden": _golden,
    "table": _tables,
    "engine": _engines,
    "image": _images,
    "checkpoint": _checkpoints,
}

warnings.simplefilter("ignore")  # damaged images warn before they fail
