"""The checker in C: its reader, lowering and intervals equal those of `verify` on random networks, and planted faults show."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from strategies import IN_C, random_graph
from tflite_edit import every_op_file

from cactus_edge.formats.c.checker import CChecker
from cactus_edge.formats.c.compiler import STRICT, Compiler, compile_c, first_line, zig
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir.arith import quantize_multiplier
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.lowering import lower
from cactus_edge.resources import data_path
from cactus_edge.verify.interval import propagate
from cactus_edge.verify.overflow import prove
from cactus_edge.verify.tflite_read import read_tflite

TFLM = profile("tflm")


def program_of(model: bytes) -> Program:
    program = lower(read_tflite(model).graph, TFLM)
    prove(program)
    return program


def boxes(program: Program, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The whole range, a point, and two boxes in between."""
    ends = rng.integers(-128, 128, (2, 4, *program.values[program.input].shape), dtype=np.int8)
    low, high = ends.min(0), ends.max(0)
    low[0], high[0] = -128, 127
    high[1] = low[1]
    return low, high


def agrees(checker: CChecker, model: bytes, rng: np.random.Generator) -> bool:
    program = program_of(model)
    low, high = boxes(program, rng)
    expected = [np.concatenate([v[end].reshape(4, -1) for v in propagate(program, low, high)], 1) for end in (0, 1)]
    return all(np.array_equal(g, e) for g, e in zip(checker.bounds(model, low, high), expected, strict=True))


@pytest.fixture(scope="module")
def corpus() -> list[bytes]:
    """Networks in which every kind of op occurs often; each planted fault must show in at least one."""
    rng = np.random.default_rng(5)
    graphs = [random_graph(rng, 2, (kind,)) for kind in IN_C for _ in range(8)]
    return [every_op_file(), *map(write_tflite, [*graphs, *(random_graph(rng, 6, IN_C) for _ in range(40))])]


def test_intervals_are_those_of_the_interpreter(c_checker: CChecker, corpus: list[bytes]) -> None:
    rng = np.random.default_rng(0)
    assert all(agrees(c_checker, model, rng) for model in corpus)


def test_real_models_have_the_same_intervals(c_checker: CChecker, models_folder: Path) -> None:
    rng = np.random.default_rng(0)
    for path in sorted((models_folder / "mlperf-tiny").glob("*.tflite")):
        assert agrees(c_checker, path.read_bytes(), rng), path.name


FAULTS = [
    ("rule.c", "return x >= 0 ? (x + half) >> n : -((-x + half) >> n);", "return ce_down(x + half, n);"),
    ("rule.c", "a * b + ((int64_t)1 << 30)", "a * b"),
    ("rule.c", "(x + n / 2) / n : -((-x + n / 2) / n)", "x / n : -(-x / n)"),
    ("affine.c", "least += w >= 0 ? from_low : from_high;", "least += from_low;"),
    ("affine.c", "low[i] + ends->offset", "low[i]"),
    ("affine.c", "k / (o / (c / node->inner))", "k % (c / node->inner)"),
    ("operator.c", "w->before[i] = total / 2;", "w->before[i] = total - total / 2;"),
    ("program.c", "int k = 0;", "int k = 1;"),
    ("program.c", "rule->zero_in = (int64_t)b->x->zero * n;", "rule->zero_in = b->x->zero;"),
    ("program.c", "ce_over(i ? c : a, twice)", "ce_over(i ? a : c, twice)"),
    (
        "program.c",
        "*high = ce_least(127, code_of(six, false, out));",
        "*high = ce_least(127, code_of(six, true, out));",
    ),
    ("interval.c", "i % in->size[a] + step->node->pads[a][0]", "i % in->size[a] + step->node->pads[a][1]"),
    ("interval.c", "part.first + i / part.run * part.step + i % part.run", "part.first + i"),
]
"""(file, what stands there, what a slip of the pen makes of it)."""


@pytest.mark.parametrize(("file", "right", "wrong"), FAULTS)
def test_a_planted_fault_shows_in_the_intervals(
    file: str, right: str, wrong: str, corpus: list[bytes], tmp_path: Path
) -> None:
    text = data_path("export", "c", "verify", file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong, 1))
    checker = CChecker(tmp_path, overlay=tmp_path)
    rng = np.random.default_rng(0)
    assert not all(agrees(checker, model, rng) for model in corpus), "no network of the corpus shows the fault"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc on this machine")
def test_gcc_compiles_it_without_a_word_and_sanitizers_are_silent(tmp_path: Path, corpus: list[bytes]) -> None:
    gcc = Compiler("gcc", ("gcc",), first_line(["gcc", "-dumpfullversion"]))
    checker = CChecker(tmp_path, ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"), gcc)
    rng = np.random.default_rng(1)
    assert all(agrees(checker, model, rng) for model in corpus[::9])


def test_it_has_no_floating_point() -> None:
    """What a runtime computes in double is done in integers."""
    for path in data_path("export", "c", "verify").iterdir():
        code = re.sub(r'/\*.*?\*/|"[^"\n]*"', "", path.read_text(), flags=re.DOTALL)
        assert not re.search(r"\b(float|double|math\.h|\d+\.\d)", code), path.name


SCALES_C = """
#include <stdio.h>
#include "real.h"
int main(void)
{
    unsigned int a, b, c;
    while (scanf("%u %u %u", &a, &b, &c) == 3) {
        const ce_real product = ce_times(ce_of_float(a), ce_of_float(b)), over = ce_of_float(c);
        ce_real single = {0, 0};
        const bool fits = ce_single(product, &single);
        const ce_multiplier once = ce_quantised(ce_over(product, over)), twice = ce_quantised(ce_over(single, over));
        const ce_real apart = ce_apart(product, over), quotient = ce_over(product, over);
        printf("%d %d %d %d %d %llu %d %llu %d\\n", once.m, once.s, fits, fits ? twice.m : 0, fits ? twice.s : 0,
               (unsigned long long)apart.m, apart.m ? apart.e : 0, (unsigned long long)quotient.m, quotient.e);
    }
    return 0;
}
"""


def scale_bits(rng: np.random.Generator) -> np.ndarray:
    """Triples of float32 above zero: of any size, of usual size, at ties, with small differences, and subnormal."""
    every = rng.integers(1, 0x7F800000, (4000, 3))
    usual = rng.uniform(1e-4, 2, (4000, 3)).astype(np.float32).view(np.uint32)
    round_ = np.ldexp(rng.integers(1, 2**12, (4000, 3)), rng.integers(-40, 20, (4000, 3))).astype(np.float32)
    near = usual.copy()
    near[:, 2] = (near[:, 0].view(np.float32) * near[:, 1].view(np.float32)).view(np.uint32) + rng.integers(-2, 3, 4000)
    tiny = np.ldexp(rng.uniform(1, 2, (4000, 3)), rng.integers([-76, -76, -149], [-60, -60, -120], (4000, 3)))
    return np.concatenate([every, usual, round_.view(np.uint32), near, tiny.astype(np.float32).view(np.uint32)]).astype(
        np.uint32
    )


def whole(value: float) -> list[int]:
    """(m, e) of m 2^e with m of 53 bits, or (0, 0)."""
    m, e = np.frexp(value)
    return [int(m * 2**53), int(e) - 53 if m else 0]


def in_float(bits: np.ndarray) -> list[list[int]]:
    """What the C computes, in numpy's float32 and float64."""
    rows = []
    with np.errstate(over="ignore"):
        for a, b, c in bits.view(np.float32):
            product, single, over = float(a) * float(b), a * b, float(c)
            fits = bool(np.isfinite(single))
            narrow = quantize_multiplier(float(single) / over) if fits else (0, 0)
            reals = [*whole(abs(product - over)), *whole(product / over)]
            rows.append([*quantize_multiplier(product / over), fits, *narrow, *reals])
    return rows


def through_c(bits: np.ndarray, source: str, folder: Path) -> list[list[int]]:
    (folder / "real.c").write_text(source)
    (folder / "scales.c").write_text(SCALES_C)
    here = data_path("export", "c", "verify")
    files = [folder / "real.c", folder / "scales.c", here / "say.c"]
    compile_c(zig(), [*STRICT, "-O2", f"-I{here}", *files, "-o", folder / "scales"])
    lines = "\n".join(" ".join(map(str, row)) for row in bits)
    done = subprocess.run([folder / "scales"], input=lines, capture_output=True, text=True, check=True)
    return [[int(n) for n in line.split()] for line in done.stdout.splitlines()]


def test_multipliers_are_those_of_double_arithmetic(tmp_path: Path) -> None:
    bits = scale_bits(np.random.default_rng(3))
    source = data_path("export", "c", "verify", "real.c").read_text()
    assert through_c(bits, source, tmp_path) == in_float(bits)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("(a.m + ((uint64_t)1 << 21)) >> 22", "a.m >> 22"),
        ("|| rest || (m & 1)", "|| rest"),
        ("(low != 0 || rest || (m & 1))", "(low != 0 || (rest && 0) || (m & 1))"),
        ("leading >= -126 ? 24 : leading + 150", "leading >= -126 ? 24 : 23"),
        ("if (m >> 31) {", "if (m >> 32) {"),
    ],
)
def test_a_planted_fault_shows_in_the_multipliers(right: str, wrong: str, tmp_path: Path) -> None:
    bits = scale_bits(np.random.default_rng(3))
    source = data_path("export", "c", "verify", "real.c").read_text()
    assert right in source
    assert through_c(bits, source.replace(right, wrong, 1), tmp_path) != in_float(bits)
