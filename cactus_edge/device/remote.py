"""Does a model file, executed on a computer by the runtime there, give the outputs that it should, and how long does it take?

Our agent is copied there with the file and the inputs (`agent_run`); its raw outputs are compared bit for bit. The expected
outputs are handed in: this module knows no model and imports no interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.device.agent_run import AgentRun, Latency, Measure, install_command
from cactus_edge.device.session import Row, Session
from cactus_edge.device.ssh import Password, Remote, SshAddress, on_device
from cactus_edge.device.targets import Engine, SshTarget
from cactus_edge.errors import InputError, MismatchError
from cactus_edge.resources import sha256

Array = npt.NDArray[Any]


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
    device = sha256(f"{address}:{address.port}".encode())
    about = {"model_sha256": sha256(work.file), "runtime": work.engine.runtime, "device": device}
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
        engine = work.engine
        install = install_command(remote.address, engine.package)
        agent = AgentRun(remote, self.target, engine.runtime, install, work.format, session.log)
        count = len(work.inputs)
        missing = [i for i in range(count) if i not in session.rows]
        await self._send(agent, [work.file], np.ascontiguousarray(work.inputs[missing]), self.measure)
        async with aclosing(agent.events()) as events:
            async for event in events:
                await self._take(agent, event, missing)
        wrong = [i for i in range(count) if session.rows[i].output != self.expected[i].tobytes()]
        # Before the search for a difference: its pieces are optimised too, and the agent clears its folder when the search ends.
        optimised = await remote.get("optimised.onnx") if engine.runtime == "onnxruntime" else None
        first = await self._difference(agent, wrong[0]) if wrong else ""
        report = self._report(count - len(wrong), first, optimised)
        session.describe({"report": asdict(report) | {"optimised": optimised and sha256(optimised)}})
        return report

    async def _send(self, agent: AgentRun, files: Sequence[bytes], x: Array, measure: Measure) -> None:
        await agent.send(files, x, measure, self.expected[0].nbytes)

    async def _take(self, agent: AgentRun, event: dict[str, Any], indices: Sequence[int]) -> None:
        """One event of the main run; indices: of the inputs that were sent."""
        if event["event"] == "device":
            self.device = {k: v for k, v in event.items() if k != "event"}
        elif event["event"] == "chunk":
            await self._keep(agent, event, indices)
        elif event["event"] == "timing":
            self.latency = Latency.of(event)
        else:
            self.after = event

    async def _keep(self, agent: AgentRun, event: dict[str, Any], indices: Sequence[int]) -> None:
        """Fetches a chunk, checks it, and keeps it on disk before the next is waited for."""
        y = await agent.outputs(event, self.expected.shape[1:], self.expected.dtype)
        rows = []
        for offset, (output, us) in enumerate(zip(y, event["us"], strict=True)):
            index = indices[event["first"] + offset]
            crc = self.session.input_crc32(index)
            rows.append(Row(index, crc, output.tobytes(), round(1000 * us), float(us), "us"))
        self.session.add(*rows)
        if self.progress is not None:
            self.progress(len(self.session.rows), len(self.work.inputs))

    async def _difference(self, agent: AgentRun, index: int) -> str:
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
        await self._send(agent, [layer.file for layer in layers], x, Measure(0.0, 0.0, self.measure.threads))
        async with aclosing(agent.events()) as events:
            async for event in events:
                if event["event"] == "chunk":
                    layer = layers[event["model"]]
                    y = (await agent.outputs(event, layer.expected.shape, self.expected.dtype))[0]
                    n = int((_bits(y) != _bits(np.ascontiguousarray(layer.expected))).sum())
                    if n:
                        return f"{text}; first operation that differs: {layer.label}, in {n} of {y.size} values"
        return f"{text}; every operation agrees when run again: the difference is not repeatable"

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


def _bits(a: Array) -> Array:
    """The array so that `==` compares bits."""
    return a.view(np.uint32) if a.dtype == np.float32 else a
