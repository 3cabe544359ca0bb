"""Timing for every benchmark: contenders take turns within one run, medians are compared, ratios are quoted.

Absolute times wander between machines and minutes; the ratio of two medians that were taken in turns does not.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessCost:
    """What one finished process cost: wall seconds and peak resident memory in MB (of it alone)."""

    seconds: float
    peak_mb: float


# Linux counts what a process had in memory before it called exec, which is its parent: a command that is started
# from here directly has at least this process's peak. So a small process stands in between.
_LAUNCH = """
import os, sys, time
start = time.perf_counter()
pid = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
os.write(3, f"{time.perf_counter() - start} {usage.ru_maxrss / 1024}".encode())
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run_process(command: Sequence[str], log: Path | None = None) -> ProcessCost:
    """Run a command (an absolute path first) to its end and return its cost. Raises RuntimeError when it fails."""
    reader, writer = os.pipe()
    with Path(log or os.devnull).open("ab") as output, os.fdopen(reader) as found:
        launch = (sys.executable, "-S", "-c", _LAUNCH, *command)
        actions = ((os.POSIX_SPAWN_DUP2, output.fileno(), 1), (os.POSIX_SPAWN_DUP2, output.fileno(), 2))
        pid = os.posix_spawn(
            sys.executable, launch, os.environ, file_actions=(*actions, (os.POSIX_SPAWN_DUP2, writer, 3))
        )
        os.close(writer)
        measured = found.read().split()
        _, status = os.waitpid(pid, 0)
    if status != 0:
        raise RuntimeError(
            f"{' '.join(command)} exited with {os.waitstatus_to_exitcode(status)}; see {log or 'its output'}"
        )
    return ProcessCost(float(measured[0]), float(measured[1]))


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
