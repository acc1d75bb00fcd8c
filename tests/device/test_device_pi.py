"""The real aarch64 wheels, emulated as a Raspberry Pi 4 and 5 behind a real ssh server, against the interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("asyncssh", reason="pip install 'cactus-edge[device]'")

import pi_kit
from ssh_kit import Behaviour, Server

from cactus_edge.computer import Host, run_on_computer
from cactus_edge.device.targets import SshTarget, load_target
from cactus_edge.formats.onnx import write_onnx
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(pi_kit.missing()), reason=pi_kit.missing() or "prepared"),
]


@pytest.fixture(scope="module", params=sorted(pi_kit.BOARDS))
def board(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Server]]:
    """The emulated board behind the server."""
    with Server(tmp_path_factory.mktemp("server"), Behaviour()) as server:
        server.install(pi_kit.python(request.param))
        yield request.param, server


def network(end: str) -> Graph:
    """Convolution with many channels; mean, flattening, or two branches that join; dense layer; scales whose products tie."""
    rng = np.random.default_rng(5)
    b = GraphBuilder()
    x = b.input(Tensor("x", (6, 6, 2), "int8", 0.5, 3))
    weight = ops.freeze(rng.integers(-127, 128, (21, 3, 3, 2)), np.int8)
    scale = ops.freeze(rng.choice([0.0078125, 0.01171875, 0.01], 21), np.float32)
    conv = ops.Conv2d(weight, ops.freeze(rng.integers(-900, 900, 21), np.int32), scale, activation=ops.Activation.RELU)
    x = b.node(conv, [x], Tensor("conv", (4, 4, 21), "int8", 0.25, -128))
    if end == "joined":
        pool = b.node(ops.AvgPool((2, 2), (1, 1)), [x], Tensor("pool", (3, 3, 21), "int8", 0.25, -128))
        whole = b.node(ops.AvgPool((3, 3), (3, 3)), [pool], Tensor("whole", (1, 1, 21), "int8", 0.25, -128))
        first = b.node(ops.MaxPool((4, 4), (4, 4)), [x], Tensor("first", (1, 1, 21), "int8", 0.25, -128))
        x = b.node(ops.Concat(2), [first, whole], Tensor("both", (1, 1, 42), "int8", 0.25, -128))
    if end == "mean":
        x = b.node(ops.Mean((0, 1), False), [x], Tensor("mean", (21,), "int8", float(np.float32(0.07)), -100))
    columns = {"mean": 21, "flat": 336, "joined": 42}[end]
    weight = ops.freeze(rng.integers(-127, 128, (10, columns)), np.int8)
    dense = ops.Dense(weight, ops.freeze(rng.integers(-99, 99, 10), np.int32), ops.freeze([0.0078125], np.float32))
    x = b.node(dense, [x], Tensor("logits", (10,), "int8", 0.5 if end == "mean" else 8.0, 4))
    if end == "mean":
        x = b.node(ops.Softmax(), [x], Tensor("y", (10,), "int8", 1 / 256, -128))
    return b.finish(x)


@pytest.mark.parametrize(
    ("form", "end"),
    [
        pytest.param("tflite", "mean", id="tflite"),
        pytest.param("onnx", "flat", id="onnx"),
        pytest.param("onnx", "joined", id="onnx_uint8"),
    ],
)
def test_outputs_are_equal_on_the_emulated_board(
    board: tuple[str, Server], form: str, end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, server = board
    monkeypatch.setenv("HOME", str(server.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    graph = network(end)
    x = np.random.default_rng(6).integers(-128, 128, (40, 6, 6, 2)).astype(np.int8)
    data = write_tflite(graph) if form == "tflite" else write_onnx(graph)
    target = load_target("raspberry-pi")
    assert isinstance(target, SshTarget)
    inputs = x if form == "tflite" else (x.astype(np.float32) - 3) / 2
    report = run_on_computer(
        data, inputs, target, Host(f"pi@127.0.0.1:{server.port}"), tmp_path, lambda done, total: None
    )
    assert (report.compared, report.equal, report.first_difference) == (40, 40, "")
    assert pi_kit.BOARDS[name].model in report.emulated and pi_kit.BOARDS[name].cpu in report.emulated
    assert (report.latency, report.peak_bytes) == (None, None)
    assert report.device["machine"] == "aarch64"
    assert report.device["model"] == pi_kit.BOARDS[name].model
    assert report.device["throttled"] == "unknown"
