"""What is left of the logits in INT8: ours beside ONNX Runtime's methods and NNCF, in one run.

    python -m benchmarks.int8_quality [--nncf PYTHON] [--network healthy|badly-scaled|outliers|tails]

One ResNet-18 trained on handwritten digits, or a hard-to-quantize one (`tests/hard_networks.py`); the same 256
calibration images for everyone, the same backends, 1,000 held-out images. Ours is the default pipeline, and beside it
each method with weights rounded to the nearest and nothing equalized. NNCF needs an interpreter
of its own (`python -m venv nncf; nncf/bin/pip install nncf openvino`).
Graphs with signed activations stand beside our TensorRT graph (typed as fp16, as it ships), those with unsigned
activations and NNCF's beside our CPU graph. ONNX Runtime runs with WeightBiasQuantization off for everyone, OpenVINO
in f32.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from benchmarks.harness import heading
from benchmarks.trained import Run, Trained, batched, decibels, open_openvino, trained_resnet18
from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.methods import METHODS
from resnet_export.calibration.quantize.plan import QuantPlan, default_exclusions
from resnet_export.calibration.quantize.qdq import origins, quantize
from resnet_export.calibration.search.search import plan_int8
from resnet_export.exporter.graph.precision import to_fp16
from resnet_export.exporter.graph.value_ranges import Span, scan_ranges
from resnet_export.exporter.models.resnet import ResNet
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.parity.report.search_text import sentences
from tests import hard_networks

Kind = Literal["signed", "unsigned"]

NNCF = """
import sys
import nncf, numpy, openvino
model, images, out = sys.argv[1:]
images = numpy.load(images)
for preset in ("MIXED", "PERFORMANCE"):
    quantized = nncf.quantize(
        openvino.Core().read_model(model), nncf.Dataset([image[None] for image in images]),
        subset_size=len(images), preset=getattr(nncf.QuantizationPreset, preset), fast_bias_correction=False,
    )
    openvino.save_model(quantized, f"{out}/{preset}.xml", compress_to_fp16=False)
"""


TARGETS: tuple[tuple[TargetName, Kind], ...] = (("tensorrt", "signed"), ("cpu", "unsigned"))

NETWORKS: dict[str, Callable[[ResNet], ResNet] | None] = {
    "healthy": None,
    "badly-scaled": hard_networks.with_badly_scaled_channels,
    "outliers": hard_networks.with_outliers,
    "tails": lambda network: hard_networks.with_hidden_weights(network, 100),
}


@dataclass(frozen=True)
class Entry:
    """One quantized graph: who made it, beside which of our graphs it stands, and how it runs."""

    maker: str
    name: str
    kind: Kind
    runs: dict[str, Run]


def ours(trained: Trained) -> Iterator[Entry]:
    """Both graphs: the default pipeline, and each method by itself."""
    start = time.perf_counter()
    found = plan_int8(trained.model, Photos.of(trained.calibration, None))
    print(f"the default pipeline took {time.perf_counter() - start:.0f} s")
    for line in sentences(found.report):
        print(f"  {line}")
    spans = scan_ranges(replace(trained.graph, model=found.model), iter([trained.calibration]))
    for target, kind in TARGETS:
        yield Entry(
            "ours", f"{target}, default", kind, on_both(typed(trained, found.graph(target), target, spans))
        )
    table = calibrate(trained.model, [trained.calibration], methods=METHODS)
    spans = scan_ranges(trained.graph, iter([trained.calibration]))
    for method in METHODS:
        plan = QuantPlan(method=method, excluded=default_exclusions(trained.model))
        ranges = plan.choose_ranges(table)
        for target, kind in TARGETS:
            model = quantize(trained.model, ranges, plan, target)
            yield Entry("plain", f"{target}, {method}", kind, on_both(typed(trained, model, target, spans)))


def typed(trained: Trained, model: onnx.ModelProto, target: TargetName, spans: Mapping[str, Span]) -> bytes:
    """Return the graph's bytes as it ships: TensorRT's is fp16 around its integers."""
    if target == "tensorrt":
        modules = {name: trained.graph.modules[origin] for name, origin in origins(model).items()}
        model = to_fp16(replace(trained.graph, model=model, modules=modules), spans).graph.model
    return model.SerializeToString()


def onnxruntimes(trained: Trained, folder: Path) -> Iterator[Entry]:
    """`quantize_static` with its three methods, signed and symmetric, and unsigned; weights per channel."""
    from onnxruntime import quantization as tool
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(trained.calibration)

        def get_next(self) -> dict[str, object] | None:
            image = next(self._left, None)
            return None if image is None else {"input": image[None]}

    logging.disable(logging.WARNING)
    source, out = folder / "prepared.onnx", folder / "quantized.onnx"
    quant_pre_process(trained.model, source)
    kinds: tuple[Kind, ...] = ("signed", "unsigned")
    for kind in kinds:
        for method in ("MinMax", "Percentile", "Entropy"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it is doing
                tool.quantize_static(
                    source,
                    out,
                    Reader(),
                    quant_format=tool.QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=tool.QuantType.QInt8 if kind == "signed" else tool.QuantType.QUInt8,
                    weight_type=tool.QuantType.QInt8,
                    calibrate_method=getattr(tool.CalibrationMethod, method),
                    extra_options={"ActivationSymmetric": kind == "signed"},
                )
            yield Entry("ONNX Runtime", f"{kind}, {method}", kind, on_both(out.read_bytes()))


def nncfs(trained: Trained, python: str, folder: Path) -> Iterator[Entry]:
    """NNCF with bias correction, in both presets, on OpenVINO."""
    onnx.save(trained.model, folder / "model.onnx")
    np.save(folder / "images.npy", trained.calibration)
    command = [python, "-c", NNCF, str(folder / "model.onnx"), str(folder / "images.npy"), str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    for preset in ("MIXED", "PERFORMANCE"):
        run = open_openvino(str(folder / f"{preset}.xml"))
        yield Entry("NNCF", f"{preset.lower()}, bias correction", "unsigned", {"OpenVINO": run})


def on_both(data: bytes) -> dict[str, Run]:
    session = CpuSession(data)
    return {"ONNX Runtime": lambda batch: session.run(batch)[0], "OpenVINO": open_openvino(data)}


def main() -> None:
    """Print a row per graph and backend, and by how much the best of ours leads the best of theirs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nncf", metavar="PYTHON", help="an interpreter that has nncf and openvino")
    parser.add_argument(
        "--network", choices=NETWORKS, default="healthy", help="the network, or one that is hard to quantize"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training and the held-out images")
    asked = parser.parse_args()
    heading(f"INT8 against float32, ResNet-18 on handwritten digits, {asked.network}, seed {asked.seed}")
    trained = trained_resnet18(asked.seed, NETWORKS[asked.network])
    accuracy = (trained.logits.argmax(axis=1) == trained.labels).mean()
    print(
        f"float32: top-1 {accuracy:.2%} of {len(trained.labels)}; calibrated on {len(trained.calibration)} images"
    )
    best: dict[tuple[Kind, str, bool], float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = [*ours(trained), *onnxruntimes(trained, folder)]
        if asked.nncf:
            entries += nncfs(trained, asked.nncf, folder)
        for entry in sorted(entries, key=lambda entry: entry.kind):
            for backend, run in entry.runs.items():
                logits = batched(run, trained.images)
                found = decibels(logits, trained.logits)
                agree = (logits.argmax(axis=1) == trained.logits.argmax(axis=1)).mean()
                top1 = (logits.argmax(axis=1) == trained.labels).mean()
                print(
                    f"  {entry.kind:<9} {entry.maker:<13} {entry.name:<28} on {backend:<13}"
                    f" {found:6.2f} dB   agreement {agree:.2%}   top-1 {top1:.2%}"
                )
                if entry.maker != "plain":
                    key = entry.kind, backend, entry.maker == "ours"
                    best[key] = max(found, best.get(key, -np.inf))
    for kind, backend, is_ours in best:
        if is_ours:
            lead = best[kind, backend, True] - best[kind, backend, False]
            print(f"lead over the best peer, {kind}, on {backend}: {lead:.2f} dB (bar: at least 2)")


if __name__ == "__main__":
    main()
