"""What calibration costs: a table for ResNet-50 beside ONNX Runtime's `quantize_static`, whole processes.

    python -m benchmarks.calibration

Both read the same crops from an archive and use entropy. Then the peak memory of a table from 128 and from 512
images, and the collection alone beside plain inference over the same images in one process.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import heading, interleave, interleave_processes, paired_ratio, run_process
from resnet_export.calibration.calibrate import observe_graph
from resnet_export.calibration.cpu_session import CpuSession
from resnet_export.exporter.graph import serialize, simplify, to_onnx
from resnet_export.exporter.network import build_network
from resnet_export.exporter.photos import natural_crops
from resnet_export.exporter.spec import ModelSpec
from resnet_export.exporter.stage_check import eager_probe
from resnet_export.runtime.manifest import BatchRange, Preprocessing
from resnet_export.runtime.preprocess import normalize

ROUNDS = 3
IMAGES = 64
SIZE = 224

OURS = """
import sys
import onnx
from resnet_export.calibration.calibrate import calibrate
from resnet_export.calibration.dataset import open_dataset
from resnet_export.calibration.table import encode_table
from resnet_export.runtime.manifest import Preprocessing
from resnet_export.runtime.preprocess import normalize
model, images, table = sys.argv[1:]
preprocessing = Preprocessing()
dataset = open_dataset(images, preprocessing=preprocessing)
batches = (normalize(batch.images, preprocessing) for batch in dataset.batches(8))
made = calibrate(onnx.load(model), batches, methods=("entropy",))
open(table, "wb").write(encode_table(made))
"""

THEIRS = """
import sys
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from resnet_export.runtime.manifest import Preprocessing
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


def export_resnet50(path: Path) -> bytes:
    """Write the simplified float32 graph of the untrained ResNet-50 and return its bytes."""
    network = build_network(ModelSpec(depth=50))
    probe = eager_probe(network.module, normalize(natural_crops(2, SIZE, seed=0), network.preprocessing))
    graph = to_onnx(network.module, image_size=SIZE, batch=BatchRange(min=1, opt=2, max=2), probe=probe)
    data = serialize(simplify(graph).model)
    path.write_bytes(data)
    return data


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
            "ours": [sys.executable, "-c", OURS, str(model), str(images), str(folder / "ours.json")],
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
    print(f"  times as fast    {ratio:6.1f}     (bar: at least 4); the table has {size:.2f} MB")


def memory(folder: Path, model: Path) -> None:
    """Print the peak memory for few and for many images."""
    print("peak memory (bar: under 1200 MB, within 5 %)")
    for count in (128, 512):
        command = [
            sys.executable,
            "-c",
            OURS,
            str(model),
            str(archive(folder, count)),
            str(folder / "table.json"),
        ]
        cost = run_process(command, folder / "log")
        print(f"  {count:>4} images      {cost.peak_mb:6.0f} MB   {cost.seconds:.1f} s")


def collection(data: bytes, model: Path) -> None:
    """Print what looking at the tensors costs on top of running the graph."""
    import onnx

    loaded = onnx.load(model)
    batch = normalize(natural_crops(32, SIZE, seed=3), Preprocessing())
    session = CpuSession(data)
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


def archive(folder: Path, count: int) -> Path:
    """Write `count` seeded natural crops as an .npz and return its path."""
    path = folder / f"{count}.npz"
    np.savez(path, images=natural_crops(count, SIZE, seed=count))
    return path


def main() -> None:
    """Print all three comparisons."""
    heading("Calibration of ResNet-50 at 224 pixels")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = export_resnet50(folder / "model.onnx")
        collection(data, folder / "model.onnx")
        whole_processes(folder, folder / "model.onnx")
        memory(folder, folder / "model.onnx")


if __name__ == "__main__":
    main()
