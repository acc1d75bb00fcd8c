"""The verbs as functions: what `import cactus_edge as ce` offers and what the command line calls.

Each function imports what it needs when it is called: `verify` runs on numpy alone, and importing this imports nothing heavy.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cactus_edge.api_files import content
from cactus_edge.errors import DeviceError, InputError, InstallError, ModelError
from cactus_edge.progress import SILENT, Progress
from cactus_edge.resources import require_file, require_folder, write_atomic

if TYPE_CHECKING:
    import numpy.typing as npt

    from cactus_edge.bundle import Built
    from cactus_edge.computer import ComputerResult, Host
    from cactus_edge.device.measure import DeviceReport
    from cactus_edge.device.targets import SshTarget, Target
    from cactus_edge.recipe import Recipe
    from cactus_edge.verify.certificate import Certificate
    from cactus_edge.verify.recheck import Report

Exact = str | Fraction | int | float
Unit = Literal["data", "lsb"]
Pairs = list[tuple[str, str]]
Emulator = Literal["unicorn", "qemu"]
CompilerName = Literal["zig", "gcc"]


def build(
    recipe: Recipe | str | Path = "digits",
    *,
    target: str = "mcu",
    out: Path | str | None = None,
    seed: int | None = None,
    port: str = "",
    host: str = "",
    emulator: Emulator = "unicorn",
    compiler: CompilerName = "zig",
    device_inputs: int = 100,
    threads: int = 0,
    progress: Progress = SILENT,
) -> Built:
    """Trains, compresses, lowers, compares, certifies and runs `recipe` on `target`; returns the bundle.

    out: the bundle's folder, build/RECIPE-TARGET by default; finished steps found there are kept. host: user@host of a target
    that is reached by ssh. Raises CactusError for what the user can fix, MismatchError where a runtime or the board
    contradicts the interpreter.
    """
    from cactus_edge.board import Options
    from cactus_edge.device.targets import JetsonTarget, SshTarget, Target, load_target
    from cactus_edge.recipe import Recipe, load_recipe

    for name, value, least, most in (
        ("seed", seed or 0, 0, 2**31 - 1),
        ("threads", threads, 0, 4096),
        ("device_inputs", device_inputs, 1, 10**9),
    ):
        if not least <= value <= most:
            raise InputError(f"{name} is {value}, expected an integer in [{least}, {most}]")
    board = load_target(target)  # refuses an unknown board before anything is trained
    if host and isinstance(board, Target):
        raise InputError(f"{board.title} is not reached by ssh", hint="--port for a real board")
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if seed is not None:
        chosen = replace(chosen, train=replace(chosen.train, seed=seed))
    folder = require_folder(Path(out) if out is not None else Path("build") / f"{chosen.name}-{target}", "--out")
    command = (
        shlex.join(["cactus-edge", *sys.argv[1:]]) if Path(sys.argv[0]).stem == "cactus-edge" else "cactus_edge.build"
    )
    options = Options(target, emulator, compiler, port, device_inputs, threads, command, host)
    if isinstance(board, SshTarget):
        from cactus_edge import linux

        return linux.build(chosen, folder, options, progress, _host(host))
    if isinstance(board, JetsonTarget):
        from cactus_edge import jetson

        return jetson.build(chosen, folder, options, progress, _host(host))
    from cactus_edge import pipeline

    return pipeline.build(chosen, folder, options, progress)


def _host(text: str) -> Host | None:
    """The computer of that address, None for "". A password is asked for on a terminal, where keys are refused."""
    from getpass import getpass

    from cactus_edge.computer import Host
    from cactus_edge.device.ssh import SshAddress

    if not text:
        return None
    SshAddress.parse(text)  # refused before anything is trained
    return Host(text, (lambda who: getpass(f"password of {who}: ")) if sys.stdin.isatty() else None)


def certify(
    model: bytes | str | Path,
    x: npt.NDArray[Any],
    y: npt.NDArray[Any],
    *,
    eps: Exact | Sequence[Exact],
    unit: Unit = "data",
    profile: str = "",
    domain: tuple[Exact, Exact] | None = None,
    firmware: Sequence[tuple[str, bytes]] = (),
    threads: int = 0,
) -> Certificate:
    """Certifies the file `model`, .tflite or .onnx, around every row of x [N, *shape] with labels y [N].

    eps: radius of the l-inf ball, exact ("1/16"), or one per feature; in the units of x, or with unit "lsb" in steps of the
    model's input quantisation: n steps are n * S, S the input's float32 scale, as a fraction, also for float x. domain: what
    the sensor can deliver; by default the one in the file's own metadata, else everything its input can represent.
    profile: by default "tflm" for .tflite, "ort-x86" for .onnx.
    """
    import os

    from cactus_edge.api_files import default_profile, file_formats
    from cactus_edge.certify.interval import certify as decide
    from cactus_edge.verify.certificate import certify_file
    from cactus_edge.verify.read import format_of

    data = content(model, "model")
    profile = profile or default_profile(data)
    radius, notes = (eps, {}) if unit == "data" else _steps(data, eps, unit, profile)
    return certify_file(
        data,
        x,
        y,
        eps=radius,
        domain=domain or _metadata_domain(data),
        profile=profile,
        form=file_formats()[format_of(data)],
        notes=notes,
        firmware=firmware,
        decide=partial(decide, threads=threads or os.cpu_count() or 1),
    )


def _steps(
    model: bytes, eps: Exact | Sequence[Exact], unit: str, profile: str
) -> tuple[list[Fraction], dict[str, str]]:
    """eps in steps of the input quantisation as exact radii in the units of the data, and a note that says so."""
    from cactus_edge.ir.arithmetic import profile as profile_by_name
    from cactus_edge.ir.lowering import lower
    from cactus_edge.verify.read import read_for
    from cactus_edge.verify.regions import exact

    if unit != "lsb":
        raise InputError(f"unknown unit {unit!r}", hint="data or lsb")
    step = Fraction(lower(read_for(model, profile_by_name(profile)), profile_by_name(profile)).quantize.scale)
    given = [eps] if isinstance(eps, str | Fraction | int | float) else list(eps)
    steps = [exact(e, "eps") for e in given]
    for n in steps:
        if not 0 <= n <= 255:
            raise InputError(f"eps is {n} lsb, expected 0 to 255: the input has 256 codes")
    listed = ", ".join(map(str, steps)) if len(steps) == 1 else "one per feature,"
    return [n * step for n in steps], {"eps": f"given as {listed} lsb; 1 lsb = {step}, the input's scale"}


@dataclass(frozen=True)
class CertifyResult:
    """A certificate on disk."""

    path: Path
    certified: int
    correct: int
    total: int
    eps: str
    profile: str
    conditional_on: str = ""

    def summary(self) -> Pairs:
        """In words."""
        return [
            (
                "certified",
                f"{self.certified} of {self.total} ({self.certified / self.total:.2%}) within eps {self.eps}",
            ),
            ("clean", f"{self.correct} of {self.total} ({self.correct / self.total:.2%})"),
            ("profile", self.profile),
            *([("conditional on", self.conditional_on)] if self.conditional_on else []),
            ("certificate", str(self.path)),
        ]


def certify_files(
    model: Path, data: Path, *, eps: str, unit: Unit, domain: str, profile: str, firmware: Sequence[Path], out: Path
) -> CertifyResult:
    """`certify` from files to a file. firmware: ELF images to bind; domain: "LO,HI" or ""."""
    from cactus_edge.samples import read_samples

    require_file(out, "--out")
    x, y = read_samples(data)
    images = [(path.name, content(path, "firmware")) for path in firmware]
    ends = _domain(domain) if domain else None
    certificate = certify(model, x, y, eps=eps, unit=unit, profile=profile, domain=ends, firmware=images)
    write_atomic(out, certificate.to_bytes())
    d = certificate.decision
    radius = (
        eps
        if unit == "data"
        else f"{eps} {unit} = {float(Fraction(certificate.record['region']['eps'])):.6g} in the data's units"
    )
    row = certificate.record["profile"]
    condition = row.get("conditional_on", "")
    return CertifyResult(out, int(d.certified.sum()), int(d.correct.sum()), len(y), radius, row["name"], condition)


def verify(
    certificate: bytes | str | Path,
    model: bytes | str | Path,
    data: str | Path,
    *,
    firmware: bytes | str | Path | None = None,
) -> Report:
    """Re-checks a certificate against the bytes of the model, the samples and the firmware. numpy alone; onnxruntime, where
    it is installed, is asked whether it computes an .onnx file in integers.

    Everything that can be recomputed is; `Report.accepted` is the verdict. Raises CertificateError and ModelError for input that
    cannot be read at all.
    """
    from cactus_edge.api_files import file_formats
    from cactus_edge.samples import read_samples
    from cactus_edge.verify.recheck import recheck

    x, y = read_samples(Path(data))
    formats = tuple(file_formats().values())
    elf = None if firmware is None else content(firmware, "firmware")
    return recheck(content(certificate, "certificate"), content(model, "model"), x, y, firmware=elf, formats=formats)


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
    """What a board did with a model."""

    report: DeviceReport

    @property
    def compared(self) -> int:
        """Inputs whose outputs were compared."""
        return self.report.compared

    @property
    def equal(self) -> int:
        """Inputs whose outputs were equal in every bit."""
        return self.report.equal

    def summary(self) -> Pairs:
        """In words."""
        r = self.report
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
        memory = f"{r.arena_bytes:,} arena + {r.static_bytes:,} static, {r.stack_used_bytes:,} of {r.stack_bytes:,} stack used"
        return [*rows, ("RAM bytes", memory), ("session", r.session)]


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
    out: Path | None = None,
    progress: Progress = SILENT,
) -> BenchResult | ComputerResult:
    """Runs `model` on the target and compares every output with the interpreter's, bit for bit.

    An emulated board is built and booted here; a real one must carry this model's firmware already (`flash`); a computer is
    reached by ssh at `host`, user@host[:port]. Results are kept input by input in `out`, and a second run continues there.
    """
    import time

    from cactus_edge.board import Options, run_on_board
    from cactus_edge.device.firmware import build_firmware
    from cactus_edge.device.targets import SshTarget, load_board, load_target
    from cactus_edge.formats.c.write import write_c
    from cactus_edge.ir.arithmetic import profile
    from cactus_edge.ir.evaluate import quantised
    from cactus_edge.ir.lowering import lower
    from cactus_edge.verify.read import read_for

    path, computer = Path(model), load_target(target)
    if isinstance(computer, SshTarget):
        return _bench_computer(path, computer, host, data, inputs, out, progress)
    board = load_board(target)
    if host:
        raise InputError(f"{board.title} is not reached by ssh", hint="--port for a real board")
    program = lower(read_for(content(path, "model"), profile(board.profile)), profile(board.profile))
    samples = quantised(program, _bench_inputs(path, data, inputs, program.values[program.input].shape))
    folder = require_folder(out or path.parent / f"bench-{target}", "--out")
    elf = None
    if board.emulated and not port:
        elf = folder / "firmware.elf"
        build_firmware(write_c(program.graph, program.profile, folder / "c").folder, board, elf, compiler)
    options = Options(target, emulator, compiler, port, inputs)
    start = time.perf_counter()
    progress.begin("bench", 1, 1)
    report = run_on_board(
        program, samples, folder, board, options, elf, lambda done, total: progress.advance(done, total)
    )
    progress.end(time.perf_counter() - start, cached=False, text=f"{report.equal} of {report.compared} outputs equal")
    return BenchResult(report)


def _bench_computer(
    path: Path, target: SshTarget, host: str, data: Path | None, inputs: int, out: Path | None, progress: Progress
) -> ComputerResult:
    """`bench` by ssh; random float inputs are codes of a random int8 input."""
    import time

    from cactus_edge.computer import ComputerResult, run_on_computer
    from cactus_edge.ir.evaluate import dequantize
    from cactus_edge.verify.read import read_model

    where = _host(host)
    if where is None:
        raise InputError(f"{target.title} is reached by ssh, and no address was given", hint="--host user@host")
    file = content(path, "model")
    graph = read_model(file).graph
    x = _bench_inputs(path, data, inputs, graph.input.shape)
    if x.dtype == "int8" and graph.input.dtype == "float32":
        first = graph.tensors[graph.nodes[0].output]
        x = dequantize(x, first.scale, first.zero_point)
    folder = require_folder(out or path.parent / f"bench-{target.name}", "--out")
    start = time.perf_counter()
    progress.begin("bench", 1, 1)
    report = run_on_computer(file, x, target, where, folder, lambda done, total: progress.advance(done, total))
    text = f"{report.equal} of {report.compared} outputs equal{', emulated' if report.emulated else ''}"
    progress.end(time.perf_counter() - start, cached=False, text=text)
    return ComputerResult(path.name, report)


def flash(firmware: Path | str, *, target: str, model: Path | str | None = None, port: str = "auto") -> Pairs:
    """Puts `firmware` on the board with the board's own tool, then asks the board which model it carries.

    model: the .tflite whose blob the board must report; by default model.tflite beside the firmware.
    """
    from cactus_edge.device.flash import flash
    from cactus_edge.device.targets import load_board
    from cactus_edge.ir.arithmetic import profile
    from cactus_edge.ir.blob import blob_digest
    from cactus_edge.verify.read import read_for

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

    from cactus_edge.samples import read_samples

    if count < 1:
        raise InputError(f"{count} inputs, expected at least 1")
    beside = model.parent / "test.npz"
    if data is not None or beside.is_file():
        return read_samples(data or beside)[0][:count]
    return np.random.default_rng(0).integers(-128, 128, (count, *shape)).astype(np.int8)


def _metadata_domain(model: bytes) -> tuple[Exact, Exact] | None:
    """The sensor's range that the file itself states, if it states one."""
    from cactus_edge.verify.read import read_model

    entry = read_model(model).metadata.get("cactus_edge")
    if entry is None:
        return None
    try:
        content = json.loads(entry)
        low, high = content["domain"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"the model's cactus_edge metadata name no domain: {error}", hint="pass --domain LO,HI"
        ) from error
    return str(low), str(high)


def _domain(text: str) -> tuple[str, str]:
    parts = text.split(",")
    if len(parts) != 2:
        raise InputError(f"domain {text!r}, expected two numbers", hint="--domain 0,1")
    return parts[0], parts[1]
