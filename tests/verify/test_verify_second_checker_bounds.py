"""The checker in C bounds sums of values by lines as `verify` does, for whatever slopes, bounds and coefficients there are."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proof_cases import network, program_of

from cactus_edge.certify.linear import default_slopes
from cactus_edge.errors import ModelError
from cactus_edge.formats.c.compiler import STRICT, compile_c, zig
from cactus_edge.formats.c.host import CHECKED
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.atoms import Affine, Isotone, Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Tensor
from cactus_edge.resources import data_path
from cactus_edge.verify.lines import Slope
from cactus_edge.verify.proof import sheet_values
from cactus_edge.verify.relax import NONE, Relaxation

Array = Any

QUERIES = 12

BOUNDS_C = """
#include <stdio.h>
#include "relax.h"
#include "say.h"
#include "tflite.h"
static uint8_t data[1 << 20], packed[1 << 16];
static int64_t next(void)
{
    long long found = 0;
    if (scanf("%lld", &found) != 1) {
        ce_refuse("a number is missing");
    }
    return found;
}
int main(int argc, char **argv)
{
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    const ce_bytes model = {data, file ? fread(data, 1, sizeof data, file) : 0};
    const ce_graph graph = ce_read_tflite(model);
    const ce_program program = ce_lower(&graph);
    const ce_bounds bounds = ce_new_bounds(program.elements);
    ce_row row = ce_new_row(&program);
    const int64_t rules = next();
    ce_lines *lines = ce_memory((size_t)rules, sizeof *lines);
    uint8_t *p = packed;
    for (int64_t i = 0; i < rules; i++) {
        const int64_t value = next(), q = next(), count = next();
        for (int64_t k = 0; k < 4 * count; k += 4) {
            const uint32_t bits = (uint32_t)next();
            for (int byte = 0; byte < 4; byte++) {
                p[k + byte] = (uint8_t)(bits >> 8 * byte & 255u);
            }
        }
        lines[i] = ce_lines_of(&program, value, (int)q, count, p, row.sheet, bounds);
        row.lines_of[value] = (int)i;
        row.sheet += program.values[value].shape.count;
        p += 4 * count;
    }
    row.lines = lines;
    uint8_t *sheet = ce_memory((size_t)(2 * row.sheet) + 1, 1);
    for (int64_t left = next(); left > 0; left--) {
        const int64_t value = next();
        int64_t found;
        for (int64_t i = 0; i < 2 * row.sheet; i++) {
            sheet[i] = (uint8_t)next();
        }
        for (int64_t i = 0; i < program.elements; i++) {
            bounds.low[i] = (int32_t)next();
            bounds.high[i] = (int32_t)next();
        }
        int64_t *a = ce_begin(&row, value);
        for (int64_t i = 0; i < program.values[value].shape.count; i++) {
            a[i] = next();
        }
        const bool valid = ce_lower_bound(&row, bounds, sheet, NULL, 0, &found);
        printf("%d %lld\\n", valid, (long long)found);
    }
    return 0;
}
"""
"""The model's path as argument; from stdin slopes, then questions: a value, a sheet, all bounds, and a row of coefficients."""


@dataclass(frozen=True, eq=False)
class Case:
    """A model, questions about it as the C reads them, and what `verify` says: NONE where there is no bound."""

    model: bytes
    asked: str
    expected: list[int]


def steep(seed: int) -> bytes:
    """Layers of large biases, and an ADD of both: numbers that a bound has no room for, and multipliers of all sizes."""
    rng, b = np.random.default_rng(seed), GraphBuilder()
    x = b.input(Tensor("x", (4,), "int8", 1.0, 3))

    def dense(x: int, outputs: int, reach: int, step: float) -> int:
        source = b.tensor(x)
        weight = ops.freeze(rng.integers(-127, 128, (outputs, source.size)), np.int8)
        bias = ops.freeze(rng.integers(-reach, reach, outputs), np.int32)
        op = ops.Dense(weight, bias, ops.freeze([np.float32(step)], np.float32))
        return b.node(op, [x], Tensor(f"t{x}{outputs}", (outputs,), "int8", 1.0, int(rng.integers(-20, 20))))

    large, small = dense(x, 5, 1 << int(rng.integers(8, 30)), 2.0**-9), dense(x, 5, 1 << 12, 2.0**-7)
    total = b.node(ops.Add(), [large, small], Tensor("sum", (5,), "int8", 1.5, -4))
    return write_tflite(b.finish(dense(total, 3, 1 << 10, 2.0**-7)))


def slopes(rng: np.random.Generator, program: Program) -> dict[int, Slope]:
    """The rules' own, others near them, and some of any size."""
    found = {}
    for value, own in default_slopes(program).items():
        kind, top = rng.integers(0, 6), 2**20 - 1
        if kind == 0:
            continue
        if kind < 4:
            p = [int(np.clip(v * (1 if kind == 1 else rng.uniform(0.5, 1.6)), -top, top)) for v in own.p]
            pair = isinstance(next(s.atom for s in program.steps if s.out == value), Isotone)
            found[value] = Slope(own.q, tuple(p if kind < 3 or pair else p[:1]))
        else:
            least = -top if min(own.p) < 0 else 0
            p = [int(np.clip(rng.integers(-top, top + 1) >> int(rng.integers(0, 20)), least, top)) for _ in own.p]
            found[value] = Slope(int(rng.integers(0, 41)), tuple(p))
    return found


def bounded(rng: np.random.Generator, program: Program, relaxation: Relaxation) -> list[tuple[Array, Array]]:
    """Bounds of each value, [QUERIES, *shape]: those of boxes, and any between the ends of all inputs, often at these."""
    shape = program.values[program.input].shape
    at, radius = rng.integers(-128, 128, (QUERIES, *shape)), rng.integers(0, 40, (QUERIES, *(1,) * len(shape)))
    known, _ = relaxation.forward(*(np.clip(at + by * radius, -128, 127).astype(np.int8) for by in (-1, 1)))
    whole = [np.full((1, *shape), end, np.int8) for end in (-128, 127)]
    full, _ = relaxation.forward(*whole)
    accumulated = {s.out for s in program.steps if isinstance(s.atom, Affine)}
    found = []
    for value, (low, high) in enumerate(known):
        least, most = full[value] if value in accumulated else (np.full_like(full[value][0], -128), np.array(127))
        drawn = rng.integers(least, most + 1, (3, 2, *low.shape))
        ends = np.sort(np.where(rng.random(low.shape) < 0.5, drawn[0], np.clip(drawn[1], least, least + 9)), 0)
        ends[0] = np.where(rng.random(low.shape) < 0.2, least, ends[0])
        ends[1] = np.where(rng.random(low.shape) < 0.2, most, ends[1])
        any_ = np.arange(QUERIES).reshape(-1, *(1,) * (low.ndim - 1)) % 2 == 0
        found.append((np.where(any_, ends[0], low), np.where(any_, ends[1], high)))
    return found


@dataclass(frozen=True, eq=False)
class Question:
    """How low the sum <row, value> is; sheet [2, elements of all values with slopes], bounds [1, *shape] of every value."""

    value: int
    sheet: Array
    known: list[tuple[Array, Array]]
    row: Array


def asking(model: bytes, chosen: dict[int, Slope], questions: list[Question]) -> Case:
    program = program_of(model)
    relaxation, places = Relaxation(program, chosen), sheet_values(program, chosen)
    numbers, expected = [len(chosen)], []
    for value, slope in sorted(chosen.items()):
        numbers += [value, slope.q, len(slope.p), *slope.p]
    numbers.append(len(questions))
    for q in questions:
        shapes = [v.shape for v in program.values]
        hints = {
            v: (q.sheet[0, place].reshape(1, 1, *shapes[v]), q.sheet[1, place].reshape(1, 1, *shapes[v]))
            for v, place in places.items()
        }
        row = q.row.reshape(1, 1, *shapes[q.value])
        expected.append(int(relaxation.lower(q.value, row, q.known, hints)[0, 0]))
        ends = np.concatenate([np.stack([low.ravel(), high.ravel()], 1).ravel() for low, high in q.known])
        numbers += [q.value, *q.sheet.ravel().tolist(), *ends.tolist(), *row.ravel().tolist()]
    return Case(model, " ".join(map(str, numbers)), expected)


def elements_of(program: Program, values: Iterable[int]) -> int:
    return sum(prod(program.values[v].shape) for v in values)


def case(seed: int) -> Case | None:
    rng = np.random.default_rng(seed)
    model = steep(seed) if seed % 3 == 0 else write_tflite(network(rng))
    try:
        program = program_of(model)
    except ModelError:
        return None
    chosen = slopes(rng, program)
    known = bounded(rng, program, Relaxation(program, chosen))
    questions = []
    for n in range(QUERIES):
        value = int(rng.integers(1, len(program.values)))
        row = rng.integers(-(2**24) + 1, 2**24, program.values[value].shape) >> int(rng.integers(0, 24))
        row *= rng.random(row.shape) < rng.choice([0.2, 1.0])
        ends = (90, 160) if rng.random() < 0.5 else (0, 256)
        sheet = rng.integers(*ends, (2, elements_of(program, chosen)))
        questions.append(Question(value, sheet, [(low[n : n + 1], high[n : n + 1]) for low, high in known], row))
    return asking(model, chosen, questions)


def cases(count: int) -> Iterator[Case]:
    return (found for found in map(case, range(count)) if found is not None)


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`BOUNDS_C` beside the checker's sources."""
    folder, here = tmp_path_factory.mktemp("bounds"), data_path("export", "c", "verify")
    (folder / "bounds.c").write_text(BOUNDS_C)
    sources = [path for path in sorted(here.glob("*.c")) if path.name != "main.c"]
    compile_c(zig(), [*STRICT, "-O2", *CHECKED, f"-I{here}", folder / "bounds.c", *sources, "-o", folder / "bounds"])
    return folder / "bounds"


def answers(executable: Path, asked: Case, folder: Path) -> list[int]:
    (folder / "model").write_bytes(asked.model)
    done = subprocess.run([executable, folder / "model"], input=asked.asked, capture_output=True, text=True, check=True)
    found = [[int(n) for n in line.split()] for line in done.stdout.splitlines()]
    return [bound if valid else NONE for valid, bound in found]


def test_bounds_by_lines_are_those_of_verify(executable: Path, tmp_path: Path) -> None:
    none = total = 0
    for asked in cases(80):
        assert answers(executable, asked, tmp_path) == asked.expected
        none, total = none + asked.expected.count(NONE), total + len(asked.expected)
    assert 0.02 < none / total < 0.6


def two_branches(first: int = 1, others: int = 1) -> bytes:
    """The sum of two layers: one reads the first of four inputs, one the others. Values 1 to 5: each layer's two, and the sum."""
    b = GraphBuilder()
    x = b.input(Tensor("x", (4,), "int8", 1.0, 0))
    parts = []
    for name, weight in (("first", [[first, 0, 0, 0]]), ("others", [[0, others, others, others]])):
        op = ops.Dense(ops.freeze(weight, np.int8), ops.freeze([0], np.int32), ops.freeze([1.0], np.float32))
        parts.append(b.node(op, [x], Tensor(name, (1,), "int8", 1.0, 0)))
    return write_tflite(b.finish(b.node(ops.Add(), parts, Tensor("sum", (1,), "int8", 1.0, 0))))


@pytest.mark.parametrize("steep_one", [2, 4])
def test_what_is_too_fine_to_be_added_is_paid_for(steep_one: int, executable: Path, tmp_path: Path) -> None:
    """The steep branch reads what is 0; what the other branch reads is so much finer that it is kept at its least."""
    model = two_branches(127, 1) if steep_one == 2 else two_branches(1, 127)
    program = program_of(model)
    chosen = {v: Slope(0, (2**20 - 1,)) if v == steep_one else Slope(20, (2**17,)) for v in (2, 4)}
    chosen[5] = default_slopes(program)[5]
    low, high = ([0, -9, -9, -9], [0, 30, 30, 30]) if steep_one == 2 else ([-9, 0, 0, 0], [30, 0, 0, 0])
    ends = (np.array([e], np.int8) for e in (low, high))
    known, _ = Relaxation(program, chosen).forward(*ends)
    found = asking(model, chosen, [Question(5, np.full((2, 3), 255), known, np.array([r])) for r in (1, -1, 9, -9)])
    assert NONE not in found.expected
    assert answers(executable, found, tmp_path) == found.expected


def test_lines_around_a_sum_hold_at_its_ends(executable: Path, tmp_path: Path) -> None:
    """Too steep and too flat ones, over ranges of codes that reach the last level and the last but one."""
    model = two_branches()
    program = program_of(model)
    own, full = default_slopes(program)[5], Relaxation(program, {}).forward(*(np.zeros((1, 4), np.int8),) * 2)[0]
    for factor in (0.6, 1.0, 1.2, 1.6):
        questions = []
        for low, high in ((20, 127), (60, 66), (61, 63), (-128, 127), (-128, -20), (-66, -60), (-65, -63)):
            known = list(full)
            known[2] = known[4] = (np.array([[low]]), np.array([[high]]))
            known[5] = (np.array([[-128]]), np.array([[127]]))
            questions += [
                Question(5, np.full((2, 1), k), known, np.array([sign])) for k in (64, 128, 200) for sign in (1, -1)
            ]
        found = asking(model, {5: Slope(own.q, tuple(int(v * factor) for v in own.p))}, questions)
        assert answers(executable, found, tmp_path) == found.expected


def test_lines_around_an_average_are_those_of_its_place(executable: Path, tmp_path: Path) -> None:
    """At a border an average is of fewer elements, and its lines are others."""
    rng, b = np.random.default_rng(0), GraphBuilder()
    x, op = (
        b.input(Tensor("x", (4, 5, 2), "int8", 1.0, 0)),
        ops.AvgPool((3, 3), (1, 1), ops.same_padding((4, 5), (3, 3), (1, 1))),
    )
    model = write_tflite(b.finish(b.node(op, [x], Tensor("y", (4, 5, 2), "int8", 1.0, 0))))
    program = program_of(model)
    for slope in (Slope(20, (2**20 // 9,)), Slope(20, (2**20 // 4, 2**20 // 6))):
        chosen = {2: slope}
        known, questions = bounded(rng, program, Relaxation(program, chosen)), []
        for n in range(QUERIES):
            one = [(low[n : n + 1], high[n : n + 1]) for low, high in known]
            row = rng.integers(-9, 10, (4, 5, 2)) * (rng.random((4, 5, 2)) < 0.3)
            questions.append(Question(2, rng.integers(0, 256, (2, 40)), one, row))
        found = asking(model, chosen, questions)
        assert answers(executable, found, tmp_path) == found.expected


def test_at_a_point_a_bound_is_no_more_than_the_value(executable: Path, tmp_path: Path) -> None:
    """Terms finer than a grain of the constant add up to a whole number, in which each is rounded down."""
    model = two_branches()
    program = program_of(model)
    questions = []
    for x in range(-20, 21):
        known, _ = Relaxation(program, {}).forward(*(np.array([[x, x, -x, 0]], np.int8),) * 2)
        for k in (1, 63, 129, 255):
            questions.append(Question(4, np.full((2, 2), k), known, np.array([1 - 2 * (x % 2)])))
    found = asking(model, {2: Slope(37, (2**20 - 3,)), 4: Slope(37, (2**20 - 1,))}, questions)
    assert set(found.expected) == {0}
    assert answers(executable, found, tmp_path) == found.expected
