"""Tables fit where they are printed, and lose nothing on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_export.runtime.text_table import terminal_width, text_table

WORDS = st.text(alphabet=st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=10)
CELLS = st.lists(WORDS, max_size=6).map(" ".join)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS), max_size=4), st.integers(40, 120))
def test_a_table_is_no_wider_than_asked_and_loses_no_word(rows: list[tuple[str, ...]], width: int) -> None:
    headers = ("artifact", "runs on", "verdict")
    printed = text_table(headers, rows, width=width)
    assert max(map(len, printed.splitlines())) <= width
    assert sorted(printed.replace("─", "").split()) == sorted(
        " ".join(" ".join(row) for row in [headers, *rows]).split()
    )


def test_words_are_cut_only_where_they_are_very_long() -> None:
    long, short = "x" * 60, "int8.tensorrt"
    lines = text_table(["artifact", "backend"], [[long, short]], width=40).splitlines()
    assert any(short in line for line in lines)
    assert "".join(line.split()[0] for line in lines[2:] if line.startswith("x")) == long


def test_markup_in_a_cell_is_text() -> None:
    assert "[bold]x[/bold]" in text_table(["name"], [["[bold]x[/bold]"]])


@pytest.mark.parametrize(("columns", "expected"), [("80", 80), ("20", 40), ("500", 160)])
def test_the_width_is_the_terminals_within_reason(
    columns: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert terminal_width() == expected
