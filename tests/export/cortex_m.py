"""A Cortex-M in unicorn with the runtime, every kernel and no board: runs any blob that it is handed in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import unicorn
from unicorn import arm_const

from cactus_edge.device.toolchain import compiler, link
from cactus_edge.formats.c.blob_format import Blob
from cactus_edge.formats.c.compiler import Compiler
from cactus_edge.resources import data_path
from cactus_edge.verify.elf import read_elf

CODE, DATA, BLOB, ARENA, HIGH, INPUT, RADIUS, OUTPUT, STACK = (
    0x10000, 0x20000000, 0x30000000, 0x31000000, 0x31800000, 0x32000000, 0x32800000, 0x33000000, 0x34100000,
)  # fmt: skip
DONE = 0x1F0000

_ENTRY = """
#include "ce_certify.h"
extern const ce_kernel ce_all_kernels[CE_KINDS];
extern const ce_bounds_kernel ce_all_bounds[CE_KINDS];
int entry(int label, int least, int most);
int entry(int label, int least, int most)
{{
    const ce_model model = {{(const uint32_t *){blob}u, ce_all_kernels, (int8_t *){arena}u, ""}};
    const ce_certifier certifier = {{&model, ce_all_bounds, (int8_t *){high}u}};
    const ce_region region = {{(const uint8_t *){radius}u, 1, (int8_t)least, (int8_t)most}};
    if (label < 0) {{
        return ce_model_run(&model, (const int8_t *){input}u, (int8_t *){output}u, 0, 0);
    }}
    return ce_certify(&certifier, (const int8_t *){input}u, &region, label, (ce_verdict *){output}u);
}}
"""
_SCRIPT = """SECTIONS {{
  .text {code} : {{ *(.text .text.*) *(.rodata .rodata.*) }}
  .data {data} : {{ *(.data .data.*) *(.bss .bss.*) }}
  /DISCARD/ : {{ *(.ARM.exidx .ARM.exidx.* .ARM.extab .ARM.extab.*) }}
}}
"""
_CPUS = {"cortex-m0": arm_const.UC_CPU_ARM_CORTEX_M0, "cortex-m4": arm_const.UC_CPU_ARM_CORTEX_M4}


class CortexM:
    """The runtime compiled for `cpu` and loaded; headers in `overlay` stand in for those of export/c."""

    def __init__(self, folder: Path, cpu: str, used: Compiler | None = None, overlay: Sequence[Path] = ()) -> None:
        places = {"blob": BLOB, "arena": ARENA, "high": HIGH, "input": INPUT, "radius": RADIUS, "output": OUTPUT}
        (folder / "entry.c").write_text(_ENTRY.format(**{name: hex(at) for name, at in places.items()}))
        # The kernel tables of the host program, without its file reading.
        host = data_path("export", "c", "host", "ce_host_blob.c").read_text()
        table = host[host.index("static const ce_kernel ALL") : host.index("const ce_model *ce_host_model")]
        table = table.replace("static const ce_kernel ALL", "const ce_kernel ce_all_kernels")
        table = table.replace("static const ce_bounds_kernel BOUNDS", "const ce_bounds_kernel ce_all_bounds")
        declared = "extern const ce_kernel ce_all_kernels[CE_KINDS];\n"
        declared += "extern const ce_bounds_kernel ce_all_bounds[CE_KINDS];\n"
        (folder / "table.c").write_text(f'#include "ce_interval.h"\n#include "ce_kernels.h"\n{declared}{table}')
        (folder / "script.ld").write_text(_SCRIPT.format(code=hex(CODE), data=hex(DATA)))
        sources = [folder / "entry.c", folder / "table.c", *sorted(data_path("export", "c", "src").glob("*.c"))]
        elf = link(
            used or compiler(),
            cpu,
            sources,
            [*overlay, data_path("export", "c", "include")],
            folder / "script.ld",
            "entry",
            folder / "image.elf",
        )
        image = read_elf(elf.read_bytes())
        self.machine = unicorn.Uc(unicorn.UC_ARCH_ARM, unicorn.UC_MODE_THUMB | unicorn.UC_MODE_MCLASS)
        self.machine.ctl_set_cpu_model(_CPUS[cpu])
        for start in (0, DATA, *places.values(), STACK - 0x100000):
            self.machine.mem_map(start, 0x200000)
        for segment in image.segments:
            if segment.data:
                self.machine.mem_write(segment.address, segment.data)
        self.entry = image.entry

    def run(self, blob: Blob, x: np.ndarray) -> np.ndarray:
        """int8 [N, out_bytes] for int8 x [N, in_bytes]."""
        self.machine.mem_write(BLOB, blob.data)
        rows = []
        for sample in x:
            self.machine.mem_write(INPUT, sample.tobytes())
            assert self._call(-1, 0, 0) == 0
            rows.append(np.frombuffer(self.machine.mem_read(OUTPUT, blob.header["out_bytes"]), np.int8))
        return np.stack(rows)

    def certify(self, blob: Blob, x: np.ndarray, radius: np.ndarray, ends: tuple[int, int], labels: np.ndarray) -> Any:
        """As HostProgram.certify: int32 [N, 3], the status, whether certified, the margin."""
        self.machine.mem_write(BLOB, blob.data)
        rows = []
        for sample, around, label in zip(x, radius, labels, strict=True):
            self.machine.mem_write(INPUT, sample.tobytes())
            self.machine.mem_write(RADIUS, around.tobytes())
            self.machine.mem_write(OUTPUT, bytes(8))
            status = self._call(int(label), *ends)
            rows.append([status, *np.frombuffer(self.machine.mem_read(OUTPUT, 8), "<i4")])
        return np.array(rows, np.int32)

    def _call(self, *arguments: int) -> int:
        """The entry's result."""
        names = (arm_const.UC_ARM_REG_R0, arm_const.UC_ARM_REG_R1, arm_const.UC_ARM_REG_R2)
        for name, value in zip(names, arguments, strict=True):
            self.machine.reg_write(name, value & 0xFFFFFFFF)
        self.machine.reg_write(arm_const.UC_ARM_REG_SP, STACK)
        self.machine.reg_write(arm_const.UC_ARM_REG_LR, DONE | 1)
        self.machine.emu_start(self.entry | 1, DONE)
        result = int(self.machine.reg_read(names[0]))
        return result - (result >> 31 << 32)
