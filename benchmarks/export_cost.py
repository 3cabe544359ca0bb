"""What the checks cost: `resnet-export --depth 50 --fp16` against a bare export, simplify and save.

python -m benchmarks.export_cost
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.harness import heading, interleave_processes, paired_ratio

ROUNDS = 5

# What a careful user would write by hand: the same exporter, the same dynamic batch, no checks.
BARE = """
import sys, onnx, onnxsim, torch
from resnet_export.exporter.models.resnet import build
from resnet_export.exporter.models.zoo import ZOO
network = build(ZOO["resnet50"], 1000).eval()
program = torch.onnx.export(network, (torch.zeros(2, 3, 224, 224),), dynamo=True, opset_version=19, verbose=False,
                            dynamic_shapes=({0: torch.export.Dim("N", min=1, max=32)},))
model, ok = onnxsim.simplify(program.model_proto)
assert ok
onnx.save(model, sys.argv[1])
"""


def main() -> None:
    """Print medians, the ratio and the peak memory."""
    heading("Export of ResNet-50 with fp16, whole processes")
    command = Path(sys.executable).with_name("resnet-export")
    with tempfile.TemporaryDirectory() as folder:
        costs = interleave_processes(
            {
                "bare script": [sys.executable, "-c", BARE, f"{folder}/bare.onnx"],
                "resnet-export": [
                    str(command), "--depth", "50", "--fp16", "--out", f"{folder}/bundle", "--force",
                ],
            },
            rounds=ROUNDS,
            log=Path(folder) / "log",
        )  # fmt: skip
    for name, runs in costs.items():
        seconds = statistics.median(cost.seconds for cost in runs)
        print(f"  {name:<15} {seconds:6.1f} s   peak {max(cost.peak_mb for cost in runs):5.0f} MB")
    ratio = paired_ratio(
        *([cost.seconds for cost in costs[name]] for name in ("resnet-export", "bare script"))
    )
    print(f"  ratio           {ratio:6.2f}     (bar: at most 2; peak under 3 GB)")


if __name__ == "__main__":
    main()
