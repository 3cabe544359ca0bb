"""What is left of the logits in INT8: ours beside ONNX Runtime's methods and NNCF, in one run.

    python -m benchmarks.int8_quality [--nncf PYTHON]

One ResNet-18 trained on handwritten digits, the same 256 calibration images for everyone, the same backends, 1,024
held-out images. NNCF needs an interpreter of its own (`python -m venv nncf; nncf/bin/pip install nncf openvino`).
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
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from benchmarks.harness import heading
from benchmarks.trained import Run, Trained, batched, decibels, open_openvino, trained_resnet18
from resnet_export.calibration.calibrate import calibrate
from resnet_export.calibration.cpu_session import CpuSession
from resnet_export.calibration.layout import Target
from resnet_export.calibration.plan import QuantPlan, default_kept
from resnet_export.calibration.qdq import origins, quantize
from resnet_export.calibration.ranges import METHODS
from resnet_export.calibration.table import CalibrationTable
from resnet_export.exporter.precision import to_fp16
from resnet_export.exporter.ranges import scan_ranges

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


@dataclass(frozen=True)
class Entry:
    """One quantized graph: who made it, beside which of our graphs it stands, and how it runs."""

    maker: str
    name: str
    kind: Kind
    runs: dict[str, Run]


def ours(trained: Trained, table: CalibrationTable) -> Iterator[Entry]:
    """Both graphs with each method."""
    spans = scan_ranges(trained.graph, iter([trained.calibration]))
    targets: tuple[tuple[Target, Kind], ...] = (("tensorrt", "signed"), ("cpu", "unsigned"))
    for method in METHODS:
        plan = QuantPlan(method=method, kept=default_kept(trained.model))
        ranges = plan.choose_ranges(table)
        for target, kind in targets:
            model = quantize(trained.model, ranges, plan, target)
            if target == "tensorrt":
                modules = {name: trained.graph.modules[origin] for name, origin in origins(model).items()}
                model = to_fp16(replace(trained.graph, model=model, modules=modules), spans).graph.model
            yield Entry("ours", f"{target}, {method}", kind, on_both(model.SerializeToString()))


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
    asked = parser.parse_args()
    heading("INT8 against float32, ResNet-18 on handwritten digits")
    trained = trained_resnet18()
    table = calibrate(trained.model, [trained.calibration], methods=METHODS)
    accuracy = (trained.logits.argmax(axis=1) == trained.labels).mean()
    print(f"float32: top-1 {accuracy:.2%} of {len(trained.labels)}; calibrated on {table.images} images")
    best: dict[tuple[Kind, str, bool], float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = [*ours(trained, table), *onnxruntimes(trained, folder)]
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
                key = entry.kind, backend, entry.maker == "ours"
                best[key] = max(found, best.get(key, -np.inf))
    for kind, backend, is_ours in best:
        if is_ours:
            lead = best[kind, backend, True] - best[kind, backend, False]
            print(f"lead over the best peer, {kind}, on {backend}: {lead:.2f} dB (bar: at least 2)")


if __name__ == "__main__":
    main()
