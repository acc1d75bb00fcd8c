"""Model sources + the protocol's firmware + a board's port.c -> an ELF file that fits the board.

Sizes come from the ELF file's own segments, not from the compiler's summary. The same inputs give the same bytes in any
folder: no debug information, no paths.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from cactus_edge.device import toolchain
from cactus_edge.device.targets import Target
from cactus_edge.errors import InputError, InternalError, TargetError
from cactus_edge.resources import data_path, sha256, write_atomic
from cactus_edge.verify.elf import read_elf

ENTRY = "ce_reset"


@dataclass(frozen=True)
class FirmwareReport:
    """What was built.

    flash_bytes: code, constants and the model's blob. ram_bytes: static data with the model's arena; stack_bytes are
    reserved besides. The limits are the board's. compiler: name and version.
    """

    elf: Path
    sha256: str
    target: str
    compiler: str
    flash_bytes: int
    flash_limit_bytes: int
    ram_bytes: int
    ram_limit_bytes: int
    stack_bytes: int


def build_firmware(
    model: Path, target: Target, out: Path, compiler: toolchain.CompilerName = "zig", *, live: bool = False
) -> FirmwareReport:
    """Builds the ELF file `out` from the folder `model` that `formats.c.write_c` filled.

    live: with the command `certify`, which bounds the decision around an input and takes a second arena.
    Raises TargetError where the firmware does not fit (and says by how much) or where the board's own SDK must build it,
    InputError for a folder without a model, InstallError for a missing compiler.
    """
    if target.firmware != "bare-metal":
        raise TargetError(
            f"{target.title} has no firmware of ours: {target.note}",
            hint=f"use the C sources in {model} in the board's own SDK, or build for a bare-metal target",
        )
    if not (model / "model.c").is_file():
        raise InputError(f"no model.c in {model}", hint="write the model's C sources there first")
    skeleton = data_path("export", "skeletons", "mcu")
    script = out.with_suffix(".ld")
    write_atomic(script, linker_script(target))
    used = toolchain.compiler(compiler)
    try:
        toolchain.link(
            used,
            target.cpu,
            [*sorted(skeleton.glob("*.c")), target.port_source, *sorted(model.glob("*.c"))],
            [skeleton, model],
            script,
            ENTRY,
            out,
            ("-g0", *(("-DCE_LIVE",) if live else ())),
        )
    except TargetError as error:
        raise _does_not_fit(target, error) from error
    return describe_firmware(out, target, f"{used.name} {used.version}")


def describe_firmware(elf: Path, target: Target, compiler: str = "unknown") -> FirmwareReport:
    """The report on an ELF file that is there already. ModelError for one that is malformed."""
    data = elf.read_bytes()
    program = read_elf(data, str(elf))
    memory = target.memory
    for segment in program.segments:
        inside = memory.flash_origin <= segment.load_address < memory.flash_origin + memory.flash_bytes
        if segment.data and not inside:
            raise TargetError(
                f"{elf} stores bytes at {segment.load_address:#x}, outside the flash of {target.name}",
                hint=f"build it for {target.name}",
            )
    ram = program.used_in(memory.ram_origin, memory.ram_bytes)
    if ram < memory.stack_bytes:
        raise InternalError(f"{elf} reserves {ram} bytes of RAM, less than its stack of {memory.stack_bytes}")
    return FirmwareReport(
        elf=elf,
        sha256=sha256(data),
        target=target.name,
        compiler=compiler,
        flash_bytes=program.stored_in(memory.flash_origin, memory.flash_bytes),
        flash_limit_bytes=memory.flash_bytes,
        ram_bytes=ram - memory.stack_bytes,
        ram_limit_bytes=memory.ram_bytes,
        stack_bytes=memory.stack_bytes,
    )


def linker_script(target: Target) -> str:
    """The whole linker script: the board's memory, then the sections that all boards share."""
    m = target.memory
    sections = data_path("export", "skeletons", "mcu", "sections.ld").read_text(encoding="utf-8")
    return (
        f"/* {target.title}: generated from targets/{target.name}/target.toml. */\n"
        "MEMORY\n{\n"
        f"    FLASH (rx) : ORIGIN = {m.flash_origin:#010x}, LENGTH = {m.flash_bytes}\n"
        f"    RAM (rw) : ORIGIN = {m.ram_origin:#010x}, LENGTH = {m.ram_bytes}\n"
        "}\n"
        f"ce_stack_bytes = {m.stack_bytes};\n\n{sections}"
    )


def _does_not_fit(target: Target, error: TargetError) -> TargetError:
    """Both linkers say "overflowed by N bytes", once per section that no longer fits: the largest N counts."""
    overflow: dict[str, int] = {}
    for region, bytes_ in re.findall(r"region [`'\"]?(FLASH|RAM)[`'\"]?:? overflowed by (\d+) bytes", error.message):
        overflow[region] = max(overflow.get(region, 0), int(bytes_))
    if not overflow:
        return error
    limits = {"FLASH": target.memory.flash_bytes, "RAM": target.memory.ram_bytes}
    parts = [
        f"{'flash' if r == 'FLASH' else 'RAM'} by {n} bytes (it has {limits[r]})" for r, n in sorted(overflow.items())
    ]
    return TargetError(
        f"the firmware exceeds {target.title}: {', '.join(parts)}", hint="prune more, or choose a larger board"
    )
