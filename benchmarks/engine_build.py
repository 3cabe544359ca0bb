"""How much longer `build_engine` takes than the bare builder of TensorRT for RTX: parse, build, and nothing else.

    python -m benchmarks.engine_build BUNDLE

For sm86 and sm89, from each artifact that engines are built from. Each build has a process of its own, since
TensorRT keeps the first logger of a process and ours costs time too; imports are not counted.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import heading, paired_ratio
from resnet_export.exporter.engine.build import engine_sources
from resnet_export.exporter.engine.builder import build_engine
from resnet_export.runtime.backends.tensorrt_library import load_library
from resnet_export.runtime.bundle.manifest import read_artifact, read_manifest

ROUNDS = 7


def bare(bundle: Path, name: str) -> float:
    """What the documentation of TensorRT for RTX tells its user to write; returns seconds."""
    manifest = read_manifest(bundle)
    model, batch = read_artifact(bundle, manifest.artifact(name)), manifest.batch
    trt = load_library("tensorrt_rtx")
    started = time.perf_counter()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise SystemExit("the bare parser refuses the graph")
    config = builder.create_builder_config()
    config.num_compute_capabilities = 2
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    config.set_compute_capability(trt.ComputeCapability.SM89, 1)
    tensor = network.get_input(0)
    rest = tuple(tensor.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(tensor.name, (batch.min, *rest), (batch.opt, *rest), (batch.max, *rest))
    config.add_optimization_profile(profile)
    bytes(memoryview(builder.build_serialized_network(network, config)))
    return time.perf_counter() - started


def ours(bundle: Path, name: str) -> float:
    """The same through this project: checks, log, layer report, progress and all; returns seconds."""
    manifest = read_manifest(bundle)
    source = manifest.artifact(name)
    model = read_artifact(bundle, source)
    load_library("tensorrt_rtx")
    started = time.perf_counter()
    engine = build_engine(
        model,
        variant="tensorrt_rtx",
        targets=("8.6", "8.9"),
        profiles=(manifest.batch,),
        precision=source.precision,
        source=source.name,
        excluded=source.excluded,
    )
    seconds = time.perf_counter() - started
    if not engine.report.layers:
        raise SystemExit("there is no layer report, so the comparison is not fair")
    return seconds


def main(bundle: Path) -> None:
    """Print medians and ratios."""
    heading("build_engine against the bare builder of TensorRT for RTX, sm86 and sm89")
    for source in engine_sources(read_manifest(bundle).artifacts):
        times: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(ROUNDS):
            for side, found in times.items():
                command = [sys.executable, "-m", "benchmarks.engine_build", str(bundle), source.name, side]
                found.append(float(subprocess.run(command, check=True, capture_output=True).stdout))
        ratio = paired_ratio(times["ours"], times["bare"])
        seconds = statistics.median(times["bare"])
        print(f"  {source.name:<6} bare {seconds:5.2f} s   ours / bare {ratio:.2f}   (bar: at most 3)")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        print({"bare": bare, "ours": ours}[sys.argv[3]](Path(sys.argv[1]), sys.argv[2]))
