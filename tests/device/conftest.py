"""One small model, its firmware for the emulated board, and a running board: built once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from device_kit import Built, small_graph

from cactus_edge.device.connect import Board, connect
from cactus_edge.device.firmware import build_firmware
from cactus_edge.device.targets import Target, load_target
from cactus_edge.formats.c.write import write_c
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate


@pytest.fixture(scope="session")
def mcu() -> Target:
    return load_target("mcu")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, mcu: Target) -> Built:
    graph = small_graph()
    x = np.random.default_rng(1).integers(-128, 128, (128, *graph.input.shape), dtype=np.int8)
    folder: Path = tmp_path_factory.mktemp("small")
    sources = write_c(graph, profile("tflm"), folder / "c", name="small")
    firmware = build_firmware(sources.folder, mcu, folder / "firmware.elf")
    return Built(graph, x, evaluate(graph, x, profile("tflm")), sources, firmware, mcu)


@pytest.fixture
def board(built: Built) -> Iterator[Board]:
    with connect(built.target, elf=built.firmware.elf) as running:
        yield running
