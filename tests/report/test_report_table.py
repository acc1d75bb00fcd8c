"""Tables line up, fit, and show control characters instead of obeying them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cactus_edge.report.table import NARROWEST, Column, display_width, pairs, printable, table


def test_columns_line_up_and_numbers_end_together() -> None:
    assert table(["name", Column("bytes", right=True)], [["a", "7"], ["longer", "12345"]]) == (
        "name    bytes\n------  -----\na           7\nlonger  12345"
    )


def test_wide_characters_take_two_cells() -> None:
    assert table(["x", "y"], [["日本", "1"], ["ab", "2"]]).splitlines()[2:] == ["日本  1", "ab    2"]


def test_no_rows() -> None:
    assert table(["a", "b"], []) == "a  b\n-  -"
    assert pairs([]) == ""


def test_a_ragged_row_is_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        table(["a", "b"], [["1"]])


@pytest.mark.parametrize("text", ["\x1b[31mred", "bell\x07", "c1\x9b2J", "flip\u202etxt", "cr\rover", "two\nlines"])
def test_control_characters_are_shown(text: str) -> None:
    assert all(character.isprintable() for character in printable(text))
    assert len(table(["h"], [[text]]).splitlines()) == 3


@given(
    st.lists(st.tuples(st.text(max_size=60), st.text(max_size=60), st.integers(0, 10**6)), max_size=6),
    st.integers(2 * NARROWEST + 7 + 4, 120),
)
def test_it_fits_the_width(rows: list[tuple[str, str, int]], width: int) -> None:
    text = table(["a", "b", Column("n", right=True)], [[a, b, str(n)] for a, b, n in rows], width=width)
    assert all(display_width(line) <= width and line == line.rstrip() for line in text.splitlines())


def test_pairs_wrap_under_themselves() -> None:
    assert pairs([("a", "one two three"), ("bb", "4")], width=12) == "a   one two\n    three\nbb  4"
