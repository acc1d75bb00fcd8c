"""Progress on the terminal: a rich bar where a person watches, one line a step where a log does."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from cactus_edge.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


def terminal_progress(*, quiet: bool, each: bool = False) -> Progress:
    """The fitting display for stderr. each: of a step's units a log gets every one, not each tenth part."""
    from cactus_edge.progress import SILENT

    if quiet:
        return SILENT
    return Bars() if sys.stderr.isatty() and find_spec("rich") else Lines(each=each)


class Lines:
    """One line when a step ends; `advance` prints at each tenth, or every time."""

    def __init__(self, *, each: bool = False) -> None:
        self._each = each
        self._head = ""
        self._tenth = 0

    def begin(self, name: str, index: int, count: int) -> None:
        """Remembers the step's name."""
        self._head, self._tenth = f"[{index}/{count}] {name:<9}", 0

    def advance(self, done: int, total: int, text: str = "") -> None:
        """Prints when another tenth of the work is done."""
        tenth = 10 * done // total if total else 0
        if self._each or tenth > self._tenth:
            self._tenth = tenth
            print(f"{self._head} {done}/{total} {text}".rstrip(), file=sys.stderr, flush=True)

    def end(self, seconds: float, *, cached: bool, text: str = "") -> None:
        """Prints the step's result and time."""
        took = "as before" if cached else f"{seconds:.1f} s"
        print(f"{self._head} {text} ({took})", file=sys.stderr, flush=True)


class Bars:
    """A bar for the running step; a finished step leaves its line."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._head = ""

    def begin(self, name: str, index: int, count: int) -> None:
        """Starts the bar."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._head = f"[{index}/{count}] {name:<9}"
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task(self._head, total=None)
        self._bar.start()

    def advance(self, done: int, total: int, text: str = "") -> None:
        """Moves the bar."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, description=f"{self._head} {text}")

    def end(self, seconds: float, *, cached: bool, text: str = "") -> None:
        """Replaces the bar by the step's line."""
        if self._bar is not None:
            self._bar.stop()
        took = "as before" if cached else f"{seconds:.1f} s"
        self._console.print(f"{self._head} {text} ({took})", markup=False, highlight=False)
