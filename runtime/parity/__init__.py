"""Does an artifact still compute what the eager network computes? Measured, judged, attributed and reported.

    from resnet_export.runtime.parity import run_parity, text

    report = run_parity("resnet50")
    print(text.render(report))
    raise SystemExit(report.exit_code)

Importing this package loads nothing but itself; a name is loaded on first use. `docs/parity.md` defines every
figure and verdict.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resnet_export.runtime.parity import junit, markdown, text
    from resnet_export.runtime.parity.compare import Batch
    from resnet_export.runtime.parity.gate import run_parity
    from resnet_export.runtime.parity.report import ParityReport, decode_report, encode_report
    from resnet_export.runtime.parity.tolerances import parse_overrides

__all__ = [
    "Batch",
    "ParityReport",
    "decode_report",
    "encode_report",
    "junit",
    "markdown",
    "parse_overrides",
    "run_parity",
    "text",
]

_HOME = {
    "Batch": "compare",
    "ParityReport": "report",
    "decode_report": "report",
    "encode_report": "report",
    "parse_overrides": "tolerances",
    "run_parity": "gate",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME.get(name, name)}")
    value: object = getattr(module, name) if name in _HOME else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
