"""The emulated board: a Cortex-M4 with a serial port, in a process of its own, behind a pseudo-terminal.

    python -m cactus_edge.device.emulator FIRMWARE.elf [--target mcu] [--emulator qemu] [--until-eof]

prints the path of the pseudo-terminal, which any serial program opens like a board's port. The core is unicorn's; what
is around it is here: the memory that the target has and no more, the CMSDK UART and timer (Arm DDI 0479), and the few
system registers that the start-up code writes. An access anywhere else ends the run with the address and the place.

Time is the number of executed instructions: one lasts `INSTRUCTION_NS`, exactly as under `qemu-system-arm -icount
shift=7`, so that both emulators give the same figures. Nothing here is a latency.

While the core waits for a byte (WFI, or a loop that does nothing but poll) the process sleeps.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cactus_edge.device.emulator_counter import CounterName, attach
from cactus_edge.device.targets import Target, load_board
from cactus_edge.errors import CactusError, DeviceError, InstallError, TargetError
from cactus_edge.verify.elf import Elf, read_elf

ICOUNT_SHIFT = 7
INSTRUCTION_NS = 1 << ICOUNT_SHIFT
QEMU_MACHINE = "mps2-an386"

_TIMER, _UART, _SYSTEM = 0x4000_0000, 0x4000_4000, 0xE000_E000
_PAGE = 0x1000
_TIMER_HZ = 25_000_000
_POLLS_UNTIL_IDLE = 64
_FLUSH_BYTES = 512
# VTOR, SysTick control, interrupt clear-enable, set-enable, clear-pending; read: interrupt state, fault status.
_SYSTEM_WRITES = frozenset({0xD08, 0x010, *range(0x100, 0x120, 4), *range(0x180, 0x1A0, 4), *range(0x280, 0x2A0, 4)})
_SYSTEM_READS = frozenset({0xD04, 0xD08, 0xD28})


class FirmwareFaultError(DeviceError):
    """The firmware did what the board does not allow."""


class Timer:
    """CMSDK timer 0 (32 bits, counts down, reloads), fed by `instructions()`."""

    def __init__(self, instructions: Callable[[], int]) -> None:
        self._instructions = instructions
        self._enabled = False
        self._value = 0
        self._reload = 0
        self._since = 0

    def _ticks(self) -> int:
        return self._instructions() * INSTRUCTION_NS * _TIMER_HZ // 1_000_000_000

    def read(self, offset: int) -> int | None:
        """The register at `offset`; None where there is none."""
        if offset == 0x0:
            return int(self._enabled)
        if offset == 0x4:
            return self._now()
        return self._reload if offset == 0x8 else None

    def write(self, offset: int, value: int) -> bool:
        """Whether the register at `offset` exists and took `value`."""
        if offset == 0x0:
            self._value, self._since = self._now(), self._ticks()
            self._enabled = bool(value & 1)
        elif offset == 0x4:
            self._value, self._since = value, self._ticks()
        elif offset == 0x8:
            self._reload = value
        else:
            return offset == 0xC
        return True

    def _now(self) -> int:
        if not self._enabled:
            return self._value
        left = self._value - (self._ticks() - self._since)
        return left if left >= 0 else self._reload - (-left - 1) % (self._reload + 1)


class Uart:
    """CMSDK UART on a file descriptor. The baud rate is not modelled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._received = bytearray()
        self._sent = bytearray()
        self._polls = 0
        self._control = 0

    def read(self, offset: int) -> int | None:
        """The register at `offset`; None where there is none."""
        if offset == 0x4:
            return self._state()
        self._polls = 0
        if offset == 0x0:
            return self._received.pop(0) if self._received else 0
        if offset == 0x8:
            return self._control
        return 0 if offset in (0xC, 0x10) else None

    def write(self, offset: int, value: int) -> bool:
        """Whether the register at `offset` exists and took `value`."""
        self._polls = 0
        if offset == 0x0:
            self._sent.append(value & 0xFF)
            if value == 0x0A or len(self._sent) >= _FLUSH_BYTES:
                self.flush()
        elif offset == 0x8:
            self._control = value
        return offset in (0x0, 0x4, 0x8, 0xC, 0x10)

    def _state(self) -> int:
        if not self._received:
            # A transmitting core polls this register once a byte; only one that polls on and on has nothing to do.
            self._polls += 1
            self._receive(0.01 if self._polls > _POLLS_UNTIL_IDLE else 0.0)
        return 2 if self._received else 0

    def wait(self) -> None:
        """Sends what is unsent, then sleeps until a byte is there."""
        self.flush()
        if not self._received:
            self._receive(None)

    def _receive(self, timeout_s: float | None) -> None:
        if timeout_s is None or timeout_s > 0:
            self.flush()
        ready, _, _ = select.select([self._descriptor], [], [], timeout_s)
        if ready:
            self._received += os.read(self._descriptor, 4096)

    def flush(self) -> None:
        """Hands everything sent so far to the other side."""
        while self._sent:
            del self._sent[: os.write(self._descriptor, bytes(self._sent))]


class Board:
    """The core, its memory and its peripherals. `run` never returns unless something is wrong."""

    def __init__(self, elf: Elf, target: Target, descriptor: int, counter: CounterName = "auto") -> None:
        try:
            uc: Any = importlib.import_module("unicorn")
            registers: Any = importlib.import_module("unicorn.arm_const")
        except ImportError as error:
            raise InstallError("the emulated board needs unicorn", hint="pip install 'unicorn>=2.1,<3'") from error
        self._uc = uc
        self._pc_register = registers.UC_ARM_REG_PC
        self._violation = ""
        self.uart = Uart(descriptor)
        self._timer = Timer(lambda: self._counter.instructions)
        self._system: dict[int, int] = {}

        core = uc.Uc(uc.UC_ARCH_ARM, uc.UC_MODE_THUMB | uc.UC_MODE_MCLASS)
        core.ctl_set_cpu_model(registers.UC_CPU_ARM_CORTEX_M4)
        self._core = core
        memory = target.memory
        self._map(memory.flash_origin, memory.flash_bytes, uc.UC_PROT_READ | uc.UC_PROT_EXEC)
        self._map(memory.ram_origin, memory.ram_bytes, uc.UC_PROT_READ | uc.UC_PROT_WRITE)
        for segment in elf.segments:
            if segment.data:
                self._load(segment.load_address, segment.data, memory.flash_origin, memory.flash_bytes)
        flash = bytes(core.mem_read(memory.flash_origin, memory.flash_bytes))
        self._counter = attach(core, flash, memory.flash_origin, counter)
        for base, read, write in (
            (_TIMER, self._timer.read, self._timer.write),
            (_UART, self.uart.read, self.uart.write),
            (_SYSTEM, self._read_system, self._write_system),
        ):
            self._map_device(base, read, write)
        core.hook_add(uc.UC_HOOK_MEM_INVALID, self._on_invalid)
        stack, reset = (int.from_bytes(flash[i : i + 4], "little") for i in (0, 4))
        core.reg_write(registers.UC_ARM_REG_SP, stack)
        self._next = reset | 1

    def _map(self, origin: int, size: int, protection: int) -> None:
        if origin % _PAGE or size % _PAGE:
            raise TargetError(f"memory of {size} bytes at {origin:#x}: expected whole pages of {_PAGE} bytes")
        self._core.mem_map(origin, size, protection)

    def _load(self, address: int, data: bytes, origin: int, size: int) -> None:
        if not origin <= address <= address + len(data) <= origin + size:
            raise TargetError(
                f"the firmware stores {len(data)} bytes at {address:#x}; the board's flash is {size} bytes at {origin:#x}",
                hint="build the firmware for this target",
            )
        self._core.mem_write(address, data)

    def _map_device(self, base: int, read: Callable[[int], int | None], write: Callable[[int, int], bool]) -> None:
        def on_read(_: Any, offset: int, size: int, __: Any) -> int:
            value = read(offset) if size == 4 else None
            if value is None:
                raise self._fault(f"read of {size} bytes from a register that the board lacks, {base + offset:#010x}")
            return value

        def on_write(_: Any, offset: int, size: int, value: int, __: Any) -> None:
            if size != 4 or not write(offset, value):
                raise self._fault(f"write of {size} bytes to a register that the board lacks, {base + offset:#010x}")

        self._core.mmio_map(base, _PAGE, on_read, None, on_write, None)

    def _read_system(self, offset: int) -> int | None:
        return self._system.get(offset, 0) if offset in _SYSTEM_READS else None

    def _write_system(self, offset: int, value: int) -> bool:
        self._system[offset] = value
        return offset in _SYSTEM_WRITES

    def _on_invalid(self, _: Any, access: int, address: int, size: int, __: int, ___: Any) -> bool:
        uc = self._uc
        verb = {
            uc.UC_MEM_READ_UNMAPPED: "read from",
            uc.UC_MEM_WRITE_UNMAPPED: "write to",
            uc.UC_MEM_FETCH_UNMAPPED: "jump into",
            uc.UC_MEM_WRITE_PROT: "write to read-only",
            uc.UC_MEM_FETCH_PROT: "jump into non-executable",
        }.get(access, "access to")
        self._violation = f"{verb} memory at {address:#010x} ({size} bytes), which the board does not allow"
        return False

    def _fault(self, what: str) -> FirmwareFaultError:
        pc = self._core.reg_read(self._pc_register)
        return FirmwareFaultError(
            f"{what}; pc {pc:#010x}, in the code that begins at {self._counter.block:#010x}",
            hint="look the address up in the ELF file's symbols",
        )

    def run(self) -> None:
        """Runs from reset on. Raises FirmwareFaultError; OSError when the other side of the terminal is gone."""
        while True:
            try:
                self._core.emu_start(self._next, 0xFFFF_FFFE)
            except self._uc.UcError as error:
                raise self._fault(self._violation or f"the core stopped: {error}") from error
            # Only WFI ends an emulation without an error.
            self.uart.wait()
            self._next = self._core.reg_read(self._pc_register) | 1


def _at_eof(action: Callable[[], None]) -> None:
    def watch() -> None:
        while os.read(0, 4096):
            pass
        action()

    threading.Thread(target=watch, daemon=True).start()


def _open_terminal() -> tuple[int, int, str]:
    """(our end, the end that programs open, its path). Ours keeps the other end open, so that clients come and go."""
    try:
        import pty
        import tty
    except ImportError as error:
        raise InstallError(
            "the emulated board needs pseudo-terminals, which this system lacks", hint="run it on Linux, macOS or WSL"
        ) from error
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    return ours, theirs, os.ttyname(theirs)


def qemu_command(elf: Path) -> list[str]:
    """The argument list that boots `elf` under QEMU with the same relation of time and instructions. InstallError."""
    program = shutil.which("qemu-system-arm")
    if program is None:
        raise InstallError(
            "qemu-system-arm is not installed", hint="apt-get install --no-install-recommends qemu-system-arm"
        )
    return [
        *(program, "-M", QEMU_MACHINE, "-kernel", str(elf), "-display", "none", "-monitor", "none"),
        *("-serial", "pty", "-icount", f"shift={ICOUNT_SHIFT}"),
    ]


def _run_qemu(elf: Path, until_eof: bool) -> int:
    process = subprocess.Popen(
        qemu_command(elf), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if until_eof:
        _at_eof(process.kill)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"redirected to (\S+)", line)
            print(found.group(1) if found else line.rstrip(), file=sys.stdout if found else sys.stderr, flush=True)
        return max(process.wait(), 0)
    finally:
        process.kill()
        process.wait()


def main(arguments: list[str] | None = None) -> int:
    """Boots a firmware and serves it until it faults or the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m cactus_edge.device.emulator", description=__doc__)
    parser.add_argument("firmware", type=Path)
    parser.add_argument("--target", default="mcu")
    parser.add_argument("--emulator", choices=("unicorn", "qemu"), default="unicorn")
    parser.add_argument(
        "--counter", choices=("auto", "native", "python"), default="auto", help="same counts, other speed"
    )
    parser.add_argument("--until-eof", action="store_true", help="end when standard input ends")
    options = parser.parse_args(arguments)
    try:
        target = load_board(options.target)
        if not target.emulated:
            raise TargetError(f"{target.name} is a real board", hint="--target mcu")
        elf = read_elf(options.firmware.read_bytes(), str(options.firmware))
        if options.emulator == "qemu":
            return _run_qemu(options.firmware, options.until_eof)
        ours, _, path = _open_terminal()
        board = Board(elf, target, ours, options.counter)
        if options.until_eof:
            # The core may be deep in an emulation that no exception interrupts.
            _at_eof(lambda: os._exit(0))
        print(path, flush=True)
        board.run()
    except CactusError as error:
        print(f"fault: {error.message}", file=sys.stderr, flush=True)
        return error.exit_code
    except OSError as error:
        print(f"fault: {options.firmware}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
