"""Linear bounds: no execution is below them, their lines hold at every integer, and they see more than intervals do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from brute import boxes, check_verdicts, execute, inside, margins, programs
from test_verify_certificate import MODEL, X, Y, failed, issue, resealed
from test_verify_mixture import mixtures

from cactus_edge.errors import CertificateError
from cactus_edge.ir.arithmetic import PROFILES
from cactus_edge.ir.atoms import AnyOf, Atom, Between, Isotone, Monotone, Program
from cactus_edge.ir.envelope import requantise_ends
from cactus_edge.ir.rules import Clamp, FloatAffine, FloatRequantise, Requantise, RoundDivide
from cactus_edge.verify import relax as module
from cactus_edge.verify.decide import decide
from cactus_edge.verify.interval import propagate
from cactus_edge.verify.recheck import recheck
from cactus_edge.verify.relax import Lines, Relaxation, Rows, lines

Array = Any
ROWS = [PROFILES[name] for name in ("tflm", "tflm-single-rounding", "litert-ref", "litert-builtin", "litert-xnnpack")]
"""Those that run many a random network."""

DENSE: dict[str, Any] = {"middle": ("dense", "relu", "requantize"), "ends": ("",), "max_nodes": 4}


# Lines around one rule


def some_rule(rng: np.random.Generator) -> Atom:
    m, s = rng.integers(2**30, 2**31, 3), rng.integers(-11, -3, 3)
    z = int(rng.integers(-128, 128))
    lo, hi = sorted(rng.integers(-128, 128, 2)) if rng.random() < 0.5 else (-128, 127)
    integer = Requantise(str(rng.choice(["D", "H", "S"])), m, s, z, int(lo), int(hi))
    floating = FloatRequantise(
        str(rng.choice(["F", "E"])), integer.slope().astype(np.float32).astype(float), z, int(lo), int(hi)
    )
    match int(rng.integers(0, 7)):
        case 0:
            return Monotone(integer)
        case 1:
            return Monotone(floating)
        case 2:
            return AnyOf((Monotone(integer), Monotone(floating), Monotone(replace(integer, family="S"))))
        case 3:
            low, high = requantise_ends(
                0.02, integer.slope(), 0.02, rng.integers(-(2**18), 2**18, 3), (int(lo), int(hi)), ""
            )
            return Between(low, floating, high)
        case 4:
            return Monotone(RoundDivide(rng.integers(1, 50, (1, 1, 1))))
        case 5:
            return Monotone(
                FloatAffine(float(np.float32(rng.uniform(0.001, 1.5))), float(np.float32(rng.normal(0, 50))))
            )
        case _:
            return Monotone(Clamp(int(lo), int(hi)))


def check_lines(seed: int, change: Callable[[Lines], Lines] = lambda found: found) -> float:
    """At every integer of random ranges; the mean gap in the middle."""
    rng = np.random.default_rng(seed)
    reach = np.full((1, 1, 3), int(rng.choice([127, 2000, 60_000])))
    found = lines(some_rule(rng), -reach - 1, reach)
    assert found is not None
    found = change(found)
    gaps = []
    for _ in range(30):
        ends = np.sort(rng.integers(-reach - 1, reach + 1, (2, 1, 1, 3)), 0)
        width = int(rng.choice([0, 1, 5, 400, 10**6]))
        low, high = ends[0], np.minimum(ends[1], ends[0] + width)
        (a, b), (c, d) = found.above(low, high), found.below(low, high)
        x = np.linspace(low, high, 200).astype(np.int64)
        x = np.concatenate([x, low + np.arange(300).reshape(-1, 1, 1, 1), high - np.arange(300).reshape(-1, 1, 1, 1)])
        x = np.clip(x, low, high)
        assert (found.highest(x) <= a * x + b).all() and (found.lowest(x) >= c * x + d).all()
        gaps.append(float(((a - c) * (low + high) / 2 + b - d).mean()))
    return float(np.mean(gaps))


@pytest.mark.parametrize("seed", range(40))
def test_lines_hold_at_every_integer(seed: int) -> None:
    check_lines(seed)


@pytest.mark.parametrize(
    "fault",
    [
        lambda f: replace(f, least=f.least + 0.3),
        lambda f: replace(f, most=f.most - 0.3),
        lambda f: replace(f, highest=lambda x: f.highest(x) - 1),
        lambda f: replace(f, lowest=lambda x: f.lowest(x + 3)),
    ],
    ids=["least", "most", "off by one", "a later threshold"],
)
def test_the_line_check_sees_a_fault(fault: Any) -> None:
    def spoiled(found: Lines) -> Lines:
        wrong = fault(found)

        class Faulty(Lines):
            def above(self, low: Array, high: Array) -> Any:
                return wrong.above(low, high)

            def below(self, low: Array, high: Array) -> Any:
                return wrong.below(low, high)

        return Faulty(found.lowest, found.highest, found.slope, found.least, found.most)

    with pytest.raises(AssertionError):
        for seed in range(40):
            check_lines(seed, spoiled)


def test_inside_the_clamps_both_lines_are_within_a_rounding() -> None:
    rule = Monotone(Requantise("D", np.array([2**30]), np.array([-7]), 3))
    found = lines(rule, np.full(1, -50_000), np.full(1, 50_000))
    assert found is not None
    low, high = np.array([-20_000]), np.array([20_000])
    (a, b), (c, d) = found.above(low, high), found.below(low, high)
    assert a == c == found.slope and b - d < 1.01


# Rows pushed through programs


def check_rows(program: Program, seed: int, relaxation: Relaxation | None = None) -> tuple[int, int]:
    """Random sums of the values of a few steps, bounded over random boxes; (closer than intervals, rows)."""
    rng = np.random.default_rng(seed)
    relaxation = relaxation or Relaxation(program)
    lo, _, hi = boxes(rng, program.values[program.input].shape, 6)
    known = relaxation.bounds(lo, hi)
    intervals = propagate(program, lo, hi)
    better = total = 0
    for value in {program.output, *map(int, rng.permutation(len(program.values))[:3])}:
        shape = program.values[value].shape
        rows = rng.integers(-3, 4, (6, 4, *shape)) * (rng.random((6, 4, *shape)) < rng.random())
        found = relaxation.lower({value: rows.astype(float)}, known)
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


def test_no_execution_is_below_a_bound() -> None:
    for k, program in enumerate(everything()):
        check_rows(program, k)


def test_they_see_more_than_intervals() -> None:
    better, total = np.sum([check_rows(p, k) for k, p in enumerate(dense(20))], axis=0)
    assert better > 0.05 * total


@pytest.mark.parametrize("bits", [2, 6])
def test_what_rounding_coefficients_costs_is_paid(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BITS", bits)
    for k, program in enumerate(dense(12) + everything()[:8]):
        check_rows(program, k)


def free_rounding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module, "BITS", 4)

    def rounded(self: Rows, coefficients: Array, low: Array, high: Array) -> Array:
        axes = tuple(range(2, coefficients.ndim))
        unit = np.ldexp(1.0, np.frexp(np.abs(coefficients).max(axes, keepdims=True, initial=0.0))[1] - 4)
        return np.rint(coefficients / unit) * unit

    patch.setattr(Rows, "rounded", rounded)


def swapped_lines(patch: pytest.MonkeyPatch) -> None:
    real_above, real_below = Lines.above, Lines.below
    patch.setattr(Lines, "above", real_below)
    patch.setattr(Lines, "below", real_above)


def lost_sign(patch: pytest.MonkeyPatch) -> None:
    real = module._adjoint
    patch.setattr(module, "_adjoint", lambda linear, a: real(linear, np.abs(a)))


def lost_bias(patch: pytest.MonkeyPatch) -> None:
    real = Rows.add
    patch.setattr(Rows, "add", lambda self, terms, spare=1: real(self, np.maximum(terms, 0), spare))


def largest_tap(patch: pytest.MonkeyPatch) -> None:
    real = module._max
    patch.setattr(module, "_max", lambda window, a, low, high: real(window, a, high, high))


@pytest.mark.parametrize("fault", [free_rounding, swapped_lines, lost_sign, lost_bias, largest_tap])
def test_the_row_check_sees_a_fault(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"middle": ("max_pool", "conv2d"), "ends": ("",)} if fault is largest_tap else DENSE
    found = programs(7, 25, **options)
    fault(monkeypatch)
    with pytest.raises(AssertionError):
        for k, program in enumerate(found):
            check_rows(program, k)


def test_a_bound_does_not_depend_on_what_is_bounded_beside_it() -> None:
    for k, program in enumerate(everything()[:20]):
        rng = np.random.default_rng(k)
        lo, _, hi = boxes(rng, program.values[program.input].shape, 5)
        relaxation = Relaxation(program)
        rows = rng.integers(-9, 10, (5, 3, *program.values[program.output].shape)).astype(float)
        together = relaxation.lower({program.output: rows}, relaxation.bounds(lo, hi))
        for i in range(5):
            known = relaxation.bounds(lo[i : i + 1], hi[i : i + 1])
            for r in range(3):
                alone = relaxation.lower({program.output: rows[i : i + 1, r : r + 1]}, known)
                assert alone[0, 0] == together[i, r]


def test_blocks_change_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    program = dense(1)[0]
    lo, _, hi = boxes(np.random.default_rng(0), program.values[program.input].shape, 4)
    expected = Relaxation(program).bounds(lo, hi)
    monkeypatch.setattr(module, "ELEMENTS", 1)
    for got, want in zip(Relaxation(program).bounds(lo, hi), expected, strict=True):
        assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[1])


def test_numbers_out_of_range_give_no_bound() -> None:
    """A row, not an exception and never a wrong bound; the rows beside it keep theirs."""
    program = dense(1)[0]
    lo, _, hi = boxes(np.random.default_rng(0), program.values[program.input].shape, 1)
    relaxation = Relaxation(program)
    rows = np.ones((1, 2, *program.values[program.output].shape))
    rows[0, 1] = 2.0**40
    found = relaxation.lower({program.output: rows}, relaxation.bounds(lo, hi))
    assert found[0, 1] < -(2**61) < found[0, 0]


def test_sums_stay_far_from_the_end_of_int64() -> None:
    state = Rows({}, np.zeros((1, 1), np.int64), np.ones((1, 1), np.bool_))
    for _ in range(20):
        state.add(np.full((1, 1, 300), module.LARGEST / 2))
        assert abs(int(state.constant[0, 0])) < 2**62
    assert not state.valid[0, 0]


def test_weights_whose_products_are_not_exact_are_bounded_by_their_result() -> None:
    program = dense(1)[0]
    relaxation = Relaxation(program)
    relaxation._exact.clear()
    check_rows(program, 0, relaxation)


def test_an_argument_with_another_range_has_lines_of_its_own() -> None:
    """Sums of two tensors are bounded by their results."""
    for program in programs(3, 6, middle=("add",), ends=("",), max_nodes=2):
        relaxation = Relaxation(program)
        outs = {s.out for s in program.steps if isinstance(s.atom, Isotone)}
        assert outs and not outs & relaxation._lines.keys()


# Verdicts


def test_a_region_that_lines_certify_is_won_by_every_execution() -> None:
    certified = 0
    found = programs(900, 40, **DENSE) + mixtures(500, 12, decidable=True, max_nodes=3, middle=("dense", "conv2d"))
    for k, program in enumerate(found):
        if program.output_tensor.size < 2:
            continue
        certified += check_verdicts(program, k, "linear")
    assert certified > 40


def test_lines_only_add_to_what_intervals_certify() -> None:
    for k, program in enumerate(dense(15)):
        if program.output_tensor.size < 2:
            continue
        rng = np.random.default_rng(k)
        lo, x, hi = boxes(rng, program.values[program.input].shape, 8)
        labels = rng.integers(0, program.output_tensor.size, 8)
        a, b = (decide(program, lo, hi, labels, x, bounds=m) for m in ("interval", "linear"))  # type: ignore[arg-type]
        assert not (a.certified & ~b.certified).any() and (b.margin >= a.margin).all()
        assert np.array_equal(a.correct, b.correct)


def test_lines_see_what_moves_together() -> None:
    """out_0 - out_1 = 2 x - x: intervals forget that both move together."""
    found = 0
    for k, program in enumerate(programs(40, 60, middle=("dense",), ends=("",), max_nodes=2)):
        if program.output_tensor.size < 2:
            continue
        rng = np.random.default_rng(k)
        lo, x, hi = boxes(rng, program.values[program.input].shape, 10)
        labels = np.zeros(10, np.int64)
        own = decide(program, lo, hi, labels, x, bounds="linear")
        alone = decide(program, lo, hi, labels, x)
        for i in np.flatnonzero(own.certified & ~alone.certified):
            points, _ = inside(rng, lo[i], hi[i])
            assert margins(program, points, 0).min() >= 1
            found += 1
    assert found > 0


# Certificates


def test_a_certificate_says_how_it_was_bounded_and_is_rechecked_so() -> None:
    made = issue(eps="1/32", bounds="linear")
    report = recheck(made, MODEL, X, Y)
    assert report.accepted and report.record["bounds"] == "linear"
    assert recheck(issue(eps="1/32"), MODEL, X, Y).record["bounds"] == "interval"
    more = (
        report.record["verdict"]["certified"] - recheck(issue(eps="1/32"), MODEL, X, Y).record["verdict"]["certified"]
    )
    lie = resealed(lambda r: r.update(bounds="interval"), made)
    assert recheck(lie, MODEL, X, Y).accepted == (more == 0)
    if more:
        assert "verdict.certified" in failed(recheck(lie, MODEL, X, Y))


@pytest.mark.parametrize("name", ["guess", "", None, ["linear"]])
def test_an_unknown_method_is_no_certificate(name: Any) -> None:
    with pytest.raises(CertificateError, match="names no method"):
        recheck(resealed(lambda r: r.update(bounds=name)), MODEL, X, Y)
