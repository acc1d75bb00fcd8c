"""A Cortex-M in unicorn with the runtime, every kernel and no board: runs any blob that it is handed in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import unicorn
from unicorn import arm_const

from cactus_edge.device.toolchain import compiler, link
from cactus_edge.formats.c.compiler import Compiler
from cactus_edge.ir.blob_format import Blob
from cactus_edge.resources import data_path
from cactus_edge.verify.elf import read_elf

CODE, DATA, BLOB, ARENA, INPUT, OUTPUT, STACK = (
    0x10000, 0x20000000, 0x30000000, 0x31000000, 0x32000000, 0x33000000, 0x34100000,
)  # fmt: skip
DONE = 0x1F0000

_ENTRY = """
#include "ce_runtime.h"
extern const ce_kernel ce_all_kernels[CE_KINDS];
int entry(void);
int entry(void)
{{
    const ce_model model = {{(const uint32_t *){blob}u, ce_all_kernels, (int8_t *){arena}u, ""}};
    return ce_model_run(&model, (const int8_t *){input}u, (int8_t *){output}u, 0, 0);
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
        (folder / "entry.c").write_text(
            _ENTRY.format(blob=hex(BLOB), arena=hex(ARENA), input=hex(INPUT), output=hex(OUTPUT))
        )
        # The kernel table of the host program, without its file reading.
        host = data_path("export", "c", "host", "ce_host_blob.c").read_text()
        table = host[host.index("static const ce_kernel ALL") : host.index("const ce_model *ce_host_model")]
        table = table.replace("static const ce_kernel ALL", "const ce_kernel ce_all_kernels")
        declared = "extern const ce_kernel ce_all_kernels[CE_KINDS];\n"
        (folder / "table.c").write_text(f'#include "ce_kernels.h"\n{declared}{table}')
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
        for start in (0, DATA, BLOB, ARENA, INPUT, OUTPUT, STACK - 0x100000):
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
            self.machine.reg_write(arm_const.UC_ARM_REG_SP, STACK)
            self.machine.reg_write(arm_const.UC_ARM_REG_LR, DONE | 1)
            self.machine.emu_start(self.entry | 1, DONE)
            assert self.machine.reg_read(arm_const.UC_ARM_REG_R0) == 0
            rows.append(np.frombuffer(self.machine.mem_read(OUTPUT, blob.header["out_bytes"]), np.int8))
        return np.stack(rows)
