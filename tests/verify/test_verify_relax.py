"""Linear bounds: no execution is below them, whatever their slopes and multipliers, and they see more than intervals do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from brute import boxes, execute, inside, programs
from proof_kit import accumulators, slopes
from test_verify_mixture import mixtures

from cactus_edge.certify.linear import closest, default_slopes
from cactus_edge.errors import CertificateError
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.atoms import Isotone, Program
from cactus_edge.verify import relax as module
from cactus_edge.verify.interval import propagate
from cactus_edge.verify.lines import Pair, Single, Slope
from cactus_edge.verify.relax import NONE, Hints, Multipliers, Relaxation, Rows

Array = Any
ROWS = [PROFILES[name] for name in ("tflm", "tflm-single-rounding", "litert-ref", "litert-builtin", "litert-xnnpack")]
"""Those that run many a random network."""

DENSE: dict[str, Any] = {"middle": ("dense", "relu", "requantize"), "ends": ("",), "max_nodes": 4}


def chosen(relaxation: Relaxation, rng: np.random.Generator, known: list[Any], *, wild: bool) -> Hints:
    """Hints for every rule: those of the search, or any."""
    args = {s.out: s.args for s in relaxation.program.steps}
    found: dict[int, tuple[Array, Array]] = {}
    for value, between in relaxation.lines.items():
        below, above = closest(between, [(known[a][0][:, None], known[a][1][:, None]) for a in args[value]])
        if wild:
            below, above = (rng.integers(0, 256, k.shape) for k in (below, above))
        found[value] = below, above
    return found


def some_multipliers(rng: np.random.Generator, program: Program, n: int, r: int) -> dict[int, Multipliers]:
    found = {}
    for value in accumulators(program):
        size = int(np.prod(program.values[value].shape))
        places = rng.choice(n * r * size, min(6, n * r * size), replace=False)
        mu, s = rng.integers(-(2**14), 2**14, len(places)), rng.integers(8, 30, len(places))
        found[value] = Multipliers(places // (r * size), places // size % r, places % size, mu, s)
    return found


def bounded(relaxation: Relaxation, lo: Array, hi: Array, hints: Hints | None = None) -> tuple[list[Any], Hints]:
    """Bounds with every accumulator behind the first layer tightened, and the hints for that."""
    program = relaxation.program
    plain, _ = relaxation.forward(lo, hi)
    hints = hints or chosen(relaxation, np.random.default_rng(0), plain, wild=False)
    behind = {s.out for s in program.steps if s.args != (program.input,)} & set(accumulators(program))
    known, empty = relaxation.forward(
        lo, hi, tighten=lambda value, known: relaxation.tightened(value, known, hints) if value in behind else None
    )
    assert not empty.any()
    return known, hints


def check_rows(program: Program, seed: int, *, wild: bool = False, inexact: bool = False) -> tuple[int, int]:
    """Random sums of the values of a few steps, bounded over random boxes; (closer than intervals, rows)."""
    rng = np.random.default_rng(seed)
    relaxation = Relaxation(program, slopes(rng, program) if wild else default_slopes(program))
    if inexact:
        relaxation.exact = frozenset()
    lo, _, hi = boxes(rng, program.values[program.input].shape, 6)
    plain, _ = relaxation.forward(lo, hi)
    known, hints = bounded(relaxation, lo, hi, chosen(relaxation, rng, plain, wild=wild))
    intervals = propagate(program, lo, hi)
    better = total = 0
    for value in {program.output, *map(int, rng.permutation(len(program.values))[:3])}:
        shape = program.values[value].shape
        rows = rng.integers(-3, 4, (6, 4, *shape)) * (rng.random((6, 4, *shape)) < rng.random())
        multipliers = some_multipliers(rng, program, 6, 4) if wild else {}
        found = relaxation.lower(value, rows, known, hints, multipliers)
        low, high = (b[:, None] for b in intervals[value])
        apart = np.minimum(rows * low, rows * high).reshape(6, 4, -1).sum(2)
        better, total = better + int((found > apart).sum()), total + found.size
        for i in range(6):
            points, _ = inside(rng, lo[i], hi[i])
            for computed in (execute(rng, program, points), execute(rng, program, points)):
                sums = (rows[i][None] * computed[value][:, None]).reshape(len(points), 4, -1).sum(2)
                assert (sums >= found[i]).all()
                for v, (a, b) in enumerate(known):
                    assert (computed[v] >= a[i]).all() and (computed[v] <= b[i]).all()
    return better, total


def everything(seed: int = 0) -> list[Program]:
    """Random networks of every op under each profile, and mixtures of profiles."""
    found = mixtures(seed, 16)
    for k, row in enumerate(ROWS):
        found += programs(seed + 100 * k, 6, arithmetic=row, max_nodes=5)
    return found


def dense(count: int) -> list[Program]:
    return programs(7, count, **DENSE)


@pytest.mark.parametrize("wild", [False, True], ids=["chosen", "any"])
def test_no_execution_is_below_a_bound(wild: bool) -> None:
    for k, program in enumerate(everything()):
        check_rows(program, k, wild=wild)


def test_they_see_more_than_intervals() -> None:
    better, total = np.sum([check_rows(p, k) for k, p in enumerate(dense(20))], axis=0)
    assert better > 0.03 * total


def test_they_see_through_sums() -> None:
    better = 0
    for k, program in enumerate(programs(3, 25, middle=("dense", "add"), ends=("",), max_nodes=5)):
        sums = {s.out for s in program.steps if isinstance(s.atom, Isotone)}
        usual = default_slopes(program)
        if not sums & usual.keys():
            continue
        lo, _, hi = boxes(np.random.default_rng(k), program.values[program.input].shape, 6)
        rows = np.random.default_rng(k).integers(-3, 4, (6, 4, *program.values[program.output].shape))
        found = []
        for chosen_slopes in (usual, {v: s for v, s in usual.items() if v not in sums}):
            relaxation = Relaxation(program, chosen_slopes)
            known, hints = bounded(relaxation, lo, hi)
            found.append(relaxation.lower(program.output, rows, known, hints))
        better += int((found[0] > found[1]).sum())
    assert better > 0


@pytest.mark.parametrize("bits", [2, 6])
def test_what_rounding_coefficients_costs_is_paid(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BITS", bits)
    for k, program in enumerate(dense(12) + everything()[:8]):
        check_rows(program, k, wild=k % 2 > 0)


def free_rounding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "BITS", 4)
    real = Rows.rounded

    def rounded(self: Rows, a: Array, e: Array, bounds: Any) -> Any:
        constant = self.constant.copy()
        kept = real(self, a, e, bounds)
        self.constant = constant
        return kept

    patch.setattr(Rows, "rounded", rounded)


def swapped_lines(patch: pytest.MonkeyPatch) -> None:
    for kind in (Single, Pair):
        real_above, real_below = kind.above, kind.below
        patch.setattr(kind, "above", real_below)
        patch.setattr(kind, "below", real_above)


def lost_sign(patch: pytest.MonkeyPatch) -> None:
    real = module._adjoint
    patch.setattr(module, "_adjoint", lambda linear, a: real(linear, np.abs(a)))


def lost_bias(patch: pytest.MonkeyPatch) -> None:
    real = Rows.add
    patch.setattr(Rows, "add", lambda self, terms, e, *most: real(self, np.maximum(terms, 0), e, *most))


def upward(patch: pytest.MonkeyPatch) -> None:
    real = Rows.add
    patch.setattr(module, "GRAIN", 0)

    def add(self: Rows, terms: Array, e: Array, *most: Any) -> None:
        unit = 1 << np.clip(e, 0, 40)
        real(self, terms + unit.reshape(*e.shape, *(1,) * (terms.ndim - 2)) - 1, e, *most)

    patch.setattr(Rows, "add", add)


def largest_tap(patch: pytest.MonkeyPatch) -> None:
    real = module._max
    patch.setattr(module, "_max", lambda window, a, low, high: real(window, a, high, high))


def free_multipliers(patch: pytest.MonkeyPatch) -> None:
    real = Rows.shift

    def shift(self: Rows, value: int, by: Multipliers, bounds: Any) -> None:
        low, _ = bounds
        real(self, value, by, (low, low))

    patch.setattr(Rows, "shift", shift)


def another_column(patch: pytest.MonkeyPatch) -> None:
    real = Rows.shift

    def shift(self: Rows, value: int, by: Multipliers, bounds: Any) -> None:
        low, high = (np.roll(b.reshape(len(b), -1), 1, 1).reshape(b.shape) for b in bounds)
        real(self, value, by, (low, high))

    patch.setattr(Rows, "shift", shift)


@pytest.mark.parametrize(
    "fault",
    [
        free_rounding,
        swapped_lines,
        lost_sign,
        lost_bias,
        upward,
        largest_tap,
        free_multipliers,
        another_column,
    ],
)
def test_the_row_check_sees_a_fault(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"middle": ("max_pool", "conv2d"), "ends": ("",)} if fault is largest_tap else DENSE
    found = programs(7, 25, **options)
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        for k, program in enumerate(found * 3):
            check_rows(program, k, wild=fault in (free_multipliers, another_column))


def test_a_bound_does_not_depend_on_what_is_bounded_beside_it() -> None:
    for k, program in enumerate(everything()[:20]):
        rng = np.random.default_rng(k)
        lo, _, hi = boxes(rng, program.values[program.input].shape, 5)
        relaxation = Relaxation(program, default_slopes(program))
        rows = rng.integers(-9, 10, (5, 3, *program.values[program.output].shape))
        known, hints = bounded(relaxation, lo, hi)
        together = relaxation.lower(program.output, rows, known, hints)
        for i in range(5):
            own, alike = bounded(relaxation, lo[i : i + 1], hi[i : i + 1])
            for r in range(3):
                alone = relaxation.lower(program.output, rows[i : i + 1, r : r + 1], own, alike)
                assert alone[0, 0] == together[i, r]


def test_blocks_change_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    program = dense(1)[0]
    lo, _, hi = boxes(np.random.default_rng(0), program.values[program.input].shape, 4)
    expected, _ = bounded(Relaxation(program, default_slopes(program)), lo, hi)
    monkeypatch.setattr(module, "ELEMENTS", 1)
    again, _ = bounded(Relaxation(program, default_slopes(program)), lo, hi)
    for got, want in zip(again, expected, strict=True):
        assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])


def test_numbers_out_of_range_give_no_bound() -> None:
    """A row, not an exception and never a wrong bound; the rows beside it keep theirs."""
    program = dense(1)[0]
    lo, _, hi = boxes(np.random.default_rng(0), program.values[program.input].shape, 1)
    relaxation = Relaxation(program, default_slopes(program))
    rows = np.ones((1, 2, *program.values[program.output].shape), np.int64)
    rows[0, 1] = 2**40
    known, hints = bounded(relaxation, lo, hi)
    found = relaxation.lower(program.output, rows, known, hints)
    assert found[0, 1] == NONE < found[0, 0]


def test_sums_stay_far_from_the_end_of_int64() -> None:
    state = Rows(np.zeros((1, 1), np.int64), np.ones((1, 1), np.bool_))
    for _ in range(20):
        state.add(np.full((1, 1, 2**16), module.TERM), np.full((1, 1), module.GRAIN))
        assert abs(int(state.constant[0, 0])) <= module.TOTAL
    assert not state.valid[0, 0]


@pytest.mark.parametrize("e", [-30, -20, -3, 0, 23, 24, 25, 70, 200])
def test_a_term_is_rounded_down_to_a_grain_or_refused(e: int) -> None:
    rng = np.random.default_rng(e % 97)
    terms = np.concatenate([rng.integers(-(2**61), 2**61, 40) >> rng.integers(0, 61, 40), [0, 1, -1]])
    for term in terms.tolist():
        grains, fits = module._grains(np.array([term]), np.array([e]))
        exact = (term << (24 - e)) if e < 24 else term >> (e - 24)
        assert bool(fits[0]) == (abs(exact) <= module.TERM)
        assert not fits[0] or int(grains[0]) == exact


@pytest.mark.parametrize("bits", [3, 30, 44, 45, 61])
def test_sums_are_those_of_their_terms_rounded_one_by_one(bits: int) -> None:
    """However it is shown that every term fits."""
    rng = np.random.default_rng(bits)
    e = rng.integers(-5, 60, (6, 50))
    terms = rng.integers(-(2**bits), 2**bits, (6, 50, 4)) >> rng.integers(0, bits, (6, 50, 1))
    edge = np.where(
        e < module.GRAIN,
        module.TERM >> np.clip(module.GRAIN - e, 0, 62),
        module.TERM << np.clip(e - module.GRAIN, 0, 18),
    )
    terms[:, ::7, 0] = edge[:, ::7]
    terms[:, 1::7, 0] = -edge[:, 1::7] - rng.integers(0, 2, edge[:, 1::7].shape)
    grains, fits = module._grains(terms, e[..., None])
    for most in (np.inf, np.abs(terms).max(2).astype(np.float64), 2.0**62):
        state = Rows(np.zeros(e.shape, np.int64), np.ones(e.shape, np.bool_))
        state.add(terms.copy(), e, most)
        assert np.array_equal(state.valid, fits.all(2))
        assert np.array_equal(state.constant, np.where(fits.all(2), np.where(fits, grains, 0).sum(2), 0))


def test_weights_whose_products_are_not_exact_are_bounded_by_their_result() -> None:
    check_rows(dense(1)[0], 0, inexact=True)


@pytest.mark.parametrize(("value", "why"), [(10**6, "no step writes"), (0, "no step writes")])
def test_a_slope_for_no_rule_is_refused(value: int, why: str) -> None:
    with pytest.raises(CertificateError, match=why):
        Relaxation(dense(1)[0], {value: Slope(3, (1,))})
