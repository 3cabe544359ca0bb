"""What INT8 leaves of the logits at every depth: the default export, judged on crops that it never saw.

    python -m benchmarks.int8_depths [DEPTH ...]

Exports each untrained network with `--int8` on 256 natural crops, everything else at its default, and runs both
artifacts on ONNX Runtime over 512 other crops, against the fp32 graph (which is within 3e-6 of eager, see
`benchmarks.fp16_depths`). Prints what the search took, step by step.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import heading
from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.runtime import open_session
from resnet_export.runtime.parity.measure.metrics import Figures, Metrics
from resnet_export.runtime.preprocess import to_input
from tests.natural_crops import natural_crops

CALIBRATION, CROPS, BATCH, SIZE = 256, 512, 8, 224
GRAPHS = ("int8.tensorrt", "int8.cpu")


def export_int8(depth: int, folder: Path) -> Path:
    """Export the untrained network of this depth with INT8 and return the bundle."""
    images = folder / "calibration.npz"
    np.savez(images, images=natural_crops(CALIBRATION, SIZE, seed=2))
    out = folder / f"resnet{depth}"
    export(ModelSpec(depth=depth), ExportSpec(int8=True, calib=images, engine="none"), out)
    return out


def measure(bundle: Path) -> dict[str, Figures]:
    """Return graph → figures over `CROPS` seeded crops."""
    crops = natural_crops(CROPS, SIZE, seed=1)
    sums: dict[str, Metrics] = {}
    opened = {name: open_session(bundle, artifact=name, backend="onnxruntime") for name in ("fp32", *GRAPHS)}
    for start in range(0, CROPS, BATCH):
        batch = to_input(crops[start : start + BATCH], opened["fp32"].manifest.preprocessing)
        reference = opened["fp32"].run(batch)
        for name in GRAPHS:
            found = Metrics.of(reference, opened[name].run(batch))
            sums[name] = sums[name] + found if name in sums else found
    for session in opened.values():
        session.close()
    return {name: metrics.result() for name, metrics in sums.items()}


def main(depths: list[int]) -> None:
    """Print two rows per depth."""
    heading(f"INT8 against fp32, {CROPS} natural crops of {SIZE} pixels, untrained networks")
    for depth in depths:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            bundle = export_int8(depth, Path(folder))
            seconds = time.perf_counter() - start
            spent = json.loads((bundle / "report.json").read_text())["times"]["int8"]["seconds"]
            steps = ", ".join(f"{name} {taken:.0f} s" for name, taken in spent.items())
            print(f"ResNet-{depth}: export on {CALIBRATION} images {seconds:.0f} s, of which {steps}")
            for name, found in measure(bundle).items():
                print(
                    f"  {name:<10} SNR {found.snr_db:5.1f} dB  centered cosine {found.centered_cosine:.5f} (bar 0.99)  "
                    f"agreement {100 * found.top1_agreement:.1f} %, {found.reference_classes} classes",
                    flush=True,
                )


if __name__ == "__main__":
    main([int(depth) for depth in sys.argv[1:]] or [18, 34, 50, 101, 152])
