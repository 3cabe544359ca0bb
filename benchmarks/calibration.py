"""What calibration costs: `resnet-export calibrate` of ResNet-50 beside ONNX Runtime's `quantize_static`.

    python -m benchmarks.calibration

Whole processes; both read the same crops from an archive and use entropy. Then the peak memory of a table from 128
and from 512 images, the collection alone beside plain inference over the same images in one process, and the
whole default `--int8` export with 256 images, step by step.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx

from benchmarks.harness import heading, interleave, interleave_processes, paired_ratio, run_process
from resnet_export.calibration.observe.calibrate import observe_graph
from resnet_export.calibration.observe.cpu_session import CpuSession
from resnet_export.exporter import ExportSpec, ModelSpec, export
from resnet_export.runtime.bundle.manifest import BatchRange, Preprocessing
from resnet_export.runtime.preprocess import normalize
from tests.natural_crops import natural_crops

ROUNDS = 3
IMAGES = 64
SIZE = 224

THEIRS = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from resnet_export.runtime.bundle.manifest import Preprocessing
from resnet_export.runtime.preprocess import normalize
model, images, quantized = sys.argv[1:]
crops = np.load(images)["images"]
class Reader(CalibrationDataReader):
    left = iter(range(len(crops)))
    def get_next(self):
        index = next(self.left, None)
        return None if index is None else {"input": normalize(crops[index : index + 1], Preprocessing())}
quantize_static(model, quantized, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Entropy)
"""


COMMAND = str(Path(sys.executable).with_name("resnet-export"))


def export_resnet50(folder: Path) -> Path:
    """Export the untrained ResNet-50 and return its float32 graph."""
    spec = ExportSpec(engine="none", batch=BatchRange(min=1, opt=2, max=2))
    return export(ModelSpec(depth=50), spec, folder / "resnet50").bundle.path / "model.onnx"


def ours(model: Path, images: Path, table: Path, count: int) -> list[str]:
    """Return the command that calibrates with entropy on `count` images."""
    given = ["--calib", str(images), "--calib-count", str(count), "--calib-method", "entropy", "--quiet"]
    return [COMMAND, "calibrate", str(model), *given, "--out", str(table)]


def whole_processes(folder: Path, model: Path) -> None:
    """Print seconds and peak memory of both tools over the same images."""
    images = archive(folder, IMAGES)
    costs = interleave_processes(
        {
            "quantize_static": [
                sys.executable,
                "-c",
                THEIRS,
                str(model),
                str(images),
                str(folder / "theirs.onnx"),
            ],
            "ours": ours(model, images, folder / "ours.json", IMAGES),
        },
        rounds=ROUNDS,
        warmup=0,
        log=folder / "log",
    )
    print(f"entropy, {IMAGES} images, whole process")
    for name, runs in costs.items():
        seconds = statistics.median(cost.seconds for cost in runs)
        print(f"  {name:<16} {seconds:6.1f} s   peak {max(cost.peak_mb for cost in runs):5.0f} MB")
    ratio = paired_ratio(*([cost.seconds for cost in costs[name]] for name in ("quantize_static", "ours")))
    size = (folder / "ours.json").stat().st_size / 1e6
    print(f"  times as fast    {ratio:6.1f}     (bar: at least 5); the table has {size:.2f} MB")


def memory(folder: Path, model: Path) -> None:
    """Print the peak memory for few and for many images."""
    print("peak memory (bar: under 1200 MB, within 5 %)")
    for count in (128, 512):
        command = ours(model, archive(folder, count), folder / "table.json", count)
        cost = run_process(command, folder / "log")
        print(f"  {count:>4} images      {cost.peak_mb:6.0f} MB   {cost.seconds:.1f} s")


def collection(model: Path) -> None:
    """Print what looking at the tensors costs on top of running the graph."""
    loaded = onnx.load(model)
    batch = normalize(natural_crops(32, SIZE, seed=3), Preprocessing())
    session = CpuSession(model.read_bytes())
    times = interleave(
        {
            "plain inference": lambda: [session.run(image[None]) for image in batch],
            "collection": lambda: observe_graph(loaded, [batch]),
        },
        rounds=5,
    )
    print("collection, 32 images in one process, batch 1")
    for name, seconds in times.items():
        print(f"  {name:<16} {statistics.median(seconds) / len(batch) * 1e3:6.1f} ms per image")
    print(
        f"  ratio            {paired_ratio(times['collection'], times['plain inference']):6.2f}     (bar: at most 3)"
    )


def whole_export(folder: Path, model: Path) -> None:
    """Print what the default INT8 export takes beside plain float32 inference over its images, and where."""
    count = ExportSpec().calib_count
    images = archive(folder, count)
    out = folder / "int8"
    command = [
        "--depth",
        "50",
        "--int8",
        "--calib",
        str(images),
        "--engine",
        "none",
        "--quiet",
        "--out",
        str(out),
    ]
    before = plain_inference(model, images)
    cost = run_process([COMMAND, *command], folder / "log")
    plain = (before + plain_inference(model, images)) / 2
    print(
        f"--int8 export, {count} images: {cost.seconds:.0f} s, {cost.seconds / plain:.1f} times plain inference "
        f"({plain:.1f} s; bar: at most 10), peak {cost.peak_mb:.0f} MB, of which"
    )
    for name, seconds in json.loads((out / "report.json").read_text())["times"]["int8"]["seconds"].items():
        print(f"  {name:<16} {seconds:6.1f} s")


def plain_inference(model: Path, images: Path) -> float:
    """Return the seconds that the float32 graph takes for the images of an archive, one at a time."""
    session = CpuSession(model.read_bytes())
    crops = np.load(images)["images"]
    inputs = (normalize(crops[at : at + 1], Preprocessing()) for at in range(len(crops)))
    start = time.perf_counter()
    for one in inputs:
        session.run(one)
    return time.perf_counter() - start


def archive(folder: Path, count: int) -> Path:
    """Write `count` seeded natural crops as an .npz and return its path."""
    path = folder / f"{count}.npz"
    np.savez(path, images=natural_crops(count, SIZE, seed=count))
    return path


def main() -> None:
    """Print all comparisons."""
    heading("Calibration of ResNet-50 at 224 pixels")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = export_resnet50(folder)
        collection(model)
        whole_processes(folder, model)
        memory(folder, model)
        whole_export(folder, model)


if __name__ == "__main__":
    main()
