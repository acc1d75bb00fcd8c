"""Types of arguments that several verbs take."""

from __future__ import annotations

import argparse
from pathlib import Path


def path(text: str) -> Path:
    """A file or a folder; an empty name is none, where `Path` reads the current folder (`--out "$UNSET"`)."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name; . is the current folder")
    return Path(text)


def percentage(text: str) -> float:
    """A share: a number in [0, 100]."""
    if not 0 <= (value := float(text)) <= 100:
        raise argparse.ArgumentTypeError(f"{text}: expected a percentage in [0, 100]")
    return value
