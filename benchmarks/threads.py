"""Requests of mixed batch sizes from one thread and from many, ONNX Runtime and OpenVINO in turn.

python -m benchmarks.threads BUNDLE [REQUESTS [THREADS]]

ResNet-18 at 64 pixels is where threads matter most: `resnet-export --depth 18 --image-size 64 --out BUNDLE`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import heading, interleave, paired_ratio
from resnet_export.runtime import Session, open_session
from resnet_export.runtime.backends.libraries import import_library

ROUNDS = 9
SIZES = (1, 2, 3, 4, 8)
Batches = Sequence[np.ndarray]


def _bare_openvino(model: Path) -> Callable[[np.ndarray], object]:
    core = import_library("openvino").Core()
    config = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(model.read_bytes()), "CPU", config).create_infer_request()
    return lambda batch: request.infer(batch, share_inputs=True, share_outputs=False)


def _alone(run: Callable[[np.ndarray], object], batches: Batches) -> None:
    for batch in batches:
        run(batch)


def _together(session: Session, batches: Batches, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(session.run, batches):
            pass


def main(bundle: Path, requests: int = 200, threads: int = 64) -> None:
    """Print medians and ratios."""
    heading(
        f"{requests} requests of {', '.join(map(str, SIZES))} images, fp32, from 1 and from {threads} threads"
    )
    draw = np.random.default_rng(0)
    with (
        open_session(bundle, backend="onnxruntime", artifact="fp32") as ort,
        open_session(bundle, backend="openvino", artifact="fp32") as openvino,
    ):
        shape = ort.manifest.input.shape[1:]
        batches = [
            draw.normal(size=(int(size), *shape)).astype(np.float32) for size in draw.choice(SIZES, requests)
        ]
        contenders: dict[str, Callable[[], object]] = {
            "bare": partial(_alone, _bare_openvino(bundle / "model.onnx"), batches),
            "openvino": partial(_alone, openvino.run, batches),
            "onnxruntime": partial(_alone, ort.run, batches),
            "openvino, threads": partial(_together, openvino, batches, threads),
            "onnxruntime, threads": partial(_together, ort, batches, threads),
        }
        times = interleave(contenders, rounds=ROUNDS, warmup=1)
    for name, found in times.items():
        print(f"  {name:<22} {statistics.median(found):6.2f} s")
    for title, ours, theirs, bar in (
        ("from one thread, openvino / bare OpenVINO", "openvino", "bare", "1.03"),
        ("from many threads, openvino / onnxruntime", "openvino, threads", "onnxruntime, threads", "1.2"),
    ):
        print(f"  {title}: {paired_ratio(times[ours], times[theirs]):.2f}   (bar: at most {bar})")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
