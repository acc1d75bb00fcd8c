"""The portable C equals the interpreter on an emulated Cortex-M4, with its 16-bit SIMD, and on a Cortex-M0, without."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from cortex_m import CortexM
from strategies import IN_C, random_graph, random_inputs

from cactus_edge.device.toolchain import CPUS, GCC, compiler, cpu_flags, link
from cactus_edge.errors import InstallError, InternalError, TargetError, UnsupportedError
from cactus_edge.formats.c.blob import build
from cactus_edge.formats.c.compiler import STRICT, compile_c
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import quantised, run
from cactus_edge.ir.lowering import lower
from cactus_edge.resources import data_path

TFLM = profile("tflm")


def compare_on(machine: CortexM, graphs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    compared = 0
    for i in range(graphs):
        graph = random_graph(rng, 4, (IN_C[i % len(IN_C)], "conv2d", "depthwise_conv2d", "dense"))
        try:
            program = lower(graph, TFLM)
        except UnsupportedError:
            continue
        x = quantised(program, random_inputs(rng, graph, 6))
        expected = run(program, x).reshape(len(x), -1)
        assert np.array_equal(machine.run(build(graph, TFLM), x.reshape(len(x), -1)), expected)
        compared += 1
    assert compared > graphs // 2


def test_cortex_m4_agrees(tmp_path: Path) -> None:
    machine = CortexM(tmp_path, "cortex-m4")
    compare_on(machine, 120, 1)


def test_planted_fault_in_the_simd_path_is_seen(tmp_path: Path) -> None:
    """Only the M4 compiles this line, so only its comparison can see it."""
    text = (data_path("export", "c", "include") / "ce_dot.h").read_text()
    assert "ror #8" in text
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "ce_dot.h").write_text(text.replace("ror #8", "ror #16"))
    machine = CortexM(tmp_path, "cortex-m4", overlay=[tmp_path / "overlay"])
    with pytest.raises(AssertionError):
        compare_on(machine, 20, 1)


def test_cortex_m0_agrees(tmp_path: Path) -> None:
    compare_on(CortexM(tmp_path, "cortex-m0"), 60, 2)


@pytest.mark.skipif(shutil.which(GCC) is None, reason=f"{GCC} is not installed")
def test_gcc_image_agrees(tmp_path: Path) -> None:
    compare_on(CortexM(tmp_path, "cortex-m4", compiler("gcc")), 120, 3)


@pytest.mark.skipif(shutil.which(GCC) is not None, reason=f"{GCC} is installed")
def test_missing_gcc_says_how_to_install_it() -> None:
    with pytest.raises(InstallError, match="apt-get install"):
        compiler("gcc")


@pytest.mark.parametrize("cpu", CPUS)
def test_every_core_compiles_without_a_word(cpu: str, tmp_path: Path) -> None:
    used = compiler()
    for source in sorted(data_path("export", "c", "src").glob("*.c")):
        flags = [*cpu_flags(used, cpu), *STRICT, "-O2", f"-I{data_path('export', 'c', 'include')}"]
        compile_c(used, [*flags, "-c", source, "-o", tmp_path / "o"])


def test_an_unknown_core_is_refused() -> None:
    with pytest.raises(TargetError, match="cortex-a72"):
        cpu_flags(compiler(), "cortex-a72")


SCRIPT = "MEMORY { FLASH (rx) : ORIGIN = 0, LENGTH = 64 }\nSECTIONS { .text : { *(.text .text.*) } > FLASH }\n"


def test_firmware_that_does_not_fit_is_the_boards_error(tmp_path: Path) -> None:
    (tmp_path / "script.ld").write_text(SCRIPT)
    source = tmp_path / "big.c"
    source.write_text('int entry(void);\nint entry(void) { __asm__(".space 100"); return 0; }\n')
    with pytest.raises(TargetError, match="does not fit"):
        link(compiler(), "cortex-m4", [source], [], tmp_path / "script.ld", "entry", tmp_path / "elf")


def test_source_that_does_not_compile_shows_the_compilers_words(tmp_path: Path) -> None:
    (tmp_path / "script.ld").write_text(SCRIPT)
    source = tmp_path / "wrong.c"
    source.write_text("int entry(void);\nint entry(void) { return nothing; }\n")
    with pytest.raises(InternalError, match="undeclared identifier"):
        link(compiler(), "cortex-m4", [source], [], tmp_path / "script.ld", "entry", tmp_path / "elf")
