"""What a section of the page shows: pictures and tables, and a sentence in the place of what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from resnet_export.exporter.report.report_data import Material
from resnet_export.runtime.parity.report.schema import ParityReport


@dataclass(frozen=True)
class Chart:
    """A picture with a heading and a sentence below it; `bad` when it shows something outside its limits."""

    title: str
    svg: Markup
    note: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table; `bad` when it tells of something outside its limits."""

    cells: tuple[str, ...]
    bad: bool = False


@dataclass(frozen=True)
class Table:
    """A table below the pictures. `numbers` are the headers of columns that are aligned to the right."""

    headers: tuple[str, ...]
    rows: tuple[Row, ...]
    numbers: frozenset[str] = frozenset()
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Shown:
    """What a section has to say: `lede` before the pictures, `missing` in the place of what is not there and why."""

    lede: str = ""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: str = ""


@dataclass(frozen=True)
class Section:
    """A section of the page: its id, its name in the navigation, its heading, and what makes what it shows."""

    id: str
    name: str
    title: str
    show: Callable[[ParityReport, Material], Shown]
