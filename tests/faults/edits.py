"""What can go wrong in a graph: each function returns an edit, from a graph to a copy of it with one fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, helper, numpy_helper

Array = NDArray[Any]
LARGEST_FP16 = 65504.0

Edit = Callable[[onnx.ModelProto], onnx.ModelProto]


def values(name: str, change: Callable[[Array], Array]) -> Edit:
    """Change the initializer `name`; shape and dtype stay."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        return with_values(model, {name: change(read(model, name))})

    return edit


def matching(part: str, change: Callable[[Array], Array]) -> Edit:
    """Change every initializer whose name ends in `part`."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        names = [tensor.name for tensor in model.graph.initializer if tensor.name.endswith(part)]
        assert names, part
        return with_values(model, {name: change(read(model, name)) for name in names})

    return edit


def together(*edits: Edit) -> Edit:
    """Do all of them."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        for one in edits:
            model = one(model)
        return model

    return edit


def attribute(node: str, **given: Any) -> Edit:
    """Set attributes of a node."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        model = copied(model)
        found = next(one for one in model.graph.node if one.name == node)
        others = [one for one in found.attribute if one.name not in given]
        added: list[AttributeProto] = [helper.make_attribute(key, value) for key, value in given.items()]
        del found.attribute[:]
        found.attribute.extend([*others, *added])
        return model

    return edit


def bypass(node: str) -> Edit:
    """Take a node out: whoever read its output reads its first input."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        model = copied(model)
        gone = next(one for one in model.graph.node if one.name == node)
        for other in model.graph.node:
            for i, name in enumerate(other.input):
                if name == gone.output[0]:
                    other.input[i] = gone.input[0]
        model.graph.node.remove(gone)
        return model

    return edit


def softmax(times: int) -> Edit:
    """Put softmax behind the logits, once or twice."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        model = copied(model)
        output = model.graph.output[0].name
        names = [f"{output}.{i}" for i in range(times)] + [output]
        for one in model.graph.node:
            one.output[:] = [names[0] if name == output else name for name in one.output]
        for i in range(times):
            model.graph.node.append(
                helper.make_node("Softmax", [names[i]], [names[i + 1]], name=f"softmax{i}", axis=-1)
            )
        return model

    return edit


def average_over_height(model: onnx.ModelProto) -> onnx.ModelProto:
    """Average the 2×2 map over its height alone, and take the first column."""
    model = copied(model)
    pool = next(one for one in model.graph.node if one.name == "avgpool")
    kernel = {"kernel_shape": [2, 1], "strides": [2, 2]}
    pool.CopyFrom(helper.make_node("AveragePool", pool.input[:1], pool.output, name="avgpool", **kernel))
    return model


def frozen_batch(size: int) -> Edit:
    """Make the batch axis of input and output a number."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        model = copied(model)
        del model.graph.value_info[:]
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = size
        return model

    return edit


def baked_batch(size: int) -> Edit:
    """Bake the batch size into the reshape before the classifier, as a trace with a fixed example does."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        node = next(one for one in model.graph.node if one.op_type == "Reshape")
        shape = read(model, node.input[1])
        return with_values(model, {node.input[1]: np.array([size, shape[1]], np.int64)})

    return edit


def epsilon(state: dict[str, Array], found: float, used: float = 1e-5) -> Edit:
    """Fold every BatchNorm as if its epsilon were `found`."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        changed = {}
        for conv, norm in norms(state).items():
            variance, shift = state[f"{norm}.running_var"], state[f"{norm}.bias"]
            factor = np.sqrt((variance + used) / (variance + found))
            weight, bias = read(model, f"{conv}.weight"), read(model, f"{conv}.bias")
            changed[f"{conv}.weight"] = weight * factor[:, None, None, None]
            changed[f"{conv}.bias"] = shift + (bias - shift) * factor
        return with_values(model, changed)

    return edit


def unfolded(state: dict[str, Array], conv: str) -> Edit:
    """Leave the BatchNorm of one convolution out."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        weight = state[f"{conv}.weight"]
        return with_values(
            model, {f"{conv}.weight": weight, f"{conv}.bias": np.zeros(len(weight), np.float32)}
        )

    return edit


def without_running_mean(state: dict[str, Array], conv: str) -> Edit:
    """Fold a BatchNorm as if its running mean were zero."""
    norm = norms(state)[conv]
    return values(f"{conv}.bias", lambda _: state[f"{norm}.bias"])


def norms(state: dict[str, Array]) -> dict[str, str]:
    """Return convolution → its BatchNorm, by the names of the state dict."""
    found = {}
    for key in state:
        if key.endswith("running_var"):
            norm = key.removesuffix(".running_var")
            # "layer1.0.bn2" belongs to "layer1.0.conv2", "layer2.0.downsample.1" to "layer2.0.downsample.0".
            conv = f"{norm[:-1]}0" if ".downsample." in norm else norm.replace("bn", "conv")
            found[conv] = norm
    return found


def per_tensor(model: onnx.ModelProto) -> onnx.ModelProto:
    """Round every weight with one scale for the whole tensor."""
    changed: dict[str, Array] = {}
    for tensor in model.graph.initializer:
        if tensor.name.endswith(".weight_quantized"):
            base = tensor.name.removesuffix("_quantized")
            scale = read(model, f"{base}_scale")
            if scale.ndim and scale.size > 1:
                weight = numpy_helper.to_array(tensor)
                real = weight * scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
                one = np.abs(real).max() / 127
                changed[tensor.name] = np.rint(real / one)
                changed[f"{base}_scale"] = np.full(scale.shape, one)
                biases = f"{base.removesuffix('.weight')}.bias"
                if f"{biases}_scale" in {other.name for other in model.graph.initializer}:
                    step = read(model, f"{biases}_scale").astype(np.float64)
                    changed[f"{biases}_scale"] = step / scale * one
                    changed[f"{biases}_quantized"] = np.rint(read(model, f"{biases}_quantized") * scale / one)
    return with_values(model, changed)


def activation_scales(change: Callable[[Array], Array]) -> Edit:
    """Change the scale of every activation."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        names = _activation(model, 1)
        return with_values(model, {name: change(read(model, name)) for name in names})

    return edit


def zero_points(change: Callable[[Array], Array]) -> Edit:
    """Change the zero point of every activation, within the range of its type."""

    def edit(model: onnx.ModelProto) -> onnx.ModelProto:
        changed = {}
        for name in _activation(model, 2):
            zero = read(model, name)
            limits = np.iinfo(zero.dtype)
            changed[name] = np.clip(change(zero.astype(np.int64)), limits.min, limits.max)
        return with_values(model, changed)

    return edit


def stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take quantization of activations out: every pair of QuantizeLinear and DequantizeLinear is bypassed."""
    for name in [node.name for node in model.graph.node if node.op_type == "QuantizeLinear"]:
        model = bypass(name)(model)
    produced = {node.output[0] for node in model.graph.node} | {model.graph.input[0].name}
    for node in [node for node in model.graph.node if node.op_type == "DequantizeLinear"]:
        if node.input[0] in produced:
            model = bypass(node.name)(model)
    return model


def noise(seed: int) -> Callable[[Array], Array]:
    """Other weights of the same mean and spread: those of another training, as far as this network is concerned."""

    def change(array: Array) -> Array:
        drawn = np.random.default_rng(seed).normal(array.mean(), array.std(), array.shape)
        return np.rint(drawn) if array.dtype.kind == "i" else drawn

    return change


def read(model: onnx.ModelProto, name: str) -> Array:
    """Return the values of an initializer."""
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def with_values(model: onnx.ModelProto, changed: dict[str, Array]) -> onnx.ModelProto:
    """Return a copy of the model with other values in some initializers, in their own dtypes."""
    model = copied(model)
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            old = numpy_helper.to_array(tensor)
            new = np.asarray(changed[tensor.name])
            if old.dtype.kind in "iu":
                limits = np.iinfo(old.dtype)
                new = np.clip(new, limits.min, limits.max)
            elif old.dtype == np.float16:
                new = np.clip(new, -LARGEST_FP16, LARGEST_FP16)
            tensor.CopyFrom(numpy_helper.from_array(np.array(new, old.dtype, order="C"), tensor.name))
    return model


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _activation(model: onnx.ModelProto, position: int) -> list[str]:
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return list(dict.fromkeys(node.input[position] for node in nodes))
