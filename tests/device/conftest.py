"""One small model, its firmware for the emulated board, and a running board: built once a session."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts servers; this process' home, with its known_hosts and key, is the account's."""
    pytest.importorskip("asyncssh", reason="pip install 'cactus-edge[device]'")
    from ssh_kit import Behaviour, Server

    servers: list[Server] = []

    def start(python: str | None = f"exec {shlex.quote(sys.executable)}", **options: Any) -> Server:
        server = Server(tmp_path / f"server{len(servers)}", Behaviour(**options))
        servers.append(server.__enter__())
        monkeypatch.setenv("HOME", str(server.home))
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
        if python is not None:
            server.install(python)
        return server

    yield start
    for server in servers:
        server.__exit__()
