"""What INT8 costs: ours beside ONNX Runtime's methods, onnxsim's and NNCF, in one run.

    python -m benchmarks.int8_quality [--nncf PYTHON] [--network NAME] [--fashion IDX_FOLDER] [--seed N]

One trained network of `NETWORKS`; the same 256 calibration images for everyone, the same backends, 1,000 held-out
images (clothes: 2,000). Ours is the default pipeline, and beside it each method with weights rounded to the nearest
and nothing equalized. NNCF needs an interpreter of its own (`python -m venv nncf; nncf/bin/pip install nncf openvino`).
Graphs with signed activations stand beside our TensorRT graph (typed as fp16, as it ships), those with unsigned
activations and NNCF's beside our CPU graph. ONNX Runtime runs with WeightBiasQuantization off for everyone, OpenVINO
in f32.

"19 of 21" counts the convolutions and matrix products that the engine really computes in integers, after its own
optimization, and a lead is claimed over peers that compute at least as many so. Errors are ‖a−b‖/‖b‖ of single images;
times are medians at batch 1, over those of the float32 graph on the same engine, taken in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnx

from benchmarks import small_networks
from benchmarks.fashion import IDX_FOLDER, clothes
from benchmarks.harness import heading, interleave
from benchmarks.trained import Run, Trained, batched, openvino_request, trained_resnet18
from resnet_export.calibration.data.photos import Photos
from resnet_export.calibration.observe.calibrate import calibrate
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.calibration.observe.methods import METHODS
from resnet_export.calibration.quantize.plan import QuantPlan, default_exclusions
from resnet_export.calibration.quantize.qdq import origins, quantize
from resnet_export.calibration.search.search import plan_int8
from resnet_export.exporter.graph.precision import to_fp16
from resnet_export.exporter.graph.value_ranges import Span, scan_ranges
from resnet_export.runtime.bundle.schema import TargetName
from resnet_export.runtime.parity.measure.comparison import worst_images
from resnet_export.runtime.parity.measure.metrics import Figures, Metrics
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

NETWORKS: dict[str, Callable[[int], Trained]] = {
    "healthy": trained_resnet18,
    "badly-scaled": lambda seed: trained_resnet18(seed, hard_networks.with_badly_scaled_channels),
    "outliers": lambda seed: trained_resnet18(seed, hard_networks.with_outliers),
    "tails": lambda seed: trained_resnet18(
        seed, lambda network: hard_networks.with_hidden_weights(network, 100)
    ),
    "heavy-tailed": small_networks.heavy_tailed,
    "squeeze-excitation": small_networks.squeeze_excitation,
    "depthwise": small_networks.depthwise,
}
"""Besides `fashion`, whose images have to be at hand."""

_ROUNDS = 31
_PRODUCTS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
_INTEGER = {"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}


@dataclass(frozen=True)
class Engine:
    """One graph on one engine: how it runs, and how many of its convolutions and matrix products do so in integers."""

    run: Run
    integer: int
    products: int


@dataclass(frozen=True)
class Entry:
    """One quantized graph: who made it, beside which of our graphs it stands, and how it runs."""

    maker: str
    name: str
    kind: Kind
    runs: dict[str, Engine]


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
        engine = on_openvino(str(folder / f"{preset}.xml"))
        yield Entry("NNCF", f"{preset.lower()}, bias correction", "unsigned", {"OpenVINO": engine})


def onnxsims(trained: Trained) -> Iterator[Entry]:
    """`onnxsim.quantize_static`: the inputs of convolutions and Gemms, its default, and every tensor."""
    import onnxsim

    images = [{"input": image[None]} for image in trained.calibration]
    for full in (False, True):
        for method in ("minmax", "percentile"):
            model = onnxsim.quantize_static(trained.model, images, method=method, full_graph=full)
            name = f"{'full graph' if full else 'default'}, {method}"
            yield Entry("onnxsim", name, "unsigned", on_both(model.SerializeToString()))


def on_both(data: bytes) -> dict[str, Engine]:
    return {"ONNX Runtime": on_onnxruntime(data), "OpenVINO": on_openvino(data)}


def on_onnxruntime(data: bytes) -> Engine:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"], disabled_optimizers=["WeightBiasQuantization"]
        )
        found = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    integer = sum(found[name] for name in _INTEGER)
    session = CpuSession(data)
    return Engine(
        lambda batch: session.run(batch)[0], integer, integer + sum(found[name] for name in _PRODUCTS)
    )


def on_openvino(model: bytes | str) -> Engine:
    request = openvino_request(model)
    compiled = request.get_compiled_model()
    layers = [
        operator.get_rt_info()["runtimePrecision"].astype(str)
        for operator in compiled.get_runtime_model().get_ordered_ops()
        if operator.get_rt_info()["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul")
    ]
    return Engine(
        lambda batch: np.array(request.infer({0: batch})[0]),
        sum(precision in ("i8", "u8") for precision in layers),
        len(layers),
    )


@dataclass(frozen=True)
class Row:
    """What one graph left of the logits on one backend."""

    entry: Entry
    backend: str
    engine: Engine
    figures: Figures

    @property
    def peer(self) -> bool:
        return self.entry.maker not in ("ours", "plain")


def measure(trained: Trained, entry: Entry, floats: Mapping[str, Run]) -> Iterator[Row]:
    """Print and yield a row for each backend."""
    for backend, engine in entry.runs.items():
        logits = batched(engine.run, trained.images)
        figures = Metrics.of(trained.logits, logits).result()
        lost = figures.by_image
        top1 = (logits.argmax(axis=1) == trained.labels).mean()
        contenders = {
            "int8": partial(engine.run, trained.images[:1]),
            "fp32": partial(floats[backend], trained.images[:1]),
        }
        int8, fp32 = map(statistics.median, interleave(contenders, rounds=_ROUNDS).values())
        print(
            f"  {entry.kind:<9}{entry.maker:<13}{entry.name:<28}{backend:<13}{engine.integer:3} of {engine.products:<3}"
            f"{figures.snr_db or np.inf:7.1f} dB  median {lost.median_error:.4f}  90 % {lost.p90_error:.4f}  KL 90 % "
            f"{lost.p90_divergence:.0e}  lost {lost.far:<4} agreement {figures.top1_agreement:.2%}  top-1 {top1:.2%}  "
            f"time {int8 / fp32:.2f}",
            flush=True,
        )
        yield Row(entry, backend, engine, figures)


def compare(rows: Sequence[Row]) -> None:
    """Print, for each of our graphs and backends, ours beside the best of the peers of equal coverage."""
    for mine in (row for row in rows if row.entry.maker == "ours"):
        same = [row for row in rows if (row.entry.kind, row.backend) == (mine.entry.kind, mine.backend)]
        peers = [row for row in same if row.peer and row.engine.integer >= mine.engine.integer]
        title = (
            f"{mine.entry.kind}, {mine.backend}, {mine.engine.integer} of {mine.engine.products} in integers"
        )
        if not peers:
            print(f"{title}: no peer computes as many")
            continue
        found = [
            f"median error {mine.figures.by_image.median_error:.4f}, best peer "
            f"{min(row.figures.by_image.median_error or np.inf for row in peers):.4f}",
            f"agreement {mine.figures.top1_agreement:.2%}, best peer "
            f"{max(row.figures.top1_agreement for row in peers):.2%}",
        ]
        if mine.figures.by_image.even:
            best = max(row.figures.snr_db or np.inf for row in peers)
            found.append(f"{(mine.figures.snr_db or np.inf) - best:+.1f} dB over the best peer")
        print(f"{title}: {'; '.join(found)}")


def name_worst(trained: Trained, entries: Sequence[Entry]) -> None:
    """Print the images that our graphs do worst on, where a handful owns the energy of the logits."""
    for entry in (entry for entry in entries if entry.maker == "ours"):
        logits = batched(entry.runs["ONNX Runtime"].run, trained.images)
        named = worst_images(trained.logits, logits, trained.labels)
        print(f"{entry.name}, furthest: {'; '.join(image.sentence for image in named)}")


def main() -> None:
    """Print a row per graph and backend, and ours beside the best peer of equal coverage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nncf", metavar="PYTHON", help="an interpreter that has nncf and openvino")
    parser.add_argument("--network", choices=[*NETWORKS, "fashion"], default="healthy", help="see NETWORKS")
    parser.add_argument(
        "--fashion", type=Path, default=IDX_FOLDER, help="where the IDX files of Fashion-MNIST lie"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the training and the held-out images")
    asked = parser.parse_args()
    heading(f"INT8 against float32, {asked.network}, seed {asked.seed}")
    networks = {**NETWORKS, "fashion": lambda seed: clothes(asked.fashion, seed)}
    trained = networks[asked.network](asked.seed)
    float32 = Metrics.of(trained.logits, trained.logits).result()
    accuracy = (trained.logits.argmax(axis=1) == trained.labels).mean()
    print(
        f"float32: top-1 {accuracy:.2%} of {len(trained.labels)}; logits of mean magnitude "
        f"{np.abs(trained.logits).mean():.2f}, at most {np.abs(trained.logits).max():.1f}, energy spread over "
        f"{float32.by_image.spread or 0:.0%} of the images; calibrated on {len(trained.calibration)} images"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        entries = [*ours(trained), *onnxruntimes(trained, folder), *onnxsims(trained)]
        if asked.nncf:
            entries += nncfs(trained, asked.nncf, folder)
        floats = {name: one.run for name, one in on_both(trained.model.SerializeToString()).items()}
        entries.sort(key=lambda entry: entry.kind)
        compare([row for entry in entries for row in measure(trained, entry, floats)])
        if not float32.by_image.even:
            name_worst(trained, entries)


if __name__ == "__main__":
    main()
