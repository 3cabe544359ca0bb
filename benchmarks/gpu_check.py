"""Run on an NVIDIA GPU whatever runs there, cell by cell, and write the rows of the "verified on" table.

    python -m benchmarks.gpu_check [BUNDLE] [--out FILE.md]

A cell is one backend, one precision and one check, in a process of its own with a time limit: what is missing, crashes
or hangs costs its own cell. Without BUNDLE, an untrained ResNet-50 is exported in every precision first, engines built
on this host among its artifacts. On a host without a GPU each cell says so. Exit code 1 when a cell failed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from shutil import which

import numpy as np

from resnet_export.runtime import Session, open_session
from resnet_export.runtime.backends.routes import ROUTES, Route
from resnet_export.runtime.bundle.golden import EAGER, read_golden
from resnet_export.runtime.bundle.manifest import Artifact, read_manifest
from resnet_export.runtime.errors import ResnetExportError
from resnet_export.runtime.parity.measure.metrics import relative_error
from resnet_export.runtime.precision import PRECISIONS, Precision
from resnet_export.runtime.preprocess import to_input
from resnet_export.runtime.select.host import HostFacts, probe

CELL_SECONDS = 60
EXPORT_SECONDS = 400
PHOTOS = Path(__file__).parent.parent / "exporter" / "data" / "photos"
_SKIPPED, _FAILED = "skipped: ", "FAILED: "


@dataclass(frozen=True)
class Cell:
    """One check of one precision on one route, and what came of it."""

    route: Route
    precision: Precision
    check: str
    outcome: str

    @property
    def failed(self) -> bool:
        """Whether something ran and was wrong; what did not run has not failed."""
        return self.outcome.startswith(_FAILED)


def golden(session: Session, bundle: Path) -> str:
    """Compare the golden images' logits with the eager network's, in the tolerance of the artifact."""
    found, eager = session.run(_images(bundle)), read_golden(bundle).logits[EAGER]
    error = relative_error(found, eager)
    limit = PRECISIONS[session.choice.precision].tolerance.relative_error
    if error is None or limit is None or error > limit:
        return f"{_FAILED}relative error {error}, expected at most {limit}"
    return f"relative error {error:.1e}"


def graphs(session: Session, bundle: Path) -> str:
    """Run each batch size four times, with other images in between: a replayed CUDA graph must see the new ones."""
    images = _images(bundle)
    for size in (1, min(8, len(images))):
        first, other = images[:size], np.ascontiguousarray(images[-size:])
        expected, others = session.run(first), session.run(other)
        for batch, known in ((first, expected), (other, others), (first, expected)):
            if not np.allclose(session.run(batch), known, rtol=1e-2, atol=1e-2):
                return f"{_FAILED}batch {size} answers otherwise when it comes again"
    return "same answers on repeated shapes"


def threads(session: Session, bundle: Path) -> str:
    """Ask from 16 threads with mixed batch sizes; every answer is that of one thread."""
    images = _images(bundle)
    batches = [images[i % len(images) :][: 1 + i % 5] for i in range(200)]
    expected = [session.run(np.ascontiguousarray(batch)) for batch in batches]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda batch: session.run(np.ascontiguousarray(batch)), batches))
    wrong = sum(
        not np.allclose(one, other, rtol=1e-2, atol=1e-2) for one, other in zip(found, expected, strict=True)
    )
    return f"{_FAILED}{wrong} of 200 answers differ" if wrong else "200 answers from 16 threads"


def dlpack(session: Session, bundle: Path) -> str:
    """Hand over an array on the GPU, and take one."""
    images = _images(bundle)[:4]
    try:
        import torch
    except ImportError:
        return f"{_SKIPPED}PyTorch is not installed"
    if not torch.cuda.is_available():
        return f"{_SKIPPED}this PyTorch is built without CUDA"
    found = torch.from_dlpack(session.run_on_device(torch.from_numpy(images).cuda())).cpu().numpy()
    same = np.allclose(found, session.run(images), rtol=1e-2, atol=1e-2)
    return "arrays on the GPU, no copy" if same else f"{_FAILED}other logits than from host memory"


def throughput(session: Session, bundle: Path) -> str:
    """Time the largest batch, and `trtexec` on the same plan where it is there."""
    manifest = read_manifest(bundle)
    size = manifest.batch.max
    images = np.ascontiguousarray(np.resize(_images(bundle), (size, *_images(bundle).shape[1:])))
    times = []
    for _ in range(30):
        start = time.perf_counter()
        session.run(images)
        times.append(time.perf_counter() - start)
    ours = size / statistics.median(times[10:])
    artifact = manifest.artifact(session.choice.artifact)
    bare = _trtexec(bundle, artifact, (manifest.input.name, *images.shape))
    return f"{ours:,.0f} images/s at batch {size}{bare}"


CHECKS: dict[str, Callable[[Session, Path], str]] = {
    "golden": golden,
    "CUDA graphs": graphs,
    "threads": threads,
    "DLPack": dlpack,
    "throughput": throughput,
}


def cells(host: HostFacts, bundle: Path | None) -> Iterator[Cell]:
    """Yield every cell of every route to a GPU, as it is done; `bundle` is None where there is nothing to run."""
    for route in (route for route in ROUTES if route.device == "gpu"):
        for precision in Precision:
            artifact, reason = _artifact(route, precision, host, bundle)
            for check in CHECKS:
                if artifact is None or bundle is None:
                    yield Cell(route, precision, check, f"{_SKIPPED}{reason}")
                else:
                    yield Cell(route, precision, check, _run(route, artifact, check, bundle))


def _artifact(
    route: Route, precision: Precision, host: HostFacts, bundle: Path | None
) -> tuple[str | None, str]:
    """Return the artifact that a cell is about; None with the reason where there is none."""
    if not host.gpus:
        return None, f"no GPU ({host.gpu_note})"
    if host.package(route.module) is None:
        return None, f"{route.module} is not installed; {route.install}"
    if route.execution(precision, "tensorrt") is None:
        return None, f"it does not run {precision}"
    if bundle is None:
        return None, "no bundle could be exported"
    for artifact in read_manifest(bundle).artifacts:
        fits = artifact.kind == route.kind and artifact.precision is precision and artifact.target != "cpu"
        if fits and (artifact.engine is None or artifact.engine.variant == route.provider):
            return artifact.name, ""
    return None, f"the bundle has no {precision} {route.kind} for it"


def _run(route: Route, artifact: str, check: str, bundle: Path) -> str:
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_check",
        str(bundle),
        "--cell",
        route.backend,
        artifact,
        check,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=CELL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"{_FAILED}no answer within {CELL_SECONDS} s"
    said = done.stdout.strip().splitlines()
    if done.returncode == 0 and said:
        return said[-1]
    return f"{_FAILED}exit {done.returncode}: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}"


def cell(bundle: Path, backend: str, artifact: str, check: str) -> str:
    """Do one check in this process, on the GPU."""
    try:
        with open_session(bundle, backend=backend, artifact=artifact, device="gpu") as session:
            return CHECKS[check](session, bundle)
    except ResnetExportError as error:
        return f"{_FAILED}{' '.join(str(error).split())}"


def _images(bundle: Path) -> np.ndarray:
    return to_input(read_golden(bundle).images, read_manifest(bundle).preprocessing)


def _trtexec(bundle: Path, artifact: Artifact, shape: tuple[str | int, ...]) -> str:
    program = which("trtexec")
    if program is None or artifact.engine is None or artifact.engine.variant != "tensorrt":
        return ""
    sizes = f"{shape[0]}:{'x'.join(map(str, shape[1:]))}"
    done = subprocess.run(
        [program, f"--loadEngine={bundle / artifact.file}", f"--shapes={sizes}", "--useCudaGraph"],
        capture_output=True,
        text=True,
        timeout=CELL_SECONDS,
        check=False,
    )
    found = [line.split()[-2] for line in done.stdout.splitlines() if "Throughput:" in line]
    return f"; trtexec {float(found[0]) * int(shape[1]):,.0f}" if found else "; trtexec gave no figure"


def _exported(folder: Path) -> Path | None:
    """Export an untrained ResNet-50 in every precision; None, with the reason on standard error, where that fails."""
    out = folder / "resnet50"
    words = f"--depth 50 --fp16 --bf16 --int8 --calib {PHOTOS} --calib-count 20 --out {out} --quiet"
    program = [sys.executable, "-c", "from resnet_export.exporter.cli import main; main()"]
    try:
        subprocess.run([*program, *words.split()], timeout=EXPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        print(f"the export took more than {EXPORT_SECONDS} s", file=sys.stderr)
    return out if out.is_dir() else None


def table(found: list[Cell], host: HostFacts) -> str:
    """Return the cells as Markdown."""
    gpus = (
        ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in host.gpus)
        or f"no GPU ({host.gpu_note})"
    )
    lines = [
        f"# GPU check: {gpus}",
        "",
        "| backend | provider | precision | check | result |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.route.backend} | {one.route.provider} | {one.precision} | {one.check} | {one.outcome} |"
        for one in found
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the cells, print each as it is done, and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", nargs="?", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cell", nargs=3, metavar=("BACKEND", "ARTIFACT", "CHECK"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(cell(given.bundle, *given.cell))
        return 0
    host = probe()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or (_exported(Path(folder)) if host.gpus else None)
        found = []
        for one in cells(host, bundle):
            found.append(one)
            print(
                f"{one.route.backend}/{one.route.provider} {one.precision} {one.check}: {one.outcome}",
                flush=True,
            )
    failed = sum(one.failed for one in found)
    skipped = sum(one.outcome.startswith(_SKIPPED) for one in found)
    print(f"{len(found)} cells: {len(found) - failed - skipped} verified, {failed} failed, {skipped} skipped")
    if given.out is not None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(table(found, host), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
