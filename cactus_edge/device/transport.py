"""The way to a board: a serial port, opened so that nobody else can talk into it.

Address forms: `auto` (the one port whose USB ids are the board's), `id:SERIAL` (the port of that USB serial number),
`port:PATH` or a bare path (`/dev/ttyACM0`, `COM3`, a pseudo-terminal), `socket://host:port`, `rfc2217://host:port`.
One USB identity drives flashing and console; where it is ambiguous, nothing is opened.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cactus_edge.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceGoneError,
    DeviceNotFoundError,
    InputError,
    InstallError,
)

try:
    import termios

    _GONE: tuple[type[Exception], ...] = (OSError, termios.error)
except ImportError:  # Windows
    _GONE = (OSError,)
"""What a vanished device raises differs by system and by moment."""

_RESET_STEP = re.compile(r"([DRW])(\d+(?:\.\d+)?)")


class Port(Protocol):
    """What the protocol needs of a connection."""

    name: str

    def read(self, timeout_s: float) -> bytes:
        """What arrived, at least one byte, as soon as there is one; empty when `timeout_s` passed. DeviceGoneError."""
        ...

    def write(self, data: bytes) -> None:
        """Sends everything. DeviceGoneError."""
        ...

    def close(self) -> None:
        """Gives the port back; never raises."""
        ...


@dataclass(frozen=True)
class Address:
    """A port that exists. url: what pyserial opens. usb_serial: the USB serial number, empty where there is none."""

    url: str
    usb_serial: str = ""


def resolve(address: str, usb: Sequence[str] = ()) -> Address:
    """The port that `address` means. usb: the board's "vid:pid" ids, for `auto`. DeviceNotFoundError, InputError."""
    kind, _, rest = address.partition(":")
    if kind in ("socket", "rfc2217"):
        return Address(address)
    if kind == "port":
        return _by_path(rest)
    if kind != "id" and address != "auto":
        return _by_path(address)
    if kind == "id" and not rest:
        raise InputError("id: without a USB serial number", hint="id:0671FF... as `cactus-edge targets` lists it")
    ports = _ports()
    if kind == "id":
        found = [p for p in ports if p.serial_number == rest]
        wanted = f"USB serial number {rest}"
    else:
        if not usb:
            raise DeviceNotFoundError(
                "this board's port cannot be recognised by its USB ids", hint="name it with --port"
            )
        found = [p for p in ports if p.vid is not None and f"{p.vid:04x}:{p.pid:04x}" in usb]
        wanted = f"USB id {' or '.join(usb)}"
    if not found:
        listing = ", ".join(sorted(p.device for p in ports)) or "none at all"
        raise DeviceNotFoundError(
            f"no port with {wanted}; ports here: {listing}", hint="plug the board in, or --port PATH"
        )
    if len(found) > 1:
        listing = ", ".join(f"{p.device} (id:{p.serial_number})" for p in sorted(found, key=lambda p: str(p.device)))
        raise DeviceNotFoundError(f"several ports with {wanted}: {listing}", hint="say which one with --port id:...")
    return Address(str(found[0].device), str(found[0].serial_number or ""))


def _ports() -> list[Any]:
    _serial()
    from serial.tools import list_ports

    return list(list_ports.comports())


def _by_path(path: str) -> Address:
    if not path:
        raise InputError("the port is empty", hint="--port /dev/ttyACM0")
    if os.sep in path and not Path(path).exists():
        raise DeviceNotFoundError(
            f"there is no port {path}", hint="plug the board in; `cactus-edge targets` lists ports"
        )
    serial_number = next((p.serial_number for p in _ports() if p.device == path), None)
    return Address(path, str(serial_number or ""))


def _serial() -> Any:
    try:
        import serial
    except ImportError as error:
        raise InstallError("talking to a board needs pyserial", hint="pip install 'pyserial>=3.5'") from error
    return serial


class SerialPort:
    """An open port: 8N1, no flow control, ours alone."""

    def __init__(self, address: Address, baud: int) -> None:
        serial = _serial()
        self.name = address.url
        self._gone = (*_GONE, serial.SerialException)
        options = {} if "://" in address.url else {"exclusive": True}
        try:
            self._port = serial.serial_for_url(address.url, baudrate=baud, timeout=0.0, write_timeout=10.0, **options)
        except self._gone as error:
            raise _not_opened(address.url, error) from error
        except ValueError as error:
            raise InputError(f"port {address.url!r}: {error}", hint="--port /dev/ttyACM0") from error

    def read(self, timeout_s: float) -> bytes:
        """As `Port.read`."""
        try:
            self._port.timeout = max(timeout_s, 0.0)
            data = bytes(self._port.read(1))
            return data + bytes(self._port.read(self._port.in_waiting)) if data else data
        except self._gone as error:
            raise DeviceGoneError(
                f"{self.name} vanished: {error}", hint="check the cable and the board's power"
            ) from error

    def write(self, data: bytes) -> None:
        """As `Port.write`."""
        try:
            self._port.write(data)
        except self._gone as error:
            raise DeviceGoneError(
                f"{self.name} vanished: {error}", hint="check the cable and the board's power"
            ) from error

    def pulse(self, sequence: str) -> None:
        """Runs a reset sequence: steps joined by '|', D0 D1 (DTR), R0 R1 (RTS), W0.1 (wait seconds). InputError."""
        for letter, value in parse_reset(sequence):
            try:
                if letter == "D":
                    self._port.dtr = value != 0
                elif letter == "R":
                    self._port.rts = value != 0
                else:
                    time.sleep(value)
            except self._gone as error:
                raise DeviceGoneError(
                    f"{self.name} vanished while it was reset: {error}", hint="check the cable"
                ) from error

    def close(self) -> None:
        """As `Port.close`."""
        with suppress(*self._gone):
            self._port.close()


def parse_reset(sequence: str) -> list[tuple[str, float]]:
    """The steps of a reset sequence; [] for an empty one. InputError."""
    steps = []
    for text in sequence.split("|") if sequence else []:
        step = _RESET_STEP.fullmatch(text)
        if step is None or (step.group(1) != "W" and step.group(2) not in ("0", "1")) or float(step.group(2)) > 10:
            raise InputError(
                f"reset step {text!r}: expected D0, D1, R0, R1 or W and at most 10 seconds", hint="D0|R1|W0.1|R0"
            )
        steps.append((step.group(1), float(step.group(2))))
    return steps


def open_port(address: str, baud: int, *, usb: Sequence[str] = (), reset: str = "") -> SerialPort:
    """Opens the port that `address` means and resets the board where `reset` is not empty.

    Raises DeviceNotFoundError, DeviceBusyError (names the holder), DeviceError (no permission), InputError.
    """
    port = SerialPort(resolve(address, usb), baud)
    try:
        port.pulse(reset)
    except (DeviceError, InputError):
        port.close()
        raise
    return port


def _not_opened(url: str, error: Exception) -> DeviceError:
    number = getattr(error, "errno", None)
    if number in (errno.EBUSY, errno.EAGAIN, errno.EWOULDBLOCK):
        names = holders(url)
        held = ", ".join(names) if names else "another program"
        return DeviceBusyError(f"{url} is held by {held}", hint="close it; a modem manager lets go after some seconds")
    if number in (errno.EACCES, errno.EPERM):
        return DeviceError(f"no permission to open {url}", hint="sudo usermod -aG dialout $USER, then log in again")
    return DeviceNotFoundError(f"cannot open {url}: {error}", hint="plug the board in, or name another port")


def holders(path: str) -> list[str]:
    """Programs that have `path` open, as "name (process N)"; only those that this user may see, and only on Linux."""
    target = os.path.realpath(path)
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        # Processes end while they are looked at, and others' are not ours to see.
        with suppress(OSError):
            if any(os.path.realpath(entry) == target for entry in (process / "fd").iterdir()):
                found.append(f"{(process / 'comm').read_text().strip()} (process {process.name})")
    return sorted(found)
