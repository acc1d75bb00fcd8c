"""Benches: every output equal, finished results kept whatever happens, differences named."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from device_kit import HASTY
from saboteur import BANNER, NOISE, Saboteur, on

from cactus_edge.device import session as sessions
from cactus_edge.device.connect import emulated, identity, require_digest
from cactus_edge.device.firmware import build_firmware
from cactus_edge.device.measure import DeviceReport, Spread, bench
from cactus_edge.device.session import Row, Session
from cactus_edge.errors import (
    DeviceGarbageError,
    DeviceGoneError,
    DeviceNotFoundError,
    DeviceProtocolError,
    DeviceResetError,
    DeviceSilentError,
    InputError,
    MismatchError,
)


def run(built, folder: Path, n: int = 128, **options) -> DeviceReport:
    arguments = {"digest": built.digest, "inputs": built.inputs[:n], "expected": built.expected[:n], "folder": folder}
    return bench(built.target, **arguments | {"elf": built.firmware.elf} | options)


def test_every_output_equals_the_interpreters(built, tmp_path: Path):
    report = run(built, tmp_path, layers=built.layers)
    assert (report.compared, report.equal, report.first_difference) == (128, 128, "")
    assert report.emulated
    assert report.latency_us is None
    assert report.instructions is not None
    assert report.instructions.n == 128
    assert report.instructions.median == int(report.instructions.median) > 10_000
    assert report.blob_sha256 == built.digest
    assert report.discarded == report.resumed == 0
    folder = tmp_path / report.session
    described = json.loads((folder / "session.json").read_text())
    assert described["blob_sha256"] == built.digest
    assert described["report"]["equal"] == 128
    assert len((folder / "results.csv").read_text().splitlines()) == 129
    assert "> infer 1 0%" in (folder / "device.log").read_text()
    report.require_agreement()


def sabotaged(built, stack: ExitStack, rule) -> str:
    upstream = stack.enter_context(emulated(built.firmware.elf, built.target))
    return stack.enter_context(Saboteur(upstream, rule)).path


def plugged(port: str, name: Path) -> str:
    """The port under a name that stays when the board is plugged in again, as a USB serial number does."""
    name.unlink(missing_ok=True)
    name.symlink_to(port)
    return str(name)


@pytest.mark.parametrize(
    ("sin", "error"),
    [
        ("silence", DeviceSilentError),
        (NOISE, DeviceGarbageError),
        (b"m-warmup-start-0\r\n" + BANNER, DeviceResetError),
        ("vanish", DeviceGoneError),
        (b"e-[Model does not run]\r\nm-ready\r\n", DeviceProtocolError),
    ],
    ids=["silent", "garbage", "resets_halfway", "vanishes", "error"],
)
def test_finished_results_survive_a_misbehaving_board_and_the_next_run_continues(built, sin, error, tmp_path: Path):
    board = tmp_path / "board"
    with ExitStack() as stack, pytest.raises(error):
        port = plugged(sabotaged(built, stack, on(b"infer", sin, skip=3)), board)
        run(built, tmp_path, 6, port=port, timeouts=HASTY)
    kept = next(tmp_path.glob("*/results.csv")).read_text().splitlines()
    assert len(kept) == 1 + 3
    with emulated(built.firmware.elf, built.target) as path:
        report = run(built, tmp_path, 6, port=plugged(path, board))
    assert (report.resumed, report.compared, report.equal) == (3, 6, 6)
    assert next(tmp_path.glob("*/results.csv")).read_text().splitlines()[:4] == kept


def test_ctrl_c_keeps_what_is_finished(built, tmp_path: Path):
    def interrupt(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(built, tmp_path, 7, progress=interrupt)
    seen: list[tuple[int, int]] = []
    report = run(built, tmp_path, 7, progress=lambda done, total: seen.append((done, total)))
    assert (report.resumed, report.equal) == (4, 7)
    assert seen == [(i + 1, 7) for i in range(7)]


def test_a_cut_off_or_damaged_line_is_measured_again(built, tmp_path: Path):
    first = run(built, tmp_path, 5)
    path = tmp_path / first.session / "results.csv"
    lines = path.read_text().splitlines(keepends=True)
    lines[2] = lines[2].replace(",", ",0", 1)
    path.write_text("".join(lines)[:-7])
    report = run(built, tmp_path, 5)
    assert (report.resumed, report.equal) == (3, 5)
    assert report.instructions == first.instructions


def test_a_finished_run_is_measured_again(built, tmp_path: Path):
    first = run(built, tmp_path, 5)
    path = tmp_path / first.session / "results.csv"
    row = Row.from_csv(path.read_text().splitlines(keepends=True)[1])
    assert row is not None
    # What the file says of a finished run is not what the board says today.
    path.write_text(path.read_text().replace(row.to_csv(), replace(row, output=bytes(len(row.output))).to_csv()))
    report = run(built, tmp_path, 5)
    assert (report.resumed, report.equal, report.session) == (0, 5, first.session)
    again = run(built, tmp_path, 5)
    assert (again.resumed, again.equal) == (0, 5)


def test_each_board_and_each_emulator_has_a_session_of_its_own(built, tmp_path: Path):
    target, names = built.target, {str(tmp_path / name) for name in ("a", "b")}
    for name in names:
        Path(name).touch()
    keys = {identity(target), identity(target, emulator="qemu"), *(identity(target, name) for name in names)}
    assert len(keys) == 4
    with pytest.raises(DeviceNotFoundError):
        identity(target, str(tmp_path / "c"))


def test_another_model_data_set_or_firmware_is_another_session(built, tmp_path: Path):
    def key(**options) -> str:
        arguments = {"digest": built.digest, "target": "mcu", "inputs": built.inputs, "firmware_sha256": ""}
        return Session(tmp_path, **arguments | options).key

    keys = {key(), key(digest="0" * 64), key(target="x"), key(inputs=built.inputs[1:]), key(firmware_sha256="1" * 64)}
    assert len(keys) == 5


def test_a_board_with_another_blob_is_refused_before_anything_is_sent(built, tmp_path: Path):
    other = "f" * 64
    with pytest.raises(MismatchError, match=f"{built.digest}, expected {other}"):
        run(built, tmp_path, 3, digest=other)
    log = next(tmp_path.glob("*/device.log")).read_text()
    assert "> name%" in log
    assert "> db" not in log
    assert "> infer" not in log


def test_every_digit_of_a_blobs_digest_counts():
    for at in (0, 31, 63):
        other = "".join("b" if i == at else "a" for i in range(64))
        link = SimpleNamespace(profile=lambda model=other: SimpleNamespace(capability=SimpleNamespace(model=model)))
        board = SimpleNamespace(link=link, name="told", target=SimpleNamespace(name="mcu"))
        require_digest(board, other)  # type: ignore[arg-type]
        with pytest.raises(MismatchError, match=f"runs blob {other}"):
            require_digest(board, "a" * 64)  # type: ignore[arg-type]


def test_another_vendors_firmware_is_refused(built, tmp_path: Path):
    foreign = b"m-profile-[ULPMark for tinyML Firmware V0.0.1]\r\nm-model-[kws01]\r\nm-ready\r\n"
    with ExitStack() as stack, pytest.raises(MismatchError, match="does not say which model"):
        run(built, tmp_path, 3, port=sabotaged(built, stack, lambda c, _: foreign if c == b"profile" else "pass"))


def test_an_input_that_arrives_changed_is_sent_again_and_recorded(built, tmp_path: Path):
    # One hex digit of the second input's first line flips on the way.
    line = b"db " + built.inputs[1].tobytes()[:31].hex().encode()
    changed = line[:-1] + (b"0" if line[-1:] != b"0" else b"1")

    flipped = False

    def rule(command: bytes, _: int) -> str | bytes:
        nonlocal flipped
        if command == line and not flipped:
            flipped = True
            cable.send(changed)
            return b""  # the board answers
        return "pass"

    with ExitStack() as stack:
        upstream = stack.enter_context(emulated(built.firmware.elf, built.target))
        cable = stack.enter_context(Saboteur(upstream, rule))
        report = run(built, tmp_path, 3, port=cable.path)
    assert flipped
    assert (report.compared, report.equal) == (3, 3)
    assert "input 1 arrived changed" in next(tmp_path.glob("*/discarded.csv")).read_text()


def test_an_output_that_arrives_changed_is_not_taken_for_arithmetic(built, tmp_path: Path):
    wrong = b"m-raw-[" + b"00" * 7 + b"]\r\nm-ready\r\n"
    with ExitStack() as stack, pytest.raises(DeviceGarbageError, match="arrived changed"):
        run(built, tmp_path, 3, port=sabotaged(built, stack, on(b"raw", wrong)))


def test_planted_fault_one_rounding_missing_on_the_board_is_found_and_named(built, tmp_path: Path):
    """The same blob, so the same digest, and a requantisation that rounds down: only running it can tell."""
    model = tmp_path / "c"
    shutil.copytree(built.sources.folder, model)
    header = model / "ce_arith.h"
    honest = header.read_text()
    header.write_text(honest.replace("> threshold ? 1 : 0", "> threshold ? 0 : 0"))
    assert header.read_text() != honest
    firmware = build_firmware(model, built.target, tmp_path / "fw.elf")
    report = run(built, tmp_path / "s", 10, elf=firmware.elf, layers=built.layers)
    assert report.equal < report.compared == 10
    assert "first operation that differs: op 0 Conv2d -> 'conv'" in report.first_difference
    with pytest.raises(MismatchError, match="differ from the interpreter's"):
        report.require_agreement()


def test_every_output_that_differs_is_counted_and_the_first_is_named(built, tmp_path: Path):
    expected = built.expected[:8].copy()
    expected[1, 0] ^= 1
    expected[3, 1] ^= 1
    report = run(built, tmp_path, 8, expected=expected)
    assert (report.compared, report.equal) == (8, 6)
    assert report.first_difference.startswith("input 1, output 0: ")
    with pytest.raises(MismatchError, match="2 of 8 outputs"):
        report.require_agreement()


def test_the_cost_is_the_median_and_the_width_of_the_middle_half(built, tmp_path: Path):
    """Of eight costs that an earlier run left, and one that is larger than all of them."""
    about = {"blob_sha256": built.digest, "firmware_sha256": "", "device": identity(built.target)}
    with Session(tmp_path, target=built.target.name, inputs=built.inputs[:9], **about) as kept:
        for i, units in enumerate((80.0, 10.0, 70.0, 20.0, 60.0, 30.0, 50.0, 40.0)):
            kept.add(Row(i, kept.input_crc32(i), built.expected[i].tobytes(), 0, units, "instructions"))
    report = run(built, tmp_path, 9)
    assert (report.resumed, report.equal) == (8, 9)
    assert report.instructions == Spread(50.0, 40.0, 9)


def test_a_board_that_counts_instructions_has_no_latency(built, tmp_path: Path):
    """Behind a serial port too: what it calls itself decides, not how it was reached."""
    board = replace(built.target, kind="board")
    with emulated(built.firmware.elf, built.target) as path:
        arguments = {"digest": built.digest, "inputs": built.inputs[:2], "expected": built.expected[:2]}
        report = bench(board, folder=tmp_path, port=path, **arguments)
    assert report.emulated and report.latency_us is None and report.instructions is not None


def test_inputs_of_the_wrong_size(built, tmp_path: Path):
    with pytest.raises(InputError, match="the board expects"):
        run(built, tmp_path, inputs=np.zeros((2, 5), np.int8), expected=built.expected[:2])


def test_a_full_disk_says_so(built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    session = Session(tmp_path, digest=built.digest, target="mcu", inputs=built.inputs)
    with session:
        monkeypatch.setattr(sessions.os, "fsync", full)
        with pytest.raises(InputError, match="No space left on device"):
            session.add(Row(0, session.input_crc32(0), b"\0" * 7, 1, 1.0, "us"))


def test_rows_survive_their_text():
    row = Row(3, 0xDEADBEEF, b"\x80\x7f", 12345, 0.1 + 0.2, "us")
    assert Row.from_csv(row.to_csv()) == row
    assert all(Row.from_csv(row.to_csv()[:n]) is None for n in range(len(row.to_csv())))
