"""Does a session with a profile open what is fastest? Each bundle is tuned, and then timed anew.

python -m benchmarks.profile_choice BUNDLE...
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import get_args

from benchmarks.harness import heading
from resnet_export.runtime import open_session, read_manifest
from resnet_export.runtime.bench import bench
from resnet_export.runtime.select.spec import Preference

ROUNDS = 15
SLOWEST = 1.05


def check(bundle: Path, prefer: Preference) -> bool:
    """Print the speed of the fastest candidate over that of the choice; return whether that is near 1."""
    batches = (1,) if prefer == "latency" else tuple(sorted({1, read_manifest(bundle).batch.opt}))
    with open_session(bundle, prefer=prefer, tune=True) as session:
        choice = session.choice
        usable = {
            (item.artifact, item.backend, item.precision)
            for item in session.trace
            if item.outcome in ("chosen", "usable")
        }
    speeds: dict[tuple[str, str, str], float] = {}
    for timing in bench(bundle, batches=batches, rounds=ROUNDS).timings:
        name = (timing.artifact, timing.backend, timing.precision)
        if name in usable:
            speeds[name] = max(speeds.get(name, 0), timing.images_per_second)
    ratio = max(speeds.values()) / speeds[choice.artifact, choice.backend, choice.precision]
    print(f"  {bundle.name}, {prefer}: {choice}, {ratio:.2f} of the fastest's time", flush=True)
    return ratio <= SLOWEST


def main(bundles: list[Path]) -> None:
    """Print a line for each bundle and preference, and how many are within the bar."""
    heading(f"What a profile chooses against what is fastest (bar: at most {SLOWEST})")
    speed = [prefer for prefer in get_args(Preference) if prefer != "accuracy"]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        near = [check(bundle, prefer) for bundle in bundles for prefer in speed]
    print(f"  {sum(near)} of {len(near)} within the bar")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
