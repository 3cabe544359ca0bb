"""What `Session.run` adds to calling the backend directly, at batch 1 and 8.

python -m benchmarks.session_overhead BUNDLE
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import heading, interleave, paired_ratio
from resnet_export.runtime import open_session, read_manifest

ROUNDS = 120


def _onnxruntime(model: Path) -> Callable[[np.ndarray], object]:
    import onnxruntime as ort

    session = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return lambda batch: session.run(None, {"input": batch})


def _openvino(model: Path) -> Callable[[np.ndarray], object]:
    import openvino as ov

    compiled = ov.Core().compile_model(str(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    return lambda batch: request.infer({"input": batch})


def main(bundle: Path) -> None:
    """Print medians and ratios."""
    heading("Session.run against the backend called directly, fp32")
    shape = read_manifest(bundle).input.shape[1:]
    for backend, direct in [("onnxruntime", _onnxruntime), ("openvino", _openvino)]:
        call = direct(bundle / "model.onnx")
        with open_session(bundle, backend=backend, artifact="fp32") as session:
            for size in (1, 8):
                batch = np.random.default_rng(0).standard_normal((size, *shape), dtype=np.float32)
                contenders = {"direct": partial(call, batch), "session": partial(session.run, batch)}
                times = interleave(contenders, rounds=ROUNDS // size, warmup=5)
                ratio = paired_ratio(times["session"], times["direct"])
                direct_ms = statistics.median(times["direct"]) * 1000
                print(
                    f"  {backend:<12} batch {size}   direct {direct_ms:6.1f} ms   session / direct {ratio:.3f}   "
                    "(bar: at most 1.02)"
                )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
