"""Ports: address forms, exclusive opening, and who holds a busy one."""

from __future__ import annotations

import os
import pty
import socket
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from cactus_edge.device import transport
from cactus_edge.device.protocol import Link
from cactus_edge.device.transport import Address, open_port, parse_reset, resolve
from cactus_edge.errors import DeviceBusyError, DeviceGoneError, DeviceNotFoundError, InputError


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        SimpleNamespace(device="COM1", vid=None, pid=None, serial_number=None),
        SimpleNamespace(device="COM7", vid=0x0483, pid=0x374B, serial_number="0671FF48"),
    ]
    monkeypatch.setattr(transport, "_ports", lambda: listed)


def test_every_form_of_address(ports):
    board = Address("COM7", "0671FF48")
    assert resolve("auto", ("0483:374b",)) == board
    assert resolve("id:0671FF48") == board
    assert resolve("port:COM7") == board
    assert resolve("COM7") == board
    assert resolve("COM1") == Address("COM1")
    assert resolve("socket://localhost:4000") == Address("socket://localhost:4000")
    assert resolve("rfc2217://host:2217") == Address("rfc2217://host:2217")


@pytest.mark.parametrize(
    ("address", "usb", "error", "words"),
    [
        ("auto", ("2341:005a",), DeviceNotFoundError, "no port with USB id 2341:005a; ports here: COM1, COM7"),
        ("auto", (), DeviceNotFoundError, "cannot be recognised"),
        ("id:nobody", (), DeviceNotFoundError, "no port with USB serial number nobody"),
        ("id:", (), InputError, "without a USB serial number"),
        ("port:", (), InputError, "the port is empty"),
        ("/dev/does-not-exist", (), DeviceNotFoundError, "there is no port"),
    ],
)
def test_addresses_that_mean_nothing(ports, address, usb, error, words):
    with pytest.raises(error, match=words):
        resolve(address, usb)


def test_a_busy_port_names_its_holder():
    ours, theirs = pty.openpty()
    try:
        path = os.ttyname(theirs)
        os.close(theirs)
        first = open_port(path, 115200)
        with pytest.raises(DeviceBusyError, match=f"{path} is held by") as caught:
            open_port(path, 115200)
        if Path("/proc/self/fd").exists():
            assert f"(process {os.getpid()})" in str(caught.value)
        first.close()
        open_port(path, 115200).close()
    finally:
        os.close(ours)


def test_a_port_that_vanishes():
    ours, theirs = pty.openpty()
    port = open_port(os.ttyname(theirs), 115200)
    os.close(ours)
    os.close(theirs)
    with pytest.raises(DeviceGoneError, match="vanished"):
        port.read(1.0)
    with pytest.raises(DeviceGoneError, match="vanished"):
        for _ in range(3):
            port.write(b"name%")
    port.close()
    port.close()


def test_a_board_behind_a_socket():
    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            data = b""
            while not data.endswith(b"%"):
                data += connection.recv(100)
            connection.sendall(b"m-name-dut-[far away]\r\nm-ready\r\n")
            connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        link = Link(open_port(f"socket://127.0.0.1:{server.getsockname()[1]}", 115200))
        assert link.handshake() == "far away"
        link.close()
        thread.join(5)


def test_nobody_listens_at_the_socket():
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
    with pytest.raises(DeviceNotFoundError, match="cannot open"):
        open_port(f"socket://127.0.0.1:{number}", 115200)


def test_reset_sequences():
    assert parse_reset("") == []
    assert parse_reset("D0|R1|W0.25|R0") == [("D", 0.0), ("R", 1.0), ("W", 0.25), ("R", 0.0)]
    for sin in ("D2", "X1", "W", "W-1", "D0,R1", "|", "W60"):
        with pytest.raises(InputError, match="reset step"):
            parse_reset(sin)
