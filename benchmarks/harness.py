"""Timing for every benchmark: contenders take turns within one run, medians are compared, ratios are quoted.

Absolute times wander between machines and minutes; the ratio of two medians that were taken in turns does not.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessCost:
    """What one finished process cost: wall seconds and peak resident memory in MB (of it alone)."""

    seconds: float
    peak_mb: float


def run_process(command: Sequence[str], log: Path | None = None) -> ProcessCost:
    """Run a command to its end and return its cost. Raises RuntimeError when it fails."""
    with Path(log or os.devnull).open("ab") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} exited with {process.returncode}; see {log or 'its output'}")
    return ProcessCost(seconds, usage.ru_maxrss / 1024)


def interleave(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Time each contender once per round, in turns; return the seconds of the counted rounds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + rounds):
        for name, contender in contenders.items():
            start = time.perf_counter()
            contender()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return times


def interleave_processes(
    commands: Mapping[str, Sequence[str]], *, rounds: int, warmup: int = 1, log: Path | None = None
) -> dict[str, list[ProcessCost]]:
    """Run each command once per round, in turns; return the costs of the counted rounds."""
    costs: dict[str, list[ProcessCost]] = {name: [] for name in commands}
    for turn in range(warmup + rounds):
        for name, command in commands.items():
            cost = run_process(command, log)
            if turn >= warmup:
                costs[name].append(cost)
    return costs


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the round-by-round ratios, which cancels a drift of the machine's speed."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def machine() -> str:
    """Return the processor's name and the number of cores that this process may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def heading(title: str) -> None:
    """Print what was measured, where and when."""
    print(f"{title}\n{machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
