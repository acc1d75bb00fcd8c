"""Our agent (`agent.py`) on a computer reached by ssh: what it is given, what it says, and what its failures mean.

The agent uses nothing but that computer's Python, numpy and runtime. Its raw outputs come back over sftp, a chunk at a time,
each with its SHA-256.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.device import agent
from cactus_edge.device.agent import MARK
from cactus_edge.device.ssh import Remote, SshAddress, finished
from cactus_edge.device.targets import JetsonTarget, SshTarget
from cactus_edge.errors import (
    DeviceError,
    DeviceFullError,
    DeviceGoneError,
    DeviceKilledError,
    DeviceLacksError,
    DeviceModelError,
    DeviceSilentError,
)
from cactus_edge.resources import sha256

if TYPE_CHECKING:
    import asyncssh

Array = npt.NDArray[Any]
Log = Callable[[float, str, str], None]
"""Told of every line: seconds since the agent started, "<" or, for what is not its protocol, "!", the line."""

VENV = ".cactus-edge"
"""Virtual environment in the user's home there, whose Python is taken where it exists: systems that manage their own packages want one."""

CHUNK_BYTES = 1 << 20
"""About how much of the outputs is one file; a chunk is also at most CHUNK_INPUTS."""

CHUNK_INPUTS = 64


@dataclass(frozen=True)
class Measure:
    """How long single inferences are repeated, in seconds: without counting, then counting; on how many threads."""

    warmup_s: float = 1.0
    measure_s: float = 10.0
    threads: int = 1


@dataclass(frozen=True)
class Latency:
    """Microseconds of one inference, measured on the device: over `runs` after warm-up, and the very first one."""

    median_us: float
    p90_us: float
    p99_us: float
    runs: int
    first_us: float

    @classmethod
    def of(cls, event: dict[str, Any]) -> Latency:
        """From the agent's event `timing`."""
        us = event["us"]
        return cls(us["p50"], us["p90"], us["p99"], us["runs"], event["first_us"])


def nowhere(seconds: float, direction: str, text: str) -> None:
    """A `Log` that keeps nothing."""


@dataclass(frozen=True)
class AgentRun:
    """The agent on `remote`. runtime: one of the agent's; install: what gets it, where it is missing or refuses; form: ending of
    the files."""

    remote: Remote
    target: SshTarget | JetsonTarget
    runtime: str
    install: str
    form: str
    log: Log = field(default=nowhere)

    async def send(self, files: Sequence[bytes], x: Array, measure: Measure, output_bytes: int) -> None:
        """Puts agent, files, inputs and the job into the folder there. output_bytes: of one output, about."""
        source = Path(agent.__file__).read_bytes()
        names = [f"model-{i}.{self.form}" for i in range(len(files))]
        job = {
            "agent_sha256": sha256(source),
            "runtime": self.runtime,
            "threads": measure.threads,
            "chunk": max(1, min(CHUNK_INPUTS, CHUNK_BYTES // max(1, output_bytes))),
            "warmup_s": measure.warmup_s,
            "measure_s": measure.measure_s,
            "inputs": {"path": "inputs.bin", "sha256": sha256(x.tobytes()), "dtype": str(x.dtype), "shape": x.shape},
            "models": [{"path": n, "sha256": sha256(f)} for n, f in zip(names, files, strict=True)],
        }
        for name, data in zip(names, files, strict=True):
            await self.remote.put(name, data)
        await self.remote.put("inputs.bin", x.tobytes())
        await self.remote.put("agent.py", source)
        await self.remote.put("job.json", json.dumps(job).encode())

    async def events(self) -> AsyncGenerator[dict[str, Any], None]:
        """What the agent says, up to and including `done`; its failures as exceptions."""
        start = time.monotonic()
        words = [await python_there(self.remote), f"{self.remote.folder}/agent.py"]
        async with self.remote.start(words) as process:
            errors = asyncio.create_task(_tail(process.stderr))
            try:
                # A line that was cut off is the end: the connection broke, or the program.
                while (line := await self._line(process.stdout)).endswith("\n"):
                    if not line.startswith(MARK):
                        self.log(time.monotonic() - start, "!", line.rstrip())
                        continue
                    event = json.loads(line[len(MARK) :])
                    shown = {k: v for k, v in event.items() if k != "us"}
                    self.log(time.monotonic() - start, "<", json.dumps(shown))
                    if event["event"] in ("error", "done"):
                        process.stdin.write("bye\n")
                    if event["event"] == "error":
                        raise self._failure(event["kind"], event["message"])
                    if event["event"] == "device":
                        self._accept(event)
                    yield event
                    if event["event"] == "done":
                        return
                await process.wait_closed()
                raise self._ended(process, await errors)
            finally:
                errors.cancel()
                with suppress(asyncio.CancelledError):
                    await errors

    async def outputs(self, event: dict[str, Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """The outputs [count, *shape] that an event `chunk` speaks of."""
        data = await self.remote.get(event["path"])
        if sha256(data) != event["sha256"]:
            raise DeviceGoneError(f"{event['path']} arrived changed", hint="check the network, then run it again")
        got = tuple(event["shape"][1:])
        if event["dtype"] != str(dtype) or int(np.prod(got)) != int(np.prod(shape)):
            raise DeviceModelError(
                f"the device's outputs are {event['dtype']} {got}, expected {dtype} {shape}",
                hint="is it another version of the runtime?",
            )
        found: Array = np.frombuffer(data, event["dtype"]).reshape(event["count"], *shape)
        return found

    def _accept(self, event: dict[str, Any]) -> None:
        if event["machine"] != self.target.machine:
            raise DeviceError(
                f"the device's processor is {event['machine']}, target {self.target.name} is {self.target.machine}",
                hint="use a 64-bit system, or the device's own target",
            )

    async def _line(self, stream: asyncssh.SSHReader[str]) -> str:
        try:
            async with asyncio.timeout(self.target.ssh.idle_s):
                return await stream.readline()
        except TimeoutError as error:
            raise DeviceSilentError(
                f"{self.remote.address}: nothing was heard for {self.target.ssh.idle_s:g} s",
                hint="is the device overloaded?",
            ) from error

    def _failure(self, kind: str, message: str) -> DeviceError:
        where = self.remote.address
        if kind in ("wheel", "numpy", "provider"):
            return DeviceLacksError(f"{where}: {message}", hint=self.install)
        if kind == "python":
            return DeviceLacksError(f"{where}: {message}", hint="install a newer system on the device")
        if kind == "model":
            return DeviceModelError(f"{where}: the runtime does not take the file: {message}", hint=self.install)
        if kind == "disk":
            return DeviceFullError(f"{where}: {message}", hint="free space under /tmp on the device")
        if kind == "digest":
            return DeviceGoneError(f"{where}: {message}", hint="check the network, then run it again")
        return DeviceError(f"{where}: the run failed: {message}", hint="see device.log in the session folder")

    def _ended(self, process: asyncssh.SSHClientProcess[str], words: str) -> DeviceError:
        """Why there was no `done`."""
        end = finished(process, "", words)
        last = words.strip().splitlines()[-1:] or [""]
        if end.status == 127:
            return DeviceLacksError(
                f"{self.remote.address} has no python3: {last[0]}",
                hint=f"ssh {self.remote.address.options} sudo apt-get install python3",
            )
        how = f"by signal {end.signal}" if end.signal else f"with status {end.status}"
        return DeviceKilledError(
            f"{self.remote.address}: our program there ended {how}: {last[0] or 'without a word'}",
            hint="is memory short? see `dmesg` on the device",
        )


def install_command(address: SshAddress, package: str) -> str:
    """What installs the runtime's wheel into the environment that we look for first."""
    return f"ssh {address.options} \"python3 -m venv {VENV} && {VENV}/bin/pip install '{package}'\""


async def python_there(remote: Remote) -> str:
    """The Python to use: the environment's, else the system's."""
    path = f"{VENV}/bin/python3"
    return path if await remote.exists(path) else "python3"


async def _tail(stream: asyncssh.SSHReader[str]) -> str:
    """The last of what was written, read to its end so that nobody waits."""
    kept = ""
    while text := await stream.read(1 << 14):
        kept = (kept + text)[-4096:]
    return kept
