"""The parity report as a page for people: one file that needs no network, no script and no other file.

    from resnet_export.exporter.report import require, gather, render

    require()                                          # jinja2 and matplotlib, or DependencyError
    report = run_parity("resnet50")
    page = render(report, gather("resnet50", report))  # the bytes of the file

Importing this package loads nothing but itself; a name is loaded on first use.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from resnet_export.runtime.errors import DependencyError

if TYPE_CHECKING:
    from resnet_export.exporter.report.page import render
    from resnet_export.exporter.report.report_data import Material, Recorded, gather, read_recorded

__all__ = ["Material", "Recorded", "gather", "installed", "read_recorded", "render", "require"]

_HOME = {
    "Material": "report_data",
    "Recorded": "report_data",
    "gather": "report_data",
    "read_recorded": "report_data",
    "render": "page",
}
_NEEDED = ("jinja2", "matplotlib")


def installed() -> bool:
    """Whether everything that the page is made with is there."""
    return not _missing()


def require() -> None:
    """Raise DependencyError unless everything that the page is made with is installed."""
    if missing := _missing():
        raise DependencyError(
            f"the HTML report needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
            "installed; pip install 'resnet-export[report]'"
        )


def _missing() -> list[str]:
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
