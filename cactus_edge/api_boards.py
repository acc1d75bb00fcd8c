"""The verbs about boards: what there is, what is put on one, and what it did with a model.

Each function imports what it needs when it is called.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cactus_edge.api_files import Pairs, content
from cactus_edge.errors import DeviceError, InputError, InstallError
from cactus_edge.progress import SILENT, Progress
from cactus_edge.resources import require_folder

if TYPE_CHECKING:
    import numpy.typing as npt

    from cactus_edge.computer import Host
    from cactus_edge.device.jetson_work import JetsonReport, Way
    from cactus_edge.device.live import LiveReport
    from cactus_edge.device.measure import DeviceReport
    from cactus_edge.device.remote import RemoteReport
    from cactus_edge.device.targets import JetsonTarget, SshTarget, Target
    from cactus_edge.ir.graph import Graph

Emulator = Literal["unicorn", "qemu"]
CompilerName = Literal["zig", "gcc"]


def host_at(text: str) -> Host | None:
    """The computer of that address, None for "". A password is asked for on a terminal, where keys are refused."""
    from getpass import getpass

    from cactus_edge.computer import Host
    from cactus_edge.device.ssh import SshAddress

    if not text:
        return None
    SshAddress.parse(text)  # refused before anything is trained
    return Host(text, (lambda who: getpass(f"password of {who}: ")) if sys.stdin.isatty() else None)


@dataclass(frozen=True)
class TargetRow:
    """One board as `targets` lists it; None where memory is no limit of ours."""

    name: str
    core: str
    flash_bytes: int | None
    ram_bytes: int | None
    profile: str
    reached_by: str
    reachable: str

    def cells(self) -> tuple[str, ...]:
        """As a row of text."""
        sizes = ("-" if n is None else f"{n // 1024} KiB" for n in (self.flash_bytes, self.ram_bytes))
        return (self.name, self.core, *sizes, self.profile, self.reached_by, self.reachable)


def targets() -> list[TargetRow]:
    """Every board, and whether it can be reached now."""
    from cactus_edge.device.targets import Target, targets

    rows = []
    for t in targets():
        if not isinstance(t, Target):
            rows.append(TargetRow(t.name, t.cpu, None, None, t.profile, "ssh: --host user@host", "when named"))
            continue
        how = "emulator (unicorn, qemu)" if t.emulated else "serial port"
        rows.append(TargetRow(t.name, t.cpu, t.memory.flash_bytes, t.memory.ram_bytes, t.profile, how, _reachable(t)))
    return rows


def _reachable(target: Target) -> str:
    from importlib.util import find_spec

    from cactus_edge.device.transport import resolve

    if target.emulated:
        missing = [name for name in ("unicorn", "serial", "ziglang") if find_spec(name) is None]
        return f"no: {', '.join(missing)} not installed" if missing else "yes"
    try:
        return f"yes: {resolve('auto', target.serial.usb).url}"
    except InstallError as error:
        return f"unknown: {error.message}"
    except DeviceError:
        return "no"


@dataclass(frozen=True)
class BenchResult:
    """What a device did with a model. report: every figure; rows: the same in words.

    compared: inputs whose outputs were looked at; equal: those in which nothing contradicts the interpreter: every bit is the
    same or, in TensorRT, every value lies in its envelope. findings: what else contradicts, in words. live: the bounds around
    the inputs, where they were asked for.
    """

    report: DeviceReport | RemoteReport | JetsonReport
    compared: int
    equal: int
    rows: Pairs
    findings: tuple[str, ...] = ()
    live: LiveReport | None = None

    @property
    def good(self) -> bool:
        """Whether nothing contradicts."""
        return self.equal == self.compared and not self.findings

    def summary(self) -> Pairs:
        """In words."""
        return [*self.rows, *(("finding", text) for text in self.findings)]


def bench(
    model: str | Path,
    *,
    target: str = "mcu",
    port: str = "",
    host: str = "",
    data: Path | None = None,
    inputs: int = 100,
    emulator: Emulator = "unicorn",
    compiler: CompilerName = "zig",
    runtime: Way = "auto",
    out: Path | None = None,
    live: int | None = None,
    progress: Progress = SILENT,
) -> BenchResult:
    """Runs `model` on the target and compares every output with the interpreter's, bit for bit.

    An emulated board is built and booted here; a real one must carry this model's firmware already (`flash`); a computer or a
    Jetson is reached by ssh at `host`, user@host[:port]. On a Jetson the outputs are compared with TensorRT's envelope, and
    runtime chooses what runs TensorRT. Results are kept in `out`; a second run on a board or computer continues there. live: on
    a microcontroller, bound the decision around each input there too, that many codes wide (a real one needs firmware built so).
    """
    from cactus_edge.device.targets import JetsonTarget, SshTarget, load_target
    from cactus_edge.formats.read import read_model

    where, path = load_target(target), Path(model)
    if runtime != "auto" and not isinstance(where, JetsonTarget):
        raise InputError(f"runtime {runtime!r} is a choice for a Jetson; {where.title} is none", hint="leave it out")
    if isinstance(where, SshTarget | JetsonTarget):
        if port:
            raise InputError(f"{where.title} is reached by ssh, not by a serial port", hint="--host user@host")
        if live is not None:
            raise InputError(f"{where.title} runs no firmware of ours, which live inputs need", hint="leave it out")
        address = host_at(host)
        if address is None:
            raise InputError(f"{where.title} is reached by ssh, and no address was given", hint="--host user@host")
        file = content(path, "model")
        graph = read_model(file).graph
        x = _real_inputs(graph, _bench_inputs(path, data, inputs, graph.input.shape))
        folder = require_folder(out or path.parent / f"bench-{target}", "--out")
        if isinstance(where, SshTarget):
            return _bench_computer(path.name, file, x, where, address, folder, progress)
        return _bench_jetson(file, x, where, address, folder, runtime, progress)
    if host:
        raise InputError(f"{where.title} is not reached by ssh", hint="--port for a real board")
    return _bench_board(path, where, port, data, inputs, emulator, compiler, out, live, progress)


def _bench_board(
    path: Path,
    board: Target,
    port: str,
    data: Path | None,
    inputs: int,
    emulator: Emulator,
    compiler: CompilerName,
    out: Path | None,
    live: int | None,
    progress: Progress,
) -> BenchResult:
    """`bench` on a microcontroller."""
    import time

    from cactus_edge.board import Options, bound_on_board, run_on_board
    from cactus_edge.device.firmware import build_firmware
    from cactus_edge.formats.c.write import write_c
    from cactus_edge.formats.read import read_for
    from cactus_edge.ir.arithmetic import profile
    from cactus_edge.ir.evaluate import quantised
    from cactus_edge.ir.lowering import lower

    if live is not None and not 0 <= live <= 255:
        raise InputError(f"live inputs {live} codes around, expected 0 to 255")
    program = lower(read_for(content(path, "model"), profile(board.profile)), profile(board.profile))
    samples = quantised(program, _bench_inputs(path, data, inputs, program.values[program.input].shape))
    folder = require_folder(out or path.parent / f"bench-{board.name}", "--out")
    elf = None
    if board.emulated and not port:
        elf = folder / "firmware.elf"
        build_firmware(
            write_c(program.graph, program.profile, folder / "c").folder, board, elf, compiler, live=live is not None
        )
    options = Options(board.name, emulator, compiler, port, inputs)
    start = time.perf_counter()
    steps = 1 if live is None else 2
    progress.begin("bench", 1, steps)
    report = run_on_board(
        program, samples, folder, board, options, elf, lambda done, total: progress.advance(done, total)
    )
    progress.end(time.perf_counter() - start, cached=False, text=f"{report.equal} of {report.compared} outputs equal")
    if live is None:
        return BenchResult(report, report.compared, report.equal, _board_rows(report))
    start = time.perf_counter()
    progress.begin("live", 2, steps)
    bounds = bound_on_board(program, samples, board, options, elf, live, progress.advance)
    text = f"{bounds.certified} of {bounds.inputs} certified, {bounds.equal} verdicts equal"
    progress.end(time.perf_counter() - start, cached=False, text=text)
    findings = (
        () if bounds.equal == bounds.inputs else (f"{bounds.inputs - bounds.equal} verdicts of the board differ",)
    )
    rows = [*_board_rows(report), *_live_rows(bounds, report)]
    return BenchResult(report, report.compared, report.equal, rows, findings, bounds)


def _board_rows(r: DeviceReport) -> Pairs:
    rows = [
        ("board", f"{r.board}, {r.reached_by}"),
        ("model", f"blob {r.blob_sha256}, as the board reports it"),
        ("outputs", f"{r.equal} of {r.compared} equal to the interpreter's"),
    ]
    if r.first_difference:
        rows.append(("first difference", r.first_difference))
    if r.instructions:
        rows.append(("cost", f"{r.instructions.median:,.0f} emulated instructions per inference (no latency)"))
    if r.latency_us:
        rows.append(("cost", f"{r.latency_us.median:,.1f} us per inference, IQR {r.latency_us.iqr:,.1f}"))
    memory = (
        f"{r.arena_bytes:,} arena + {r.static_bytes:,} static, {r.stack_used_bytes:,} of {r.stack_bytes:,} stack used"
    )
    return [*rows, ("RAM bytes", memory), ("session", r.session)]


def _live_rows(live: LiveReport, r: DeviceReport) -> Pairs:
    plain = r.instructions or r.latency_us
    assert plain is not None
    unit = "emulated instructions" if r.instructions else "us"
    return [
        ("live inputs", f"{live.certified} of {live.inputs} certified within {live.radius} codes of each"),
        ("live verdicts", f"{live.equal} of {live.inputs} equal to verify's by intervals"),
        ("live cost", f"{live.units.median:,.0f} {unit} beside each inference's {plain.median:,.0f}"),
    ]


def _bench_computer(
    name: str, file: bytes, x: npt.NDArray[Any], target: SshTarget, host: Host, folder: Path, progress: Progress
) -> BenchResult:
    """`bench` in LiteRT or ONNX Runtime, by ssh."""
    import time

    from cactus_edge.computer import computer_rows, rows, run_on_computer

    start = time.perf_counter()
    progress.begin("bench", 1, 1)
    report = run_on_computer(file, x, target, host, folder, lambda done, total: progress.advance(done, total))
    text = f"{report.equal} of {report.compared} outputs equal{', emulated' if report.emulated else ''}"
    progress.end(time.perf_counter() - start, cached=False, text=text)
    said = [*computer_rows(report), *rows(name, report), ("session", report.session)]
    return BenchResult(report, report.compared, report.equal, said)


def _bench_jetson(
    file: bytes, x: npt.NDArray[Any], target: JetsonTarget, host: Host, folder: Path, runtime: Way, progress: Progress
) -> BenchResult:
    """`bench` in TensorRT, by ssh."""
    import time

    from cactus_edge.ir.arithmetic import profile
    from cactus_edge.jetson import device_rows, run_on_jetson

    start = time.perf_counter()
    progress.begin("bench", 1, 1)
    report = run_on_jetson(file, x, target, host, folder, progress.advance, runtime)
    said, checked = device_rows(report), report.envelope
    progress.end(time.perf_counter() - start, cached=False, text=said["text"])
    condition = ("verdicts hold", f"on the condition that {profile(target.profile).assumption}")
    rows = [(name.lower(), text) for name, text in said["rows"]]
    found = tuple(said["findings"])
    return BenchResult(report, checked.outputs, checked.outputs - checked.outside, [*rows, condition], found)


def _real_inputs(graph: Graph, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Where the model takes float32 values, the values of int8 codes."""
    from cactus_edge.ir.evaluate import dequantize

    if x.dtype != "int8" or graph.input.dtype != "float32":
        return x
    first = graph.tensors[graph.nodes[0].output]
    return dequantize(x, first.scale, first.zero_point)


def flash(firmware: Path | str, *, target: str, model: Path | str | None = None, port: str = "auto") -> Pairs:
    """Puts `firmware` on the board with the board's own tool, then asks the board which model it carries.

    model: the .tflite whose blob the board must report; by default model.tflite beside the firmware.
    """
    from cactus_edge.device.flash import flash
    from cactus_edge.device.targets import load_board
    from cactus_edge.formats.c.blob import blob_digest
    from cactus_edge.formats.read import read_for
    from cactus_edge.ir.arithmetic import profile

    image, board = Path(firmware), load_board(target)
    source = Path(model) if model is not None else image.parent / "model.tflite"
    if model is None and not source.is_file():
        raise InputError(
            f"no model.tflite beside {image}", hint="name the model it was built from: --model MODEL.tflite"
        )
    digest = blob_digest(read_for(content(source, "model"), profile(board.profile)), profile(board.profile))
    answered = flash(board, image, port=port, digest=digest)
    name = answered.name if answered is not None else board.name
    return [
        ("flashed", f"{image} on {board.title}"),
        ("board", name),
        ("model", f"blob {digest}, as the board reports it"),
    ]


def _bench_inputs(model: Path, data: Path | None, count: int, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """The first `count` samples of `data`, of test.npz beside the model, or uniformly random codes."""
    import numpy as np

    from cactus_edge.samples import read_inputs

    if count < 1:
        raise InputError(f"{count} inputs, expected at least 1")
    beside = model.parent / "test.npz"
    if data is not None or beside.is_file():
        return read_inputs(data or beside)[0][:count]
    return np.random.default_rng(0).integers(-128, 128, (count, *shape)).astype(np.int8)
