"""How wide the terminal is."""

from __future__ import annotations

import shutil


def columns() -> int | None:
    """Columns that $COLUMNS or the terminal gives; None for a pipe or a file, whose lines nobody should wrap."""
    return shutil.get_terminal_size(fallback=(0, 0)).columns or None
