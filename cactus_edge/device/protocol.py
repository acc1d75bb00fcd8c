"""The host's side of the MLPerf Tiny serial protocol, in lock step, and of our firmware's extensions.

A command ends with '%' and is answered by lines that end with CR LF, the last of which is "m-ready"; nothing is sent before
it came. A bare '%' is never sent: it makes the reference firmware compare a null pointer. Lines that do not begin with
"m-" or "e-" are discarded, counted and kept for the log. Each way to fail has its own error, because "time-out" is not a
diagnosis: silence, garbage, a reset in the middle, a port that vanished, an error that the board itself reports.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from cactus_edge.device.transport import Port
from cactus_edge.errors import (
    DeviceError,
    DeviceGarbageError,
    DeviceProtocolError,
    DeviceResetError,
    DeviceSilentError,
    InternalError,
)

DB_CHUNK_BYTES = 31
"""Most bytes a `db` line carries: "db " and 62 digits stay inside the firmware's 80 characters."""

_TRIES = 3
_QUIET_S = 0.15
_LONGEST_LINE = 1 << 22
_BANNER = ("m-timestamp-mode-", "m-init-done")
_VALID = re.compile(r"[me]-[\x20-\x7e]*")


@dataclass(frozen=True)
class Timeouts:
    """Longest silence in seconds: for a name, for a command, per inference of an `infer`; `multiplier` scales them all."""

    name_s: float = 2.0
    command_s: float = 5.0
    infer_s: float = 30.0
    multiplier: float = 1.0


@dataclass(frozen=True)
class Capability:
    """What our firmware says of itself. model: SHA-256 of its blob, computed by the board. timebase: "us", "instructions"."""

    model: str
    arithmetic: str
    input_bytes: int
    output_bytes: int
    ops: int
    arena_bytes: int
    clock_hz: int
    timebase: str


@dataclass(frozen=True)
class Profile:
    """Answer to `profile`. capability is None for another vendor's firmware."""

    firmware: str
    model: str
    capability: Capability | None


@dataclass(frozen=True)
class Infer:
    """Answer to `infer`: microseconds between the laps (modulo 2^32), and the outputs at three decimals."""

    elapsed_us: int
    results: tuple[float, ...]


@dataclass(frozen=True)
class Ticks:
    """Exact cost of the last `infer`: `ticks` of a `hz` clock over `n` inferences; a `unit` lasts hz / unit_hz ticks."""

    ticks: int
    hz: int
    n: int
    unit: str
    unit_hz: int

    @property
    def per_inference(self) -> float:
        """Units (instructions or microseconds) per inference."""
        return self.ticks * self.unit_hz / self.hz / self.n


@dataclass(frozen=True)
class Discard:
    """Bytes that were not protocol. at_s: seconds since the link was opened."""

    at_s: float
    text: str


Log = Callable[[float, str, str], None]
"""Called with seconds since the link was opened, '>' (sent), '<' (received) or '!' (discarded), and the text."""


def elapsed_us(begin: int, end: int) -> int:
    """(end - begin) mod 2^32: the firmware's microseconds wrap after 71.6 minutes."""
    return (end - begin) % (1 << 32)


class Link:
    """A conversation with one board. Not safe for threads."""

    def __init__(self, port: Port, *, timeouts: Timeouts | None = None, log: Log | None = None) -> None:
        self._port = port
        self._timeouts = timeouts or Timeouts()
        self._log = log
        self._opened = time.monotonic()
        self._buffer = b""
        self.discards: list[Discard] = []

    def close(self) -> None:
        """Gives the port back."""
        self._port.close()

    # ---- lines ----

    def _note(self, direction: str, text: str) -> None:
        at = time.monotonic() - self._opened
        if direction == "!":
            self.discards.append(Discard(at, text))
        if self._log is not None:
            self._log(at, direction, text)

    def _line(self, silence_s: float, *, growing: bool = False) -> str | None:
        """The next protocol line; None after `silence_s` without one. Discards what is none, whole lines at a time.

        growing: a byte of a line that begins as the protocol's do is no silence: a long one takes longer than a short one.
        """
        deadline = time.monotonic() + silence_s
        while True:
            head, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                text = head.rstrip(b"\r").decode("ascii", "backslashreplace")
                if _VALID.fullmatch(text):
                    self._note("<", text)
                    return text
                if text:
                    self._note("!", text)
                continue
            if len(self._buffer) > _LONGEST_LINE:
                raise DeviceGarbageError(
                    f"{self._port.name} sent {len(self._buffer)} bytes without a line end", hint="check the baud rate"
                )
            left = deadline - time.monotonic()
            data = self._port.read(left) if left > 0 else b""
            if not data and left <= 0:
                return None
            self._buffer += data
            if growing and data and self._buffer.startswith((b"m-", b"e-")):
                deadline = time.monotonic() + silence_s

    def _drop(self) -> None:
        """Sets aside an unfinished line."""
        if self._buffer:
            self._note("!", self._buffer.decode("ascii", "backslashreplace"))
            self._buffer = b""

    def _settle(self) -> None:
        """Reads until the line is quiet, at most as long as a name may take: a board that boots over and over never is."""
        deadline = time.monotonic() + self._timeouts.name_s * self._timeouts.multiplier
        while self._line(_QUIET_S) is not None and time.monotonic() < deadline:
            pass
        self._drop()

    # ---- commands ----

    def command(self, text: str, silence_s: float | None = None) -> list[str]:
        """Sends `text` and returns the lines of the answer before "m-ready", errors of the board included.

        silence_s: longest time without a line or a part of one. Raises DeviceSilentError, DeviceGarbageError, DeviceResetError,
        DeviceGoneError, or DeviceProtocolError for an answer that breaks off or a processor fault.
        """
        if not text.strip() or "%" in text or not text.isascii() or not text.isprintable():
            raise InternalError(f"not a command: {text!r}")
        limit = (self._timeouts.command_s if silence_s is None else silence_s) * self._timeouts.multiplier
        lines: list[str] = []
        discarded = len(self.discards)
        self._note(">", f"{text}%")
        self._port.write(text.encode("ascii") + b"%")
        while True:
            line = self._line(limit, growing=True)
            if line is None:
                self._drop()
                raise self._broken_off(text, limit, lines, self.discards[discarded:])
            if line.startswith(_BANNER):
                self._settle()
                raise DeviceResetError(
                    f"{self._port.name}: the board booted again during {_shorten(text)!r}",
                    hint="check its power supply",
                )
            if line.startswith("e-[fault"):
                raise DeviceProtocolError(
                    f"{self._port.name}: the processor stopped during {_shorten(text)!r}: {line}",
                    hint="reset the board",
                )
            if line == "m-ready":
                return lines
            lines.append(line)

    def _broken_off(self, text: str, limit_s: float, lines: list[str], discards: list[Discard]) -> DeviceError:
        where = f"{self._port.name}: {_shorten(text)!r}"
        if lines:
            return DeviceProtocolError(
                f"{where}: the answer broke off after {lines[-1]!r}: nothing for {limit_s:g} s, expected m-ready",
                hint="reset the board, or allow more time",
            )
        if discards:
            count = sum(len(d.text) for d in discards)
            return DeviceGarbageError(
                f"{where}: {count} characters came and no line of the protocol; the first: {_shorten(discards[0].text)!r}",
                hint="check the baud rate, and that the board runs this firmware",
            )
        return DeviceSilentError(
            f"{where}: nothing came for {limit_s:g} s",
            hint="check that the board has power, runs the firmware and this is its port",
        )

    def ask(self, text: str, silence_s: float | None = None) -> list[str]:
        """As `command`; an error that the board reports is raised as DeviceProtocolError."""
        lines = self.command(text, silence_s)
        for line in lines:
            if line.startswith("e-"):
                raise DeviceProtocolError(
                    f"{self._port.name}: {_shorten(text)!r}: the board says {line}", hint="see the log"
                )
        return lines

    def handshake(self, boot_s: float = 0.0) -> str:
        """Finds the board's rhythm and returns its name. boot_s: how long to wait for a banner that may come.

        Whatever came before is set aside; `name` is tried three times, because the first may complete a command that an
        earlier program left half-sent. Raises what the last try failed with.
        """
        waited_until = time.monotonic() + boot_s
        while boot_s and time.monotonic() < waited_until and self._line(_QUIET_S) != "m-ready":
            pass
        problem: DeviceError | None = None
        garbage: DeviceGarbageError | None = None
        for _ in range(_TRIES):
            self._settle()
            try:
                lines = self.command("name", self._timeouts.name_s)
            except DeviceGarbageError as error:
                problem = garbage = error
            except (DeviceSilentError, DeviceResetError, DeviceProtocolError) as error:
                problem = error
            else:
                for line in lines:
                    if match := re.fullmatch(r"m-name-dut-\[([^]]*)\]", line):
                        self._settle()
                        return match.group(1)
                problem = DeviceProtocolError(
                    f"{self._port.name}: no name in {lines!r}, expected m-name-dut-[...]",
                    hint="is this the right board?",
                )
        assert problem is not None
        raise garbage or problem

    def _field(self, text: str, pattern: str, silence_s: float | None = None) -> re.Match[str]:
        lines = self.ask(text, silence_s)
        return self._match(text, lines, pattern)

    def _match(self, text: str, lines: list[str], pattern: str) -> re.Match[str]:
        for line in lines:
            if match := re.fullmatch(pattern, line):
                return match
        raise DeviceProtocolError(
            f"{self._port.name}: {_shorten(text)!r} was answered by {[_shorten(line) for line in lines]!r}, expected {pattern}",
            hint="does the board run firmware of this version?",
        )

    def profile(self) -> Profile:
        """Firmware, model name and, for our firmware, its capability line. Tried three times."""
        for attempt in range(_TRIES):
            try:
                lines = self.ask("profile")
                firmware = self._match("profile", lines, r"m-profile-\[([^]]*)\]").group(1)
                model = self._match("profile", lines, r"m-model-\[([^]]*)\]").group(1)
                break
            except (DeviceProtocolError, DeviceSilentError, DeviceGarbageError):
                if attempt == _TRIES - 1:
                    raise
                self._settle()
        extra = [line for line in lines if line.startswith("m-cactus-[")]
        return Profile(firmware, model, self._capability(extra[0]) if extra else None)

    def _capability(self, line: str) -> Capability:
        fields = _fields(line)
        try:
            if fields["proto"] != "1":
                raise DeviceProtocolError(
                    f"{self._port.name}: protocol extension {fields['proto']}, expected 1",
                    hint="update cactus-edge, or flash again",
                )
            return Capability(
                model=fields["model"],
                arithmetic=fields["arith"],
                input_bytes=int(fields["in"]),
                output_bytes=int(fields["out"]),
                ops=int(fields["ops"]),
                arena_bytes=int(fields["arena"]),
                clock_hz=int(fields["clk"]),
                timebase=fields["timebase"],
            )
        except (KeyError, ValueError) as error:
            raise DeviceProtocolError(
                f"{self._port.name}: capability line {line!r}: {error}", hint="flash again"
            ) from error

    def timestamp(self) -> int:
        """Microseconds since boot, modulo 2^32."""
        return int(self._field("timestamp", r"m-lap-us-([0-9]+)").group(1))

    def load(self, data: bytes) -> None:
        """Sends the model's input, at most 31 bytes a command."""
        self._field(f"db load {len(data)}", rf"m-\[Expecting {len(data)} bytes\]")
        for start in range(0, len(data), DB_CHUNK_BYTES):
            text = f"db {data[start : start + DB_CHUNK_BYTES].hex()}"
            lines = self.ask(text)
            done = start + DB_CHUNK_BYTES >= len(data)
            if lines != (["m-load-done"] if done else []):
                raise DeviceProtocolError(
                    f"{self._port.name}: after {min(start + DB_CHUNK_BYTES, len(data))} of {len(data)} bytes the board says "
                    f"{lines!r}",
                    hint="try again: bytes were lost",
                )

    def infer(self, n: int = 1, warmup: int = 0) -> Infer:
        """Runs the loaded input `warmup` + `n` times."""
        text = f"infer {n} {warmup}"
        lines = self.ask(text, self._timeouts.infer_s * max(1, n, warmup))
        laps = [int(m.group(1)) for line in lines if (m := re.fullmatch(r"m-lap-us-([0-9]+)", line))]
        results = self._match(text, lines, r"m-results-\[([-0-9.,]+)\]").group(1)
        if len(laps) != 2 or "m-infer-done" not in lines:
            raise DeviceProtocolError(
                f"{self._port.name}: {text!r}: expected two laps and m-infer-done, got {lines!r}", hint="see the log"
            )
        try:
            values = tuple(float(v) for v in results.split(","))
        except ValueError as error:
            raise DeviceProtocolError(
                f"{self._port.name}: {text!r}: results {results!r}: {error}", hint="see the log"
            ) from error
        return Infer(elapsed_us(laps[0], laps[1]), values)

    def raw(self) -> bytes:
        """The last output's bytes."""
        return self._hex("raw", self._field("raw", r"m-raw-\[([0-9a-f]*)\]").group(1))

    def tap(self, op: int) -> bytes:
        """Runs the loaded input once; the tensor after operation `op` (from 0, in the blob's order)."""
        match = self._field(f"tap {op}", rf"m-tap-\[op={op};hex=([0-9a-f]*)\]", self._timeouts.infer_s)
        return self._hex(f"tap {op}", match.group(1))

    def crc(self) -> tuple[int, int]:
        """CRC-32 of the loaded input and of the last output (0 without one), as zlib.crc32 computes it."""
        match = self._field("crc", r"m-crc-\[in=([0-9a-f]{8});out=([0-9a-f]{8})\]")
        return int(match.group(1), 16), int(match.group(2), 16)

    def ticks(self) -> Ticks:
        """Exact cost of the last `infer`."""
        match = self._field(
            "ticks", r"m-ticks-\[ticks=(\d+);hz=([1-9]\d*);n=([1-9]\d*);unit=(\w+);unit_hz=([1-9]\d*)\]"
        )
        ticks, hz, n, unit, unit_hz = match.groups()
        return Ticks(int(ticks), int(hz), int(n), unit, int(unit_hz))

    def memory(self) -> dict[str, int]:
        """Bytes by name: arena, static (with the arena), stack (reserved), stack_used (deepest so far)."""
        match = self._field("mem", r"m-mem-\[arena=(\d+);static=(\d+);stack=(\d+);stack_used=(\d+)\]")
        return dict(zip(("arena", "static", "stack", "stack_used"), map(int, match.groups()), strict=True))

    def _hex(self, text: str, digits: str) -> bytes:
        try:
            return bytes.fromhex(digits)
        except ValueError as error:
            raise DeviceProtocolError(
                f"{self._port.name}: {text!r}: {error}", hint="try again: characters were lost"
            ) from error


def _fields(line: str) -> dict[str, str]:
    inside = line.partition("[")[2].rpartition("]")[0]
    return dict(part.partition("=")[::2] for part in inside.split(";"))


def _shorten(text: str, length: int = 60) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
