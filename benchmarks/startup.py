"""Start-up: `resnet-export --help` against a bare `import click`, and the runtime's import against numpy's.

python -m benchmarks.startup
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from benchmarks.harness import heading, interleave_processes, paired_ratio

ROUNDS = 25


def main() -> None:
    """Print medians and ratios."""
    heading("Start-up, whole processes")
    command = Path(sys.executable).with_name("resnet-export")
    costs = interleave_processes(
        {
            "import click": [sys.executable, "-c", "import click"],
            "resnet-export --help": [str(command), "--help"],
            "import numpy": [sys.executable, "-c", "import numpy"],
            "import resnet_export.runtime": [sys.executable, "-c", "import resnet_export.runtime"],
        },
        rounds=ROUNDS,
        warmup=2,
    )
    seconds = {name: [cost.seconds for cost in runs] for name, runs in costs.items()}
    for name, values in seconds.items():
        print(f"  {name:<30} {statistics.median(values) * 1000:6.0f} ms")
    help_ratio = paired_ratio(seconds["resnet-export --help"], seconds["import click"])
    import_ratio = paired_ratio(seconds["import resnet_export.runtime"], seconds["import numpy"])
    print(f"  --help / import click           {help_ratio:.2f}   (bar: at most 3)")
    print(f"  runtime / numpy                 {import_ratio:.2f}   (bar: at most 1.5)")


if __name__ == "__main__":
    main()
