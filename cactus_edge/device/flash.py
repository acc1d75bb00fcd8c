"""Puts an image on a board with the tool that the board's target.toml names, and believes nothing until the board says so.

The tool gets an argument list, never a shell. One USB identity picks the board for the tool and for the console, so that
with two equal boards attached the one that is flashed is the one that is asked. Afterwards the board must report the
digest of the model's blob.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from cactus_edge.device.connect import Board, connect, require_digest
from cactus_edge.device.targets import Target
from cactus_edge.device.transport import Address, resolve
from cactus_edge.errors import DeviceNotFoundError, FlashError, InputError, InstallError, TargetError
from cactus_edge.resources import write_atomic
from cactus_edge.verify.elf import read_elf

_APPEARS_S = 15.0
_SHOWN_LINES = 12


def flash(
    target: Target, image: Path, *, port: str = "auto", digest: str = "", appears_s: float = _APPEARS_S
) -> Board | None:
    """Flashes `image` (an ELF file; a .bin for boards whose SDK made it) and, given `digest`, checks what then runs.

    port: the console, as in `transport`. digest: SHA-256 of the model's blob. Returns the board that answered (its link is
    closed), None without a digest. Raises TargetError, InputError, InstallError, FlashError (the tool's own words),
    DeviceNotFoundError, the console's errors, and MismatchError where the board reports another blob.
    """
    command = flash_command(target, image, port)
    program = shutil.which(command[0])
    if program is None:
        raise InstallError(f"{command[0]} is not installed; it flashes {target.title}", hint=target.flash.install)
    try:
        result = subprocess.run(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=target.flash.timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise FlashError(
            f"{command[0]} did not finish within {target.flash.timeout_s:g} s",
            hint="reset the board and check its cable",
        ) from error
    except OSError as error:
        raise FlashError(f"{command[0]} does not start: {error}", hint=target.flash.install) from error
    if result.returncode:
        lines = result.stdout.decode("utf-8", "replace").strip().splitlines()[-_SHOWN_LINES:]
        raise FlashError(
            f"{command[0]} failed with exit code {result.returncode}:\n" + "\n".join(lines),
            hint="check the cable, that no debugger is attached, and that the board is in its bootloader if it needs that",
        )
    if not digest:
        return None
    address = _reappeared(target, port, appears_s)
    with connect(target, port=address.url) as board:
        require_digest(board, digest)
        return board


def flash_command(target: Target, image: Path, port: str = "auto") -> list[str]:
    """The argument list that flashes `image`, every placeholder filled. Finds ports only where the command names one."""
    if not target.flash.command:
        raise TargetError(f"{target.title} is not flashed", hint="the emulator boots the ELF file: cactus-edge bench")
    if not image.is_file():
        raise InputError(f"there is no image {image}", hint="build it first")
    is_elf = image.read_bytes()[:4] == b"\x7fELF"
    if target.firmware == "example" and is_elf:
        raise TargetError(
            f"{image} is a bare-metal ELF file; {target.title} needs an image from its SDK: {target.note}",
            hint="pass the .bin that the SDK built",
        )
    text = "\n".join(target.flash.command)
    values = {"elf": str(image)}
    if "{bin}" in text:
        values["bin"] = str(_binary(target, image) if is_elf else image)
    if "{flash_port}" in text:
        values["flash_port"] = resolve("auto", target.flash.usb).url
    if "{port}" in text or "{usb_serial}" in text:
        address = resolve(port, target.serial.usb)
        values["port"] = address.url
        if "{usb_serial}" in text and not address.usb_serial:
            raise DeviceNotFoundError(
                f"{address.url} has no USB serial number, and {target.flash.command[0]} chooses the board by it",
                hint="name the board's own port with --port",
            )
        values["usb_serial"] = address.usb_serial
    return [argument.format(**values) for argument in target.flash.command]


def _binary(target: Target, elf: Path) -> Path:
    """The raw image beside the ELF file; it must begin where the board's flash begins."""
    origin, data = read_elf(elf.read_bytes(), str(elf)).image()
    if origin != target.memory.flash_origin:
        raise TargetError(
            f"{elf} begins at {origin:#x}, the flash of {target.name} at {target.memory.flash_origin:#x}",
            hint=f"build it for {target.name}",
        )
    path = elf.with_suffix(".bin")
    write_atomic(path, data)
    return path


def _reappeared(target: Target, port: str, appears_s: float) -> Address:
    """The console after flashing: a board may take seconds to enumerate again, and under another path."""
    deadline = time.monotonic() + appears_s
    while True:
        try:
            return resolve(port, target.serial.usb)
        except DeviceNotFoundError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)
