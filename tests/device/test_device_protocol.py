"""The protocol on both sides: our firmware against the MLPerf Tiny table, our client against boards that misbehave."""

from __future__ import annotations

import re
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import saboteur
from device_kit import HASTY
from saboteur import BANNER, NOISE, Saboteur

from cactus_edge.device.connect import Board, emulated
from cactus_edge.device.protocol import Link, Ticks, elapsed_us
from cactus_edge.device.transport import open_port
from cactus_edge.errors import (
    DeviceGarbageError,
    DeviceGoneError,
    DeviceProtocolError,
    DeviceResetError,
    DeviceSilentError,
    InternalError,
)

CONVERSATION = [
    ("name", [r"m-name-dut-\[mcu\]"]),
    ("timestamp", [r"m-lap-us-[0-9]+"]),
    (
        "profile",
        [r"m-profile-\[ULPMark for tinyML Firmware V0\.0\.1\]", r"m-model-\[small\]", r"m-cactus-\[proto=1;.*\]"],
    ),
    ("help", [r"m-.*", r".*", r".*", r".*", r".*"]),
    ("results", [r"e-\[No inference yet\]"]),
    ("raw", [r"e-\[No inference yet\]"]),
    ("ticks", [r"e-\[No inference yet\]"]),
    ("infer 1 0", [r"e-\[Input has 0 bytes, the model reads 162\]"]),
    ("infer 0", [r"e-\[Inference iterations must be >0\]"]),
    ("infer -3 1", [r"e-\[Inference iterations must be >0\]"]),
    ("infer 1 -1", [r"e-\[Inference warmup must be >=0\]"]),
    ("db load 0", [r"e-\[Command 'db load' must be >0 bytes\]"]),
    ("db load", [r"e-\[Command 'db load' must be >0 bytes\]"]),
    ("db load 27649", [r"e-\[Supplied buffer size 27649 exceeds maximum of 162\]"]),
    ("db load 99999999999", [r"e-\[Command 'db load' must be >0 bytes\]"]),
    ("db", [r"e-\[.*\]"]),
    ("db 00", [r"e-\[No bytes are expected.*\]"]),
    ("db load 10", [r"m-\[Expecting 10 bytes\]"]),
    ("db 0a1", [r"e-\[Insufficent number of hex digits\]"]),
    ("db load 10", [r"m-\[Expecting 10 bytes\]"]),
    ("db 0aZ1", [r"e-\[Invalid hex digit 'Z1'\]"]),
    ("db load 10", [r"m-\[Expecting 10 bytes\]"]),
    ("db 00010203", []),
    ("db 0405060708", []),
    ("db 09", [r"m-load-done"]),
    ("db print", [r"m-buffer-00-01-02-03-04-05-06-07", r"m-buffer-08-09"]),
    ("db ff", [r"e-\[No bytes are expected.*\]"]),
    ("tap 99", [r"e-\[No such op\]"]),
    ("nonsense with words", [r"e-\[Unknown command: nonsense\]"]),
    ("names", [r"e-\[Unknown command: names\]"]),
    ("x" * 79, [r"e-\[Unknown command: x{79}\]"]),
    ("x" * 80, [r"e-\[Command longer than 79 characters\]"]),
    ("  name", [r"m-name-dut-\[mcu\]"]),
]


def test_the_firmware_answers_as_the_protocol_says(built):
    # A raw port: some of these commands the client would refuse to send.
    with emulated(built.firmware.elf, built.target) as path:
        port = open_port(path, 115200)
        Link(port).handshake()
        for command, lines in CONVERSATION:
            port.write(command.encode() + b"%")
            answer = _until_ready(port)
            assert len(answer) == len(lines), (command, answer)
            assert all(re.fullmatch(p, line) for p, line in zip(lines, answer, strict=True)), (command, answer)
        port.close()


def _until_ready(port) -> list[str]:
    data = b""
    while not data.endswith(b"m-ready\r\n"):
        more = port.read(5)
        assert more, data
        data += more
    return data.decode().split("\r\n")[:-2]


def test_an_empty_command_is_no_command(built):
    with emulated(built.firmware.elf, built.target) as path:
        port = open_port(path, 115200)
        Link(port).handshake()
        port.write(b"%%\r\n%  %name%")
        data = b""
        while data.count(b"m-ready\r\n") < 5:
            data += port.read(5)
        assert data == b"m-ready\r\n" * 4 + b"m-name-dut-[mcu]\r\nm-ready\r\n"
        port.close()


def test_infer_prints_what_the_reference_runner_waits_for(built, board: Board):
    board.link.load(built.inputs[0].tobytes())
    lines = board.link.command("infer 3")
    assert lines[:3] == ["m-warmup-start-10", "m-warmup-done", "m-infer-start-3"]
    assert re.fullmatch(r"m-lap-us-[0-9]+", lines[3])
    assert re.fullmatch(r"m-lap-us-[0-9]+", lines[4])
    assert lines[5] == "m-infer-done"
    assert re.fullmatch(r"m-results-\[([^]]+)\]", lines[6])
    assert len(lines) == 7


def thousandths(value: Fraction) -> str:
    """Three decimals, ties away from zero."""
    scaled = abs(value) * 1000
    whole = (2 * scaled.numerator + scaled.denominator) // (2 * scaled.denominator)
    sign = "-" if value < 0 and whole else ""
    return f"{sign}{whole // 1000}.{whole % 1000:03d}"


def test_results_are_the_dequantised_outputs_without_floating_point(built, board: Board):
    out = built.graph.output
    seen = set()
    for x in built.inputs[:12]:
        board.link.load(x.tobytes())
        line = board.link.command("infer 1 0")[-1]
        q = np.frombuffer(board.link.raw(), np.int8)
        scale = Fraction(float(np.float32(out.scale)))
        assert line == "m-results-[" + ",".join(thousandths((int(v) - out.zero_point) * scale) for v in q) + "]"
        seen.update(int(v) for v in q)
    assert min(seen) < 0 < max(seen)


def test_crc_raw_and_mem(built, board: Board):
    data = built.inputs[0].tobytes()
    board.link.load(data)
    assert board.link.crc() == (zlib.crc32(data), 0)
    board.link.infer(1, 0)
    assert board.link.raw() == built.expected[0].tobytes()
    assert board.link.crc() == (zlib.crc32(data), zlib.crc32(built.expected[0].tobytes()))
    memory = board.link.memory()
    assert 0 < memory["stack_used"] < memory["stack"] == built.target.memory.stack_bytes
    assert memory["arena"] <= memory["static"] == built.firmware.ram_bytes


def test_tap_shows_every_operation(built, board: Board):
    board.link.load(built.inputs[0].tobytes())
    for op, (_, tensor) in enumerate(built.layers(0)):
        assert board.link.tap(op) == tensor


# ---- boards that misbehave ----


def link_through(built, rule):
    """A context: the path of a sabotaged board."""
    from contextlib import ExitStack

    stack = ExitStack()
    upstream = stack.enter_context(emulated(built.firmware.elf, built.target))
    cable = stack.enter_context(Saboteur(upstream, rule))
    link = Link(open_port(cable.path, 115200), timeouts=HASTY)
    stack.callback(link.close)
    return stack, link, cable


@pytest.mark.parametrize(
    ("sin", "error", "words"),
    [
        ("silence", DeviceSilentError, "nothing came"),
        (NOISE, DeviceGarbageError, "no line of the protocol"),
        (b"m-profile-[half", DeviceGarbageError, "no line of the protocol"),
        (b"m-profile-[x]\r\n", DeviceProtocolError, "broke off"),
        (b"m-profile-[x]\r\n" + BANNER, DeviceResetError, "booted again"),
        (BANNER, DeviceResetError, "booted again"),
        (b"\r\ne-[fault 3 00000400]\r\n", DeviceProtocolError, "processor stopped"),
        (b"e-[Unknown command: profile]\r\nm-ready\r\n", DeviceProtocolError, "Unknown command"),
        (b"m-load-done\r\nm-ready\r\n", DeviceProtocolError, "expected m-profile"),
        ("vanish", DeviceGoneError, "vanished"),
    ],
    ids=[
        "silent",
        "garbage",
        "half_a_line",
        "half_an_answer",
        "reset_halfway",
        "reset_at_once",
        "fault",
        "error",
        "other_answer",
        "vanishes",
    ],
)
def test_each_misbehaviour_is_its_own_error(built, sin, error, words):
    stack, link, _ = link_through(built, lambda c, _: sin if c == b"profile" else "pass")
    with stack:
        link.handshake()
        with pytest.raises(error, match=words):
            link.profile()


def test_a_silent_and_a_raving_board_fail_the_handshake(built):
    for sin, error in (("silence", DeviceSilentError), (NOISE, DeviceGarbageError)):
        stack, link, cable = link_through(built, saboteur.always(sin))
        with stack, pytest.raises(error):
            link.handshake()
        assert cable.commands == [b"name"] * 3


def test_name_and_profile_are_tried_three_times(built):
    stack, link, cable = link_through(built, lambda c, n: NOISE if n in (0, 1, 3) else "pass")
    with stack:
        assert link.handshake() == "mcu"
        assert link.profile().model == "small"
    assert cable.commands == [b"name"] * 3 + [b"profile"] * 2
    assert len(link.discards) == 6


def test_a_command_that_an_earlier_program_left_half_sent(built):
    with emulated(built.firmware.elf, built.target) as path:
        port = open_port(path, 115200)
        port.write(b"infer 1")
        link = Link(port, timeouts=HASTY)
        assert link.handshake() == "mcu"
        link.close()


def test_boot_text_before_the_protocol_is_counted_and_set_aside(built):
    stack, link, _ = link_through(built, saboteur.at(1, b"ets Jul 29 2019\r\nm-name-dut-[mcu]\r\nm-ready\r\n"))
    with stack:
        link.handshake()
        assert link.command("name") == ["m-name-dut-[mcu]"]
        assert [d.text for d in link.discards] == ["ets Jul 29 2019"]


def test_endless_bytes_without_a_line_end():
    class Firehose:
        name = "firehose"

        def read(self, timeout_s: float) -> bytes:
            return b"m" * 65536

        def write(self, data: bytes) -> None: ...

        def close(self) -> None: ...

    with pytest.raises(DeviceGarbageError, match="without a line end"):
        Link(Firehose()).command("name")


@pytest.mark.parametrize("text", ["", " ", "a%b", "a\r\n", "é"])
def test_the_client_never_sends_what_firmware_trips_over(text):
    with pytest.raises(InternalError, match="not a command"):
        Link(None).command(text)  # type: ignore[arg-type]


class Canned:
    """A board that gives the next of these answers to each command, whatever it is."""

    name = "canned"

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.waiting = list(answers), b""

    def read(self, timeout_s: float) -> bytes:
        found, self.waiting = self.waiting, b""
        return found

    def write(self, data: bytes) -> None:
        self.waiting = "".join(f"{line}\r\n" for line in (*self.answers.pop(0), "m-ready")).encode()

    def close(self) -> None: ...


def test_an_infer_that_was_not_finished_is_no_result():
    whole = ["m-lap-us-10", "m-lap-us-30", "m-infer-done", "m-results-[0.500,0.250]"]
    assert Link(Canned(whole)).infer(1).elapsed_us == 20
    for missing in range(len(whole)):
        with pytest.raises(DeviceProtocolError, match="'infer 1 0'"):
            Link(Canned(whole[:missing] + whole[missing + 1 :])).infer(1)


def test_what_the_board_calls_an_error_is_one_whatever_else_it_says():
    whole = ["m-lap-us-10", "m-lap-us-30", "m-infer-done", "m-results-[0.500,0.250]"]
    for at in range(5):
        with pytest.raises(DeviceProtocolError, match=re.escape("the board says e-[No memory]")):
            Link(Canned([*whole[:at], "e-[No memory]", *whole[at:]])).infer(1)


def test_an_input_is_loaded_when_all_of_it_arrived_and_not_before():
    """Of 40 bytes 31 make the first command."""
    Link(Canned(["m-[Expecting 40 bytes]"], [], ["m-load-done"])).load(bytes(40))
    for first, last in ((["m-load-done"], ["m-load-done"]), ([], [])):
        with pytest.raises(DeviceProtocolError, match="of 40 bytes the board says") as caught:
            Link(Canned(["m-[Expecting 40 bytes]"], first, last)).load(bytes(40))
        assert "bytes were lost" in caught.value.hint


def test_another_protocol_is_not_guessed():
    known = "model=ab;arith=tflm;in=4;out=2;ops=1;arena=64;clk=1000;timebase=us"

    def answer(proto: int, fields: str) -> list[str]:
        return ["m-profile-[firmware]", "m-model-[small]", f"m-cactus-[proto={proto};{fields}]"]

    found = Link(Canned(answer(1, known))).profile().capability
    assert found is not None and (found.input_bytes, found.output_bytes) == (4, 2)
    with pytest.raises(DeviceProtocolError, match="protocol extension 2, expected 1"):
        Link(Canned(answer(2, known))).profile()
    for fields in (known.replace("ops=1;", ""), known.replace("in=4", "in=four")):
        with pytest.raises(DeviceProtocolError, match="capability line"):
            Link(Canned(answer(1, fields))).profile()


def test_microseconds_wrap():
    assert elapsed_us(2**32 - 5, 7) == 12
    assert elapsed_us(7, 2**32 - 5) == 2**32 - 12
    assert elapsed_us(5, 5) == 0
    assert Ticks(ticks=2909, hz=25_000_000, n=1, unit="instructions", unit_hz=7_812_500).per_inference == 909.0625


def test_a_real_boards_log(data_folder: Path):
    """Nucleo-L4R5ZI, MLPerf Tiny v0.5: every line of the board is protocol, and five times 100 inferences last 181.92 ms each."""
    path = data_folder / "device-logs" / "kws-performance-session-nucleo-l4r5zi.txt"
    if not path.exists():
        pytest.skip(f"no {path.name} in the data folder")
    log = path.read_text()
    lines = re.findall(r"^\S+ dut: (.*)$", log, re.MULTILINE)
    answers: list[list[str]] = [[]]
    for line in lines:
        answers[-1].append(line)
        if line == "m-ready":
            answers.append([])
    replies = iter(answers)

    class Replay:
        """Answers each command with the next recorded one."""

        name = "recorded Nucleo-L4R5ZI"
        pending = b""

        def write(self, data: bytes) -> None:
            self.pending = "".join(f"{line}\r\n" for line in next(replies)).encode()

        def read(self, timeout_s: float) -> bytes:
            data, self.pending = self.pending, b""
            return data

        def close(self) -> None: ...

    link = Link(Replay())
    profile = link.profile()
    assert (profile.firmware, profile.model, profile.capability) == (
        "ULPMark for tinyML Firmware V0.0.1",
        "kws01",
        None,
    )
    assert link.timestamp() == 250900590
    runs = [link.infer(100, 1) for _ in range(5)]
    assert [round(run.elapsed_us / 100 / 1000, 1) for run in runs] == [181.9] * 5
    assert runs[0].elapsed_us == 269414673 - 251222283
    assert runs[0].results == (0, 0.003, 0, 0, 0, 0.761, 0, 0, 0, 0, 0, 0.234)
    assert link.discards == []
