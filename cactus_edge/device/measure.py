"""Do the board's outputs equal the interpreter's, bit for bit, and what does an inference cost there?

For each input: send it, compare its CRC-32 as the board computes it, run once, fetch the raw output and compare its CRC-32
too. A difference between those bytes and the expected ones is a fact about the arithmetic, not about the cable; where
the caller can say what every operation should give, the first operation that differs is named.

The expected outputs are handed in: this module knows no model and imports no interpreter.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cactus_edge.device.connect import Board, EmulatorName, connect, identity, require_digest
from cactus_edge.device.protocol import Timeouts
from cactus_edge.device.session import Row, Session
from cactus_edge.device.targets import Target
from cactus_edge.errors import (
    DeviceError,
    DeviceGarbageError,
    DeviceProtocolError,
    DeviceSilentError,
    InputError,
    MismatchError,
)

Int8 = npt.NDArray[np.int8]

Layers = Callable[[int], Sequence[tuple[str, bytes]]]
"""For the index of an input: the label and the expected int8 bytes after each operation, in the blob's order."""

Progress = Callable[[int, int], None]
"""Called with the number of finished inputs and their total."""

_SENDS = 3


@dataclass(frozen=True)
class Spread:
    """median and inter-quartile range over n single inferences."""

    median: float
    iqr: float
    n: int


@dataclass(frozen=True)
class DeviceReport:
    """What a board did. Exactly one of instructions and latency_us is there: emulated instructions are never a latency.

    compared, equal: inputs whose output was compared, and those without a differing bit. first_difference: in words, empty
    without one. resumed: results taken over from an earlier, unfinished run. discarded: lines that were not protocol.
    stack_used_bytes: deepest so far, as painted stack shows it. arena_bytes: the model's scratch memory.
    """

    target: str
    board: str
    reached_by: str
    emulated: bool
    blob_sha256: str
    compared: int
    equal: int
    first_difference: str
    instructions: Spread | None
    latency_us: Spread | None
    clock_hz: int
    arena_bytes: int
    static_bytes: int
    stack_bytes: int
    stack_used_bytes: int
    resumed: int
    discarded: int
    session: str

    def require_agreement(self) -> None:
        """Raises MismatchError unless every compared output was equal."""
        if self.equal != self.compared:
            raise MismatchError(
                f"{self.compared - self.equal} of {self.compared} outputs on {self.board} differ from the interpreter's: "
                f"{self.first_difference}",
                hint=f"see {self.session}",
            )


def bench(
    target: Target,
    *,
    digest: str,
    inputs: Int8,
    expected: Int8,
    folder: Path,
    port: str = "",
    elf: Path | None = None,
    firmware_sha256: str = "",
    emulator: EmulatorName = "unicorn",
    timeouts: Timeouts | None = None,
    layers: Layers | None = None,
    progress: Progress | None = None,
) -> DeviceReport:
    """Connects to the board, or boots the emulated one, and runs `bench_device` in a session folder below `folder`.

    digest: SHA-256 of the model's blob, which the board must report. inputs int8 [N, *input], expected int8 [N, *output].
    Raises what `connect` and `bench_device` raise; finished results stay in the folder, and the same call continues.
    """
    about = {"blob_sha256": digest, "firmware_sha256": firmware_sha256, "device": identity(target, port, emulator)}
    with (
        Session(folder, target=target.name, inputs=inputs, **about) as session,
        connect(target, port=port, elf=elf, emulator=emulator, timeouts=timeouts, log=session.log) as board,
    ):
        return bench_device(board, session, digest, inputs, expected, layers=layers, progress=progress)


def bench_device(
    board: Board,
    session: Session,
    digest: str,
    inputs: Int8,
    expected: Int8,
    *,
    layers: Layers | None = None,
    progress: Progress | None = None,
) -> DeviceReport:
    """Runs every input that `session` lacks and reports on all of them.

    Raises MismatchError for a board that runs another blob (before anything is sent), InputError for inputs of the
    wrong size, and the device's errors; what was finished is in the session. Differing outputs are reported, not raised.
    """
    require_digest(board, digest)
    capability = board.link.profile().capability
    assert capability is not None
    x = np.ascontiguousarray(inputs).reshape(len(inputs), -1)
    y = np.ascontiguousarray(expected).reshape(len(expected), -1)
    sizes = (x.dtype, x.shape[1], y.dtype, y.shape)
    wanted = (np.dtype(np.int8), capability.input_bytes, np.dtype(np.int8), (len(x), capability.output_bytes))
    if sizes != wanted or not len(x):
        raise InputError(
            f"inputs and outputs {sizes}: the board expects {wanted}, one or more", hint="pass this model's data"
        )
    differing: str = ""
    for index in range(len(x)):
        row = session.rows.get(index)
        if row is None:
            row = _run(board, session, index, x[index].tobytes())
            session.add(row)
        if not differing and row.output != y[index].tobytes():
            differing = _difference(board, session, row, x[index].tobytes(), y[index].tobytes(), layers)
        if progress is not None:
            progress(index + 1, len(x))
    rows = [session.rows[i] for i in range(len(x))]
    values = [row.units for row in rows]
    low, median, high = np.percentile(np.asarray(values, np.float64), [25, 50, 75])
    cost = Spread(float(median), float(high - low), len(values))
    counted = board.target.emulated or capability.timebase != "us"
    memory = board.link.memory()
    report = DeviceReport(
        target=board.target.name,
        board=board.name,
        reached_by=board.reached_by,
        emulated=counted,
        blob_sha256=capability.model,
        compared=len(rows),
        equal=sum(row.output == y[row.index].tobytes() for row in rows),
        first_difference=differing,
        instructions=cost if counted else None,
        latency_us=None if counted else cost,
        clock_hz=capability.clock_hz,
        arena_bytes=memory["arena"],
        static_bytes=memory["static"],
        stack_bytes=memory["stack"],
        stack_used_bytes=memory["stack_used"],
        resumed=session.resumed,
        discarded=len(board.link.discards),
        session=session.folder.name,
    )
    session.describe({"report": asdict(report)})
    return report


def send(board: Board, index: int, data: bytes, discard: Callable[[float, str, str], None]) -> None:
    """Loads an input, and again where bytes were lost or changed on the way: the protocol itself checks none, the board's CRC does.

    Raises what the last attempt failed with, and at once where the board does not answer to its name afterwards.
    """
    problem: DeviceError | None = None
    for attempt in range(_SENDS):
        try:
            board.link.load(data)
            got, _ = board.link.crc()
        except (DeviceProtocolError, DeviceSilentError, DeviceGarbageError) as error:
            problem = error
            discard(0.0, f"input {index} did not arrive", f"attempt {attempt + 1}: {error}")
            try:
                board.link.handshake()
            except DeviceError:
                raise error from None
            continue
        if got == zlib.crc32(data):
            return
        text = f"attempt {attempt + 1}: crc {got:08x}, sent {zlib.crc32(data):08x}"
        discard(0.0, f"input {index} arrived changed", text)
        problem = DeviceGarbageError(
            f"{board.name}: input {index} arrived changed {_SENDS} times",
            hint="shorten the cable or lower the baud rate",
        )
    assert problem is not None
    raise problem


def _run(board: Board, session: Session, index: int, data: bytes) -> Row:
    send(board, index, data, session.discard)
    board.link.infer(1, 0)
    ticks = board.link.ticks()
    output = board.link.raw()
    _, crc = board.link.crc()
    if crc != zlib.crc32(output):
        raise DeviceGarbageError(
            f"{board.name}: output {index} arrived changed: its crc is {zlib.crc32(output):08x}, the board says {crc:08x}",
            hint="shorten the cable or lower the baud rate",
        )
    # An emulated instruction is a whole number; the clock's ticks round it by less than half (3.2 ticks each).
    units = float(round(ticks.per_inference)) if ticks.unit == "instructions" else ticks.per_inference
    return Row(index, zlib.crc32(data), output, ticks.ticks, units, ticks.unit)


def _difference(board: Board, session: Session, row: Row, data: bytes, expected: bytes, layers: Layers | None) -> str:
    """The first byte that differs, and the first operation that does when the input is run again, in words."""
    index, got = row.index, row.output
    at = next(i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b)
    text = f"input {index}, output {at}: {_int8(got[at])} on the board, {_int8(expected[at])} expected"
    if layers is None:
        return text
    send(board, index, data, session.discard)
    for op, (label, tensor) in enumerate(layers(index)):
        seen = board.link.tap(op)
        if seen != tensor:
            n = sum(a != b for a, b in zip(seen, tensor, strict=False)) + abs(len(seen) - len(tensor))
            return f"{text}; first operation that differs: {label}, in {n} of {len(tensor)} values"
    return f"{text}; every operation agrees when run again: the difference is not repeatable"


def _int8(value: int) -> int:
    return value - 256 if value > 127 else value
