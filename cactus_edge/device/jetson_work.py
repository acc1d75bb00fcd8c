"""A file in TensorRT on a Jetson: what is asked of the device, and what it showed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from cactus_edge.device import agent
from cactus_edge.device.agent import MARK
from cactus_edge.device.jetson import RELEASE_FILE, Load, parse_clocks, parse_power_mode, parse_release
from cactus_edge.device.ssh import Finished
from cactus_edge.device.targets import JetsonTarget
from cactus_edge.device.tensorrt import EnvelopeCheck, SparseMath
from cactus_edge.errors import DeviceError

Array = npt.NDArray[Any]
Advance = Callable[[int, int, str], None]
Way = Literal["auto", "trtexec", "onnxruntime"]
"""What runs TensorRT there. auto: trtexec where it is installed, else ONNX Runtime's TensorRT provider."""

ASK_S, WATCH_S = 15.0, 300
"""Longest times for a question about the device, and for tegrastats to go on where nobody ends it."""

TEGRASTATS = ("timeout", str(WATCH_S), "tegrastats", "--interval", "500")


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

    def watch(self, words: Sequence[str]) -> AbstractAsyncContextManager[list[str]]:
        """The lines that a command prints while it runs beside others."""


@dataclass(frozen=True, eq=False)
class Work:
    """A file and what to do with it.

    input, output: names in the file. inputs float32 [N, *shape as the file stores it]. scale: of the output's codes. low, high
    int64 [N, *output]: the envelope of each output. nodes: names of the file's convolutions and dense layers. sparse: whether
    weights of some have zeros that the device's kernels skip.
    """

    file: bytes
    input: str
    output: str
    inputs: npt.NDArray[np.float32]
    scale: float
    low: Array
    high: Array
    nodes: tuple[str, ...]
    sparse: bool = False


@dataclass(frozen=True)
class JetsonReport:
    """What a run showed. Times in ms of single inferences: with the copies (latency) and, where told, of the kernels (compute).

    runtime: what ran TensorRT. problems: what contradicts the profile's assumption; unknown: what of it the engine does not
    tell. load: of the device while the times were taken. sparse: which layers run on sparse kernels, None where that was not
    asked for or not told.
    """

    device: dict[str, str]
    runtime: str
    model_sha256: str
    envelope: EnvelopeCheck
    int8_layers: int
    weighted_layers: int
    problems: tuple[str, ...]
    unknown: tuple[str, ...]
    compute_ms: dict[str, float]
    latency_ms: dict[str, float]
    runs: int
    load: Load | None
    sparse: SparseMath | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def outside(envelope: EnvelopeCheck) -> tuple[str, ...]:
    """What outputs outside their envelopes contradict, in words."""
    if envelope.holds:
        return ()
    return (f"{envelope.outside} of {envelope.outputs} outputs lie outside their envelopes: {envelope.first}",)


async def identify(shell: Shell, target: JetsonTarget) -> dict[str, str]:
    """Which Jetson this is. DeviceError where it is none, or another kind of processor."""
    machine = (await shell.run(["uname", "-m"], ASK_S)).stdout.strip()
    if machine != target.machine:
        raise DeviceError(f"the device's processor is {machine}, target {target.name} is {target.machine}")
    release = parse_release((await shell.run(["cat", RELEASE_FILE], ASK_S)).stdout)
    model = (await shell.run(["cat", "/proc/device-tree/model"], ASK_S)).stdout.strip("\0 \n")
    return {"model": model or "unknown", "system": str(release), "throttled_before": await _throttled(shell)}


async def state(shell: Shell) -> dict[str, str]:
    """Power mode, clocks and throttling; the first two tools may want root, and are not given it."""
    mode = parse_power_mode((await shell.run(["nvpmodel", "-q"], ASK_S)).stdout)
    clock = parse_clocks((await shell.run(["jetson_clocks", "--show"], ASK_S)).stdout)
    shown = "unknown" if clock is None else f"{clock.current_hz:,} Hz, {'locked' if clock.locked else 'not locked'}"
    return {"power_mode": mode, "gpu_clock": shown, "throttled_after": await _throttled(shell)}


async def _throttled(shell: Shell) -> str:
    """What slows the device down now, in our agent's words; "unknown" where its Python cannot tell."""
    await shell.put("agent.py", Path(agent.__file__).read_bytes())
    said = (await shell.run(["python3", f"{shell.folder}/agent.py", "state"], ASK_S)).stdout
    line = next((line for line in said.splitlines() if line.startswith(MARK)), "")
    return str(json.loads(line[len(MARK) :])["throttled"]) if line else "unknown"
