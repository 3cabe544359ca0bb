"""What a parity check costs beside the inference in it, and whether its memory grows with the images.

    python -m benchmarks.parity_cost BUNDLE [--images 1000] [--fewer 100] [--rounds 3] [--threads 2]

Three contenders take turns, each in a process of its own: the check on crops that lie in an .npz archive, the check on
JPEG photographs that it has to decode, and, as the measure of both, the same sessions run on the same crops in a bare
loop. Quotes medians of ratios: wall time and processor time against the bare loop, and the check's own `times` (seconds
in all over the seconds that backends ran). Then peak memory with all images and with fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness import heading, run_process
from resnet_export.calibration.data.dataset import open_dataset
from resnet_export.runtime.bundle.golden import read_golden
from resnet_export.runtime.bundle.manifest import read_manifest
from resnet_export.runtime.parity import Batch, run_parity
from resnet_export.runtime.parity.golden_check import batch_slices, full_batches
from resnet_export.runtime.parity.plan import plan
from resnet_export.runtime.parity.spec import ParitySpec
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.select.host import probe
from resnet_export.runtime.session import open_session
from tests.natural_crops import natural_crops

_DISTINCT = 100  # crops that are drawn; more images repeat them


def main() -> None:
    """Print the costs; with --worker, be one contender and print its own as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--fewer", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--worker", choices=["check", "bare"], help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        found = (_check if asked.worker == "check" else _bare)(
            asked.bundle, asked.data, asked.images, asked.threads
        )
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as scratch:
        _measure(asked, Path(scratch))


def _measure(asked: argparse.Namespace, folder: Path) -> None:
    manifest = read_manifest(asked.bundle)
    archive, photographs = _write_data(folder, asked.images, manifest.preprocessing.crop)
    contenders = {
        "check, crops": ("check", archive),
        "check, JPEG": ("check", photographs),
        "bare loop": ("bare", archive),
    }
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(asked.rounds):
        for name, (worker, data) in contenders.items():
            rows[name].append(_run(asked, worker, data, asked.images, folder))
    heading(f"Parity of {manifest.model.arch}, {asked.images} images of {manifest.preprocessing.crop} pixels")
    for name, measured in rows.items():
        print(
            f"  {name:<14} {_median(measured, 'seconds'):7.1f} s wall, {_median(measured, 'cpu'):7.1f} s CPU, "
            f"{_median(measured, 'peak_mb'):6.0f} MB at most"
        )
    for name in ("check, crops", "check, JPEG"):
        pairs = list(zip(rows[name], rows["bare loop"], strict=True))
        wall, cpu = (statistics.median(a[key] / b[key] for a, b in pairs) for key in ("seconds", "cpu"))
        own = statistics.median(a["seconds"] / a["running"] for a, _ in pairs)
        print(
            f"  {name}: {wall:.3f} times the bare loop in wall time, {cpu:.3f} in processor time; "
            f"{own:.3f} times what its backends ran"
        )
    fewer = _run(asked, "check", archive, asked.fewer, folder)
    print(
        f"  peak memory with {asked.fewer} images: {fewer['peak_mb']:.0f} MB, with {asked.images}: "
        f"{_median(rows['check, crops'], 'peak_mb'):.0f} MB"
    )


def _run(asked: argparse.Namespace, worker: str, data: Path, images: int, folder: Path) -> dict[str, float]:
    log = folder / "worker.log"
    log.unlink(missing_ok=True)
    options = [
        "--worker",
        worker,
        "--data",
        str(data),
        "--images",
        str(images),
        "--threads",
        str(asked.threads),
    ]
    command = [sys.executable, "-m", "benchmarks.parity_cost", str(asked.bundle.resolve()), *options]
    cost = run_process(command, log)
    found: dict[str, float] = json.loads(log.read_text().splitlines()[-1])
    return {**found, "peak_mb": cost.peak_mb}


def _check(bundle: Path, data: Path, images: int, threads: int) -> dict[str, float]:
    manifest = read_manifest(bundle)
    start = time.perf_counter()
    dataset = open_dataset(data, preprocessing=manifest.preprocessing, limit=images)
    batches = (Batch(batch.images) for batch in dataset.batches(manifest.batch.opt))
    report = run_parity(bundle, batches=batches, threads=threads)
    running = sum(report.times["running"].values())
    return {"seconds": time.perf_counter() - start, "cpu": _cpu(), "running": running}


def _bare(bundle: Path, data: Path, images: int, threads: int) -> dict[str, float]:
    """Open what the check opens and run it on the same golden images and crops; nothing is compared."""
    manifest = read_manifest(bundle)
    start = time.perf_counter()
    crops = np.load(data)["images"][:images]
    golden = read_golden(bundle).images
    planned = plan(manifest, probe(), ParitySpec(data="crops"))
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(
                open_session(
                    bundle,
                    backend=run.backend,
                    precision=run.precision,
                    artifact=run.artifact.name,
                    device=run.device,
                    threads=threads,
                )
            )
            for run in planned.runs
        ]
        for batch in _batches(golden, crops, manifest.batch):
            ready = to_input(batch, manifest.preprocessing)
            for session in sessions:
                session.run(ready)
    return {"seconds": time.perf_counter() - start, "cpu": _cpu(), "running": 0.0}


def _batches(golden: NDArray[np.uint8], crops: NDArray[np.uint8], batch: Any) -> Iterator[NDArray[np.uint8]]:
    for part in batch_slices(len(golden), batch):
        yield golden[part]
    for rows in full_batches(len(golden), batch):
        yield golden[rows]
    for start in range(0, len(crops), batch.opt):
        yield crops[start : start + batch.opt]


def _write_data(folder: Path, count: int, side: int) -> tuple[Path, Path]:
    """Write crops as an archive, and pictures of half as many pixels again as JPEG files."""
    drawn = natural_crops(min(count, _DISTINCT), side, seed=7)
    archive, photographs = folder / "crops.npz", folder / "photographs"
    np.savez(archive, images=np.concatenate([drawn] * (count // len(drawn) + 1))[:count])
    photographs.mkdir()
    large = [Image.fromarray(crop).resize((2 * side, 3 * side // 2)) for crop in drawn]
    for i in range(count):
        large[i % len(large)].save(photographs / f"{i:05}.jpg", quality=90)
    return archive, photographs


def _cpu() -> float:
    spent = os.times()
    return spent.user + spent.system


def _median(rows: list[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


if __name__ == "__main__":
    main()
