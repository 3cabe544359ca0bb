"""A bundle that runs in a millisecond: two convolutions and a classifier, in every precision and layout."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from resnet_export.runtime.bundle.manifest import (
    MANIFEST_NAME,
    Artifact,
    BatchRange,
    GoldenInfo,
    GraphInfo,
    Manifest,
    ModelInfo,
    Preprocessing,
    Provenance,
    TensorSpec,
    Verdict,
    WeightsInfo,
    encode_manifest,
)
from resnet_export.runtime.precision import Precision

CLASSES, SIDE, CHANNELS = 5, 16, 8
LABELS = ("tench", "goldfish", "great white shark", "tiger shark", "hammerhead")


@dataclass(frozen=True)
class Variant:
    """One artifact: its name is its file's, too."""

    name: str
    precision: Precision
    target: str = "any"


FP32 = Variant("fp32", Precision.FP32)
FP16 = Variant("fp16", Precision.FP16)
INT8 = Variant("int8", Precision.INT8, "tensorrt")
INT8_CPU = Variant("int8.cpu", Precision.INT8, "cpu")
ALL = (FP32, FP16, INT8, INT8_CPU)


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colored noise, uint8 [count, SIDE, SIDE, 3]."""
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 256, (count, SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
    return coarse.repeat(4, axis=1).repeat(4, axis=2)


EMBEDDING = TensorSpec(name="embedding", dtype="float32", layout="NC", shape=("N", CHANNELS))
C2 = TensorSpec(name="c2", dtype="float32", layout="NCHW", shape=("N", CHANNELS, SIDE, SIDE))
"""Further outputs, of graphs and manifests that are `further`."""


def graph(
    variant: Variant = FP32,
    *,
    uint8: bool = False,
    batch: int | str = "N",
    seed: int = 0,
    further: bool = False,
) -> bytes:
    """The network as a serialized ONNX model, with the same weights in every variant."""
    net = _Net(np.float16 if variant.precision == Precision.FP16 or variant == INT8 else np.float32)
    draw = np.random.default_rng(seed)
    quantized = variant.precision == Precision.INT8
    x = "input"
    if uint8:  # Cast first, then Transpose and scale
        x = net.add("Transpose", net.add("Cast", x, to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
        x = net.add("Mul", x, net.constant(np.float32(1 / 64)))
        x = net.add("Sub", x, net.constant(np.float32(2)))
    if net.dtype is np.float16:
        x = net.add("Cast", x, to=TensorProto.FLOAT16)
    width = 3
    for layer in range(2):
        # In the first layer a bias divided by the scales of activation and weight leaves fp16's range.
        weight = draw.normal(size=(CHANNELS, width, 3, 3)) * (0.02, 0.1)[layer]
        bias = draw.normal(size=CHANNELS) * (0.8, 0.1)[layer]
        if quantized:
            # Only the input is signed in the CPU's layout: what follows a Relu fills the unsigned range.
            unsigned = variant.target == "cpu" and layer > 0
            x = net.fake_quantize(x, (2.7, 4.0)[layer] / (255 if unsigned else 127), unsigned=unsigned)
            kernel = net.quantized_weight(weight)
        else:
            kernel = net.constant(weight.astype(net.dtype))
        x = net.add("Conv", x, kernel, net.constant(bias.astype(net.dtype)), pads=[1, 1, 1, 1])
        x = net.add("Relu", x)
        width = CHANNELS
    outputs = {"logits": [batch, CLASSES]}
    if further:
        outputs |= {spec.name: [batch, *spec.rest] for spec in (C2, EMBEDDING)}  # not in the manifest's order
        net.add("Cast", x, output="c2", to=TensorProto.FLOAT)
    x = net.add("Flatten", net.add("GlobalAveragePool", x))
    if further:
        net.add("Cast", x, output="embedding", to=TensorProto.FLOAT)
    classifier = draw.normal(size=(CHANNELS, CLASSES)) * 10
    x = net.add("Gemm", x, net.constant(classifier.astype(net.dtype)))
    if net.dtype is np.float16:
        x = net.add("Cast", x, to=TensorProto.FLOAT)
    net.add("Identity", x, output="logits")
    shape = [batch, SIDE, SIDE, 3] if uint8 else [batch, 3, SIDE, SIDE]
    kind = TensorProto.UINT8 if uint8 else TensorProto.FLOAT
    model = helper.make_model(
        helper.make_graph(
            net.nodes,
            "tiny",
            [helper.make_tensor_value_info("input", kind, shape)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in outputs.items()
            ],
            net.initializers,
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString()
    return data


def graph_that_engines_refuse() -> bytes:
    """A well-formed graph with an axis that is not there."""
    model = onnx.load_from_string(graph(FP32))
    model.graph.node[-1].op_type = "Softmax"
    model.graph.node[-1].attribute.append(helper.make_attribute("axis", 99))
    data: bytes = model.SerializeToString()
    return data


def manifest(artifacts: Sequence[Artifact], *, uint8: bool = False, further: bool = False) -> Manifest:
    """A manifest of the tiny network with these artifacts."""
    shape = ("N", SIDE, SIDE, 3) if uint8 else ("N", 3, SIDE, SIDE)
    return Manifest(
        schema=1,
        model=ModelInfo(
            arch="tiny",
            num_classes=CLASSES,
            parameters=1000,
            weights=WeightsInfo(source="untrained", name="tiny", seed=0),
        ),
        graph=GraphInfo(layers_in_series=18, multiply_adds=1_000_000),
        input=TensorSpec(
            name="input",
            dtype="uint8" if uint8 else "float32",
            layout="NHWC" if uint8 else "NCHW",
            shape=shape,
        ),
        outputs=(
            TensorSpec(name="logits", dtype="float32", layout="NC", shape=("N", CLASSES)),
            *((EMBEDDING, C2) if further else ()),
        ),
        batch=BatchRange(min=1, opt=4, max=8),
        preprocessing=Preprocessing(resize=SIDE, crop=SIDE, in_graph=uint8),
        labels=LABELS,
        tolerances={},
        artifacts=tuple(artifacts),
        golden=GoldenInfo(
            file="golden.npz",
            bytes=1,
            sha256="0" * 64,
            count=1,
            source="bundled",
            stages=("eager",),
            outputs={"embedding": 1, "c2": 1} if further else {},
        ),
        modules={},
        provenance=Provenance(created="2026-01-01T00:00:00+00:00", versions={}, exporter="dynamo", opset=20),
    )


def artifact(variant: Variant, data: bytes, parity: tuple[Verdict, ...] = ()) -> Artifact:
    """The manifest's entry for an ONNX file with these bytes."""
    return Artifact(
        name=variant.name,
        file=f"model.{variant.name}.onnx",
        kind="onnx",
        precision=variant.precision,
        target=variant.target,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        parity=parity,
    )


def passed(variant: Variant, backend: str, provider: str, *, ok: bool = True) -> Verdict:
    """A verdict of the parity check."""
    return Verdict(backend=backend, provider=provider, precision=variant.precision, passed=ok)


def write(
    folder: Path,
    variants: Sequence[Variant] = (FP32,),
    *,
    uint8: bool = False,
    further: bool = False,
    graphs: dict[str, bytes] | None = None,
    parity: dict[str, tuple[Verdict, ...]] | None = None,
) -> Path:
    """Write a bundle and return its folder; `graphs` replaces the bytes of artifacts by name."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for variant in variants:
        data = (graphs or {}).get(variant.name) or graph(variant, uint8=uint8, further=further)
        entry = artifact(variant, data, (parity or {}).get(variant.name, ()))
        (folder / entry.file).write_bytes(data)
        entries.append(entry)
    (folder / MANIFEST_NAME).write_bytes(encode_manifest(manifest(entries, uint8=uint8, further=further)))
    return folder


class _Net:
    """Nodes and initializers, in the order they were added."""

    def __init__(self, dtype: type[np.floating]) -> None:
        self.dtype = dtype
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, value: np.ndarray | np.generic) -> str:
        name = f"constant{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, *inputs: str, output: str | None = None, **attributes: object) -> str:
        output = output or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"/{output}", **attributes))
        return output

    def fake_quantize(self, x: str, scale: float, *, unsigned: bool) -> str:
        zero = self.constant(np.uint8(0) if unsigned else np.int8(0))
        step = self.constant(self.dtype(scale))
        return self.add("DequantizeLinear", self.add("QuantizeLinear", x, step, zero), step, zero)

    def quantized_weight(self, weight: np.ndarray) -> str:
        scale = np.abs(weight).max(axis=(1, 2, 3)) / 127
        integers = np.round(weight / scale[:, None, None, None]).astype(np.int8)
        zeros = np.zeros(len(scale), np.int8)
        inputs = (self.constant(integers), self.constant(scale.astype(self.dtype)), self.constant(zeros))
        return self.add("DequantizeLinear", *inputs, axis=0)
