"""Cross-compilers for Cortex-M: zig's, a plain pip package, unless `arm-none-eabi-gcc` is asked for. Both take the same sources.

zig pitfalls that the flags answer: it is freestanding and has no libc headers (our sources need none); it leaves calls to
memcpy calls (compiler-rt has them); it names an entry of its own unless told; its cortex_m55 has MVE off and no hard floats.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cactus_edge.errors import InstallError, InternalError, TargetError
from cactus_edge.formats.c.compiler import STRICT, Compiler, excerpt, first_line, run, zig

CompilerName = Literal["zig", "gcc"]
GCC = "arm-none-eabi-gcc"
CPUS = ("cortex-m0", "cortex-m3", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
"""Cores whose flags are known, as GCC spells them."""


def compiler(name: CompilerName = "zig") -> Compiler:
    """The cross-compiler. Raises InstallError, with the command that installs it, where it is missing."""
    if name == "zig":
        return zig()
    if shutil.which(GCC) is None:
        raise InstallError(
            f"{GCC} is not installed",
            hint="apt-get install --no-install-recommends gcc-arm-none-eabi libnewlib-arm-none-eabi, or use the default zig",
        )
    return Compiler("gcc", (GCC,), first_line([GCC, "-dumpfullversion"]))


def cpu_flags(used: Compiler, cpu: str) -> tuple[str, ...]:
    """What selects the core: integer code, so that the same objects serve parts with and without an FPU."""
    if cpu not in CPUS:
        raise TargetError(f"no compiler flags for the core {cpu!r}", hint=f"one of {', '.join(CPUS)}")
    if used.name == "gcc":
        return ("-mthumb", f"-mcpu={cpu}", "-mfloat-abi=hard" if cpu == "cortex-m55" else "-mfloat-abi=soft")
    if cpu == "cortex-m55":
        return ("-target", "thumb-freestanding-eabihf", "-mcpu=cortex_m55+mve")
    return ("-target", "thumb-freestanding-eabi", f"-mcpu={cpu.replace('-', '_')}")


def link(
    used: Compiler,
    cpu: str,
    sources: Sequence[Path],
    includes: Sequence[Path],
    script: Path,
    entry: str,
    out: Path,
    flags: Sequence[str] = (),
) -> Path:
    """Compiles `sources` and links them with the linker script `script` into the ELF file `out`.

    entry: the function that runs first; functions and data that it does not reach are dropped. Raises TargetError where
    a memory region overflows, InternalError with the compiler's words for anything else that fails.
    """
    arguments = [
        *cpu_flags(used, cpu),
        *STRICT,
        *("-O2", "-g", "-ffreestanding", "-ffunction-sections", "-fdata-sections", "-fno-unwind-tables"),
        *flags,
        *(f"-I{path}" for path in includes),
        *sources,
        *(f"-Wl,-T,{script}", f"-Wl,-e,{entry}", "-Wl,--gc-sections"),
        *(("-nostartfiles", "--specs=nano.specs") if used.name == "gcc" else ()),
        *("-o", out),
    ]
    result = run(used, arguments)
    if result.returncode:
        text = excerpt(result.stderr)
        if re.search(r"will not fit in region|overflowed", result.stderr):
            raise TargetError(
                f"the firmware does not fit the board:\n{text}", hint="prune more, or choose a larger board"
            )
        raise InternalError(f"{used.name} {used.version} failed for {cpu}:\n{text}")
    return out
