"""A file in TensorRT on a Jetson, over ssh: is every layer int8, does every output lie in its envelope, how long does it take?

`trtexec` does the work there. What must be true for the profile's verdicts to hold is looked at first: the release of Jetson
Linux, the version of TensorRT, the precision of every layer of the engine. What contradicts it stands in the report's
`problems`, and turns the build's verdict negative; what the engine does not tell stands in `unknown`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cactus_edge.device.jetson import RELEASE_FILE, parse_clocks, parse_power_mode, parse_release
from cactus_edge.device.ssh import Finished, Password, SshAddress, on_device
from cactus_edge.device.targets import JetsonTarget
from cactus_edge.device.tensorrt import (
    TRTEXEC,
    EnvelopeCheck,
    Model,
    Times,
    build_command,
    check_envelope,
    codes_of,
    outputs_command,
    parse_layers,
    parse_output,
    parse_times,
    parse_version,
    precision,
    require_version,
    times_command,
)
from cactus_edge.errors import DeviceError, DeviceLacksError, DeviceModelError
from cactus_edge.resources import sha256

Array = npt.NDArray[Any]
Advance = Callable[[int, int, str], None]

BUILD_S, RUN_S, ASK_S = 600.0, 120.0, 15.0
"""Longest times for an engine to be built, to run, and for a question about the device."""


class Shell(Protocol):
    """What of `ssh.Remote` is needed."""

    folder: str

    async def put(self, name: str, data: bytes) -> None:
        """Writes a file into the folder."""

    async def get(self, name: str) -> bytes:
        """Reads a file of the folder."""

    async def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    async def run(self, words: Sequence[str], timeout_s: float) -> Finished:
        """Runs a command to its end."""


@dataclass(frozen=True, eq=False)
class Work:
    """A file and what to do with it.

    input, output: names in the file. inputs float32 [N, *shape as the file stores it]. scale: of the output's codes. low, high
    int64 [N, *output]: the envelope of each output. nodes: names of the file's convolutions and dense layers.
    """

    file: bytes
    input: str
    output: str
    inputs: npt.NDArray[np.float32]
    scale: float
    low: Array
    high: Array
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class JetsonReport:
    """What a run showed. Times in ms of single inferences: of the kernels (compute) and with the copies (latency).

    problems: what contradicts the profile's assumption; unknown: what of it the engine does not tell.
    """

    device: dict[str, str]
    model_sha256: str
    envelope: EnvelopeCheck
    int8_layers: int
    weighted_layers: int
    problems: tuple[str, ...]
    unknown: tuple[str, ...]
    compute_ms: dict[str, float]
    latency_ms: dict[str, float]
    runs: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def measure(
    target: JetsonTarget,
    address: SshAddress,
    work: Work,
    *,
    password: Password | None = None,
    known_hosts: Sequence[Path] | None = None,
    progress: Advance = lambda done, total, text: None,
) -> JetsonReport:
    """Runs `work` on the Jetson at `address`. Raises what `ssh.on_device` raises, DeviceLacksError, DeviceModelError, DeviceError."""
    return on_device(
        address,
        lambda remote: run_work(remote, target, work, progress),
        timeout_s=target.ssh.connect_s,
        password=password,
        known_hosts=known_hosts,
    )


async def run_work(shell: Shell, target: JetsonTarget, work: Work, progress: Advance) -> JetsonReport:
    """Everything between login and clean-up."""
    steps = 5
    device = await _device(shell, target)
    trtexec = await _trtexec(shell)
    progress(1, steps, device["system"])
    folder, count = shell.folder, len(work.inputs)
    model = Model(f"{folder}/model.onnx", work.input, work.inputs.shape[1:])
    await shell.put("model.onnx", work.file)
    await shell.put("inputs.bin", np.ascontiguousarray(work.inputs, "<f4").tobytes())
    log = await _tool(shell, build_command(trtexec, model, f"{folder}/model.engine", count), BUILD_S)
    version = parse_version(log)
    require_version(version)
    device["tensorrt"] = ".".join(map(str, version))
    progress(2, steps, f"engine built by TensorRT {device['tensorrt']}")
    run = outputs_command(trtexec, model, f"{folder}/model.engine", f"{folder}/inputs.bin", count, f"{folder}/out.json")
    await _tool(shell, run, RUN_S)
    values = parse_output((await shell.get("out.json")).decode(), work.output, count, work.low.shape[1:])
    envelope = check_envelope(codes_of(values, work.scale), work.low, work.high)
    progress(3, steps, f"{count - envelope.outside} of {count} outputs in their envelopes")
    times = times_command(trtexec, model, f"{folder}/model.engine", f"{folder}/times.json", f"{folder}/layers.json")
    await _tool(shell, times, RUN_S)
    measured = parse_times((await shell.get("times.json")).decode())
    progress(4, steps, f"{measured.percentile('compute', 50):.3g} ms")
    found = precision(parse_layers((await shell.get("layers.json")).decode()), work.nodes)
    device |= await _state(shell)
    outside = f"{envelope.outside} of {count} outputs lie outside their envelopes: {envelope.first}"
    progress(5, steps, f"{found.int8} of {found.weighted} layers in int8")
    return JetsonReport(
        device,
        sha256(work.file),
        envelope,
        found.int8,
        found.weighted,
        (*found.contradictions, *(() if envelope.holds else (outside,))),
        found.unknown,
        _spread(measured, "compute"),
        _spread(measured, "latency"),
        len(measured.compute_ms),
    )


def _spread(times: Times, kind: str) -> dict[str, float]:
    return {name: times.percentile(kind, q) for name, q in (("median", 50.0), ("p90", 90.0), ("p99", 99.0))}


async def _device(shell: Shell, target: JetsonTarget) -> dict[str, str]:
    """Which Jetson this is. DeviceError where it is none, or another kind of processor."""
    machine = (await shell.run(["uname", "-m"], ASK_S)).stdout.strip()
    if machine != target.machine:
        raise DeviceError(f"the device's processor is {machine}, target {target.name} is {target.machine}")
    release = parse_release((await shell.run(["cat", RELEASE_FILE], ASK_S)).stdout)
    model = (await shell.run(["cat", "/proc/device-tree/model"], ASK_S)).stdout.strip("\0 \n")
    return {"model": model or "unknown", "system": str(release)}


async def _state(shell: Shell) -> dict[str, str]:
    """Power mode and clocks; both tools may want root, and are not given it."""
    mode = parse_power_mode((await shell.run(["nvpmodel", "-q"], ASK_S)).stdout)
    clock = parse_clocks((await shell.run(["jetson_clocks", "--show"], ASK_S)).stdout)
    shown = "unknown" if clock is None else f"{clock.current_hz:,} Hz, {'locked' if clock.locked else 'not locked'}"
    return {"power_mode": mode, "gpu_clock": shown}


async def _trtexec(shell: Shell) -> str:
    for path in TRTEXEC:
        if await shell.exists(path):
            return path
    raise DeviceLacksError(
        f"no trtexec on the device; looked for {', '.join(TRTEXEC)}", hint="sudo apt-get install nvidia-jetpack"
    )


async def _tool(shell: Shell, words: Sequence[str], timeout_s: float) -> str:
    """trtexec's log. DeviceModelError, with its last error line, where it fails."""
    done = await shell.run(words, timeout_s)
    log = done.stdout + done.stderr
    if done.status != 0:
        errors = [line.strip() for line in log.splitlines() if "[E]" in line] or log.strip().splitlines()[-1:] or [""]
        raise DeviceModelError(f"trtexec failed: {errors[0]}", hint=" ".join(words))
    return log
