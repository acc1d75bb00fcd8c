"""Does a model file, executed on a computer by the runtime there, give the outputs that it should, and how long does it take?

Our agent (`agent.py`, which uses nothing but that computer's Python, numpy and runtime) is copied there with the file and the
inputs; its raw outputs come back over sftp, a chunk at a time, each with its SHA-256, and are compared bit for bit. The
expected outputs are handed in: this module knows no model and imports no interpreter.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.device.session import Row, Session
from cactus_edge.device.ssh import Password, Remote, SshAddress, finished, on_device
from cactus_edge.device.targets import Engine, SshTarget
from cactus_edge.errors import (
    DeviceError,
    DeviceFullError,
    DeviceGoneError,
    DeviceKilledError,
    DeviceLacksError,
    DeviceModelError,
    DeviceSilentError,
    InputError,
    MismatchError,
)
from cactus_edge.resources import sha256

if TYPE_CHECKING:
    import asyncssh

Array = npt.NDArray[Any]

MARK = "@cactus-edge "
VENV = ".cactus-edge"
"""Virtual environment in the user's home there, whose Python is taken where it exists: systems that manage their own packages want one."""

CHUNK_BYTES = 1 << 20
"""About how much of the outputs is one file; a chunk is also at most CHUNK_INPUTS."""

CHUNK_INPUTS = 64


@dataclass(frozen=True)
class Layer:
    """A piece of the network for finding the first difference: the file cut off behind one op, and what it must give
    [*shape], in the dtype of the piece's output."""

    label: str
    file: bytes
    expected: Array


Layers = Callable[[int], Sequence[Layer]]
"""For the index of an input: every op in the order of execution."""


@dataclass(frozen=True)
class Work:
    """A file for one engine. inputs [N, *input] and expected [N, *output] are what the file itself takes and gives."""

    file: bytes
    format: str
    engine: Engine
    inputs: Array
    expected: Array
    layers: Layers | None = None


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


@dataclass(frozen=True)
class RemoteReport:
    """What the computer did with one file.

    device: the agent's words about the computer (model, cpu, kernel, python, governor, throttled, temperature_c ...), before;
    after: what of it may have changed. emulated: why it is no real board, or ""; then there is no latency and no memory.
    compared, equal: inputs whose output was compared, and those without a differing bit. first_difference: in words, or "".
    resumed: results taken over from an earlier, unfinished run. optimised: the file as ONNX Runtime rewrote it there, else None.
    """

    target: str
    format: str
    runtime: str
    profile: str
    model_sha256: str
    device: Mapping[str, Any]
    after: Mapping[str, Any]
    emulated: str
    compared: int
    equal: int
    first_difference: str
    latency: Latency | None
    peak_bytes: int | None
    resumed: int
    session: str
    optimised: bytes | None

    def require_agreement(self) -> None:
        """Raises MismatchError unless every compared output was equal."""
        if self.equal != self.compared:
            raise MismatchError(
                f"{self.compared - self.equal} of {self.compared} outputs of {self.runtime} on the device differ from profile "
                f"{self.profile!r}: {self.first_difference}",
                hint=f"see {self.session}",
            )


def bench(
    target: SshTarget,
    address: SshAddress,
    work: Work,
    folder: Path,
    *,
    measure: Measure | None = None,
    password: Password | None = None,
    known_hosts: Sequence[Path] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RemoteReport:
    """Runs `work` on the computer at `address` in a session folder below `folder`; finished outputs stay there, and the same call
    continues. Raises what `ssh.on_device` raises, DeviceLacksError, DeviceModelError, DeviceFullError, DeviceKilledError.

    Differing outputs are reported, not raised.
    """
    if not len(work.inputs) or len(work.inputs) != len(work.expected):
        raise InputError(f"{len(work.inputs)} inputs and {len(work.expected)} outputs", hint="pass this model's data")
    # Who and where is nobody's business who reads a bundle: the address is kept as a digest.
    about = {"model_sha256": sha256(work.file), "runtime": work.engine.runtime, "device": sha256(str(address).encode())}
    with Session(folder, target=target.name, inputs=work.inputs, **about) as session:
        run = _Run(target, work, session, measure or Measure(), progress)
        return on_device(address, run.on, timeout_s=target.ssh.connect_s, password=password, known_hosts=known_hosts)


class _Run:
    """One session with the computer."""

    def __init__(
        self,
        target: SshTarget,
        work: Work,
        session: Session,
        measure: Measure,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.target, self.work, self.session, self.measure, self.progress = target, work, session, measure, progress
        self.expected = np.ascontiguousarray(work.expected)
        self.device: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.latency: Latency | None = None

    async def on(self, remote: Remote) -> RemoteReport:
        """Everything between login and clean-up."""
        work, session = self.work, self.session
        python = await _python(remote)
        count = len(work.inputs)
        missing = [i for i in range(count) if i not in session.rows] or list(range(count))
        await self._send(remote, [work.file], np.ascontiguousarray(work.inputs[missing]), self.measure)
        async with aclosing(self._events(remote, python)) as events:
            async for event in events:
                await self._take(remote, event, missing)
        wrong = [i for i in range(count) if session.rows[i].output != self.expected[i].tobytes()]
        first = await self._difference(remote, python, wrong[0]) if wrong else ""
        optimised = await remote.get("optimised.onnx") if work.engine.runtime == "onnxruntime" else None
        report = self._report(count - len(wrong), first, optimised)
        session.describe({"report": asdict(report) | {"optimised": optimised and sha256(optimised)}})
        return report

    async def _take(self, remote: Remote, event: dict[str, Any], indices: Sequence[int]) -> None:
        """One event of the main run; indices: of the inputs that were sent."""
        if event["event"] == "device":
            self._accept(event)
        elif event["event"] == "chunk":
            await self._keep(remote, event, indices)
        elif event["event"] == "timing":
            us = event["us"]
            self.latency = Latency(us["p50"], us["p90"], us["p99"], us["runs"], event["first_us"])
        else:
            self.after = event

    async def _send(self, remote: Remote, files: Sequence[bytes], x: Array, measure: Measure) -> None:
        """Puts agent, files, inputs and the job into the folder there."""
        from cactus_edge.device import agent

        source = Path(agent.__file__).read_bytes()
        names = [f"model-{i}.{self.work.format}" for i in range(len(files))]
        size = max(1, self.expected[0].nbytes)
        job = {
            "agent_sha256": sha256(source),
            "runtime": self.work.engine.runtime,
            "threads": measure.threads,
            "chunk": max(1, min(CHUNK_INPUTS, CHUNK_BYTES // size)),
            "warmup_s": measure.warmup_s,
            "measure_s": measure.measure_s,
            "inputs": {"path": "inputs.bin", "sha256": sha256(x.tobytes()), "dtype": str(x.dtype), "shape": x.shape},
            "models": [{"path": n, "sha256": sha256(f)} for n, f in zip(names, files, strict=True)],
        }
        for name, data in zip(names, files, strict=True):
            await remote.put(name, data)
        await remote.put("inputs.bin", x.tobytes())
        await remote.put("agent.py", source)
        await remote.put("job.json", json.dumps(job).encode())

    async def _events(self, remote: Remote, python: str) -> AsyncGenerator[dict[str, Any], None]:
        """What the agent says, up to and including `done`; its failures as exceptions."""
        start = time.monotonic()
        async with remote.start([python, f"{remote.folder}/agent.py"]) as process:
            errors = asyncio.create_task(_tail(process.stderr))
            try:
                # A line that was cut off is the end: the connection broke, or the program.
                while (line := await self._line(remote, process.stdout)).endswith("\n"):
                    if not line.startswith(MARK):
                        self.session.log(time.monotonic() - start, "!", line.rstrip())
                        continue
                    event = json.loads(line[len(MARK) :])
                    shown = {k: v for k, v in event.items() if k != "us"}
                    self.session.log(time.monotonic() - start, "<", json.dumps(shown))
                    if event["event"] in ("error", "done"):
                        process.stdin.write("bye\n")
                    if event["event"] == "error":
                        raise self._failure(remote, event["kind"], event["message"])
                    yield event
                    if event["event"] == "done":
                        return
                await process.wait_closed()
                raise self._ended(remote, process, await errors)
            finally:
                errors.cancel()
                with suppress(asyncio.CancelledError):
                    await errors

    async def _line(self, remote: Remote, stream: asyncssh.SSHReader[str]) -> str:
        try:
            async with asyncio.timeout(self.target.ssh.idle_s):
                return await stream.readline()
        except TimeoutError as error:
            raise DeviceSilentError(
                f"{remote.address}: nothing was heard for {self.target.ssh.idle_s:g} s",
                hint="is the device overloaded?",
            ) from error

    def _accept(self, event: dict[str, Any]) -> None:
        if event["machine"] != self.target.machine:
            raise DeviceError(
                f"the device's processor is {event['machine']}, target {self.target.name} is {self.target.machine}",
                hint="use a 64-bit system, or the device's own target",
            )
        self.device = {k: v for k, v in event.items() if k != "event"}

    async def _keep(self, remote: Remote, event: dict[str, Any], indices: Sequence[int]) -> None:
        """Fetches a chunk, checks it, and keeps it on disk before the next is waited for."""
        y = await self._outputs(remote, event)
        rows = []
        for offset, (output, us) in enumerate(zip(y, event["us"], strict=True)):
            index = indices[event["first"] + offset]
            crc = self.session.input_crc32(index)
            rows.append(Row(index, crc, output.tobytes(), round(1000 * us), float(us), "us"))
        self.session.add(*rows)
        if self.progress is not None:
            self.progress(len(self.session.rows), len(self.work.inputs))

    async def _outputs(self, remote: Remote, event: dict[str, Any], shape: tuple[int, ...] | None = None) -> Array:
        data = await remote.get(event["path"])
        if sha256(data) != event["sha256"]:
            raise DeviceGoneError(f"{event['path']} arrived changed", hint="check the network, then run it again")
        want = self.expected.shape[1:] if shape is None else shape
        got = tuple(event["shape"][1:])
        if event["dtype"] != str(self.expected.dtype) or int(np.prod(got)) != int(np.prod(want)):
            raise DeviceModelError(
                f"the device's outputs are {event['dtype']} {got}, expected {self.expected.dtype} {want}",
                hint="is it another version of the runtime?",
            )
        outputs: Array = np.frombuffer(data, event["dtype"]).reshape(event["count"], *want)
        return outputs

    async def _difference(self, remote: Remote, python: str, index: int) -> str:
        """The first element, and the first op, in which the device's output of input `index` differs, in words."""
        shape = self.expected.shape[1:]
        got = np.frombuffer(self.session.rows[index].output, self.expected.dtype).reshape(shape)
        want = self.expected[index]
        at = tuple(int(i) for i in np.argwhere(_bits(got) != _bits(want))[0])
        text = f"input {index}, output {list(at)}: {got[at]} on the device, {want[at]} expected"
        layers = self.work.layers(index) if self.work.layers is not None else []
        if not layers:
            return text
        x = np.ascontiguousarray(self.work.inputs[index : index + 1])
        await self._send(remote, [layer.file for layer in layers], x, Measure(0.0, 0.0, self.measure.threads))
        async with aclosing(self._events(remote, python)) as events:
            async for event in events:
                if event["event"] == "chunk":
                    layer = layers[event["model"]]
                    y = (await self._outputs(remote, event, layer.expected.shape))[0]
                    n = int((_bits(y) != _bits(np.ascontiguousarray(layer.expected))).sum())
                    if n:
                        return f"{text}; first operation that differs: {layer.label}, in {n} of {y.size} values"
        return f"{text}; every operation agrees when run again: the difference is not repeatable"

    def _failure(self, remote: Remote, kind: str, message: str) -> DeviceError:
        where, package = remote.address, self.work.engine.package
        if kind in ("wheel", "numpy"):
            return DeviceLacksError(f"{where}: {message}", hint=install_command(where, package))
        if kind == "python":
            return DeviceLacksError(f"{where}: {message}", hint="install a newer system on the device")
        if kind == "model":
            return DeviceModelError(
                f"{where}: the runtime does not take the file: {message}", hint=install_command(where, package)
            )
        if kind == "disk":
            return DeviceFullError(f"{where}: {message}", hint="free space under /tmp on the device")
        if kind == "digest":
            return DeviceGoneError(f"{where}: {message}", hint="check the network, then run it again")
        return DeviceError(f"{where}: the run failed: {message}", hint="see device.log in the session folder")

    def _ended(self, remote: Remote, process: asyncssh.SSHClientProcess[str], words: str) -> DeviceError:
        """Why there was no `done`."""
        end = finished(process, "", words)
        last = words.strip().splitlines()[-1:] or [""]
        if end.status == 127:
            return DeviceLacksError(
                f"{remote.address} has no python3: {last[0]}",
                hint=f"ssh {remote.address.options} sudo apt-get install python3",
            )
        how = f"by signal {end.signal}" if end.signal else f"with status {end.status}"
        return DeviceKilledError(
            f"{remote.address}: our program there ended {how}: {last[0] or 'without a word'}",
            hint="is memory short? see `dmesg` on the device",
        )

    def _report(self, equal: int, first: str, optimised: bytes | None) -> RemoteReport:
        return RemoteReport(
            target=self.target.name,
            format=self.work.format,
            runtime=self.device["runtime"],
            profile=self.work.engine.profile,
            model_sha256=sha256(self.work.file),
            device=self.device,
            after={k: self.after[k] for k in ("throttled", "governor", "temperature_c")},
            emulated=self.device["emulated"],
            compared=len(self.work.inputs),
            equal=equal,
            first_difference=first,
            latency=self.latency,
            peak_bytes=self.after["peak_bytes"],
            resumed=self.session.resumed,
            session=self.session.folder.name,
            optimised=optimised,
        )


def install_command(address: SshAddress, package: str) -> str:
    """What installs the runtime's wheel into the environment that we look for first."""
    return f"ssh {address.options} \"python3 -m venv {VENV} && {VENV}/bin/pip install '{package}'\""


async def _python(remote: Remote) -> str:
    """The Python to use: the environment's, else the system's."""
    path = f"{VENV}/bin/python3"
    return path if await remote.exists(path) else "python3"


async def _tail(stream: asyncssh.SSHReader[str]) -> str:
    """The last of what was written, read to its end so that nobody waits."""
    kept = ""
    while text := await stream.read(1 << 14):
        kept = (kept + text)[-4096:]
    return kept


def _bits(a: Array) -> Array:
    """The array so that `==` compares bits."""
    return a.view(np.uint32) if a.dtype == np.float32 else a
