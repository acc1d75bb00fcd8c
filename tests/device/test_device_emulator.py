"""The emulated board: boots, counts, faults, idles, ends with its parent, and agrees with QEMU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cactus_edge.device import emulator_counter
from cactus_edge.device.connect import Board, connect, emulated
from cactus_edge.device.emulator import FirmwareFaultError, Timer
from cactus_edge.device.emulator_counter import instruction_count
from cactus_edge.device.firmware import build_firmware
from cactus_edge.device.protocol import Link
from cactus_edge.device.targets import load_target
from cactus_edge.device.transport import open_port
from cactus_edge.errors import DeviceError, InputError, InstallError, TargetError

QEMU = pytest.mark.skipif(
    shutil.which("qemu-system-arm") is None, reason="qemu-system-arm is not installed (apt-get install qemu-system-arm)"
)
GCC = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None,
    reason="arm-none-eabi-gcc is not installed (apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi)",
)


def test_it_boots_and_says_which_blob_it_runs(built, board: Board):
    assert board.name == "mcu"
    profile = board.link.profile()
    assert profile.model == "small"
    assert profile.capability is not None
    assert profile.capability.model == built.digest
    assert profile.capability.timebase == "instructions"
    assert profile.capability.input_bytes == built.graph.input.size
    assert profile.capability.arena_bytes == built.sources.blob.header["arena"]


def cost(board: Board, data: bytes) -> tuple[int, bytes]:
    board.link.load(data)
    board.link.infer(1, 0)
    return round(board.link.ticks().per_inference), board.link.raw()


def test_the_same_input_costs_the_same_instructions_every_time(built, board: Board):
    runs = {cost(board, built.inputs[0].tobytes()) for _ in range(3)}
    assert len(runs) == 1
    assert 10_000 < runs.pop()[0] < 1_000_000


def test_many_inferences_cost_as_much_as_one_each(built, board: Board):
    single, _ = cost(board, built.inputs[0].tobytes())
    board.link.infer(5, 2)
    assert board.link.ticks().n == 5
    assert abs(board.link.ticks().per_inference - single) < 1


@pytest.mark.parametrize("counter", ["native", "python"])
def test_both_counters_count_alike(built, board: Board, counter):
    expected = cost(board, built.inputs[1].tobytes())
    with emulated(built.firmware.elf, built.target, counter=counter) as path:
        link = Link(open_port(path, 115200))
        link.handshake()
        link.load(built.inputs[1].tobytes())
        link.infer(1, 0)
        assert (round(link.ticks().per_inference), link.raw()) == expected
        link.close()


@QEMU
@pytest.mark.parametrize("compiler", ["zig", pytest.param("gcc", marks=GCC)])
def test_qemu_gives_the_same_outputs_and_the_same_instruction_counts(built, compiler, tmp_path: Path):
    firmware = build_firmware(built.sources.folder, built.target, tmp_path / "fw.elf", compiler)
    seen = []
    for emulator in ("unicorn", "qemu"):
        with connect(built.target, elf=firmware.elf, emulator=emulator) as board:
            seen.append([cost(board, x.tobytes()) for x in built.inputs[:4]])
    assert seen[0] == seen[1]
    assert [output for _, output in seen[0]] == [y.tobytes() for y in built.expected[:4]]


FAULTS = {
    "reads_beyond_the_ram": ("(void)*(volatile int *)0x20040000u;", "read from memory at 0x20040000"),
    "writes_below_the_ram": ("*(volatile int *)0x1ffffffcu = 1;", "write to memory at 0x1ffffffc"),
    "writes_into_flash": ("*(volatile int *)0x100u = 1;", "write to read-only memory at 0x00000100"),
    "jumps_into_ram": ("((void (*)(void))0x20002001u)();", "jump into"),
    "uses_another_boards_uart": ("*(volatile int *)0x40008000u = 1;", "write to memory at 0x40008000"),
    "uses_a_register_that_is_not_there": (
        "*(volatile int *)0x40004100u = 1;",
        "register that the board lacks, 0x40004100",
    ),
    "undefined_instruction": ('__asm__ volatile(".short 0xde00");', "core stopped"),
}


@pytest.fixture(scope="module")
def sinful(built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Firmware whose inference commits the sin that the first input byte numbers."""
    folder = tmp_path_factory.mktemp("sinful")
    shutil.copytree(built.sources.folder, folder / "c")
    runner = folder / "c" / "ce_model_run.c"
    cases = "".join(f"case {i}: {code} break;" for i, (code, _) in enumerate(FAULTS.values()))
    runner.write_text(
        runner.read_text().replace("int ce_model_run(", "int ce_really_run(", 1)
        + "int ce_model_run(const ce_model *m, const int8_t *in, int8_t *out, ce_observer o, void *c)\n"
        + f"{{ switch (in[0]) {{ {cases} default: break; }} return ce_really_run(m, in, out, o, c); }}\n"
    )
    return build_firmware(folder / "c", built.target, folder / "fw.elf").elf


@pytest.mark.parametrize("sin", FAULTS)
def test_what_the_board_lacks_is_a_fault_with_its_address(built, sinful: Path, sin: str):
    _, words = FAULTS[sin]
    data = bytes([list(FAULTS).index(sin)]).ljust(built.graph.input.size, b"\0")
    with pytest.raises(FirmwareFaultError, match=words) as caught, connect(built.target, elf=sinful) as board:
        board.link.load(data)
        board.link.infer(1, 0)
    assert "pc 0x" in str(caught.value)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_an_idle_board_costs_nothing_and_ends_with_its_parent(built):
    command = [sys.executable, "-m", "cactus_edge.device.emulator", str(built.firmware.elf), "--until-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline().startswith(b"/dev/")
        time.sleep(0.2)
        before = cpu_seconds(process.pid)
        time.sleep(0.6)
        assert cpu_seconds(process.pid) - before <= 0.02
        process.stdin.close()
        assert process.wait(10) == 0


def test_a_busy_board_ends_with_its_parent_too(built):
    with emulated(built.firmware.elf, built.target) as path:
        port = open_port(path, 115200)
        digits = built.inputs[0].tobytes().hex()
        for command in [
            f"db load {len(digits) // 2}",
            *(f"db {digits[i : i + 62]}" for i in range(0, len(digits), 62)),
        ]:
            port.write(command.encode() + b"%")
            time.sleep(0.05)
        port.write(b"infer 100000 0%")
        time.sleep(0.1)
        port.close()
    # Leaving the context waits for the process and kills it only after seconds.


def test_a_file_that_is_no_firmware(built, tmp_path: Path):
    bad = tmp_path / "bad.elf"
    bad.write_bytes(b"\x7fELF nothing else")
    with pytest.raises(DeviceError, match=r"does not start.*ELF header"), emulated(bad, built.target):
        pass


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("00bf", 1),
        ("00bf00bf", 2),
        ("00f000f8", 1),
        ("00bfdff8000000bf", 3),
        ("fee7", 1),
        ("ffffffff", 1),
        ("00e8000000f0", 2),
    ],
)
def test_thumb_instruction_widths(code, count):
    assert instruction_count(bytes.fromhex(code).ljust(len(code) // 2, b"\0")) == count


def test_without_a_compiler_python_counts_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys):
    class Core:
        def hook_add(self, *_: object) -> None: ...

    def missing() -> None:
        raise InstallError("the C compiler ziglang is not installed")

    monkeypatch.setattr(emulator_counter, "zig", missing)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counter = emulator_counter.attach(Core(), b"", 0, "auto")
    assert counter.instructions == 0
    assert "counted in Python, which is slower: the C compiler ziglang is not installed" in capsys.readouterr().err
    with pytest.raises(InstallError):
        emulator_counter.attach(Core(), b"", 0, "native")


def test_a_board_without_our_firmware_and_one_without_a_file(mcu):
    with pytest.raises(TargetError, match="no firmware of ours"), connect(load_target("esp32-s3-devkitc")):
        pass
    with pytest.raises(InputError, match="needs a firmware to boot"), connect(mcu):
        pass


def test_the_timer_counts_down_wraps_and_stops():
    instructions = 0
    timer = Timer(lambda: instructions)
    assert timer.write(0x4, 10)
    assert timer.write(0x8, 0xFFFF_FFFF)
    assert timer.write(0x0, 1)
    instructions = 3  # 3 * 3.2 = 9 ticks
    assert timer.read(0x4) == 1
    instructions = 5  # 16 ticks: six below zero of a 2^32 reload
    assert timer.read(0x4) == 0xFFFF_FFFA
    assert timer.write(0x0, 0)
    instructions = 500
    assert timer.read(0x4) == 0xFFFF_FFFA
    assert timer.read(0x44) is None
    assert not timer.write(0x44, 0)
