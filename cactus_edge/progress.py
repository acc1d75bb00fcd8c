"""What long work tells whoever watches. Silent by default; the command line draws bars."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from the thread that works. Implementations must not raise."""

    def begin(self, name: str, index: int, count: int) -> None:
        """Step `index` of `count` (from 1) starts."""

    def advance(self, done: int, total: int, text: str = "") -> None:
        """The current step finished `done` of `total` units; `text` is its latest figure."""

    def end(self, seconds: float, *, cached: bool, text: str = "") -> None:
        """The current step is finished, or was found finished (`cached`); `text` is its result in words."""


class Silent:
    """Shows nothing."""

    def begin(self, name: str, index: int, count: int) -> None:
        """Ignored."""

    def advance(self, done: int, total: int, text: str = "") -> None:
        """Ignored."""

    def end(self, seconds: float, *, cached: bool, text: str = "") -> None:
        """Ignored."""


SILENT = Silent()
