"""Ranges are what a hook on the eager network sees, or what the operators promise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from resnet_export.exporter.graph.preprocessing import bake_preprocessing
from resnet_export.exporter.graph.value_ranges import complete, scan_ranges
from resnet_export.runtime.errors import DatasetError, ExportError
from tests.exported import PREPROCESSING, exported_resnet18


def test_are_those_that_eager_hooks_see() -> None:
    one = exported_resnet18()
    seen: dict[str, tuple[float, float]] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, output, path=path: seen.update({path: (output.min().item(), output.max().item())})
        )
        for path, module in one.network.named_modules()
        if isinstance(module, nn.BatchNorm2d | nn.Linear | nn.AdaptiveAvgPool2d)
    ]
    with torch.inference_mode():
        one.network(torch.from_numpy(one.reference.images))
    for hook in hooks:
        hook.remove()
    found = scan_ranges(one.graph, [one.reference.images])
    for path, expected in seen.items():
        node = path.replace("bn", "conv").replace("downsample.1", "downsample.0")
        tensor = "logits" if node == "fc" else f"{node}.output"
        assert found[tensor] == pytest.approx(expected, rel=1e-4, abs=1e-4), tensor
    assert found["input"] == (one.reference.images.min(), one.reference.images.max())


def test_do_not_depend_on_how_images_are_batched() -> None:
    one = exported_resnet18()
    whole = scan_ranges(one.graph, [one.reference.images])
    parts = scan_ranges(one.graph, (one.reference.images[start : start + 2] for start in range(0, 7, 2)))
    assert list(parts) == list(whole)
    for name, ends in whole.items():
        assert parts[name] == pytest.approx(ends, rel=1e-5, abs=1e-6)


def test_bound_every_tensor_that_was_not_scanned() -> None:
    one = exported_resnet18()
    tensors = {name for node in one.graph.model.graph.node for name in node.output} | {"input"}
    scanned = scan_ranges(one.graph, [one.reference.images])
    assert set(scanned) < tensors
    every = complete(one.graph.model, scanned)
    assert set(every) == tensors
    low, high = every["layer1.0.conv1.output"]
    assert every["layer1.0.relu.output"] == (0.0, high)
    assert low < 0
    assert every["maxpool.output"] == every["relu.output"]


def test_know_those_of_raw_pixels() -> None:
    one = exported_resnet18()
    baked = bake_preprocessing(one.graph, PREPROCESSING)
    every = complete(baked.model, scan_ranges(baked, [one.crops]))
    assert every["preprocess.transpose.output"] == (0.0, 255.0)
    assert every["preprocess.sub.output"] == pytest.approx((-123.7, 151.5), abs=0.1)


def test_need_an_image() -> None:
    with pytest.raises(ExportError, match="no image"):
        scan_ranges(exported_resnet18().graph, [])


def test_refuse_an_image_that_is_not_finite() -> None:
    one = exported_resnet18()
    images = one.reference.images[:1].copy()
    images[0, 1, 2, 3] = np.nan
    with pytest.raises(DatasetError, match="infinite value or NaN"):
        scan_ranges(one.graph, [images])


def test_name_the_first_tensor_that_is_infinite_on_a_real_image() -> None:
    one = exported_resnet18()
    model = onnx.ModelProto()
    model.CopyFrom(one.graph.model)
    for tensor in model.graph.initializer:
        if tensor.name == "layer1.1.conv2.weight":
            tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(3e38)).tobytes()
    with pytest.raises(ExportError, match=r"'layer1\.1\.conv2\.output' is infinite or NaN on a real image"):
        scan_ranges(replace(one.graph, model=model), [one.reference.images])
