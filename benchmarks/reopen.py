"""Opening a bundle for the first time against opening it again, each in a process of its own.

python -m benchmarks.reopen BUNDLE
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.harness import heading

ROUNDS = 5
_OPEN = """
import sys, time
from resnet_export.runtime import open_session
start = time.perf_counter()
session = open_session(sys.argv[1])
print(time.perf_counter() - start, session.choice, sep=";")
"""


def main(bundle: str) -> None:
    """Print medians and the ratio."""
    heading("open_session, in a new process")
    times: dict[str, list[float]] = {"first": [], "second": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as cache:
            for turn in times.values():
                done = subprocess.run(
                    [sys.executable, "-c", _OPEN, bundle],
                    env=os.environ | {"XDG_CACHE_HOME": cache},
                    capture_output=True,
                    text=True,
                    check=True,
                )
                seconds, choice = done.stdout.strip().split(";")
                turn.append(float(seconds))
    first, second = (statistics.median(turn) for turn in times.values())
    print(
        f"  {choice}: first {first:.2f} s, second {second:.2f} s, ratio {second / first:.2f}   (bar: at most 0.5)"
    )


if __name__ == "__main__":
    main(sys.argv[1])
