"""Do clean bundles pass? Every depth, many seeds: exported, checked, and checked again on images of another draw.

    python -m benchmarks.parity_clean LOG [--depths 18 34 50 101 152] [--seeds 50] [--checks 1]
        [--size 64] [--images 64] [--plain]

Each export has fp32, fp16 and both int8 graphs, and runs on every backend of this host. With --checks, every bundle is
checked so many times, on images of as many draws. With --plain, INT8 is
quantized without its improvements, which takes a third of the time. One line of JSON a bundle is appended to LOG, and a
bundle that stands there is not made again, so that the benchmark can be stopped and resumed. Prints every failure with
what broke, then the worst figures and how many bundles passed, by depth.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import heading
from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.runtime.parity import Batch, run_parity
from resnet_export.runtime.parity.report.schema import ParityReport
from tests.natural_crops import natural_crops

DEPTHS = (18, 34, 50, 101, 152)
BATCH = 8
CALIBRATION = 64

Row = dict[str, Any]


def measure(depth: int, seed: int, size: int, images: int, checks: int, *, plain: bool) -> Row:
    """Export the untrained network of this depth and seed, check it on other crops each time, and return the result."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        calib = Path(folder) / "calibration.npz"
        np.savez(calib, images=natural_crops(CALIBRATION, size, seed=seed))
        spec = ExportSpec(fp16=True, int8=True, calib=calib, engine="none")
        if plain:
            spec = replace(spec, calib_method="mse", equalize=False, correct_bias=False, round_weights=False)
        bundle = export(
            ModelSpec(depth=depth, image_size=size, seed=seed), spec, Path(folder) / "bundle"
        ).bundle
        exported = time.perf_counter() - start
        reports = []
        for draw in range(1000 + seed * checks, 1000 + (seed + 1) * checks):
            crops = natural_crops(images, size, seed=draw)
            data = (Batch(crops[first : first + BATCH]) for first in range(0, images, BATCH))
            reports.append(run_parity(bundle.path, batches=data, data=f"natural crops, seed {draw}"))
    failed = [report for report in reports if report.verdict.status != "passed"]
    return {
        "depth": depth,
        "seed": seed,
        "size": size,
        "plain": plain,
        "checks": checks,
        "passed": checks - len(failed),
        "sentences": [report.verdict.sentence for report in failed],
        "runs": [run for report in reports for run in _runs(report)],
        "export_seconds": round(exported, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _runs(report: ParityReport) -> Iterator[Row]:
    for entry in report.entries:
        for check in entry.checks:
            figures = check.comparison.figures
            yield {
                "run": entry.title,
                "precision": str(entry.held_to),
                "images": check.images,
                "passed": check.passed,
                "relative_error": figures.relative_error,
                "distance": None if figures.centered_cosine is None else 1 - figures.centered_cosine,
                "top1": figures.top1,
                "near_ties": figures.near_tie_flips,
                "count": figures.images,
            }


def show(rows: list[Row]) -> None:
    """Print failures, the worst figures by depth and precision, and the counts."""
    for row in rows:
        for sentence in row["sentences"]:
            print(f"  ResNet-{row['depth']}, seed {row['seed']}: {sentence}")
    depths = sorted({row["depth"] for row in rows})
    for depth in depths:
        worst: dict[str, tuple[float, float, float]] = {}
        for run in (run for row in rows if row["depth"] == depth for run in row["runs"]):
            error, distance, flips = worst.get(run["precision"], (0.0, 0.0, 0.0))
            worst[run["precision"]] = (
                max(error, run["relative_error"] or 0.0),
                max(distance, run["distance"] or 0.0),
                max(flips, 1 - (run["top1"] + run["near_ties"]) / run["count"]),
            )
        for precision, (error, distance, flips) in worst.items():
            print(
                f"  ResNet-{depth:<4}{precision:<5} worst relative error {error:.1e}, 1 - centered cosine "
                f"{distance:.1e}, flips that are no near ties {100 * flips:.1f} %"
            )
    for depth in depths:
        mine = [row for row in rows if row["depth"] == depth]
        passed, made = (sum(row[name] for row in mine) for name in ("passed", "checks"))
        print(f"  ResNet-{depth}: {passed} of {made} checks of {len(mine)} bundles passed")


def main() -> None:
    """Make what LOG lacks, seed by seed, and print what it holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log", type=Path)
    parser.add_argument("--depths", nargs="*", type=int, default=DEPTHS)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--checks", type=int, default=1)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--plain", action="store_true")
    asked = parser.parse_args()
    asked.log.touch()
    rows = [json.loads(line) for line in asked.log.read_text().splitlines()]
    done = {(row["depth"], row["seed"], row["size"], row["checks"], row["plain"]) for row in rows}
    for seed in range(asked.seeds):
        for depth in asked.depths:
            if (depth, seed, asked.size, asked.checks, asked.plain) not in done:
                row = measure(depth, seed, asked.size, asked.images, asked.checks, plain=asked.plain)
                with asked.log.open("a") as log:
                    log.write(json.dumps(row) + "\n")
                rows.append(row)
                print(
                    f"ResNet-{depth}, seed {seed}: {row['passed']} of {row['checks']} passed in {row['seconds']} s",
                    flush=True,
                )
    heading(
        f"Clean bundles, untrained, {asked.size} pixels, golden images and {asked.images} natural crops each"
    )
    show([row for row in rows if (row["size"], row["plain"]) == (asked.size, asked.plain)])


if __name__ == "__main__":
    main()
