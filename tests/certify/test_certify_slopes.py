"""The float twin computes the exact checker's bounds, whatever the slopes; and what it searches for is better than it began."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
from brute import boxes
from search_kit import decidable

from cactus_edge.certify import bound, slopes
from cactus_edge.certify.bound import Bounder, Part, stacked
from cactus_edge.certify.complete import Budget, Complete
from cactus_edge.certify.linear import Linear
from cactus_edge.certify.slopes import Facts, Twin
from cactus_edge.errors import InternalError
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify import check
from cactus_edge.verify.check import Checker, Path, cut
from cactus_edge.verify.interval import Bounds
from cactus_edge.verify.proof import Leaf, Robust, Split
from cactus_edge.verify.relax import NONE

torch = pytest.importorskip("torch")


def differences(program: Program, seed: int) -> float:
    """The largest distance of the twin's bounds from the exact ones, relative to the largest term; random slopes and rows."""
    rng = np.random.default_rng(seed)
    linear = Linear(program)
    checker, goal = linear.checker, linear.checker.goal
    twin = Twin(checker.relaxation, checker.sheet)
    value = goal.logits if goal.tail is None else goal.tail.value
    shape = program.values[value].shape
    lower, _, upper = boxes(rng, program.values[program.input].shape, 5)
    known, _ = checker.relaxation.forward(lower, upper)
    rows = rng.integers(-3, 4, (5, *shape))
    sheets = rng.integers(0, 129, (5, 2, checker.elements)).astype(np.uint8)
    exact = checker.relaxation.lower(value, rows[:, None], known, checker.hints(sheets[:, None]))[:, 0]
    facts = Facts(twin, known, np.arange(5))
    found = twin.search(value, rows.astype(np.float64), facts, sheets[:, None], steps=0, rate=0.1)
    terms = [
        sum(
            float(np.abs(found.seen[v][n] * np.maximum(np.abs(known[v][0][n]), np.abs(known[v][1][n]))).sum())
            for v in found.seen
        )
        for n in range(5)
    ]
    apart = (abs(e - f) / (1 + t * 1e-4) for e, f, t in zip(exact, found.bound, terms, strict=True) if e != NONE)
    return max(map(float, apart), default=0.0)


def test_the_twin_has_the_checkers_bounds() -> None:
    for seed, program in enumerate(decidable(4_000, 40)):
        assert differences(program, seed) <= 1.0


def test_a_twin_that_is_off_by_a_step_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(self: Twin, *args: object) -> object:
        below, above = original(self, *args)
        return below + 2, above - 2

    original = slopes.Twin._intercepts
    monkeypatch.setattr(slopes.Twin, "_intercepts", shifted)
    assert max(differences(program, seed) for seed, program in enumerate(decidable(4_000, 10))) > 1.0


def test_search_never_ends_below_its_start_and_often_above() -> None:
    better = 0
    for seed, program in enumerate(decidable(4_100, 12)):
        rng = np.random.default_rng(seed)
        bounder = Bounder(Linear(program))
        lower, _, upper = boxes(rng, program.values[program.input].shape, 5)
        regions = bounder.regions(lower, upper, rng.integers(0, bounder.goal.classes, 5))
        once, often = ([Part(r) for r in regions] for _ in range(2))
        bounder.evaluate(once, 0)
        bounder.evaluate(often, 30)
        for a, b in zip(once, often, strict=True):
            assert b.gap <= a.gap + 1e-3 * a.gap + 2
            better += b.gap < a.gap
    assert better >= 3


def resized(seed: int) -> Program:
    """A resize, whose accumulators are no contiguous array, and two dense layers."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder()
    x = b.input(Tensor("x", (2, 3, 2), "int8", 0.125, 0))
    x = b.node(ops.ResizeBilinear(False, False), [x], Tensor("resized", (3, 4, 2), "int8", 0.125, 0))
    for name, rows, columns, activation in (("hidden", 8, 24, ops.Activation.RELU), ("out", 3, 8, ops.Activation.NONE)):
        weight, bias = rng.integers(-127, 128, (rows, columns)), rng.integers(-500, 500, rows)
        scale = ops.freeze([2.0**-9], np.float32)
        dense = ops.Dense(ops.freeze(weight, np.int8), ops.freeze(bias, np.int32), scale, activation=activation)
        x = b.node(dense, [x], Tensor(name, (rows,), "int8", 0.25, -128 if name == "hidden" else 0))
    return lower(b.finish(x), profile("tflm"))


def test_a_split_cuts_the_bounds_of_every_value() -> None:
    """Wherever the value's array lies in memory, and by the words of the checker."""
    program = resized(0)
    middle = np.zeros((1, 2, 3, 2), np.int8)
    for value in range(len(program.values)):
        known, _ = Checker(program, {}).relaxation.forward(middle - 9, middle + 9)
        low, high = (b[0].ravel().copy() for b in known[value])
        for element in range(len(low)):
            threshold = int(low[element] + high[element]) // 2
            for above, end in ((False, 1), (True, 0)):
                cut_known = [(lo.copy(order="K"), hi.copy(order="K")) for lo, hi in known]
                cut(cut_known, 0, ((value, element, threshold, above),))
                wanted = (low.copy(), high.copy())
                wanted[end][element] = threshold if above else min(high[element], threshold - 1)
                assert np.array_equal([b[0].ravel() for b in cut_known[value]], wanted)


def split_values(tree: Split | Leaf) -> set[int]:
    """The values that a proof's tree splits."""
    return set() if isinstance(tree, Leaf) else {tree.value} | split_values(tree.below) | split_values(tree.above)


def test_a_proof_that_splits_a_resize_is_taken() -> None:
    """Found by branching, for a region that no pass without splits decides."""
    program, rng = resized(3), np.random.default_rng(3)
    x = rng.integers(-60, 60, (3, 2, 3, 2)).astype(np.int8)[2:3]
    search = Complete(program, Budget(nodes=300))
    (found,) = search.records(x - 10, x + 10, np.zeros(1, np.int64), run(program, x).reshape(1, -1).argmax(1), x)
    assert isinstance(found.record.verdict, Robust)
    assert program.steps[0].out in split_values(found.record.verdict.tree)
    assert Checker(program, search.linear.slopes).holds([found.record]).all()


def test_a_split_cuts_a_value_that_is_one_number() -> None:
    """Of shape (), as a mean over everything has it."""
    known = [(np.array([-5, -5]), np.array([5, 5]))]
    cut(known, 1, ((0, 0, 2, True),))
    cut(known, 0, ((0, 0, 1, False),))
    assert np.array_equal(known[0], [[-5, 2], [0, 5]])


@pytest.mark.parametrize("module", [check, bound])
def test_planted_fault_a_split_that_is_written_to_a_copy(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(known: list[Bounds], n: int, path: Path) -> None:
        cut([(lo.copy(order="C"), hi.copy(order="C")) if lo.ndim == 4 else (lo, hi) for lo, hi in known], n, path)

    monkeypatch.setattr(module, "cut", lost)
    with pytest.raises((AssertionError, InternalError)):
        test_a_proof_that_splits_a_resize_is_taken()


def test_bounds_of_a_part_are_the_checkers() -> None:
    """`stacked` and the pass over what a split touches give the numbers of a whole pass."""
    for seed, program in enumerate(decidable(4_200, 10)):
        rng = np.random.default_rng(seed)
        bounder = Bounder(Linear(program))
        lower, _, upper = boxes(rng, program.values[program.input].shape, 4)
        regions = bounder.regions(lower, upper, np.zeros(4, np.int64))
        parts = []
        for region in regions:
            low, high = (b.ravel() for b in region.known[program.input])
            element = int(rng.integers(0, len(low)))
            parts += Part(region).split(program.input, element, int((low[element] + high[element]) // 2 + 1))
        bounder.evaluate(parts, 0, deep=False)
        known = stacked([p.region.known for p in parts])
        for n, part in enumerate(parts):
            ((value, element, threshold, above),) = part.path
            low, high = (b[n].ravel() for b in known[value])
            if above:
                low[element] = max(low[element], threshold)
            else:
                high[element] = min(high[element], threshold - 1)
        whole, empty = bounder.checker.relaxation.forward(*known[program.input], known)
        for n, part in enumerate(parts):
            assert part.empty == empty[n]
            for v, (low, high) in enumerate(part.known):
                assert part.empty or (np.array_equal(low, whole[v][0][n]) and np.array_equal(high, whole[v][1][n]))
