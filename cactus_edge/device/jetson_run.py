"""A file in TensorRT on a Jetson, over ssh: is every layer int8, does every output lie in its envelope, how long does it take?

`trtexec` does the work there or, where it is not installed, ONNX Runtime's TensorRT provider. What must be true for the
profile's verdicts to hold is looked at first: the release of Jetson Linux, the version of TensorRT, the precision of every
layer of the engine. What contradicts it stands in the report's `problems`, and turns the build's verdict negative; what the
engine does not tell stands in `unknown`. The provider tells no precision, and is refused where any node runs elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.device.agent_run import AgentRun, Latency, Measure
from cactus_edge.device.jetson import load_of
from cactus_edge.device.jetson_work import TEGRASTATS, Advance, JetsonReport, Shell, Way, Work, identify, outside, state
from cactus_edge.device.ssh import Password, Remote, SshAddress, on_device
from cactus_edge.device.targets import JetsonTarget
from cactus_edge.device.tensorrt import (
    TRTEXEC,
    Model,
    Times,
    build_command,
    check_envelope,
    codes_of,
    outputs_command,
    parse_layers,
    parse_output,
    parse_sparse,
    parse_times,
    parse_version,
    precision,
    require_version,
    times_command,
)
from cactus_edge.errors import DeviceLacksError, DeviceModelError
from cactus_edge.resources import sha256

Array = npt.NDArray[Any]

INSTALL = (
    "on the device: sudo apt-get install nvidia-jetpack, for trtexec; or NVIDIA's onnxruntime-gpu wheel for its JetPack"
)

BUILD_S, RUN_S = 600.0, 120.0
"""Longest times for an engine to be built, and to run."""

MEASURE_S = (1.0, 10.0)
"""Seconds for which single inferences are repeated in ONNX Runtime: without counting, then counting."""


def measure(
    target: JetsonTarget,
    address: SshAddress,
    work: Work,
    *,
    way: Way = "auto",
    password: Password | None = None,
    known_hosts: Sequence[Path] | None = None,
    progress: Advance = lambda done, total, text: None,
) -> JetsonReport:
    """Runs `work` on the Jetson at `address`. Raises what `ssh.on_device` raises, DeviceLacksError, DeviceModelError, DeviceError."""

    async def run(remote: Remote) -> JetsonReport:
        trtexec = "" if way == "onnxruntime" else await find_trtexec(remote)
        if trtexec:
            return await run_trtexec(remote, target, work, trtexec, progress)
        if way == "trtexec":
            raise DeviceLacksError(
                f"no trtexec on the device; looked for {', '.join(TRTEXEC)}",
                hint=INSTALL,
            )
        return await run_provider(remote, target, work, progress)

    return on_device(address, run, timeout_s=target.ssh.connect_s, password=password, known_hosts=known_hosts)


async def find_trtexec(shell: Shell) -> str:
    """Where trtexec is, or ""."""
    for path in TRTEXEC:
        if await shell.exists(path):
            return path
    return ""


async def run_trtexec(shell: Shell, target: JetsonTarget, work: Work, trtexec: str, progress: Advance) -> JetsonReport:
    """Everything between login and clean-up, by trtexec."""
    steps = 5
    device = await identify(shell, target)
    progress(1, steps, device["system"])
    folder, count = shell.folder, len(work.inputs)
    model = Model(f"{folder}/model.onnx", work.input, work.inputs.shape[1:])
    await shell.put("model.onnx", work.file)
    await shell.put("inputs.bin", np.ascontiguousarray(work.inputs, "<f4").tobytes())
    log = await _tool(shell, build_command(trtexec, model, f"{folder}/model.engine", count, work.sparse), BUILD_S)
    version = parse_version(log)
    require_version(version)
    tensorrt = f"TensorRT {'.'.join(map(str, version))}"
    progress(2, steps, f"engine built by {tensorrt}")
    run = outputs_command(trtexec, model, f"{folder}/model.engine", f"{folder}/inputs.bin", count, f"{folder}/out.json")
    await _tool(shell, run, RUN_S)
    values = parse_output((await shell.get("out.json")).decode(), work.output, count, work.low.shape[1:])
    envelope = check_envelope(codes_of(values, work.scale), work.low, work.high)
    progress(3, steps, f"{count - envelope.outside} of {count} outputs in their envelopes")
    times = times_command(trtexec, model, f"{folder}/model.engine", f"{folder}/times.json", f"{folder}/layers.json")
    async with shell.watch(TEGRASTATS) as lines:
        await _tool(shell, times, RUN_S)
    measured = parse_times((await shell.get("times.json")).decode())
    progress(4, steps, f"{measured.percentile('compute', 50):.3g} ms")
    found = precision(parse_layers((await shell.get("layers.json")).decode()), work.nodes)
    progress(5, steps, f"{found.int8} of {found.weighted} layers in int8")
    return JetsonReport(
        device=device | await state(shell),
        runtime=f"{tensorrt} by trtexec",
        model_sha256=sha256(work.file),
        envelope=envelope,
        int8_layers=found.int8,
        weighted_layers=found.weighted,
        problems=(*found.contradictions, *outside(envelope)),
        unknown=found.unknown,
        compute_ms=_spread(measured, "compute"),
        latency_ms=_spread(measured, "latency"),
        runs=len(measured.compute_ms),
        load=load_of(lines),
        sparse=parse_sparse(log) if work.sparse else None,
    )


async def run_provider(remote: Remote, target: JetsonTarget, work: Work, progress: Advance) -> JetsonReport:
    """Everything between login and clean-up, by ONNX Runtime's TensorRT provider in our agent."""
    device = await identify(remote, target)
    count, shape = len(work.inputs), work.low.shape[1:]
    agent = AgentRun(remote, target, "onnxruntime-tensorrt", INSTALL, "onnx")
    x = np.ascontiguousarray(work.inputs, np.float32)
    await agent.send([work.file], x, Measure(*MEASURE_S), 4 * int(np.prod(shape)))
    chunks, runtime, latency, begun = [], "", None, 0
    async with remote.watch(TEGRASTATS) as lines, aclosing(agent.events()) as events:
        async for event in events:
            if event["event"] == "device":
                runtime = event["runtime"]
            elif event["event"] == "chunk":
                chunks.append(await agent.outputs(event, shape, np.dtype(np.float32)))
                begun = len(lines)  # the times are taken after the last of them
                progress(sum(map(len, chunks)), count, "")
            elif event["event"] == "timing":
                latency = Latency.of(event)
    envelope = check_envelope(codes_of(np.concatenate(chunks).astype(np.float64), work.scale), work.low, work.high)
    times = {} if latency is None else {"median": latency.median_us, "p90": latency.p90_us, "p99": latency.p99_us}
    return JetsonReport(
        device=device | await state(remote),
        runtime=runtime,
        model_sha256=sha256(work.file),
        envelope=envelope,
        int8_layers=0,
        weighted_layers=len(work.nodes),
        problems=outside(envelope),
        unknown=("ONNX Runtime does not report the types in TensorRT's engine; trtexec does",),
        compute_ms={},
        latency_ms={name: us / 1000 for name, us in times.items()},
        runs=0 if latency is None else latency.runs,
        load=load_of(lines[begun:]),
    )


def _spread(times: Times, kind: str) -> dict[str, float]:
    return {name: times.percentile(kind, q) for name, q in (("median", 50.0), ("p90", 90.0), ("p99", 99.0))}


async def _tool(shell: Shell, words: Sequence[str], timeout_s: float) -> str:
    """trtexec's log. DeviceModelError, with its last error line, where it fails."""
    done = await shell.run(words, timeout_s)
    log = done.stdout + done.stderr
    if done.status != 0:
        errors = [line.strip() for line in log.splitlines() if "[E]" in line] or log.strip().splitlines()[-1:] or [""]
        raise DeviceModelError(f"trtexec failed: {errors[0]}", hint=" ".join(words))
    return log
