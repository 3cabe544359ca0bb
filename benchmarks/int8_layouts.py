"""The experiment behind the INT8 layouts: each choice turned round by itself.

    python -m benchmarks.int8_layouts

Latency is of ResNet-50 at 224 pixels, batch 1, two threads. The logits' signal-to-noise ratio is of a ResNet-18
trained on handwritten digits, against its float32 graph, over 1,000 held-out images, ranges by min-max; for the
CPU on ONNX Runtime and OpenVINO (f32), for TensorRT's layout on ONNX Runtime.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.calibration import SIZE, export_resnet50
from benchmarks.harness import heading, interleave
from benchmarks.trained import open_openvino, snr, trained_resnet18
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.ranges import Range
from resnet_export.calibration.quantize.placement import TARGETS, Target
from resnet_export.calibration.quantize.plan import QuantPlan
from resnet_export.calibration.quantize.qdq import emit
from resnet_export.calibration.quantize.topology import Topology
from resnet_export.exporter.models.load import load_classifier
from resnet_export.exporter.spec import ModelSpec
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import normalize
from tests.natural_crops import natural_crops

THREADS = 2
ROUNDS = 40
CPU, TENSORRT = TARGETS["cpu"], TARGETS["tensorrt"]
FIRST, CLASSIFIER = "first", "classifier"


@dataclass(frozen=True)
class Variant:
    """A layout, and which of the first and the last layer stay float."""

    name: str
    layout: Target
    excluded: tuple[str, ...] = ()

    def graph(self, model: onnx.ModelProto, ranges: Mapping[str, Range]) -> onnx.ModelProto:
        layers = Topology(model).layers
        places = {FIRST: layers[0].name, CLASSIFIER: layers[-1].name}
        return emit(model, ranges, QuantPlan(), {places[place]: "" for place in self.excluded}, self.layout)


CPU_VARIANTS = (
    Variant("as shipped", CPU),
    Variant("signed activations", replace(CPU, signed=True)),
    Variant("skip operand only", replace(CPU, skip_operand=True, convolved=False)),
    Variant("float pooling", replace(CPU, moved=False)),
    Variant("float bias", replace(CPU, integer_bias=False)),
    Variant("float first convolution", CPU, (FIRST,)),
    Variant("float classifier", CPU, (CLASSIFIER,)),
)
TENSORRT_VARIANTS = (
    Variant("all in int8", TENSORRT),
    Variant("float classifier (as shipped)", TENSORRT, (CLASSIFIER,)),
    Variant("float first convolution", TENSORRT, (FIRST,)),
    Variant("both operands of an Add", replace(TENSORRT, convolved=True, shared=True)),
    Variant("unsigned activations", replace(TENSORRT, signed=False)),
)


def main() -> None:
    """Print a row per variant."""
    heading("INT8 layouts, one choice turned round at a time")
    with tempfile.TemporaryDirectory() as folder:
        path = export_resnet50(Path(folder))
        size = path.stat().st_size
        model = onnx.load(path)
    batch = normalize(natural_crops(8, SIZE, seed=0), Preprocessing())
    trained = trained_resnet18()
    wide, narrow = ranges_of(model, batch), ranges_of(trained.model, trained.calibration)
    graphs = {variant: variant.graph(model, wide).SerializeToString() for variant in CPU_VARIANTS}
    times = latencies(model, graphs, batch[:1])
    print("CPU layout: ms at batch 1 and share of eager fp32; size as a share of the fp32 graph's; SNR in dB")
    print(f"  {'':<28} {'ONNX Runtime':>14} {'OpenVINO':>14} {'size':>6} {'SNR ORT':>8} {'SNR OV':>8}")
    eager = times["eager", "torch"]
    print(f"  eager fp32, channels last {eager:8.1f} ms")
    for name in ("fp32",):
        print(f"  {name:<28} {cell(times[name, 'ort'], eager)} {cell(times[name, 'ov'], eager)}")
    for variant in CPU_VARIANTS:
        made = variant.graph(trained.model, narrow)
        found = [snr(run, trained) for run in (onnxruntime(made), open_openvino(made.SerializeToString()))]
        print(
            f"  {variant.name:<28} {cell(times[variant.name, 'ort'], eager)} {cell(times[variant.name, 'ov'], eager)}"
            f" {len(graphs[variant]) / size:6.3f} {found[0]:8.2f} {found[1]:8.2f}"
        )
    print("TensorRT layout: SNR in dB")
    for variant in TENSORRT_VARIANTS:
        print(f"  {variant.name:<28} {snr(onnxruntime(variant.graph(trained.model, narrow)), trained):8.2f}")


def latencies(
    model: onnx.ModelProto, graphs: Mapping[Variant, bytes], image: NDArray[np.float32]
) -> dict[tuple[str, str], float]:
    """Return (variant, engine) → median milliseconds of one image, taken in turns."""
    torch.set_num_threads(THREADS)
    network = load_classifier(ModelSpec(depth=50)).module.to(memory_format=torch.channels_last)
    tensor = torch.from_numpy(image).contiguous(memory_format=torch.channels_last)

    def eager() -> Any:
        with torch.inference_mode():
            return network(tensor)

    contenders: dict[tuple[str, str], Any] = {("eager", "torch"): eager}
    for name, data in (
        ("fp32", model.SerializeToString()),
        *((one.name, data) for one, data in graphs.items()),
    ):
        session, compiled = CpuSession(data, threads=THREADS), open_openvino(data, threads=THREADS)
        contenders[name, "ort"] = lambda session=session: session.run(image)
        contenders[name, "ov"] = lambda compiled=compiled: compiled(image)
    turns = interleave({"/".join(key): run for key, run in contenders.items()}, rounds=ROUNDS, warmup=3)
    return {key: statistics.median(turns["/".join(key)]) * 1e3 for key in contenders}


def ranges_of(model: onnx.ModelProto, images: NDArray[np.float32]) -> dict[str, Range]:
    """Return min-max ranges over `images`."""
    return QuantPlan(method="minmax").choose_ranges(calibrate(model, [images], methods=("minmax",)))


def onnxruntime(model: onnx.ModelProto) -> Any:
    session = CpuSession(model.SerializeToString(), threads=THREADS)
    return lambda batch: session.run(batch)[0]


def cell(milliseconds: float, eager: float) -> str:
    return f"{milliseconds:6.1f} ({milliseconds / eager:.2f})"


if __name__ == "__main__":
    main()
