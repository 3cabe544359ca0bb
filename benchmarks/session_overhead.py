"""What `Session.run` adds to calling the backend directly, ResNet-50, batch 1.

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
from resnet_export.runtime import open_session

ROUNDS = 60


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
    heading("Session.run against the backend called directly, fp32, batch 1")
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    for backend, direct in [("onnxruntime", _onnxruntime), ("openvino", _openvino)]:
        call = direct(bundle / "model.onnx")
        with open_session(bundle, backend=backend, artifact="fp32") as session:
            contenders = {"direct": partial(call, image), "session": partial(session.run, image)}
            times = interleave(contenders, rounds=ROUNDS, warmup=5)
        ratio = paired_ratio(times["session"], times["direct"])
        direct_ms = statistics.median(times["direct"]) * 1000
        print(
            f"  {backend:<12} direct {direct_ms:6.1f} ms   session / direct {ratio:.3f}   (bar: at most 1.03)"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
