"""Boards as data: `targets/<name>/target.toml`, read strictly.

Adding a board edits no Python: a folder with a target.toml, and for bare metal a port.c. Its `family` says what kind of
description it is: a microcontroller (`Target`), a Linux computer that is reached by ssh (`SshTarget`), or one with a GPU that
runs TensorRT (`JetsonTarget`). A key that is unknown, missing or of the wrong type is a TargetError with file, line and the
nearest right key. No board inherits from another.
"""

from __future__ import annotations

import difflib
import re
import string
import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from cactus_edge.device.transport import parse_reset
from cactus_edge.errors import InputError, TargetError
from cactus_edge.recipe_values import n_of_m
from cactus_edge.resources import data_path

Kind = Literal["emulated", "board"]
Firmware = Literal["bare-metal", "example"]
RuntimeName = Literal["litert", "onnxruntime"]
PLACEHOLDERS = ("elf", "bin", "port", "flash_port", "usb_serial")
"""What a flash command may contain in braces."""


@dataclass(frozen=True)
class Memory:
    """The part of the address space that firmware may use, and the stack that the linker reserves at the RAM's bottom."""

    flash_origin: int
    flash_bytes: int
    ram_origin: int
    ram_bytes: int
    stack_bytes: int


@dataclass(frozen=True)
class Serial:
    """The console, 8N1. usb: "vid:pid" in hex of ports that are this board's console. reset: DTR/RTS sequence as in
    `transport.pulse`, empty for none. boot_s: longest time from reset to the first command."""

    baud: int
    usb: tuple[str, ...]
    reset: str
    boot_s: float


@dataclass(frozen=True)
class Flash:
    """The flashing tool as an argument list, never a shell's line, with PLACEHOLDERS in braces; empty: nothing to flash.

    usb: "vid:pid" of the port that {flash_port} stands for, where that is not the console. install: how to get the tool.
    """

    command: tuple[str, ...]
    install: str
    timeout_s: float
    usb: tuple[str, ...] = ()


@dataclass(frozen=True)
class Engine:
    """What executes files of one format there.

    runtime: how the agent calls it. profile: its arithmetic on that processor. host: the runtime that is compared on the
    machine that builds, a name of `formats`. package: what pip installs there, as a requirement.
    """

    runtime: RuntimeName
    profile: str
    host: str
    package: str


@dataclass(frozen=True)
class Ssh:
    """connect_s: longest time to connect, and again to log in. idle_s: longest silence of our program on the device."""

    connect_s: float
    idle_s: float


@dataclass(frozen=True)
class Kernels:
    """What the int8 kernels there ask of a network.

    channel_multiple: output channels that they compute together, so that a layer's width had better be a whole multiple.
    sparse: the pattern "n:m" of zeros that they skip, "" where zeros cost as much as any weight. weight_bits: the widths of weights
    that they read from packed memory, in an arithmetic that the target's profile was shown equal to; others would be stored and
    multiplied as int8. source: where the first two are from.
    """

    channel_multiple: int
    sparse: str
    weight_bits: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class SshTarget:
    """A Linux computer that is reached by ssh.

    machine: what `uname -m` must say there. cpu, evidence, note: in words. tflite, onnx: what runs files of that format.
    """

    name: str
    title: str
    family: Literal["linux-ssh"]
    machine: str
    cpu: str
    evidence: str
    note: str
    ssh: Ssh
    kernels: Kernels
    tflite: Engine | None = None
    onnx: Engine | None = None

    @property
    def engines(self) -> dict[str, Engine]:
        """The formats that run there, the main one first: "tflite" or "onnx" -> what runs it."""
        found = {"tflite": self.tflite, "onnx": self.onnx}
        return {name: engine for name, engine in found.items() if engine is not None}

    @property
    def profile(self) -> str:
        """The arithmetic of the main format."""
        return next(iter(self.engines.values())).profile

    @property
    def emulated(self) -> bool:
        """Whether every run there is emulated; a host that is says so itself."""
        return False


@dataclass(frozen=True)
class JetsonTarget:
    """A Jetson, reached by ssh.

    machine: what `uname -m` must say there. compute_capability: the GPU's, such as "8.7". jetpack, tensorrt: the newest releases
    for it, "major.minor". profile: the arithmetic of TensorRT, which is conditional.
    """

    name: str
    title: str
    family: Literal["jetson"]
    machine: str
    cpu: str
    gpu: str
    compute_capability: str
    jetpack: str
    tensorrt: str
    profile: str
    evidence: str
    note: str
    ssh: Ssh
    kernels: Kernels

    @property
    def emulated(self) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Target:
    """A microcontroller board.

    kind: "emulated" (figures are instructions) or "board". firmware: "bare-metal" (we build it) or "example" (its vendor's
    SDK must; we hand over C sources). cpu: the compiler's name for the core. vector_bits: width of its integer SIMD, 0 for
    none. profile: the runtime profile whose arithmetic the generated C implements. evidence: what was really tried.
    """

    name: str
    title: str
    family: Literal["mcu"]
    kind: Kind
    firmware: Firmware
    cpu: str
    vector_bits: int
    core_clock_hz: int
    profile: str
    evidence: str
    note: str
    kernels: Kernels
    memory: Memory
    serial: Serial
    flash: Flash

    @property
    def emulated(self) -> bool:
        """Whether its figures are counts of instructions and never times."""
        return self.kind == "emulated"

    @property
    def reached_by(self) -> str:
        """How the host reaches it, in words."""
        return (
            "emulator in a process of its own, pseudo-terminal" if self.emulated else f"serial, {self.serial.baud} baud"
        )

    @property
    def port_source(self) -> Path:
        """The board's port.c."""
        return data_path("targets", self.name, "port.c")


AnyTarget = Target | SshTarget | JetsonTarget
_FAMILIES: dict[str, type[Target] | type[SshTarget] | type[JetsonTarget]] = {
    "mcu": Target,
    "linux-ssh": SshTarget,
    "jetson": JetsonTarget,
}
_TABLES = (Memory, Serial, Flash, Ssh, Engine, Kernels)


def targets() -> tuple[AnyTarget, ...]:
    """All boards: the emulated ones, microcontrollers, computers; each by name."""
    found = [load_target(path.parent.name) for path in data_path("targets").glob("*/target.toml")]
    return tuple(sorted(found, key=lambda t: (not t.emulated, t.family != "mcu", t.name)))


def load_board(name: str) -> Target:
    """The microcontroller board of that name. Raises TargetError naming the nearest target, or what this one is."""
    target = load_target(name)
    if isinstance(target, Target):
        return target
    raise TargetError(
        f"{target.title} is a computer, reached by ssh: it has no firmware and no serial console",
        hint=f"cactus-edge bench MODEL --target {name} --host user@host",
    )


def load_target(name: str) -> AnyTarget:
    """The target of that name. Raises TargetError naming the nearest one."""
    known = sorted(path.parent.name for path in data_path("targets").glob("*/target.toml"))
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise TargetError(
            f"no target is called {name!r}; there are {', '.join(known)}", hint=near[0] if near else known[0]
        )
    path = data_path("targets", name, "target.toml")
    target = parse_target(path.read_text(encoding="utf-8"), str(path))
    if target.name != name:
        raise TargetError(f"{path}:1: name = {target.name!r} in the folder {name!r}", hint="give both the same name")
    return target


def parse_target(text: str, where: str) -> AnyTarget:
    """The target described by the TOML text; `where` names it in messages. Raises TargetError with file and line."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        at = line.group(1) if line else text.count("\n") + 1
        raise TargetError(f"{where}:{at}: not TOML: {error}", hint="compare with targets/mcu/target.toml") from error
    reader = _Reader(where, text)
    family = table.get("family")
    if not isinstance(family, str) or family not in _FAMILIES:
        what = f"family = {family!r}" if "family" in table else "the top level lacks 'family'"
        raise reader.error("", "family", f"{what}: expected one of {', '.join(_FAMILIES)}", "mcu")
    target = reader.record(_FAMILIES[family], table, "")
    reader.cross_check(target)
    return target


_Record = TypeVar("_Record")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+)\s*=")
_SECTION = re.compile(r"\s*\[([A-Za-z0-9_-]+)\]")


class _Reader:
    def __init__(self, where: str, text: str) -> None:
        self._where = where
        self._lines: dict[str, int] = {}
        section = ""
        for number, line in enumerate(text.splitlines(), start=1):
            if header := _SECTION.match(line):
                section = header.group(1)
                self._lines.setdefault(section, number)
            elif key := _KEY.match(line):
                self._lines.setdefault(f"{section}.{key.group(1)}", number)

    def error(self, section: str, key: str, message: str, hint: str) -> TargetError:
        line = self._lines.get(f"{section}.{key}", self._lines.get(section or key, 1))
        return TargetError(f"{self._where}:{line}: {message}", hint=hint)

    def record(self, kind: type[_Record], table: dict[str, Any], section: str) -> _Record:
        known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
        types = get_type_hints(kind)
        place = f"[{section}]" if section else "the top level"
        for key in table:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = near[0] if near else f"one of {', '.join(known)}"
                raise self.error(section, key, f"unknown key {key!r} in {place}", hint)
        values: dict[str, Any] = {}
        for name, field in known.items():
            if name in table:
                values[name] = self._value(types[name], table[name], section, name)
            elif field.default is MISSING:
                raise self.error(section, name, f"{place} lacks {name!r}", f"add {name} there")
        return kind(**values)

    def _value(self, kind: Any, value: Any, section: str, key: str) -> Any:
        kind = next((part for part in get_args(kind) if part in _TABLES), kind)  # Engine | None
        if kind in _TABLES and isinstance(value, dict):
            return self.record(kind, value, key)
        if kind is str and isinstance(value, str):
            return value
        if kind is int and type(value) is int and 0 <= value < 1 << 32:
            return value
        if kind is float and type(value) in (int, float) and 0 <= value < 86_400:
            return float(value)
        if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(v, str) for v in value):
            return tuple(value)
        if kind == tuple[int, ...] and isinstance(value, list) and all(type(v) is int for v in value):
            return tuple(value)
        if (choices := get_args(kind)) and value in choices:
            return value
        wanted = {
            str: "a string",
            int: "an integer from 0 to 2^32 - 1",
            float: "seconds below a day",
            tuple[str, ...]: "a list of strings",
            tuple[int, ...]: "a list of integers",
        }.get(kind) or f"one of {', '.join(map(str, choices))}"
        if kind in _TABLES:
            wanted = "a table"
        raise self.error(section, key, f"{key} = {value!r}: expected {wanted}", "change it there")

    def cross_check(self, target: AnyTarget) -> None:
        """What one key alone cannot tell, and ranges."""
        kernels = target.kernels
        if not 1 <= kernels.channel_multiple <= 256:
            message = f"channel_multiple = {kernels.channel_multiple}: expected 1 to 256"
            raise self.error("kernels", "channel_multiple", message, "4")
        if kernels.sparse and n_of_m(kernels.sparse) is None:
            raise self.error("kernels", "sparse", f'sparse = {kernels.sparse!r}: expected "n:m" or ""', "2:4")
        if not kernels.weight_bits or not all(2 <= b <= 8 for b in kernels.weight_bits):
            message = f"weight_bits = {list(kernels.weight_bits)}: expected 2 to 8, at least one"
            raise self.error("kernels", "weight_bits", message, "[8]")
        if isinstance(target, SshTarget):
            if not target.engines:
                raise self.error("", "name", "neither [tflite] nor [onnx]: nothing runs there", "add one of them")
            return
        if isinstance(target, JetsonTarget):
            for key in ("compute_capability", "jetpack", "tensorrt"):
                if not re.fullmatch(r"\d+\.\d+", getattr(target, key)):
                    raise self.error("", key, f"{key} = {getattr(target, key)!r}: expected major.minor", "10.3")
            return
        memory = target.memory
        for kind in ("flash", "ram"):
            origin, size = getattr(memory, f"{kind}_origin"), getattr(memory, f"{kind}_bytes")
            if not 0 < size <= (1 << 32) - origin:
                raise self.error(
                    "memory",
                    f"{kind}_bytes",
                    f"{kind}_bytes = {size} from {origin:#x}: expected to end below 2^32",
                    "change it",
                )
        if not 0 < memory.stack_bytes < memory.ram_bytes or memory.stack_bytes % 8:
            raise self.error(
                "memory",
                "stack_bytes",
                f"stack_bytes = {memory.stack_bytes}: expected a multiple of 8 below ram_bytes",
                "4096",
            )
        for section, ids in (("serial", target.serial.usb), ("flash", target.flash.usb)):
            for identity in ids:
                if not re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", identity):
                    raise self.error(
                        section, "usb", f"usb id {identity!r}: expected vid:pid in lower-case hex", "0483:374b"
                    )
        try:
            parse_reset(target.serial.reset)
        except InputError as error:
            raise self.error("serial", "reset", error.message, error.hint) from None
        for argument in target.flash.command:
            try:
                found = _placeholders(argument)
            except ValueError as error:
                text = f"{argument!r}: {error}"
                raise self.error("flash", "command", text, "write a brace that is no placeholder's twice") from None
            for placeholder in found:
                if placeholder not in PLACEHOLDERS:
                    near = difflib.get_close_matches(placeholder, PLACEHOLDERS, n=1)
                    hint = near[0] if near else f"one of {', '.join(PLACEHOLDERS)}"
                    raise self.error("flash", "command", f"unknown placeholder {{{placeholder}}} in {argument!r}", hint)


def _placeholders(argument: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(argument) if name is not None]
