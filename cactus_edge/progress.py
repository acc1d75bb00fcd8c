"""What long work tells whoever watches. Silent by default; the command line draws bars."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Called from the thread that works. Implementations must not raise."""

    def begin(self, name: str, index: int, count: int) -> None:
        """Step `index` of `count` (from 1) starts."""

    def advance(self, done: int, total: int, text: str = "") -> None:
        """The current step finished `done` of `total` units; `text` is its latest figure."""

    def end(self, seconds: float, *, cached: bool, text: str = "") -> None:
        """The current step is finished, or was found finished (`cached`); `text` is its result in words."""


class Seldom:
    """Whether it is time to tell again: so many seconds after the last time that anything was told."""

    def __init__(self, seconds: float = 20.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock, self._last = seconds, clock, clock()

    def due(self) -> bool:
        """Whether it is; then the next time is as long after this one."""
        due = self._clock() - self._last >= self._seconds
        if due:
            self.told()
        return due

    def told(self) -> None:
        """Something else was told now."""
        self._last = self._clock()


class Silent:
    """Shows nothing."""

    def begin(self, name: str, index: int, count: int) -> None:
        """Ignored."""

    def advance(self, done: int, total: int, text: str = "") -> None:
        """Ignored."""

    def end(self, seconds: float, *, cached: bool, text: str = "") -> None:
        """Ignored."""


SILENT = Silent()
