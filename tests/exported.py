"""One small ResNet-18, exported once for every test that only reads it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from resnet_export.exporter.graph.export import simplify, to_onnx
from resnet_export.exporter.graph.exported_graph import ExportedGraph
from resnet_export.exporter.graph.stage_check import Reference, StageCheck, check_stage, record_reference
from resnet_export.exporter.models.resnet import ResNet, build
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.runtime.bundle.manifest import BatchRange, ModelInfo, Preprocessing, WeightsInfo
from resnet_export.runtime.preprocess import normalize

SIZE = 64
CLASSES = 10
BATCH = BatchRange(min=1, opt=2, max=5)
PREPROCESSING = Preprocessing(resize=SIZE, crop=SIZE)
INFO = ModelInfo(
    arch="resnet18",
    num_classes=CLASSES,
    parameters=1,
    weights=WeightsInfo(source="untrained", name="untrained", seed=0),
)


@dataclass(frozen=True)
class Exported:
    """A network, images that it has seen, and its checked and simplified graph."""

    network: ResNet
    crops: NDArray[np.uint8]
    reference: Reference
    graph: ExportedGraph
    checks: tuple[StageCheck, StageCheck]


def seeded_resnet18() -> ResNet:
    """Random weights and random BatchNorm statistics, so that a folded BatchNorm changes every number."""
    generator = torch.Generator().manual_seed(0)
    network = build(ZOO["resnet18"], CLASSES)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", generator=generator)
            elif isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.0, generator=generator)
                module.bias.uniform_(-0.2, 0.2, generator=generator)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.uniform_(-0.2, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
            elif isinstance(module, nn.Linear):
                module.weight.normal_(0, 0.05, generator=generator)
                module.bias.normal_(0, 0.5, generator=generator)
    return network


def seeded_crops(count: int) -> NDArray[np.uint8]:
    """Smooth random colors, uint8 [count, SIZE, SIZE, 3]; every value from 0 to 255 is among them."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-20, 276, (count, 8, 8, 3))
    fine = coarse.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2) + rng.normal(
        0, 12, (count, SIZE, SIZE, 3)
    )
    return np.clip(fine, 0, 255).astype(np.uint8)


@cache
def exported_resnet18() -> Exported:
    """The whole line up to the simplified graph, once in a test run. Treat it as frozen."""
    network = seeded_resnet18()
    crops = seeded_crops(7)
    reference = record_reference(network, normalize(crops, PREPROCESSING))
    graph, first = to_onnx(network, batch=BATCH, reference=reference)
    graph = simplify(graph)
    second = check_stage(graph.model, reference, step="simplify", batch=BATCH)
    return Exported(network, crops, reference, graph, (first, second))
