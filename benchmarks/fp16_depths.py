"""What each step costs in accuracy, at every depth: ONNX, simplified and fp16 against eager, on natural crops.

    python -m benchmarks.fp16_depths [DEPTH ...]

The networks are untrained; `classes` counts the different classes that eager predicts, since agreement
proves nothing on a network that predicts one. fp16 runs on ONNX Runtime's CPU provider, which computes in
fp32 and rounds to fp16 between operators.
"""

from __future__ import annotations

import sys

import numpy as np
import torch

from benchmarks.harness import heading
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter.graph.export import simplify, to_onnx
from resnet_export.exporter.graph.exported_graph import serialize
from resnet_export.exporter.graph.precision import to_fp16
from resnet_export.exporter.graph.stage_check import record_reference
from resnet_export.exporter.graph.value_ranges import scan_ranges
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.models.photographs import photographs
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import BatchRange
from resnet_export.runtime.parity.measure.metrics import Figures, Metrics
from resnet_export.runtime.preprocess import normalize
from tests.natural_crops import natural_crops

CROPS = 512
BATCH = 8
SIZE = 224


def measure(depth: int) -> dict[str, Figures]:
    """Return stage → figures over `CROPS` seeded crops for the untrained network of this depth."""
    network = load_classifier(ModelSpec(depth=depth, image_size=SIZE))
    pre = network.preprocessing
    photos = normalize(photographs(SIZE)[:16], pre)
    reference = record_reference(network.module, photos[:4])
    exported, _ = to_onnx(network.module, batch=BatchRange(min=1, opt=4, max=4), reference=reference)
    simplified = simplify(exported)
    half = to_fp16(simplified, scan_ranges(simplified, [photos])).graph
    stages = {"onnx": exported, "simplified": simplified, "fp16": half}
    sessions = {name: CpuSession(serialize(graph.model)) for name, graph in stages.items()}
    sums: dict[str, Metrics] = {}
    crops = natural_crops(CROPS, SIZE, seed=1)
    for start in range(0, CROPS, BATCH):
        batch = normalize(crops[start : start + BATCH], pre)
        with torch.inference_mode():
            eager = network.module(torch.from_numpy(batch)).numpy()
        for name, session in sessions.items():
            found = Metrics.of(eager, np.asarray(session.run(batch)[0]))
            sums[name] = sums[name] + found if name in sums else found
    return {name: metrics.result() for name, metrics in sums.items()}


def main(depths: list[int]) -> None:
    """Print a row per depth and stage."""
    heading(f"Against eager fp32, {CROPS} natural crops of {SIZE} pixels, untrained networks")
    print(f"  {'':<24} {'rel. error':>10} {'centered cosine':>15} {'agreement':>10} {'classes':>8}")
    for depth in depths:
        for name, found in measure(depth).items():
            print(
                f"  {f'ResNet-{depth} {name}':<24} {found.relative_error:10.1e} {found.centered_cosine:15.7f} "
                f"{100 * found.top1_agreement:8.2f} % {found.reference_classes:8}",
                flush=True,
            )


if __name__ == "__main__":
    main([int(depth) for depth in sys.argv[1:]] or [18, 34, 50, 101, 152])
