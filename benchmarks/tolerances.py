"""The experiment behind the limits in `runtime/parity/criteria/tolerances.py`: how far clean artifacts are from eager.

    python -m benchmarks.tolerances [DEPTH ...] [--seeds N] [--crops N] [--int8]

Exports an untrained network of each depth from each seed, runs every artifact on every backend of this host, in every
precision that it offers, on the golden photographs and on seeded natural crops of them, and prints the worst
figures per precision beside the limits. `docs/tolerances.md` holds the results that the limits were set from.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import heading
from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.runtime.parity import Batch, run_parity
from resnet_export.runtime.parity.criteria.tolerances import TABLE
from resnet_export.runtime.parity.measure.metrics import Figures
from resnet_export.runtime.precision import Precision
from tests.natural_crops import natural_crops

BATCH = 8


def measure(
    depth: int, seed: int, crops: int, size: int, int8: bool
) -> Iterator[tuple[Precision, str, Figures]]:
    """Yield precision, what ran on which images, and the figures, for one network."""
    with tempfile.TemporaryDirectory() as folder:
        spec = ExportSpec(fp16=True, bf16=True, int8=int8, engine="none")
        bundle = export(
            ModelSpec(depth=depth, seed=seed, image_size=size), spec, Path(folder) / "bundle"
        ).bundle
        images = natural_crops(crops, size, seed=1000 + seed)
        batches = [Batch(images[start : start + BATCH]) for start in range(0, crops, BATCH)]
        report = run_parity(bundle.path, batches=batches or None, precisions=list(Precision))
    for entry in report.entries:
        for check in entry.checks:
            yield entry.held_to, f"{entry.title}, {check.images}", check.comparison.figures


def main() -> None:
    """Print a row per run, then the worst per precision with its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("depths", nargs="*", type=int, default=[18, 34, 50, 101, 152])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--int8", action="store_true")
    asked = parser.parse_args()
    heading("Untrained networks against eager (golden) and against fp32 ONNX (data)")
    found: dict[Precision, list[Figures]] = {}
    for depth in asked.depths:
        for seed in range(asked.seeds):
            for precision, title, figures in measure(depth, seed, asked.crops, asked.size, asked.int8):
                found.setdefault(precision, []).append(figures)
                print(f"  ResNet-{depth}, seed {seed}: {title:<36} {_row(figures)}", flush=True)
    heading("The worst of them, and the limits")
    for precision, rows in found.items():
        limits = TABLE[precision]
        error = max(figures.relative_error or 0.0 for figures in rows)
        distance = max(1 - (figures.centered_cosine or 0.0) for figures in rows)
        agreement = min(figures.top1_agreement for figures in rows)
        print(f"  {precision:<5} relative error {error:.1e}, limit {limits.relative_error}")
        print(
            f"  {precision:<5} 1 - centered cosine {distance:.1e}, limit {1 - (limits.centered_cosine or 0.0):.1e}"
        )
        print(f"  {precision:<5} agreement {agreement:.3f}, limit {limits.top1_agreement}")


def _row(figures: Figures) -> str:
    return (
        f"{figures.relative_error or 0.0:.2e}  1-cos {1 - (figures.centered_cosine or 0.0):.2e}  "
        f"{figures.top1}/{figures.images}, {figures.near_tie_flips} near ties"
    )


if __name__ == "__main__":
    main()
