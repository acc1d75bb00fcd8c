"""A cable with a mind of its own: a real emulated board behind a pseudo-terminal that can misbehave at a chosen command."""

from __future__ import annotations

import os
import pty
import select
import threading
import tty
from collections.abc import Callable
from types import TracebackType

BANNER = b"m-timestamp-mode-performance\r\nm-lap-us-0\r\nm-init-done\r\nm-ready\r\n"
NOISE = bytes(range(128, 250)) + b"\r\n" + bytes(range(1, 9)) + b"\r\n"

Rule = Callable[[bytes, int], str | bytes]
"""From a command (without '%') and its number (from 0) to: "pass", "silence", "vanish", "fault", bytes to answer instead."""


class Saboteur:
    """Forwards commands to the board at `upstream` and its answers back; `rule` says which ones go wrong, and how."""

    def __init__(self, upstream: str, rule: Rule) -> None:
        self._rule = rule
        self._board = os.open(upstream, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(self._board)
        self._ours, self._theirs = pty.openpty()
        tty.setraw(self._theirs)
        self.path = os.ttyname(self._theirs)
        self.commands: list[bytes] = []
        self._stop, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Saboteur:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.write(self._wake, b"x")
        self._thread.join(10)
        for descriptor in (self._stop, self._wake, self._board):
            os.close(descriptor)
        self._hang_up()

    def send(self, command: bytes) -> None:
        """Sends a command of its own to the board; only from within a rule."""
        os.write(self._board, command + b"%")

    def _hang_up(self) -> None:
        for name in ("_ours", "_theirs"):
            if getattr(self, name) >= 0:
                os.close(getattr(self, name))
                setattr(self, name, -1)

    def _run(self) -> None:
        pending = b""
        while True:
            ready, _, _ = select.select([self._ours, self._board, self._stop], [], [])
            if self._stop in ready:
                return
            if self._board in ready:
                os.write(self._ours, os.read(self._board, 4096))
            if self._ours in ready:
                pending += os.read(self._ours, 4096)
                while b"%" in pending:
                    command, _, pending = pending.partition(b"%")
                    action = self._rule(command, len(self.commands))
                    self.commands.append(command)
                    if action == "pass":
                        os.write(self._board, command + b"%")
                    elif action == "vanish":
                        self._hang_up()
                        return
                    elif isinstance(action, bytes):
                        os.write(self._ours, action)
                    else:
                        assert action == "silence", action


def at(number: int, action: str | bytes) -> Rule:
    """Misbehaves once, at the command of that number."""
    return lambda _, count: action if count == number else "pass"


def on(prefix: bytes, action: str | bytes, skip: int = 0) -> Rule:
    """Misbehaves once, at the command number `skip` (from 0) among those that begin with `prefix`."""
    seen = -1

    def rule(command: bytes, _: int) -> str | bytes:
        nonlocal seen
        if command.startswith(prefix):
            seen += 1
            if seen == skip:
                return action
        return "pass"

    return rule


def always(action: str | bytes) -> Rule:
    """Misbehaves at every command."""
    return lambda _, __: action
