"""What requests cost: one against `classify`, 32 clients against whole batches, JPEG files against their parts.

python -m benchmarks.serving BUNDLE [BACKEND...]
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.harness import heading, interleave, paired_ratio
from resnet_export.runtime import Session, open_session
from resnet_export.runtime.preprocess import load

CLIENTS, EACH = 32, 4
SIZES = (1, 2, 4, 8, 16, 32)
ROUNDS = 7


def _frames(session: Session, count: int) -> list[np.ndarray]:
    height, width = session.manifest.preprocessing.size
    return list(np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8))


def lone_request(session: Session) -> float:
    """Return the time of one request, submitted and waited for, over that of `classify`."""
    (frame,) = _frames(session, 1)
    times = interleave(
        {"classify": lambda: session.classify([frame]), "submit": lambda: session.submit(frame).result()},
        rounds=40,
        warmup=5,
    )
    return paired_ratio(times["submit"], times["classify"])


def concurrent_clients(session: Session) -> float:
    """Return the throughput of 32 clients, one request each at a time, over the best of whole batches."""
    frames = _frames(session, CLIENTS)
    batch = np.concatenate([session.preprocess(frame) for frame in frames])
    with ThreadPoolExecutor(CLIENTS) as pool:

        def ask(frame: np.ndarray) -> None:
            for _ in range(EACH):
                session.submit(frame).result()

        def clients() -> object:
            return list(pool.map(ask, frames))

        def batches(size: int) -> Callable[[], object]:
            return lambda: [session.run(batch[at : at + size]) for at in range(0, CLIENTS, size)]

        whole = {f"batch {size}": batches(size) for size in SIZES}
        times = interleave({"clients": clients, **whole}, rounds=ROUNDS, warmup=1)
    best = min((times[name] for name in whole), key=statistics.median)
    return EACH * paired_ratio(best, times["clients"])


def jpeg_files(session: Session) -> tuple[float, float, float]:
    """Return the throughput of `classify` over JPEG files, relative to its slower part, and the times of both parts."""
    draw = np.random.default_rng(0)
    files = []
    for _ in range(48):
        coarse = Image.fromarray(draw.integers(0, 256, (30, 40, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    preprocessing, size = session.manifest.preprocessing, session.manifest.batch.opt
    batch = np.concatenate([session.preprocess(file) for file in files[:size]])
    times = interleave(
        {
            "decode": lambda: [load(file, preprocessing) for file in files],
            "run": lambda: [session.run(batch) for _ in range(len(files) // size)],
            "classify": lambda: session.classify(files),
        },
        rounds=ROUNDS,
    )
    slower = [max(pair) for pair in zip(times["decode"], times["run"], strict=True)]
    decode, run = (1000 * statistics.median(times[name]) / len(files) for name in ("decode", "run"))
    return paired_ratio(slower, times["classify"]), decode, run


def main(bundle: Path, backends: list[str]) -> None:
    """Print the ratios."""
    heading("Requests")
    for backend in backends:
        with open_session(bundle, backend=backend) as session:
            session.warmup()
            print(f"  {session.choice}")
            print(
                f"    lone request / classify              {lone_request(session):.3f}   (bar: at most 1.1)"
            )
            found = concurrent_clients(session)
            print(f"    32 clients / best batched throughput {found:.3f}   (bar: at least 0.9)")
            ratio, decode, run = jpeg_files(session)
            print(
                f"    JPEG files / the slower part alone   {ratio:.3f}   (bar: at least 0.9; ms an image: decode "
                f"{decode:.1f}, run {run:.1f})"
            )


if __name__ == "__main__":
    start = time.perf_counter()
    main(Path(sys.argv[1]), sys.argv[2:] or ["onnxruntime", "openvino"])
    print(f"  {time.perf_counter() - start:.0f} s")
