"""A region's own small network computes the exact checker's bounds, and its gradient is that of its bounds."""

from __future__ import annotations

import numpy as np
import pytest
from search_kit import network

from cactus_edge.certify import local
from cactus_edge.certify.condensed import chain, entries
from cactus_edge.certify.linear import Linear
from cactus_edge.certify.local import Local
from cactus_edge.certify.slopes import Twin
from cactus_edge.ir.atoms import Program
from cactus_edge.verify.check import Checker
from cactus_edge.verify.relax import NONE, Multipliers

torch = pytest.importorskip("torch")

PROGRAMS = [network(seed, hidden=(9, 7), classes=4, inputs=6) for seed in range(8)]


def regional(program: Program, seed: int) -> tuple[Local, Checker, int, list[tuple[np.ndarray, np.ndarray]]]:
    """The search in one random box, the checker, the value that rows are of, and the box's bounds [1, *shape]."""
    rng = np.random.default_rng(seed)
    checker = Linear(program).checker
    twin = Twin(checker.relaxation, checker.sheet)
    assert checker.goal.tail is not None
    value = checker.goal.tail.value
    shape = program.values[program.input].shape
    lower = rng.integers(-128, 60, (1, *shape))
    known, _ = checker.relaxation.forward(lower, lower + rng.integers(0, 60, lower.shape))
    layers = chain(program, value, twin)
    assert layers is not None
    assert entries(program, layers, [(lo[0], hi[0]) for lo, hi in known]) > 0
    return Local(twin, layers, [(lo[0], hi[0]) for lo, hi in known]), checker, value, known


def apart(program: Program, seed: int, count: int = 6) -> float:
    """The largest distance of its bounds from the exact ones, of random rows, slopes and multipliers, relative to the largest term."""
    rng = np.random.default_rng(seed)
    own, checker, value, known = regional(program, seed)
    shape = program.values[value].shape
    rows = rng.integers(-3, 4, (count, *shape))
    # Elsewhere rules are constant, and so are their lines.
    sheets = np.zeros((count, 1, 2, checker.elements), np.uint8)
    sheets[..., own._sheet] = rng.integers(0, 129, (count, 1, 2, own.size))
    places, start, shifts = {}, {}, {}
    for matrix in own.matrices:
        if matrix.rule is not None and len(matrix.kept):
            at = matrix.rule.args[0]
            element, mu = rng.choice(matrix.kept, count), rng.integers(-(2**23), 2**23, count)
            places[at], start[at] = (np.arange(count), element), mu / 2.0**24
            shifts[at] = Multipliers(np.zeros(count, np.int64), np.arange(count), element, mu, np.full(count, 24))
    hints = checker.hints(sheets[:, 0][None])
    exact = checker.relaxation.lower(value, rows[None], known, hints, shifts)[0]
    need = np.full(count, 1e30)
    where = np.zeros(count, np.int64)
    found = own.search(
        rows.astype(np.float64), known, where, sheets, steps=0, rate=0.1, need=need, places=places, start=start
    )
    assert all(np.allclose(found.multipliers[v], start[v], rtol=1e-5) for v in start)
    assert np.array_equal(found.sheets, sheets[:, 0])
    size = 1e-4 * max(
        float(np.abs(c * np.maximum(np.abs(known[v][0]), np.abs(known[v][1]))).sum()) for v, c in found.seen.items()
    )
    return max((abs(e - b) / (1 + size) for e, b in zip(exact, found.bound, strict=True) if e != NONE), default=0.0)


def test_bounds_are_the_checkers() -> None:
    assert max(apart(program, seed) for seed, program in enumerate(PROGRAMS)) <= 1.0


def test_a_bound_that_is_off_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(self: Local, *args: object) -> object:
        below, above = original(self, *args)
        return (below[0] + 3, below[1], below[2] + 3, below[3]), above

    original = Local._lines
    monkeypatch.setattr(Local, "_lines", shifted)
    assert max(apart(program, seed) for seed, program in enumerate(PROGRAMS)) > 1.0


def slope_error(program: Program, seed: int) -> float:
    """How far the written gradient is from torch's, relative to its largest element."""
    rng = np.random.default_rng(seed)
    own, _, value, known = regional(program, seed)
    if not own.size:
        return 0.0
    facts = own._facts(known, np.zeros(3, np.int64))
    a = own.twin.tensor(rng.normal(size=(3, *program.values[value].shape)))
    theta = own.twin.tensor(rng.uniform(0.05, 0.95, (3, 3, own.size)))
    scale = own.twin.tensor(rng.uniform(0.5, 2, (3, own.size)))
    free = theta.clone().requires_grad_(True)
    bound, _ = own._down(a, facts, free[:2].transpose(0, 1), free[2] * scale)
    bound.sum().backward()
    with torch.no_grad():
        _, seen = own._down(a, facts, theta[:2].transpose(0, 1), theta[2] * scale)
        written = own._up(seen, facts, theta, scale)
    return float((written - free.grad).abs().max() / (1e-9 + free.grad.abs().max()))


def test_the_gradient_is_that_of_the_bound() -> None:
    assert max(slope_error(program, seed) for seed, program in enumerate(PROGRAMS)) < 1e-3


def test_a_gradient_along_the_wrong_line_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(line: local.Line, slope: object) -> object:
        one, other = original(line, slope)
        return other, one

    original = local._two
    monkeypatch.setattr(local, "_two", exchanged)
    assert max(slope_error(program, seed) for seed, program in enumerate(PROGRAMS)) > 1e-3
