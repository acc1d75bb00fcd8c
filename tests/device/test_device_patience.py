"""How long the host waits: a long line is no silence, a board that boots over and over is not waited for, a lost byte is sent again.

The clock is virtual: the boards are as slow, or as restless, as the test says, and no test sleeps.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import saboteur
from saboteur import BANNER
from test_device_measure import plugged, run, sabotaged

from cactus_edge.device import protocol
from cactus_edge.device.protocol import Link, Timeouts
from cactus_edge.errors import DeviceError, DeviceGarbageError, DeviceProtocolError, DeviceResetError

BYTES_PER_SECOND = 11_520
"""A serial line at 115,200 baud."""


class Clock:
    """Seconds that pass only where a port waits."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(protocol, "time", found)
    return found


class Slow:
    """A board whose answer comes at the line's speed, after its first `pause` bytes with a gap of `gap` seconds."""

    name = "slow"

    def __init__(self, clock: Clock, answer: bytes, *, pause: int = 0, gap: float = 0.0) -> None:
        self.clock, self.left, self.sent = clock, answer, 0
        self.pause, self.gap = pause, gap

    def read(self, timeout_s: float) -> bytes:
        if self.gap and self.sent >= self.pause:
            waited = min(timeout_s, self.gap)
            self.gap -= waited
            self.clock.now += waited
            return b""
        if not self.left:
            self.clock.now += timeout_s
            return b""
        count = min(160, len(self.left))
        self.clock.now += count / BYTES_PER_SECOND
        found, self.left, self.sent = self.left[:count], self.left[count:], self.sent + count
        return found

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


def raw(count: int) -> bytes:
    return b"m-raw-[" + b"7f" * count + b"]\r\nm-ready\r\n"


@pytest.mark.parametrize("count", [100, 28_900, 300_000])
def test_a_line_may_take_longer_than_the_longest_silence(clock: Clock, count: int):
    assert Link(Slow(clock, raw(count))).raw() == b"\x7f" * count
    assert clock.now >= 2 * count / BYTES_PER_SECOND


@pytest.mark.parametrize(("gap", "good"), [(4.9, True), (5.1, False)])
def test_a_line_that_stops_growing_is_silence(clock: Clock, gap: float, good: bool):
    link = Link(Slow(clock, raw(1000), pause=800, gap=gap))
    if good:
        assert len(link.raw()) == 1000
    else:
        with pytest.raises(DeviceError):
            link.raw()


def test_bytes_that_are_no_protocol_do_not_renew_the_wait(clock: Clock):
    with pytest.raises(DeviceGarbageError):
        Link(Slow(clock, b"x" * 200_000)).raw()
    assert clock.now < 6


class Restless:
    """A board that boots every tenth of a second."""

    name = "restless"

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def read(self, timeout_s: float) -> bytes:
        self.clock.now += min(timeout_s, 0.1)
        assert self.clock.now < 60, "still waiting"
        return BANNER if timeout_s >= 0.1 else b""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


def test_a_board_that_boots_over_and_over_is_said_to(clock: Clock):
    with pytest.raises(DeviceResetError, match="booted again"):
        Link(Restless(clock)).handshake()
    with pytest.raises(DeviceResetError, match="booted again"):
        Link(Restless(clock)).command("name")


LOST = b"e-[Insufficent number of hex digits]\r\nm-ready\r\n"


@pytest.mark.parametrize("answer", [LOST, "silence"])
def test_an_input_of_which_bytes_were_lost_is_sent_again(built, tmp_path, answer):
    hasty = Timeouts(multiplier=0.2)
    with ExitStack() as stack:
        port = plugged(sabotaged(built, stack, saboteur.on(b"db ", answer, skip=4)), tmp_path / "board")
        report = run(built, tmp_path, 4, port=port, timeouts=hasty)
    assert (report.compared, report.equal) == (4, 4)
    assert "did not arrive" in (tmp_path / report.session / "discarded.csv").read_text()


def test_an_input_that_never_arrives_is_an_error(built, tmp_path):
    lose = SimpleNamespace(count=0)

    def rule(command: bytes, _: int) -> str | bytes:
        lose.count += command.startswith(b"db ") and not command.startswith(b"db load")
        return LOST if command.startswith(b"db ") and not command.startswith(b"db load") else "pass"

    with ExitStack() as stack, pytest.raises(DeviceProtocolError, match="Insufficent"):
        run(built, tmp_path, 4, port=plugged(sabotaged(built, stack, rule), tmp_path / "board"))
    assert lose.count == 3
