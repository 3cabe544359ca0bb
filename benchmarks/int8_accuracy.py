"""What a bundle at its defaults costs a network that errs: accuracy, agreement and error over 10,000 unseen images.

    python -m benchmarks.int8_accuracy IDX_FOLDER [--depths 18 50] [--calibration 256]

Trains each depth on Fashion-MNIST (kept in build/checkpoints; minutes for ResNet-18, a quarter of an hour for
ResNet-50, on two cores), exports it with `--fp16 --int8`, everything else at its default, and lets the gate judge
every artifact on every backend of this host by the labeled test images. The limits shown are those that the bundle
carries.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.fashion import fashion
from benchmarks.harness import heading
from benchmarks.trained import CHECKPOINTS
from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.exporter.models.zoo import ZOO
from resnet_export.runtime.parity import Batch, ParityReport, run_parity
from tests.digits import CLASSES, SIZE, Digits
from tests.trained import checkpoint

BATCH = 50


def main() -> None:
    """Print a row per depth, artifact and backend, and the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the IDX files of Fashion-MNIST lie")
    parser.add_argument("--depths", nargs="*", type=int, default=[18, 50])
    parser.add_argument("--calibration", type=int, default=256)
    asked = parser.parse_args()
    task = fashion(asked.folder)
    train, test = task.splits(0)
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    heading(f"Trained on {len(train.labels)} clothes, calibrated on {asked.calibration} of them")
    for depth in asked.depths:
        weights = checkpoint(CHECKPOINTS, ZOO[f"resnet{depth}"], task=task)
        with tempfile.TemporaryDirectory() as scratch:
            calib = Path(scratch) / "calibration.npz"
            np.savez(
                calib, images=train.images[: asked.calibration], labels=train.labels[: asked.calibration]
            )
            start = time.perf_counter()
            bundle = export(
                ModelSpec(weights=str(weights), num_classes=CLASSES, image_size=SIZE),
                ExportSpec(fp16=True, int8=True, calib=calib, engine="none"),
                Path(scratch) / "bundle",
            ).bundle
            seconds = time.perf_counter() - start
            show(f"ResNet-{depth}, exported in {seconds:.0f} s", _check(bundle.path, test))


def _check(bundle: Path, test: Digits) -> ParityReport:
    batches = (
        Batch(test.images[start : start + BATCH], test.labels[start : start + BATCH])
        for start in range(0, len(test.labels), BATCH)
    )
    return run_parity(bundle, batches=batches, data="Fashion-MNIST's test images")


def show(title: str, report: ParityReport) -> None:
    """Print what the gate saw on the labeled images."""
    print(f"{title}: {report.verdict.sentence}")
    for entry in report.entries:
        check = entry.check("data")
        if check is None or check.comparison.labeled is None:  # the reference itself, or what did not run
            continue
        figures, labeled, limit = check.comparison.figures, check.comparison.labeled, entry.tolerance
        drop = labeled.drop_interval_points
        print(
            f"  {entry.title:<24} {100 * labeled.candidate_accuracy:6.2f} % right (fp32 "
            f"{100 * labeled.reference_accuracy:.2f}), drop {labeled.drop_points:+.2f} "
            f"[{drop.low:+.2f}, {drop.high:+.2f}] points, p {labeled.p_value:.2f}, agreement "
            f"{100 * figures.top1_agreement:.2f} %, relative error {figures.relative_error:.4f} (limit "
            f"{limit.relative_error}), 1 - centered cosine {1 - (figures.centered_cosine or 0.0):.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
