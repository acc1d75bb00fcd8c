"""Plain-text tables for the command line: standard library only, because `verify` must work with numpy alone.

Cells may come from files of strangers (labels, names, device replies), so control characters are shown, never obeyed.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

GAP = "  "
NARROWEST = 8
"""Columns are not squeezed below this many characters: a terminal that narrow wraps by itself."""


@dataclass(frozen=True)
class Column:
    """A heading; `right` aligns numbers at their last digit and keeps them on one line."""

    title: str
    right: bool = False


def display_width(text: str) -> int:
    """Terminal cells that `text` takes: 2 for wide and full-width characters, 0 for combining marks, else 1."""
    return sum(_cells(character) for character in text)


def printable(text: str) -> str:
    r"""`text` on one line: control, format and surrogate characters as \xNN or \uNNNN, tabs and newlines as blanks."""
    return "".join(_shown(character) for character in text)


def table(columns: Sequence[str | Column], rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """Aligned columns under a ruled heading, without trailing blanks and without a final newline.

    With `width` (terminal cells), the widest left-aligned columns are squeezed and their cells wrapped until the table
    fits or every such column is `NARROWEST` wide. A row of another length than `columns` is a ValueError.
    """
    heads = [Column(column) if isinstance(column, str) else column for column in columns]
    if any(len(row) != len(heads) for row in rows):
        raise ValueError(f"a row does not have {len(heads)} cells")
    cells = [[printable(column.title) for column in heads], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(display_width(row[i]) for row in cells) for i in range(len(heads))]
    if width is not None:
        widths = _squeeze(widths, heads, width)
    lines = [_lines(row, heads, widths) for row in cells]
    rule = GAP.join("-" * size for size in widths)
    return "\n".join([*lines[0], rule, *(line for row in lines[1:] for line in row)])


def pairs(rows: Sequence[tuple[str, str]], *, width: int | None = None) -> str:
    """One "name  value" line each, the values aligned, long values wrapped under themselves."""
    heads = [Column("", right=False), Column("", right=False)]
    cells = [[printable(name), printable(value)] for name, value in rows]
    widths = [max((display_width(row[i]) for row in cells), default=0) for i in range(2)]
    if width is not None:
        widths[1] = min(widths[1], max(NARROWEST, width - widths[0] - len(GAP)))
    return "\n".join(line for row in cells for line in _lines(row, heads, widths))


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _shown(character: str) -> str:
    if character in "\t\n\r":
        return " "
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
        return f"\\x{ord(character):02x}" if ord(character) < 256 else f"\\u{ord(character):04x}"
    return character


def _squeeze(widths: list[int], heads: list[Column], width: int) -> list[int]:
    widths = list(widths)
    soft = [i for i, column in enumerate(heads) if not column.right and widths[i] > NARROWEST]
    while sum(widths) + len(GAP) * (len(widths) - 1) > width and soft:
        widest = max(soft, key=lambda i: widths[i])
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    return widths


def _lines(row: Sequence[str], heads: Sequence[Column], widths: Sequence[int]) -> list[str]:
    wrapped = [_wrap(cell, size) for cell, size in zip(row, widths, strict=True)]
    height = max((len(parts) for parts in wrapped), default=0)
    lines = []
    for k in range(height):
        parts = [
            _pad(cell[k] if k < len(cell) else "", size, column.right)
            for cell, size, column in zip(wrapped, widths, heads, strict=True)
        ]
        lines.append(GAP.join(parts).rstrip())
    return lines


def _wrap(text: str, size: int) -> list[str]:
    if display_width(text) <= size:
        return [text]
    # textwrap counts characters; wide ones take two cells, so such a text is given half the room.
    room = size if display_width(text) == len(text) else max(1, size // 2)
    return textwrap.wrap(text, room) or [""]


def _pad(text: str, size: int, right: bool) -> str:
    blanks = " " * max(0, size - display_width(text))
    return blanks + text if right else text + blanks


def counted(count: int, total: int) -> str:
    """(334, 360) -> "92.77%": rounded down, so that no figure is better than what was counted."""
    hundredths = 10_000 * int(count) // total
    return f"{hundredths // 100}.{hundredths % 100:02d}%"
