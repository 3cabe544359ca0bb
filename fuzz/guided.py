"""Coverage-guided fuzzing of one kind of file, in the project's own readers.

    python -m fuzz.guided KIND [SECONDS]

libFuzzer damages the undamaged files of `fuzz.targets`, and what reaches new lines of the runtime it damages further.
It stops at the first exception outside `resnet_export.runtime.errors`, file that takes over 10 seconds, or 1 GB of
memory, and leaves the file in the current folder. Needs atheris: pip install 'resnet-export[fuzz]'.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["resnet_export.runtime", "resnet_export.calibration.observe"]):
    from fuzz.targets import KINDS
    from resnet_export.runtime.errors import ResnetExportError


def main(kind: str, seconds: str = "600") -> None:
    """Fuzz until something is found or the time is over."""
    with tempfile.TemporaryDirectory() as folder:
        target = KINDS[kind](Path(folder))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for index, data in enumerate(target.files):
            (corpus / str(index)).write_bytes(data)

        def feed(data: bytes) -> None:
            with contextlib.suppress(ResnetExportError):
                target.feed(data)

        options = [f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=1000"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], feed)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
