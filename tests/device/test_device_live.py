"""Live inputs over the serial line: the board's verdicts are those of the definition, and cost nothing where they are not wanted."""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device_kit import Built

from cactus_edge.device.connect import Board, connect
from cactus_edge.device.firmware import build_firmware
from cactus_edge.device.live import bench_live, certify
from cactus_edge.device.measure import Spread
from cactus_edge.device.protocol import Ticks
from cactus_edge.device.targets import load_target
from cactus_edge.errors import DeviceProtocolError, MismatchError
from cactus_edge.formats.c.live import live_boxes, live_decider
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.elf import read_elf


@pytest.fixture(scope="module")
def live(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder: Path = tmp_path_factory.mktemp("live")
    return replace(
        built, firmware=build_firmware(built.sources.folder, built.target, folder / "firmware.elf", live=True)
    )


@pytest.fixture
def board_live(live: Built) -> Iterator[Board]:
    with connect(live.target, elf=live.firmware.elf) as running:
        yield running


def test_the_boards_verdicts_are_the_definitions(live: Built, board_live: Board) -> None:
    decider = live_decider(lower(live.graph, profile("tflm")))
    x = live.inputs[:40]
    done: list[int] = []
    report = bench_live(
        board_live,
        x,
        1,
        lambda labels: decider.decide(*live_boxes(x, 1), labels),
        progress=lambda index, total: done.append(index),
    )
    report.require_agreement()
    assert 0 < report.certified < report.inputs == report.equal == done[-1] == 40
    board_live.link.infer(1, 0)
    plain = board_live.link.ticks().per_inference
    assert plain < report.units.median < 10 * plain
    wrong = bench_live(board_live, x[:8], 1, lambda labels: decider.decide(*live_boxes(x[:8], 2), labels))
    with pytest.raises(MismatchError, match="of 8 verdicts of the board differ"):
        wrong.require_agreement()


class Answering:
    """A link to a board that says of every input what it was told, one tick a microsecond."""

    def __init__(self, *answers: str) -> None:
        self.answers, self.loaded = list(answers), b""

    def load(self, data: bytes) -> None:
        self.loaded = data

    def crc(self) -> tuple[int, int]:
        return zlib.crc32(self.loaded), 0

    def ask(self, text: str, silence_s: float) -> list[str]:
        return [f"m-certify-[{self.answers.pop(0)}]"]

    def infer(self, n: int, warmup: int) -> None: ...

    def ticks(self) -> Ticks:
        return Ticks(9, 1_000_000, 1, "us", 1_000_000)


def test_a_verdict_is_equal_where_its_margin_is_too() -> None:
    """Of five the second has another margin and the third another verdict; the quarters are those of what bounding took."""
    said = [(1, 5, 80), (1, 6, 10), (0, -1, 30), (0, -2, 20), (0, -9, 40)]
    answers = [f"label=2;certified={c};margin={m};ticks={t}" for c, m, t in said]
    board = Board(Answering(*answers), "told", load_target("mcu"), "by hand")  # type: ignore[arg-type]
    labels: list[int] = []

    def expected(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        labels.extend(found.tolist())
        return np.array([True, True, True, False, False]), np.array([5, 7, -1, -2, -9])

    report = bench_live(board, np.zeros((5, 3), np.int8), 1, expected)
    assert (report.inputs, report.certified, report.equal) == (5, 2, 3) and labels == [2] * 5
    assert report.units == Spread(30.0, 20.0, 5)
    with pytest.raises(MismatchError, match="2 of 5 verdicts"):
        report.require_agreement()


def test_certify_runs_the_input_and_keeps_its_output(live: Built, board_live: Board) -> None:
    board_live.link.load(live.inputs[3].tobytes())
    found = certify(board_live.link, 0)
    assert board_live.link.raw() == live.expected[3].tobytes()
    first, second = np.sort(live.expected[3].astype(np.int64))[:-3:-1]
    assert (found.label, found.margin) == (live.expected[3].argmax(), first - second)
    assert found.certified == (first > second)


def test_the_sensors_range_cuts_the_box(live: Built, board_live: Board) -> None:
    """Codes outside it stay what they are; within one code of range there is nothing left to vary but them."""
    decider = live_decider(lower(live.graph, profile("tflm")))
    x = live.inputs[:6]
    for ends in ((-3, 40), (0, 0)):
        for sample in x:
            board_live.link.load(sample.tobytes())
            found = certify(board_live.link, 5, ends)
            certified, margin = decider.decide(*live_boxes(sample[None], 5, ends), np.array([found.label]))
            assert (found.certified, found.margin) == (certified[0], margin[0])


@pytest.mark.parametrize("text", ["certify", "certify 256", "certify -1", "certify 1 5 4", "certify 1 -129 4"])
def test_wrong_questions_are_refused(text: str, board_live: Board) -> None:
    (line,) = board_live.link.command(text)
    assert re.fullmatch(r"e-\[Expected a radius of 0 to 255, .*\]", line)


def test_no_input_no_verdict(board_live: Board) -> None:
    assert board_live.link.command("certify 1") == ["e-[Input has 0 bytes, the model reads 162]"]
    board_live.link.command("help")
    assert any("certify R" in line.text for line in board_live.link.discards)


def test_firmware_without_it_says_so_and_is_no_larger(built: Built, live: Built, board: Board, tmp_path: Path) -> None:
    with pytest.raises(DeviceProtocolError, match="Unknown command: certify"):
        certify(board.link, 1)
    bare = tmp_path / "bare"
    shutil.copytree(built.sources.folder, bare)
    for path in [*bare.glob("live.*"), *bare.glob("*_bounds_s8.c"), bare / "ce_certify.c"]:
        path.unlink()
    without = build_firmware(bare, built.target, tmp_path / "bare.elf")
    images = [read_elf(report.elf.read_bytes()).image() for report in (without, built.firmware)]
    assert images[0] == images[1]
    second = built.sources.blob.header["arena"]
    assert second <= live.firmware.ram_bytes - built.firmware.ram_bytes < second + 32
    assert built.firmware.flash_bytes < live.firmware.flash_bytes < built.firmware.flash_bytes + 20_000
