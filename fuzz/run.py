"""Feed damaged files to everything that reads files of strangers, in a process that may be lost.

    python -m fuzz.run [KIND…] [--seeds START:END]

Each file has to be read, or refused with an error of `resnet_export.runtime.errors`, within 10 seconds of processor
time and 1 GB of memory. What is found is printed with its kind and seed, `--seeds SEED:SEED+1` repeats it, and the
status is 1. Kinds: manifest, onnx, golden, table, engine, image, checkpoint.
"""

from __future__ import annotations

import argparse
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random

__all__ = ["Finding", "fuzz"]

SECONDS = 10.0
MEGABYTES = 1000
_STUCK = 60.0  # of wall time without a word, on a machine that does other things too
KINDS = ("manifest", "onnx", "golden", "table", "engine", "image", "checkpoint")


@dataclass(frozen=True)
class Finding:
    """A file that did harm."""

    kind: str
    seed: int
    what: str


def fuzz(kind: str, start: int, end: int) -> list[Finding]:
    """Feed the files of seeds from `start` to `end`; a process that is lost is replaced behind the one that cost it."""
    findings: list[Finding] = []
    while start < end:
        found, reached, lost = _child(kind, start, end)
        findings += found
        if lost is not None:
            findings.append(Finding(kind, reached, lost))
        start = end if lost is None else reached + 1
    return findings


def _child(kind: str, start: int, end: int) -> tuple[list[Finding], int, str | None]:
    """Run one process; return what it found, the seed that it reached, and why it is lost, if it is."""
    command = [sys.executable, "-m", "fuzz.run", "--child", kind, "--seeds", f"{start}:{end}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    findings: list[Finding] = []
    reached = -1
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        cwd=Path(__file__).parents[1],
        text=True,
    ) as child:
        assert child.stdout is not None  # noqa: S101 - it was asked for
        with selectors.DefaultSelector() as waiting:
            waiting.register(child.stdout, selectors.EVENT_READ)
            while waiting.select(_STUCK):
                line = child.stdout.readline()
                if not line:
                    status = child.wait()
                    if reached < 0:
                        raise RuntimeError(f"{' '.join(command)} does not start; run it to see why")
                    why = signal.Signals(-status).name if status < 0 else f"status {status}"
                    return findings, reached, f"ended the process ({why})" if status else None
                word, _, rest = line.rstrip("\n").partition(" ")
                if word == "seed":
                    reached = int(rest)
                elif word == "found":
                    findings.append(Finding(kind, reached, rest))
        child.kill()
    return findings, reached, f"was silent for {_STUCK:.0f} s"


def _feed(kind: str, start: int, end: int) -> None:
    """Feed files in this process, and print each seed before and each finding after."""

    from fuzz.targets import KINDS as TARGETS
    from resnet_export.runtime.errors import ResnetExportError

    report = os.fdopen(os.dup(1), "w", buffering=1)  # native code may print
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[kind](Path(folder))
        for data in target.files:
            target.feed(data)  # what is not damaged is read
        for seed in range(start, end):
            report.write(f"seed {seed}\n")
            draw = Random(f"{kind} {seed}")
            data = target.damage(draw, draw.choice(target.files))
            started = time.process_time()
            try:
                target.feed(data)
            except ResnetExportError:
                pass
            except Exception as error:  # noqa: BLE001 — whatever it is, it is a finding
                report.write(f"found raised {type(error).__name__}: {' '.join(str(error).split())[:300]}\n")
            taken = time.process_time() - started
            if taken > SECONDS:
                report.write(f"found took {taken:.0f} s\n")
            peak = _peak_megabytes()
            if peak > MEGABYTES:
                report.write(f"found took {peak:.0f} MB\n")
                sys.exit(3)  # the peak never falls again


def _peak_megabytes() -> float:
    """Return the most memory that this program has held. `ru_maxrss` would count the program that started it, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    """Parse the command line and feed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--seeds", default="0:100", metavar="START:END")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    start, _, end = asked.seeds.partition(":")
    if asked.child is not None:
        _feed(asked.child, int(start), int(end))
        return
    findings = [finding for kind in asked.kinds or KINDS for finding in fuzz(kind, int(start), int(end))]
    for finding in findings:
        print(f"{finding.kind} {finding.seed}: {finding.what}")
    print(f"{len(findings)} findings")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
