"""The faults, each with the stage that is to blame for it: decided by where the fault is put, not by what is found.

An injection writes a bundle that has the fault, or a reader or a data set that has it, and says what share of the
answers it costs: predictions that change, for labels accuracy that is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import msgspec
import numpy as np
from numpy.typing import NDArray

from resnet_export.exporter.graph.export import simplify, to_onnx
from resnet_export.exporter.graph.stage_check import record_reference
from resnet_export.exporter.models.resnet import build
from resnet_export.runtime import preprocess
from resnet_export.runtime.bundle.golden import EAGER
from tests.faults import edits
from tests.faults.edits import Edit, attribute, bypass, matching, noise, together, values
from tests.faults.lab import Case, Lab, Labels, logits
from tests.trained import BOTTLENECK14

Inject = Callable[[Lab, str], Case]


@dataclass(frozen=True)
class Fault:
    """`name` says what is wrong, `stage` which stage is to blame; `inject(lab, folder)` makes it."""

    name: str
    stage: str
    inject: Inject


def in_graph(name: str, stage: str, make: Callable[[Lab], Edit]) -> Fault:
    """A fault of the fp32 graph that arises at `stage`, and goes into everything that is made of it."""

    def inject(lab: Lab, folder: str) -> Case:
        faulty = make(lab)(lab.model("fp32"))
        narrow = lab.narrowed(faulty)
        found = logits(faulty, lab.golden_inputs())
        line = ("onnx", "simplified", "fp32")
        recorded = {name: found for name in line[line.index(stage) :] if name in lab.golden.logits}
        recorded["fp16"] = logits(narrow, lab.golden_inputs())
        graphs = {"fp32": faulty, "fp16": narrow}
        bundle = lab.write(folder, graphs, recorded, keep=("fp32", "fp16"))
        return Case(bundle, lab.changed(faulty, "fp32"))

    return Fault(name, stage, inject)


def in_step(name: str, artifact: str, edit: Edit) -> Fault:
    """A fault of the step that made `artifact`: its recorded logits have it too."""
    return Fault(name, artifact, partial(_artifact_case, artifact=artifact, edit=edit, recorded=True))


def in_file(name: str, artifact: str, edit: Edit) -> Fault:
    """A fault that came into the file after the export, or a backend that computes something else."""
    return Fault(name, "backend", partial(_artifact_case, artifact=artifact, edit=edit, recorded=False))


def _artifact_case(lab: Lab, folder: str, *, artifact: str, edit: Edit, recorded: bool) -> Case:
    faulty = edit(lab.model(artifact))
    logged = {artifact: logits(faulty, lab.golden_inputs())} if recorded else {}
    bundle = lab.write(folder, {artifact: faulty}, logged, keep=tuple(dict.fromkeys(("fp32", artifact))))
    return Case(bundle, lab.changed(faulty, artifact))


def refusing_file(name: str, artifact: str, edit: Edit) -> Fault:
    """A file that cannot run every batch: all of its answers are lost."""

    def inject(lab: Lab, folder: str) -> Case:
        keep = tuple(dict.fromkeys(("fp32", artifact)))
        return Case(lab.write(folder, {artifact: edit(lab.model(artifact))}, keep=keep), 1.0)

    return Fault(name, "backend", inject)


def in_baked(name: str, edit: Edit) -> Fault:
    """A fault of the normalization in the graph of a bundle that takes raw pixels."""

    def inject(lab: Lab, folder: str) -> Case:
        clean, changes = lab.baked()
        faulty = edit(clean)
        recorded = {"fp32": logits(faulty, lab.golden.images)}
        bundle = lab.write(folder, {"fp32": faulty}, recorded, keep=("fp32",), **changes)
        return Case(bundle, lab.changed(faulty, "fp32", lab.read(changes["preprocessing"])))

    return Fault(name, "fp32", inject)


def in_manifest(name: str, **changes: Any) -> Fault:
    """A manifest whose preprocessing is not the one that the network was exported with."""

    def inject(lab: Lab, folder: str) -> Case:
        preprocessing = msgspec.structs.replace(lab.manifest.preprocessing, **changes)
        bundle = lab.write(folder, keep=("fp32", "int8.cpu"), preprocessing=preprocessing)
        return Case(bundle, lab.changed(lab.model("fp32"), "fp32", lab.read(preprocessing)))

    return Fault(name, "preprocessing", inject)


def in_reader(name: str, function: str, faulty: Callable[..., Any]) -> Fault:
    """A host whose preprocessing does something else: `faulty` stands for `function`, which it gets first."""

    def inject(lab: Lab, folder: str) -> Case:
        @contextmanager
        def patch() -> Iterator[None]:
            with mock.patch.object(preprocess, function, partial(faulty, getattr(preprocess, function))):
                yield

        bundle = lab.write(folder, keep=("fp32", "int8.cpu"))
        with patch():
            inputs = lab.read(lab.manifest.preprocessing)
        return Case(bundle, lab.changed(lab.model("fp32"), "fp32", inputs), patch)

    return Fault(name, "preprocessing", inject)


def in_labels(name: str, change: Callable[[Labels], Labels]) -> Fault:
    """Labels of the data that are not the network's."""

    def inject(lab: Lab, folder: str) -> Case:
        labels = change(lab.labels)
        found = lab.predicted("fp32")
        lost = float((found == lab.labels).mean() - (found == labels).mean())
        return Case(lab.write(folder, keep=("fp32", "int8.cpu")), lost, labels=labels)

    return Fault(name, "labels", inject)


def in_recorded(
    name: str, stage: str, to_blame: str, change: Callable[[NDArray[Any]], NDArray[Any]]
) -> Fault:
    """Recorded logits of a stage that are not those of this export."""

    def inject(lab: Lab, folder: str) -> Case:
        recorded = {stage: change(lab.golden.logits[stage]).astype(np.float32)}
        lost = (recorded[stage].argmax(axis=1) != lab.golden.logits[stage].argmax(axis=1)).mean()
        bundle = lab.write(folder, recorded=recorded, keep=("fp32", "fp16", "int8.cpu"))
        return Case(bundle, float(lost) if stage == EAGER else 0.0)

    return Fault(name, to_blame, inject)


def in_bottleneck(name: str, stage: str, edit: Edit) -> Fault:
    """A fault in the exported graph of a network with bottlenecks, fp32 alone."""

    def inject(lab: Lab, folder: str) -> Case:
        import torch

        network = build(BOTTLENECK14, 10)
        network.load_state_dict(torch.load(lab.checkpoint(BOTTLENECK14), weights_only=True))
        reference = record_reference(network.eval(), lab.golden_inputs())
        exported, _ = to_onnx(network, batch=lab.manifest.batch, reference=reference)
        clean = simplify(exported).model
        faulty = edit(clean)
        found = logits(faulty, reference.images)
        recorded = dict.fromkeys(lab.golden.logits, found) | {EAGER: reference.logits}
        bundle = lab.write(folder, {"fp32": faulty}, recorded, keep=("fp32",))
        before, after = (logits(model, lab.inputs).argmax(axis=1) for model in (clean, faulty))
        return Case(bundle, float((before != after).mean()))

    return Fault(name, stage, inject)


def _moved_stride(first: str, second: str) -> Edit:
    return together(attribute(first, strides=[2, 2]), attribute(second, strides=[1, 1]))


def _rgb_swapped(decode: Callable[..., Any], *args: Any, **options: Any) -> Any:
    from PIL import Image

    return Image.merge("RGB", decode(*args, **options).split()[::-1])


def _grey(decode: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return decode(*args, **options).convert("L").convert("RGB")


def _nearest(prepare: Callable[..., Any], image: Any, preprocessing: Any, **options: Any) -> Any:
    from PIL import Image

    side = preprocessing.resize
    return prepare(image.resize((side, side), Image.Resampling.NEAREST), preprocessing, **options)


def _squashed(prepare: Callable[..., Any], image: Any, preprocessing: Any, **options: Any) -> Any:
    from PIL import Image

    side = preprocessing.crop
    return np.array(image.resize((side, side), Image.Resampling.BILINEAR))


def _without_255(normalize: Callable[..., Any], images: Any, preprocessing: Any) -> Any:
    return normalize(images, preprocessing) * np.float32(255)


def _twice(normalize: Callable[..., Any], images: Any, preprocessing: Any) -> Any:
    mean, std = (
        np.array(pick, np.float32)[:, None, None] for pick in (preprocessing.mean, preprocessing.std)
    )
    return ((normalize(images, preprocessing) - mean) / std).astype(np.float32)


def _channels_swapped(normalize: Callable[..., Any], images: Any, preprocessing: Any) -> Any:
    return np.ascontiguousarray(normalize(images, preprocessing)[:, ::-1])


def _upside(normalize: Callable[..., Any], images: Any, preprocessing: Any) -> Any:
    return np.ascontiguousarray(normalize(images, preprocessing).swapaxes(2, 3))


def _alphabetic(labels: Labels) -> Labels:
    """Classes 0 to 9 numbered in the alphabetical order of their English names."""
    from tests.faults.lab import NAMES

    order = sorted(NAMES)
    return np.array([order.index(name) for name in NAMES])[labels]


def _exchange(a: int, b: int) -> Callable[[Labels], Labels]:
    table = np.arange(10)
    table[[a, b]] = table[[b, a]]
    return lambda labels: table[labels]


def _coarse_mantissa(bits: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(array: NDArray[Any]) -> NDArray[Any]:
        mantissa, exponent = np.frexp(array.astype(np.float64))
        return np.asarray(np.ldexp(np.round(mantissa * 2**bits) / 2**bits, exponent))

    return change


def _double(array: NDArray[Any]) -> NDArray[Any]:
    return array * 2.0


def _turned(array: NDArray[Any]) -> NDArray[Any]:
    return array.swapaxes(2, 3)


def _overflowing(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) * 2**18


_OVERFLOW = together(
    values("layer2.0.conv1.weight", _overflowing),
    values("layer2.0.conv1.bias", _overflowing),
    values("layer2.0.conv2.weight", lambda a: a.astype(np.float64) / 2**18),
)


def _mean_of(channel_values: tuple[float, float, float]) -> Edit:
    return values("preprocess.mean.255", lambda _: 255 * np.array(channel_values).reshape(1, 3, 1, 1))


def _one_channel(change: Callable[[NDArray[Any]], NDArray[Any]]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def changed(array: NDArray[Any]) -> NDArray[Any]:
        array = array.copy()
        array[:1] = change(array[:1])
        return array

    return changed


_LAYERS = tuple(f"layer{stage}.{block}.conv{i}" for stage in range(1, 5) for block in (0, 1) for i in (1, 2))
_PER_LAYER: tuple[tuple[str, str, Callable[[NDArray[Any]], NDArray[Any]]], ...] = (
    ("weights ×1.1", "weight_scale", lambda a: a * 1.1),
    ("weights ×2", "weight_scale", _double),
    ("one channel's scale doubled", "weight_scale", _one_channel(_double)),
    ("scales rolled", "weight_scale", lambda a: np.roll(a, 1)),
    ("kernels transposed", "weight_quantized", _turned),
    ("input channels rolled", "weight_quantized", lambda a: np.roll(a, 1, axis=1)),
    ("bias dropped", "bias_quantized", lambda a: a * 0),
    ("bias of the next channel", "bias_quantized", lambda a: np.roll(a, 1)),
)


def _drawn() -> Iterator[Fault]:
    """Yield each of `_PER_LAYER` in two layers that a seeded draw picks: once in the step, once in the file."""
    rng = np.random.default_rng(0)
    for name, tensor, change in _PER_LAYER:
        first, second = rng.choice(_LAYERS, 2, replace=False)
        yield in_step(f"{first}: {name}", "int8.cpu", values(f"{first}.{tensor}", change))
        yield in_file(f"{second}: {name}, in the file", "int8.cpu", values(f"{second}.{tensor}", change))


FAULTS: tuple[Fault, ...] = (
    # What an exporter can get wrong.
    in_graph("BatchNorm epsilon 1e-3 for 1e-5", "onnx", lambda lab: edits.epsilon(lab.state, 1e-3)),
    in_graph("BatchNorm epsilon 0.1 for 1e-5", "onnx", lambda lab: edits.epsilon(lab.state, 0.1)),
    in_graph("one BatchNorm not folded", "onnx", lambda lab: edits.unfolded(lab.state, "layer2.1.conv1")),
    in_graph(
        "another BatchNorm not folded", "simplified", lambda lab: edits.unfolded(lab.state, "layer3.0.conv2")
    ),
    in_graph(
        "BatchNorm folded without its running mean",
        "simplified",
        lambda lab: edits.without_running_mean(lab.state, "layer1.0.conv1"),
    ),
    in_graph(
        "stride moved from conv1 to conv2",
        "onnx",
        lambda _: _moved_stride("layer2.0.conv2", "layer2.0.conv1"),
    ),
    in_bottleneck(
        "stride moved from the 3×3 to the 1×1", "onnx", _moved_stride("layer3.0.conv1", "layer3.0.conv2")
    ),
    in_bottleneck("ReLU missing in a bottleneck", "onnx", bypass("layer3.0.relu")),
    in_graph("ReLU missing on one Add", "onnx", lambda _: bypass("layer2.0.relu_1")),
    in_graph("average pool over the wrong axes", "onnx", lambda _: edits.average_over_height),
    in_graph(
        "max-pool replaced by subsampling",
        "onnx",
        lambda _: attribute("maxpool", kernel_shape=[1, 1], pads=[0, 0, 0, 0]),
    ),
    in_graph("max-pool padded at the end alone", "onnx", lambda _: attribute("maxpool", pads=[0, 0, 2, 2])),
    in_graph("first convolution padded unevenly", "onnx", lambda _: attribute("conv1", pads=[2, 2, 4, 4])),
    in_graph("a shortcut dropped", "onnx", lambda _: bypass("layer3.1.add")),
    in_graph("softmax once", "onnx", lambda _: edits.softmax(1)),
    in_graph("softmax twice", "onnx", lambda _: edits.softmax(2)),
    in_graph(
        "classifier's classes rolled by one",
        "onnx",
        lambda _: values("fc.weight", lambda a: np.roll(a, 1, 0)),
    ),
    in_graph("classifier without its bias", "simplified", lambda _: values("fc.bias", lambda a: a * 0)),
    in_graph(
        "one layer's kernels transposed",
        "simplified",
        lambda _: values("layer2.1.conv2.weight", _turned),
    ),
    in_graph(
        "one layer's inputs and outputs exchanged",
        "simplified",
        lambda _: values("layer3.1.conv1.weight", lambda a: a.swapaxes(0, 1)),
    ),
    in_graph(
        "one layer's weights ×1.01",
        "simplified",
        lambda _: values("layer4.0.conv2.weight", lambda a: a * 1.01),
    ),
    in_graph(
        "one layer's weights ×1.5", "simplified", lambda _: values("layer1.1.conv2.weight", lambda a: a * 1.5)
    ),
    in_graph("one stale weight tensor", "simplified", lambda _: values("layer3.1.conv2.weight", noise(1))),
    in_graph(
        "input channels swapped in the graph", "onnx", lambda _: values("conv1.weight", lambda a: a[:, ::-1])
    ),
    # What baking the normalization into the graph can get wrong.
    in_baked("BGR in the graph", values("conv1.weight", lambda a: a[:, ::-1])),
    in_baked("mean left out of the graph", _mean_of((0.0, 0.0, 0.0))),
    in_baked("mean of BGR in the graph", _mean_of((0.406, 0.456, 0.485))),
    in_baked("mean not scaled to bytes", values("preprocess.mean.255", lambda a: a / 255)),
    in_baked("normalization twice in the graph", values("conv1.weight", lambda a: a / 0.226)),
    in_baked("height and width exchanged", attribute("preprocess.transpose", perm=[0, 3, 2, 1])),
    # What narrowing to fp16 can get wrong.
    in_step("fp16 overflow in one layer", "fp16", _OVERFLOW),
    in_step("fp16 weights with 3 bits of mantissa", "fp16", matching(".weight", _coarse_mantissa(3))),
    in_step("fp16: one bias dropped", "fp16", values("layer1.0.conv1.bias", lambda a: a * 0)),
    in_step(
        "fp16: one layer flushed to zero", "fp16", values("layer2.0.downsample.0.weight", lambda a: a * 0)
    ),
    # What quantization can get wrong.
    in_step("every activation's scale doubled", "int8.cpu", edits.activation_scales(_double)),
    in_step("one activation's scale doubled", "int8.cpu", values("layer1.0.relu_1.output_scale", _double)),
    in_step("clip halved", "int8.cpu", edits.activation_scales(lambda a: a / 2)),
    in_step("clip at an eighth", "int8.cpu", edits.activation_scales(lambda a: a / 8)),
    in_step("one weight scale doubled", "int8.cpu", values("layer2.0.conv1.weight_scale", _double)),
    in_step(
        "scales along the wrong axis",
        "int8.cpu",
        values("layer3.1.conv1.weight_scale", lambda a: np.roll(a, 1)),
    ),
    in_step(
        "weights dequantized along the input axis",
        "int8.cpu",
        attribute("layer3.1.conv2.weight.DequantizeLinear", axis=1),
    ),
    in_step(
        "every scale along the wrong axis", "int8.cpu", matching("weight_scale", lambda a: np.roll(a, 1))
    ),
    in_step("per-tensor for per-channel weights", "int8.cpu", edits.per_tensor),
    in_step("every zero point off by one", "int8.cpu", edits.zero_points(lambda zero: zero + 1)),
    in_step("one zero point off by one", "int8.cpu", values("relu.output_zero_point", lambda zero: zero + 1)),
    in_step("weights of 3 bits", "int8.cpu", matching("weight_quantized", lambda a: np.rint(a / 32.0) * 32)),
    in_step(
        "signed weights read as magnitudes", "int8.cpu", values("layer2.1.conv1.weight_quantized", np.abs)
    ),
    in_step("int8: one bias dropped", "int8.cpu", values("layer1.0.conv1.bias_quantized", lambda a: a * 0)),
    in_step("int8: every bias dropped", "int8.cpu", matching("bias_quantized", lambda a: a * 0)),
    in_step("quantized from a stale tensor", "int8.cpu", values("layer4.0.conv1.weight_quantized", noise(2))),
    in_step("Q/DQ of activations stripped", "int8.cpu", edits.stripped),
    in_step(
        "TensorRT's graph: one weight scale doubled",
        "int8.tensorrt",
        values("layer2.0.conv1.weight_scale", _double),
    ),
    in_step(
        "TensorRT's graph: kernels transposed",
        "int8.tensorrt",
        values("layer1.0.conv2.weight_quantized", _turned),
    ),
    *_drawn(),
    # What can happen to a file after the export.
    in_file("fp32 file of another checkpoint", "fp32", matching(".weight", noise(3))),
    in_file(
        "fp32 file wrong in one layer, int8 right", "fp32", values("layer2.0.conv2.weight", lambda a: a * 1.3)
    ),
    in_file("fp32 file with one stale tensor", "fp32", values("layer4.1.conv1.weight", noise(4))),
    in_file("fp16 file with swapped channels", "fp16", values("conv1.weight", lambda a: a[:, ::-1])),
    in_file("fp16 file with the classes in another order", "fp16", values("fc.weight", lambda a: a[::-1])),
    in_file("int8 file of another checkpoint", "int8.cpu", matching("weight_quantized", noise(5))),
    in_file(
        "int8 file with one stale tensor", "int8.cpu", values("layer3.0.conv2.weight_quantized", noise(6))
    ),
    in_file(
        "int8 file with its clip at a quarter",
        "int8.cpu",
        edits.activation_scales(lambda a: a / 4),
    ),
    in_file(
        "int8 file, one layer's weights ×1.3",
        "int8.cpu",
        values("layer1.0.conv2.weight_scale", lambda a: a * 1.3),
    ),
    refusing_file("batch frozen at one", "fp32", edits.frozen_batch(1)),
    refusing_file("int8 file with the batch frozen at eight", "int8.cpu", edits.frozen_batch(8)),
    refusing_file("batch baked into a reshape", "fp16", edits.baked_batch(8)),
    # What a reader can get wrong: its manifest first, then its code or its libraries.
    in_manifest("wrong mean", mean=(0.5, 0.5, 0.5)),
    in_manifest("wrong std", std=(1.0, 1.0, 1.0)),
    in_manifest("mean and std of BGR", mean=(0.406, 0.456, 0.485), std=(0.225, 0.224, 0.229)),
    in_manifest("resized to another size", resize=56),
    in_manifest("bicubic for bilinear", interpolation="bicubic"),
    in_reader("BGR", "decode", _rgb_swapped),
    in_reader("gray for color", "decode", _grey),
    in_reader("nearest for bilinear", "prepare", _nearest),
    in_reader("squashed to the crop, not cut", "prepare", _squashed),
    in_reader("crop off by one", "_crop_offset", lambda offset, *sides: offset(*sides) + 1),
    in_reader("crop at the corner", "_crop_offset", lambda _, *sides: 0),
    in_reader("EXIF orientation ignored", "_upright", lambda _, image, orientation: image),
    in_reader("not divided by 255", "normalize", _without_255),
    in_reader("normalized twice", "normalize", _twice),
    in_reader("channels swapped at the input", "normalize", _channels_swapped),
    in_reader("height and width exchanged at the input", "normalize", _upside),
    # What labels can be.
    in_labels("labels shifted by one", lambda labels: (labels + 1) % 10),
    in_labels("labels from one on, the last merged", lambda labels: np.minimum(labels + 1, 9)),
    in_labels("classes in alphabetical order", _alphabetic),
    in_labels("two classes exchanged", _exchange(3, 8)),
    in_labels("labels of another data set", lambda labels: np.random.default_rng(7).permutation(labels)),
    # What the evidence in the bundle can be.
    in_recorded("stale eager logits", EAGER, "onnx", lambda a: np.roll(a, 1, axis=0)),
    in_recorded("recorded logits of a stage tampered with", "simplified", "simplified", lambda a: a * 1.1),
)
"""Every fault, in the order of the line."""
