"""Random proofs for tests: slopes, sheets, tightenings, multipliers and trees that nobody optimised, and the regions they are about."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from brute import execute

from cactus_edge.certify.linear import default_slopes
from cactus_edge.ir.atoms import Affine, Program
from cactus_edge.verify.check import Checker
from cactus_edge.verify.lines import Slope
from cactus_edge.verify.proof import Leaf, Multiplier, Record, Robust, Row, Split, Tighten, Tree

Array = npt.NDArray[Any]


def slopes(rng: np.random.Generator, program: Program, wild: float = 0.2) -> dict[int, Slope]:
    """Slopes near the rules' own, some of them off, some rules left out."""
    found = {}
    for value, slope in default_slopes(program).items():
        if rng.random() < wild / 2:
            continue
        factor = rng.uniform(0.5, 1.5) if rng.random() < wild else 1.0
        found[value] = Slope(slope.q, tuple(int(np.clip(p * factor, 1 - 2**20, 2**20 - 1)) for p in slope.p))
    return found


def accumulators(program: Program) -> list[int]:
    return [s.out for s in program.steps if isinstance(s.atom, Affine)]


def record(rng: np.random.Generator, checker: Checker, lower: Array, upper: Array, label: int) -> Record:
    """A claim that the region is robust, which may be wrong, with a tree of up to three splits."""
    sheets = tuple(rng.integers(0, 160, (2, checker.elements)).astype(np.uint8) for _ in range(int(rng.integers(1, 3))))
    tree = _tree(rng, checker, len(sheets), label, int(rng.integers(0, 3)))
    return Record(0, label, lower, upper, Robust(sheets, _tightenings(rng, checker, len(sheets)), tree))


def _tightenings(rng: np.random.Generator, checker: Checker, sheets: int) -> tuple[Tighten, ...]:
    some = [v for v in accumulators(checker.program) if rng.random() < 0.3]
    return tuple(Tighten(v, int(rng.integers(0, sheets))) for v in some)


def _tree(rng: np.random.Generator, checker: Checker, sheets: int, label: int, depth: int) -> Tree:
    program = checker.program
    if depth == 0:
        rows = []
        for other in range(checker.goal.classes):
            if other != label:
                p, q = rng.integers(1, 4097, 2).tolist() if rng.random() < 0.2 else (1, 1)
                if checker.goal.tail is None:
                    p = q = 1
                elif p == q == 1:
                    p, q = (int(checker.goal.tail.factors[c]) for c in (label, other))
                sheet = None if checker.goal.tail is not None and rng.random() < 0.3 else int(rng.integers(0, sheets))
                rows.append(Row(other, p, q, sheet, () if sheet is None else _multipliers(rng, program)))
        return Leaf(tuple(rows), _tightenings(rng, checker, sheets))
    value = int(rng.choice([program.input, *accumulators(program)]))
    element = int(rng.integers(0, np.prod(program.values[value].shape)))
    threshold = int(rng.integers(-128, 128) if value == program.input else rng.integers(-3000, 3000))
    parts = (_tree(rng, checker, sheets, label, depth - 1) for _ in range(2))
    return Split(value, element, threshold, *parts)


def _multipliers(rng: np.random.Generator, program: Program) -> tuple[Multiplier, ...]:
    places = {
        (v, int(rng.integers(0, np.prod(program.values[v].shape))))
        for v in accumulators(program)
        for _ in range(int(rng.integers(0, 3)))
    }
    return tuple(
        Multiplier(v, e, int(rng.integers(-(2**20), 2**20)), int(rng.integers(10, 40))) for v, e in sorted(places)
    )


def wins(rng: np.random.Generator, program: Program, points: Array, label: int) -> bool:
    """Whether the label wins strictly at the file's output for every point, whatever is chosen."""
    for _ in range(4):
        out = execute(rng, program, points)[program.output].reshape(len(points), -1)
        if not (out[:, label] > np.delete(out, label, 1).max(1)).all():
            return False
    return True
