"""A model on a computer behind a real ssh server on the loopback device, and every way in which that can fail."""

from __future__ import annotations

import asyncio
import hashlib
import json
import platform
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("asyncssh", reason="pip install 'cactus-edge[device]'")
pytest.importorskip("ai_edge_litert", reason="pip install 'cactus-edge[build]'")

from onnx_kit import vnni
from ssh_kit import Server
from strategies import random_inputs

from cactus_edge.computer import work_for
from cactus_edge.device import remote
from cactus_edge.device.agent_run import AgentRun, Measure
from cactus_edge.device.remote import Layer, Work, bench
from cactus_edge.device.ssh import Remote, SshAddress
from cactus_edge.device.targets import SshTarget, parse_target
from cactus_edge.errors import (
    DeviceError,
    DeviceFullError,
    DeviceGoneError,
    DeviceKilledError,
    DeviceLacksError,
    DeviceModelError,
    DeviceSilentError,
    MismatchError,
)
from cactus_edge.formats.litert import with_output
from cactus_edge.formats.onnx import write_onnx
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import evaluate, trace
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.verify.tflite_read import read_tflite

TARGET = f"""
name = "here"
title = "this machine"
family = "linux-ssh"
machine = "{platform.machine()}"
cpu = "this one"
evidence = "this test"
note = ""
[kernels]
channel_multiple = 1
sparse = ""
weight_bits = [8]
source = "this test"
[ssh]
connect_s = 10.0
idle_s = 60.0
[tflite]
runtime = "litert"
profile = "litert-xnnpack"
host = "litert-xnnpack"
package = "ai-edge-litert==2.3.*"
"""

QUICK = Measure(warmup_s=0.01, measure_s=0.05)


def network() -> Graph:
    """Two dense layers."""
    rng = np.random.default_rng(0)
    b = GraphBuilder()
    x = b.input(Tensor("x", (6,), "int8", 0.5, 3))
    for k, (columns, rows) in enumerate(((6, 8), (8, 4))):
        weight = ops.freeze(rng.integers(-127, 128, (rows, columns)), np.int8)
        dense = ops.Dense(weight, ops.freeze([7] * rows, np.int32), ops.freeze([0.01], np.float32))
        x = b.node(dense, [x], Tensor(f"dense{k}", (rows,), "int8", 0.75 + k, -5))
    return b.finish(x)


@pytest.fixture(scope="module")
def target() -> SshTarget:
    found = parse_target(TARGET, "here.toml")
    assert isinstance(found, SshTarget)
    return found


@pytest.fixture(scope="module")
def work(target: SshTarget) -> Work:
    graph = network()
    data, codes = write_tflite(graph), random_inputs(np.random.default_rng(1), graph, 70)
    model, rule = read_tflite(data), profile("litert-xnnpack")

    def layers(index: int) -> list[Layer]:
        tensors = trace(model.graph, codes[index : index + 1], rule)
        outputs = [(i, node.output) for i, node in enumerate(model.graph.nodes)]
        files = [with_output(data, model.file_tensors[t]) for _, t in outputs]
        return [Layer(model.graph.label(i), f, tensors[t][0]) for (i, t), f in zip(outputs, files, strict=True)]

    assert target.tflite is not None
    return Work(data, "tflite", target.tflite, codes, evaluate(graph, codes, rule), layers)


@pytest.fixture(scope="module")
def onnx_work() -> tuple[SshTarget, Work]:
    """The same network as a .onnx file, and a target that runs it."""
    pytest.importorskip("onnxruntime", reason="pip install 'cactus-edge[build]'")
    engine = TARGET[: TARGET.index("[tflite]")] + (
        '[onnx]\nruntime = "onnxruntime"\nprofile = "ort-x86"\nhost = "onnxruntime"\npackage = "onnxruntime"\n'
    )
    target = parse_target(engine, "here.toml")
    assert isinstance(target, SshTarget)
    graph = network()
    data = write_onnx(graph)
    x = (random_inputs(np.random.default_rng(1), graph, 9).astype(np.float32) - 3) * np.float32(0.5)
    return target, work_for(data, x, target)


def left_behind(server: Server) -> list[Path]:
    """Folders of ours that this server's commands named and that are still there."""
    folders = {
        Path(word).parent for c in server.behaviour.commands for word in c.split() if "/tmp/cactus-edge-" in word
    }
    return [folder for folder in folders if folder.exists()]


def test_outputs_are_equal_and_latency_is_measured(serve, target: SshTarget, work: Work, tmp_path: Path) -> None:
    server = serve()
    seen: list[int] = []
    report = bench(
        target, server.address, work, tmp_path / "run", measure=QUICK, progress=lambda done, total: seen.append(done)
    )
    assert (report.compared, report.equal, report.first_difference) == (70, 70, "")
    assert seen == [64, 70]
    assert report.runtime.startswith("ai-edge-litert 2.")
    assert report.latency is not None
    assert 0 < report.latency.median_us <= report.latency.p90_us <= report.latency.p99_us
    assert report.latency.runs >= 1
    assert report.peak_bytes is not None and report.peak_bytes > 1 << 20
    assert report.device["machine"] == platform.machine()
    assert report.device["throttled"] and report.after["governor"]
    assert len(server.behaviour.commands) == 1
    assert not left_behind(server)
    described = json.loads((tmp_path / "run" / report.session / "session.json").read_text())
    assert described["report"]["equal"] == 70
    assert "127.0.0.1" not in json.dumps(described)


@vnni
def test_a_difference_of_a_onnx_file_is_named_and_its_optimised_form_kept(serve, onnx_work, tmp_path: Path) -> None:
    target, work = onnx_work
    good = bench(target, serve().address, work, tmp_path / "good", measure=QUICK)
    assert (good.compared, good.equal, good.resumed) == (9, 9, 0)
    wrong = work.expected.copy()
    wrong[3, 2] += 1.75
    off = bench(target, serve().address, replace(work, expected=wrong), tmp_path / "off", measure=QUICK)
    assert off.equal == 8 and "not repeatable" in off.first_difference
    layer = work.layers(3)[0]
    moved = [replace(layer, expected=layer.expected + np.float32(0.5)), *work.layers(3)[1:]]
    named = replace(work, expected=wrong, layers=lambda index: moved)
    seen = bench(target, serve().address, named, tmp_path / "named", measure=QUICK)
    assert "first operation that differs" in seen.first_difference
    # Of the file itself, not of a piece that the search for the difference ran.
    assert good.optimised and good.optimised == off.optimised == seen.optimised


def test_devices_at_two_ports_of_one_gateway_have_sessions_of_their_own(
    target: SshTarget, work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders: list[str] = []

    def never(address: SshAddress, run: Any, **_: Any) -> None:
        folders.append(run.__self__.session.folder.name)
        raise DeviceGoneError("gone")

    monkeypatch.setattr(remote, "on_device", never)
    for text in ("pi@gw:2201", "pi@gw:2202", "pi@gw:2201"):
        with pytest.raises(DeviceGoneError):
            bench(target, SshAddress.parse(text), work, tmp_path)
    assert folders[0] == folders[2] != folders[1]


def test_a_finished_run_is_measured_again(serve, target: SshTarget, work: Work, tmp_path: Path) -> None:
    reports = [bench(target, serve().address, work, tmp_path / "run", measure=QUICK) for _ in range(2)]
    assert [(r.equal, r.resumed) for r in reports] == [(70, 0)] * 2


def test_an_emulated_host_gives_no_latency(serve, target, work, tmp_path, monkeypatch) -> None:
    from cactus_edge.device import agent

    source = Path(agent.__file__).read_text()
    declared = tmp_path / "declared"
    declared.write_text("a Raspberry Pi 4 in an emulator")
    copy = tmp_path / "agent.py"
    copy.write_text(source.replace('"/etc/cactus-edge-emulated"', repr(str(declared))))
    monkeypatch.setattr(agent, "__file__", str(copy))
    report = bench(target, serve().address, work, tmp_path / "run", measure=QUICK)
    assert report.emulated == "a Raspberry Pi 4 in an emulator"
    assert (report.equal, report.latency, report.peak_bytes) == (70, None, None)


def test_a_wrong_output_is_found_with_its_first_operation(serve, target, work, tmp_path) -> None:
    wrong = work.expected.copy()
    wrong[3, 2] += 1
    first = work.layers(3)[0]
    off = replace(first, expected=first.expected ^ np.int8(1))
    report = bench(target, serve().address, replace(work, expected=wrong), tmp_path / "a", measure=QUICK)
    assert (report.compared, report.equal) == (70, 69)
    assert report.first_difference.startswith("input 3, output [2]: ")
    assert "not repeatable" in report.first_difference
    moved = replace(work, expected=wrong, layers=lambda index: [off, *work.layers(index)[1:]])
    report = bench(target, serve().address, moved, tmp_path / "b", measure=QUICK)
    assert "first operation that differs: op 0 Dense -> 'dense0', in 8 of 8 values" in report.first_difference
    with pytest.raises(MismatchError, match="1 of 70 outputs"):
        report.require_agreement()


def test_a_connection_that_breaks_keeps_what_was_finished(serve, target, work, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cactus_edge.device.agent_run.CHUNK_INPUTS", 10)
    server = serve(cut_at="out-0-000030.bin")
    with pytest.raises(DeviceGoneError, match="connection"):
        bench(target, server.address, work, tmp_path / "run", measure=QUICK)
    server.behaviour.cut_at = ""
    report = bench(target, server.address, work, tmp_path / "run", measure=QUICK)
    assert report.equal == 70
    assert report.resumed == 30
    for _ in range(100):  # the agent removes its folder when it hears nobody any more
        if not left_behind(server):
            break
        time.sleep(0.05)
    assert not left_behind(server)


def failure(serve, target, work, tmp_path, kind, words, *, hint="", **options) -> None:
    server = serve(**options)
    with pytest.raises(kind, match=words) as caught:
        bench(target, server.address, work, tmp_path / "run", measure=QUICK)
    assert hint in caught.value.hint
    assert not left_behind(server)


def test_no_room(serve, target, work, tmp_path) -> None:
    failure(serve, target, work, tmp_path, DeviceFullError, "cannot be written", hint="free space", full=True)


def test_agent_killed(serve, target, work, tmp_path) -> None:
    failure(serve, target, work, tmp_path, DeviceKilledError, "by signal KILL", hint="memory", kill=True)


def test_no_python(serve, target, work, tmp_path) -> None:
    options = {"python": None, "env": {"PATH": "/nowhere"}}
    failure(serve, target, work, tmp_path, DeviceLacksError, "no python3", hint="apt-get install python3", **options)


def test_no_wheel(serve, target, work, tmp_path) -> None:
    hint = "\"python3 -m venv .cactus-edge && .cactus-edge/bin/pip install 'ai-edge-litert==2.3.*'\""
    (tmp_path / "broken" / "ai_edge_litert").mkdir(parents=True)
    (tmp_path / "broken" / "ai_edge_litert" / "__init__.py").write_text("raise ImportError('no such wheel')")
    options = {"env": {"PYTHONPATH": str(tmp_path / "broken")}}
    failure(serve, target, work, tmp_path, DeviceLacksError, "ai-edge-litert: no such wheel", hint=hint, **options)


def test_no_numpy(serve, target, work, tmp_path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "numpy.py").write_text("raise ImportError('no numpy')")
    options = {"env": {"PYTHONPATH": str(tmp_path / "broken")}}
    failure(serve, target, work, tmp_path, DeviceLacksError, "no numpy", hint="pip install", **options)


def test_a_file_that_the_runtime_refuses(serve, target, work, tmp_path) -> None:
    broken = replace(work, file=work.file[:300])
    failure(serve, target, broken, tmp_path, DeviceModelError, "does not take the file")


def test_another_processor(serve, target, work, tmp_path) -> None:
    other = replace(target, machine="sparc64")
    failure(serve, other, work, tmp_path, DeviceError, "target here is sparc64")


def test_outputs_of_another_type(serve, target, work, tmp_path) -> None:
    other = replace(work, expected=work.expected.astype(np.float32))
    failure(serve, target, other, tmp_path, DeviceModelError, "int8 .4,., expected float32")


def test_a_silent_agent(serve, target, work, tmp_path) -> None:
    quiet = replace(target, ssh=replace(target.ssh, idle_s=0.5))
    failure(serve, quiet, work, tmp_path, DeviceSilentError, "nothing was heard for 0.5 s", python="exec sleep 30 #")


def test_outputs_that_arrive_changed_are_noticed() -> None:
    """One bit of a chunk, on its way back."""
    sent, given = np.arange(6, dtype=np.int8).reshape(2, 3), bytearray(range(6))

    async def get(path: str) -> bytes:
        return bytes(given)

    digest = hashlib.sha256(sent.tobytes()).hexdigest()
    event = {"path": "out-0", "sha256": digest, "dtype": "int8", "shape": [2, 3], "count": 2}
    agent = SimpleNamespace(remote=SimpleNamespace(get=get))
    found = asyncio.run(AgentRun.outputs(agent, event, (3,), np.dtype(np.int8)))  # type: ignore[arg-type]
    assert np.array_equal(found, sent)
    given[5] ^= 1
    with pytest.raises(DeviceGoneError, match="out-0 arrived changed"):
        asyncio.run(AgentRun.outputs(agent, event, (3,), np.dtype(np.int8)))  # type: ignore[arg-type]


def test_a_changed_file_is_noticed(serve, target, work, tmp_path, monkeypatch) -> None:
    real = Remote.put

    async def put(self, name: str, data: bytes) -> None:
        await real(self, name, data[:-1] + b"!" if name == "inputs.bin" else data)

    monkeypatch.setattr(Remote, "put", put)
    failure(serve, target, work, tmp_path, DeviceGoneError, "inputs.bin arrived changed")


@pytest.mark.parametrize("after", ["agent.py", "out-0-000000.bin"], ids=["while it starts", "while it runs"])
def test_ctrl_c_leaves_nothing_behind(serve, target, work, tmp_path, after: str) -> None:
    """A real process and a real signal, once the file `after` is asked for or written."""
    server = serve()
    seen = threading.Event()
    server.behaviour.opened = lambda path: seen.set() if path.endswith(after) else None
    data = tmp_path / "model.tflite"
    data.write_bytes(work.file)
    (tmp_path / "here.toml").write_text(TARGET)
    script = tmp_path / "run.py"
    script.write_text(CTRL_C.format(folder=str(tmp_path), host=f"pi@127.0.0.1:{server.port}"))
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert seen.wait(60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    for _ in range(100):
        if not left_behind(server):
            break
        time.sleep(0.05)
    assert not left_behind(server)


CTRL_C = """
import signal
import sys
from pathlib import Path
import cactus_edge.device.targets as targets
from cactus_edge.cli import main

# Who runs the tests in the background may have told every child to ignore it.
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = Path({folder!r})
targets.load_target = lambda name: targets.parse_target((folder / "here.toml").read_text(), "here.toml")
words = ["bench", str(folder / "model.tflite"), "--target", "here", "--host", {host!r}, "--out", str(folder / "out")]
sys.exit(main(words))
"""
