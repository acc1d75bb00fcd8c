"""From a target to a board that answers: opens its port, or boots the emulated board in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from cactus_edge.device.emulator import FirmwareFaultError, qemu_command
from cactus_edge.device.emulator_counter import CounterName
from cactus_edge.device.protocol import Link, Log, Timeouts
from cactus_edge.device.targets import Target
from cactus_edge.device.transport import open_port, resolve
from cactus_edge.errors import DeviceError, InputError, InternalError, MismatchError, TargetError
from cactus_edge.resources import sha256

EmulatorName = Literal["unicorn", "qemu"]

_END_S = 5.0


@dataclass(frozen=True)
class Board:
    """A board that answered. name: what it calls itself. reached_by: in words, for reports."""

    link: Link
    name: str
    target: Target
    reached_by: str


@contextmanager
def emulated(
    elf: Path, target: Target, emulator: EmulatorName = "unicorn", counter: CounterName = "auto"
) -> Iterator[str]:
    """Boots `elf`; yields the path of the port that any serial program can open. The process ends with the context, and
    with this process however it ends.

    A DeviceError inside the context while the emulated processor has faulted becomes FirmwareFaultError with its words.
    """
    if emulator == "qemu":
        qemu_command(elf)  # says what is missing before anything starts
    command = [sys.executable, "-m", "cactus_edge.device.emulator", str(elf)]
    command += ["--target", target.name, "--emulator", emulator, "--counter", counter, "--until-eof"]
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            path = process.stdout.readline().decode().strip()
            if not path:
                process.wait(_END_S)
                raise DeviceError(
                    f"the emulated board does not start: {_words(words).rpartition('fault: ')[2]}",
                    hint="build the firmware for this target again",
                )
            try:
                yield path
            except DeviceError as error:
                _, fault, text = _words(words).rpartition("fault: ")
                if fault:
                    raise FirmwareFaultError(
                        f"the emulated board stopped: {text}", hint="see the ELF file's symbols"
                    ) from error
                raise
        finally:
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _words(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode("utf-8", "replace").strip()


@contextmanager
def connect(
    target: Target,
    *,
    port: str = "",
    elf: Path | None = None,
    emulator: EmulatorName = "unicorn",
    timeouts: Timeouts | None = None,
    log: Log | None = None,
) -> Iterator[Board]:
    """A board that answered to its name.

    port: an address as in `transport`; empty: the emulator for an emulated target (which then needs `elf`), `auto` for a
    real one. Raises the errors of `transport.open_port` and `Link.handshake`.
    """
    if target.emulated and not port:
        if elf is None:
            raise InputError("the emulated board needs a firmware to boot", hint="build one first")
        with emulated(elf, target, emulator) as path, _linked(path, target, timeouts, log, "") as (link, name):
            yield Board(link, name, target, f"{emulator} emulator, pseudo-terminal")
        return
    _require_port(target, port)
    with _linked(port or "auto", target, timeouts, log, target.serial.reset) as (link, name):
        yield Board(link, name, target, f"serial port at {target.serial.baud} baud")


def identity(target: Target, port: str = "", emulator: EmulatorName = "unicorn") -> str:
    """What tells the board that `connect` would reach from any other: the emulator's name, or the SHA-256 of the USB serial
    number, of the port where it has none. Raises what `connect` raises for a port that is not there."""
    if target.emulated and not port:
        return emulator
    _require_port(target, port)
    address = resolve(port or "auto", target.serial.usb)
    return sha256((address.usb_serial or address.url).encode())


def _require_port(target: Target, port: str) -> None:
    if not target.emulated and target.firmware != "bare-metal" and not port:
        raise TargetError(
            f"{target.title} has no firmware of ours: {target.note}",
            hint="--port PATH, if your own speaks the protocol",
        )


@contextmanager
def _linked(
    address: str, target: Target, timeouts: Timeouts | None, log: Log | None, reset: str
) -> Iterator[tuple[Link, str]]:
    link = Link(open_port(address, target.serial.baud, usb=target.serial.usb, reset=reset), timeouts=timeouts, log=log)
    try:
        yield link, link.handshake(target.serial.boot_s if reset else 0.0)
    finally:
        link.close()


def require_digest(board: Board, digest: str) -> None:
    """Refuses a board that does not run the blob of that SHA-256. MismatchError names both digests."""
    if len(digest) != 64:
        raise InternalError(f"not a SHA-256: {digest!r}")
    capability = board.link.profile().capability
    if capability is None:
        raise MismatchError(
            f"{board.name} does not say which model it runs; expected blob {digest}",
            hint=f"flash this model's firmware: cactus-edge flash --target {board.target.name}",
        )
    if capability.model != digest:
        raise MismatchError(
            f"{board.name} runs blob {capability.model}, expected {digest}",
            hint=f"flash this model's firmware: cactus-edge flash --target {board.target.name}",
        )
