"""Types of arguments that several verbs take."""

from __future__ import annotations

import argparse
from fractions import Fraction
from pathlib import Path

from cactus_edge.errors import InputError


def path(text: str) -> Path:
    """A file or a folder; an empty name is none, where `Path` reads the current folder (`--out "$UNSET"`)."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; . is the current folder")
    return Path(text)


def percentage(text: str) -> Fraction:
    """A share in per cent, in [0, 100], exactly as it is written: 161 of 1,000 are 16.1 %."""
    from cactus_edge.verify.regions import exact

    try:
        share = exact(text, "a share")
    except InputError:
        share = Fraction(-1)
    if not 0 <= share <= 100:
        raise argparse.ArgumentTypeError(f"{text}: expected a percentage in [0, 100]")
    return share


def reached(required: Fraction | None, count: int, total: int) -> bool:
    """Whether `count` of `total` are `required` per cent at least; all are enough where nothing is required."""
    return required is None or 100 * count >= required * total
