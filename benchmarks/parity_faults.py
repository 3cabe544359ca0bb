"""What faults do to a trained network: how far each moves the logits, and how many predictions it costs.

    python -m benchmarks.parity_faults [--edits N]

Trains ResNet-18 on scikit-learn's digits (seeded), exports it, quantizes it for both targets, and runs N copies of
each graph, every one with a single fault, on 1,000 held-out images. `docs/tolerances.md` sets limits by the result:
they have to lie below what a fault does that changes 1 % of the predictions. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from benchmarks.harness import heading
from resnet_export.calibration.calibrate import calibrate
from resnet_export.calibration.cpu_session import CpuSession
from resnet_export.calibration.plan import QuantPlan, default_kept
from resnet_export.calibration.qdq import quantize
from resnet_export.exporter.graph import serialize, simplify, to_onnx
from resnet_export.exporter.stage_check import eager_probe
from resnet_export.runtime.errors import DependencyError, ExportError
from resnet_export.runtime.manifest import BatchRange
from resnet_export.runtime.parity.criteria import judge
from resnet_export.runtime.parity.metrics import Metrics
from resnet_export.runtime.parity.tolerances import TABLE, Precision
from resnet_export.runtime.preprocess import normalize
from tests.digits import PREPROCESSING, SIZE, digits, train_resnet18

BATCH = 50
IMAGES = 1000
GOLDEN = 32
CALIBRATION = 128

Edit = Callable[[NDArray[np.generic]], NDArray[np.generic]]


@dataclass(frozen=True)
class Fault:
    """One initializer changed: what was done to it, its name, and how."""

    name: str
    tensor: str
    edit: Edit


def faults(model: onnx.ModelProto) -> Iterator[Fault]:
    """Yield every fault that the graph has a place for, in the order of its nodes."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            yield Fault(f"activation scale x2, {node.name}", node.input[1], lambda a: a * 2)
            yield Fault(f"activation scale x1.3, {node.name}", node.input[1], lambda a: a * 1.3)
            if arrays[node.input[2]].dtype == np.uint8:
                yield Fault(f"zero point + 1, {node.name}", node.input[2], lambda a: np.clip(a + 1.0, 0, 255))
        elif node.op_type == "DequantizeLinear" and arrays.get(node.input[0], np.zeros(0)).ndim == 4:
            scale = node.input[1]
            yield Fault(
                f"one channel's scale x2, {node.name}", scale, lambda a: a * np.where(np.arange(len(a)), 1, 2)
            )
            yield Fault(f"scales rolled by one, {node.name}", scale, lambda a: np.roll(a, 1))
            yield Fault(f"weights x1.01, {node.name}", scale, lambda a: a * 1.01)
            yield Fault(f"weights x1.1, {node.name}", scale, lambda a: a * 1.1)
            yield Fault(f"kernels transposed, {node.name}", node.input[0], lambda a: a.swapaxes(2, 3))
        elif node.op_type == "Conv" and node.input[1] in arrays:
            yield Fault(f"weights x1.01, {node.name}", node.input[1], lambda a: a * 1.01)
            yield Fault(f"kernels transposed, {node.name}", node.input[1], lambda a: a.swapaxes(2, 3))
            yield Fault(f"no bias, {node.name}", node.input[2], lambda a: a * 0)


def with_fault(model: onnx.ModelProto, fault: Fault) -> onnx.ModelProto:
    """Return a copy of the graph that has the fault."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(tensor for tensor in copy.graph.initializer if tensor.name == fault.tensor)
    array = numpy_helper.to_array(tensor)
    changed = np.ascontiguousarray(fault.edit(array).astype(array.dtype))
    tensor.CopyFrom(numpy_helper.from_array(changed, fault.tensor))
    return copy


def logits(model: onnx.ModelProto, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the graph's logits, float32 [N, classes], on ONNX Runtime's CPU provider."""
    session = CpuSession(serialize(model))
    parts = [session.run(images[start : start + BATCH])[0] for start in range(0, len(images), BATCH)]
    return np.concatenate(parts).astype(np.float32)


def main() -> None:
    """Print a row per fault: its distance, what it costs, and whether the gate would fail it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edits", type=int, default=30, help="faults per graph, spread over its layers")
    edits = parser.parse_args().edits

    train, test = digits(IMAGES)
    network = train_resnet18(train)
    images = normalize(test.images, PREPROCESSING)
    probe = eager_probe(network, images)
    graph = simplify(to_onnx(network, image_size=SIZE, batch=BatchRange(), probe=probe)).model
    table = calibrate(graph, [normalize(train.images[:CALIBRATION], PREPROCESSING)])
    plan = QuantPlan(kept=default_kept(graph))
    ranges = plan.choose_ranges(table)
    heading(f"Faults in ResNet-18 trained on digits, {IMAGES} held-out images")
    for name, model, precision in (
        ("fp32", graph, Precision.FP32),
        ("int8 for CPUs", quantize(graph, ranges, plan, "cpu"), Precision.INT8),
        ("int8 for TensorRT, float32 around", quantize(graph, ranges, plan, "tensorrt"), Precision.INT8),
    ):
        clean = logits(model, images)
        print(f"{name}\n  {_row('clean', probe.logits, clean, probe.logits, precision)}", flush=True)
        found = list(faults(model))
        for index in np.linspace(0, len(found) - 1, min(edits, len(found))).astype(int):
            try:
                broken = logits(with_fault(model, found[index]), images)
            except (ExportError, DependencyError) as error:
                print(f"  {found[index].name:<60} refused: {str(error)[:60]}")
                continue
            print(f"  {_row(found[index].name, probe.logits, broken, clean, precision)}", flush=True)


def _row(
    name: str,
    eager: NDArray[np.float32],
    found: NDArray[np.float32],
    clean: NDArray[np.float32],
    precision: Precision,
) -> str:
    whole, golden = Metrics.of(eager, found).result(), Metrics.of(eager[:GOLDEN], found[:GOLDEN]).result()
    change = 100 * (found.argmax(axis=1) != clean.argmax(axis=1)).mean()
    passed = all(criterion.passed for criterion in judge(golden, TABLE[precision]))
    return (
        f"{name:<60} error {whole.relative_error or 0.0:.1e}  d on {GOLDEN} "
        f"{1 - (golden.centred_cosine or 0.0):.1e}  changed {change:5.1f} %  {'pass' if passed else 'FAIL'}"
    )


if __name__ == "__main__":
    main()
