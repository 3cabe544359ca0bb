"""Does the gate catch faults, and name the stage that is to blame? Seeded faults of every kind in a trained network.

    python -m benchmarks.parity_faults FOLDER [--images 1000] [--only WORD] [--fashion IDX_FOLDER]

Trains ResNet-18 and a small network with bottlenecks on digits (with --fashion on clothes, where they err more often;
kept in FOLDER), exports and quantizes, and puts one fault at a time into the graph, an artifact, its file, the reader's
preprocessing, the labels or the recorded evidence (tests/faults/table.py). Each runs through `run_parity` with labeled
held-out images. "Changed" is the share of the predictions that the fault changes, for labels the accuracy that it
costs, measured apart from the gate.
`docs/tolerances.md` holds the result. Takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks.fashion import fashion
from benchmarks.harness import heading
from tests.faults.lab import Case, Lab
from tests.faults.table import FAULTS, Fault
from tests.trained import DIGITS

COSTLY = 0.01


def main() -> None:
    """Print a row per fault, then the two rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the trained networks are kept")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--only", default="", help="run the faults whose name holds this word")
    parser.add_argument("--fashion", type=Path, help="where the IDX files of Fashion-MNIST lie")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    task = fashion(asked.fashion) if asked.fashion else DIGITS
    with tempfile.TemporaryDirectory() as scratch:
        lab = Lab(Path(scratch), asked.folder, asked.images, task)
        right = (lab.predicted("fp32") == lab.labels).mean()
        clean = lab.check(Case(lab.clean, 0.0))
        heading(
            f"Faults in ResNet-18 trained on {task.title}, {asked.images} held-out images, {100 * right:.1f} % right"
        )
        print(f"  clean: {clean.verdict.sentence}", flush=True)
        rows = [
            measure(lab, index, fault)
            for index, fault in enumerate(FAULTS)
            if asked.only.lower() in fault.name.lower()
        ]
    costly = [row for row in rows if row[0] >= COSTLY]
    caught = [row for row in costly if row[1] == "failed"]
    named = [row for row in costly if row[2]]
    print(
        f"{len(rows)} faults; {len(costly)} change 1 % or more, of which {len(caught)} fail and {len(named)} are "
        f"attributed to the right stage ({100 * len(named) / max(1, len(costly)):.0f} %)"
    )
    every = [row for row in rows if row[1] == "failed"]
    print(f"of all {len(every)} that fail, {sum(row[2] for row in every)} are attributed to the right stage")


def measure(lab: Lab, index: int, fault: Fault) -> tuple[float, str, bool]:
    """Inject one fault, print its row, and return what it costs, the verdict, and whether its stage was named."""
    start = time.perf_counter()
    case = fault.inject(lab, f"fault{index}")
    report = lab.check(case)
    verdict = report.verdict
    right = verdict.stage == fault.stage
    mark = "" if right else f" for {fault.stage}" if verdict.stage else ""
    print(
        f"  {fault.name:<52} {fault.stage:<14} {100 * case.changed:6.1f} %  {verdict.status:<7} "
        f"{verdict.stage or '–'}{mark}  ({time.perf_counter() - start:.1f} s)",
        flush=True,
    )
    for file in case.bundle.iterdir():
        file.unlink()
    return case.changed, verdict.status, right


if __name__ == "__main__":
    main()
