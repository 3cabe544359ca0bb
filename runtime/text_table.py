"""Tables of plain text that fit where they are printed."""

from __future__ import annotations

import io
import shutil
import textwrap
from collections.abc import Iterable, Sequence

__all__ = ["terminal_width", "text_table", "wrapped"]

_WIDEST = 160
_IN_A_LOG = 120
_LONG_WORD = 18


def terminal_width() -> int:
    """Return how many columns standard output shows: the terminal's, those in COLUMNS, or 120 in a log."""
    return max(40, min(shutil.get_terminal_size((_IN_A_LOG, 24)).columns, _WIDEST))


def wrapped(sentence: str, indent: str = "") -> str:
    """Return a sentence in lines that fit the terminal, those after the first indented; in a log it is one line."""
    width = shutil.get_terminal_size((0, 24)).columns
    if not width:
        return sentence
    return textwrap.fill(
        sentence, max(40, width), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def text_table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, width: int | None = None) -> str:
    """Return a table of at most `width` columns (those of the terminal); longer cells wrap at words.

    Words are cut only where they are longer than 18 characters. Markup in cells is text.
    """
    from rich import box
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = [
        list(column) for column in zip(headers, *([str(cell) for cell in row] for row in rows), strict=True)
    ]
    natural = [max(cell_len(line) for cell in column for line in cell.split("\n")) for column in columns]
    least = [
        min(max(cell_len(word) for cell in column for word in [*cell.split(), ""]), _LONG_WORD)
        for column in columns
    ]
    widths, gaps = list(natural), len(columns) - 1
    while sum(widths) + gaps > (width or terminal_width()) and widths != least:
        spare = [wide - narrow for wide, narrow in zip(widths, least, strict=True)]
        widths[spare.index(max(spare))] -= 1
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0, show_edge=False)
    for (header, *_), wide in zip(columns, widths, strict=True):
        table.add_column(Text(header), width=wide, overflow="fold")
    for row in zip(*(column[1:] for column in columns), strict=True):
        table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=sum(widths) + gaps, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
