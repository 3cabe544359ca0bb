"""Does an artifact still compute what the eager network computes? Measured, held to limits, attributed and reported.

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
    from resnet_export.runtime.parity.check import run_parity
    from resnet_export.runtime.parity.criteria.tolerances import parse_overrides
    from resnet_export.runtime.parity.measure.comparison import Batch
    from resnet_export.runtime.parity.report import junit, markdown, text
    from resnet_export.runtime.parity.report.schema import ParityReport, decode_report, encode_report
    from resnet_export.runtime.parity.spec import ParitySpec

__all__ = [
    "Batch",
    "ParityReport",
    "ParitySpec",
    "decode_report",
    "encode_report",
    "junit",
    "markdown",
    "parse_overrides",
    "run_parity",
    "text",
]

_HOME = {
    "Batch": "measure.comparison",
    "ParityReport": "report.schema",
    "ParitySpec": "spec",
    "decode_report": "report.schema",
    "encode_report": "report.schema",
    "parse_overrides": "criteria.tolerances",
    "run_parity": "check",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOME.get(name, f'report.{name}')}")
    value: object = getattr(module, name) if name in _HOME else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
