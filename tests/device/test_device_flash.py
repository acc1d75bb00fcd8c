"""Flashing: argument lists, tools that fail, and a board that must confirm what it runs."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cactus_edge.device import transport
from cactus_edge.device.connect import emulated
from cactus_edge.device.flash import flash, flash_command
from cactus_edge.device.targets import Target, load_target
from cactus_edge.errors import (
    DeviceNotFoundError,
    FlashError,
    InputError,
    InstallError,
    MismatchError,
    TargetError,
)


def port(device: str, usb: str, serial_number: str | None) -> SimpleNamespace:
    vid, pid = (int(part, 16) for part in usb.split(":"))
    return SimpleNamespace(device=device, vid=vid, pid=pid, serial_number=serial_number)


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    """The ports that this machine pretends to have."""
    listed: list[SimpleNamespace] = []
    monkeypatch.setattr(transport, "_ports", lambda: listed)
    return listed


def with_tool(target: Target, code: str, **flash_options: object) -> Target:
    """`target` flashed by a Python one-liner that sees the ELF file's path as its argument."""
    command = (sys.executable, "-c", code, "{elf}")
    return replace(target, flash=replace(target.flash, **{"command": command, "timeout_s": 20.0} | flash_options))


def test_openocd_is_told_which_probe_and_file(built, ports):
    ports += [port("COM7", "0483:374b", "0671FF48"), port("COM8", "10c4:ea60", "x")]
    command = flash_command(load_target("nucleo-l4r5zi"), built.firmware.elf)
    assert command[0] == "openocd"
    assert command[-3:] == ["adapter serial 0671FF48", "-c", f"program {{{built.firmware.elf}}} verify reset exit"]


def test_two_equal_boards_are_ambiguous(built, ports):
    ports += [port("COM7", "0483:374b", "A1"), port("COM9", "0483:374b", "B2")]
    target = load_target("nucleo-l4r5zi")
    with pytest.raises(DeviceNotFoundError, match=r"several ports.*COM7 \(id:A1\), COM9 \(id:B2\)"):
        flash_command(target, built.firmware.elf)
    assert "adapter serial B2" in flash_command(target, built.firmware.elf, "id:B2")


def test_a_probe_without_a_serial_number_is_refused(built, ports):
    ports.append(port("COM7", "0483:374b", None))
    with pytest.raises(DeviceNotFoundError, match="no USB serial number"):
        flash_command(load_target("nucleo-l4r5zi"), built.firmware.elf)


def test_bossac_gets_the_raw_image_and_the_bootloaders_port(built, ports, tmp_path: Path):
    from cactus_edge.device.firmware import build_firmware

    nano = load_target("arduino-nano-33-ble")
    report = build_firmware(built.sources.folder, nano, tmp_path / "fw.elf")
    ports.append(port("COM3", "2341:005a", "1"))
    command = flash_command(nano, report.elf, "COM4")
    assert command == ["bossac", "--port=COM3", "-U", "-i", "-e", "-w", str(tmp_path / "fw.bin"), "-R"]
    assert (tmp_path / "fw.bin").stat().st_size == report.flash_bytes
    with pytest.raises(TargetError, match="begins at 0x0"):
        flash_command(nano, built.firmware.elf, "COM4")


def test_esp32_takes_the_image_of_its_sdk_and_no_elf_of_ours(built, ports, tmp_path: Path):
    ports.append(port("COM5", "303a:1001", "1"))
    esp = load_target("esp32-s3-devkitc")
    image = tmp_path / "merged.bin"
    image.write_bytes(b"\xe9image")
    assert flash_command(esp, image)[-5:] == ["--port", "COM5", "write-flash", "0x0", str(image)]
    with pytest.raises(TargetError, match="needs an image from its SDK"):
        flash_command(esp, built.firmware.elf)


def test_the_emulated_board_and_a_missing_file(built, tmp_path: Path):
    with pytest.raises(TargetError, match="is not flashed"):
        flash_command(built.target, built.firmware.elf)
    with pytest.raises(InputError, match="there is no image"):
        flash_command(load_target("nucleo-l4r5zi"), tmp_path / "nothing.elf")


def test_a_missing_tool_says_how_to_get_it(built):
    target = replace(
        built.target, flash=replace(built.target.flash, command=("no-such-flasher", "{elf}"), install="get it")
    )
    with pytest.raises(InstallError, match="no-such-flasher is not installed") as caught:
        flash(target, built.firmware.elf)
    assert caught.value.hint == "get it"


def test_a_failing_tool_speaks_for_itself(built):
    with pytest.raises(FlashError, match="exit code 3:\nError: no probe found"):
        flash(with_tool(built.target, "print('Error: no probe found'); raise SystemExit(3)"), built.firmware.elf)


def test_a_hanging_tool_is_ended(built):
    with pytest.raises(FlashError, match=r"did not finish within 0\.5 s"):
        flash(with_tool(built.target, "import time; time.sleep(60)", timeout_s=0.5), built.firmware.elf)


def test_after_flashing_the_board_must_report_the_blob(built):
    target = with_tool(built.target, "import sys; assert open(sys.argv[1], 'rb').read(4) == b'\\x7fELF'")
    with emulated(built.firmware.elf, built.target) as console:
        board = flash(target, built.firmware.elf, port=console, digest=built.digest)
        assert board is not None
        assert board.name == "mcu"
        with pytest.raises(MismatchError, match=f"runs blob {built.digest}, expected {'0' * 64}"):
            flash(target, built.firmware.elf, port=console, digest="0" * 64)


def test_a_board_that_does_not_come_back(built):
    target = with_tool(built.target, "pass")
    with pytest.raises(DeviceNotFoundError, match="there is no port"):
        flash(target, built.firmware.elf, port="/dev/does-not-exist", digest=built.digest, appears_s=0.3)
