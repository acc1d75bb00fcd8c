"""Lines around rules: for any slope they hold at every integer, and close to the rule where the slope is its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from brute import programs

from cactus_edge.errors import CertificateError
from cactus_edge.ir.atoms import AnyOf, Atom, Between, Isotone, Max, Monotone
from cactus_edge.ir.envelope import requantise_ends
from cactus_edge.ir.ops import NO_PADDING
from cactus_edge.ir.rules import Clamp, FloatAffine, FloatRequantise, Requantise, RoundDivide
from cactus_edge.verify import lines as module
from cactus_edge.verify.lines import INTERCEPT, MOST_P, ONE, Lines, Pair, Single, Slope, lines

Array = Any
Change = Callable[[Any], Lines]


def some_rule(rng: np.random.Generator) -> tuple[Atom, float]:
    """A rule of three channels, and about what it multiplies by."""
    m, s = rng.integers(2**30, 2**31, 3), rng.integers(-11, -3, 3)
    z = int(rng.integers(-128, 128))
    lo, hi = sorted(rng.integers(-128, 128, 2)) if rng.random() < 0.5 else (-128, 127)
    integer = Requantise(str(rng.choice(["D", "H", "S"])), m, s, z, int(lo), int(hi))
    floating = FloatRequantise(
        str(rng.choice(["F", "E"])), integer.slope().astype(np.float32).astype(float), z, int(lo), int(hi)
    )
    usual = float(integer.slope().max())
    match int(rng.integers(0, 7)):
        case 0:
            return Monotone(integer), usual
        case 1:
            return Monotone(floating), usual
        case 2:
            return AnyOf((Monotone(integer), Monotone(floating), Monotone(replace(integer, family="S")))), usual
        case 3:
            low, high = requantise_ends(
                0.02, integer.slope(), 0.02, rng.integers(-(2**18), 2**18, 3), (int(lo), int(hi)), ""
            )
            return Between(low, floating, high), usual
        case 4:
            divide = RoundDivide(rng.integers(1, 50, (1, 1, 1)))
            return Monotone(divide), float(divide.slope().max())
        case 5:
            scale = float(np.float32(rng.uniform(0.001, 1.5)))
            return Monotone(FloatAffine(scale, float(np.float32(rng.normal(0, 50))))), scale
        case _:
            return Monotone(Clamp(int(lo), int(hi))), 1.0


def some_slope(rng: np.random.Generator, usual: float, count: int) -> Slope:
    """Often near the rule's own, sometimes anything, also for tiny Q."""
    q = int(rng.integers(0, 8) if rng.random() < 0.2 else np.clip(19 - np.frexp(usual)[1], 0, 40))
    p = np.rint(usual * 2.0**q * rng.uniform(0, 2, count)) if rng.random() < 0.7 else rng.integers(0, MOST_P, count)
    return Slope(q, tuple(np.clip(p, 0, MOST_P - 1).astype(int).tolist()))


def check_lines(seed: int, change: Change = lambda found: found) -> None:
    """At the integers of random ranges, under random slopes."""
    rng = np.random.default_rng(seed)
    reach = np.full((1, 1, 3), int(rng.choice([127, 2000, 60_000])))
    rule, usual = some_rule(rng)
    slope = some_slope(rng, usual, int(rng.choice([1, 3])))
    found = change(lines(rule, slope, (1, 1, 3), [(-reach[None] - 1, reach[None])]))
    assert isinstance(found, Single)
    lowest, highest = module.ends_of(rule) or (None, None)
    assert lowest and highest
    for _ in range(30):
        ends = np.sort(rng.integers(-reach - 1, reach + 1, (2, 1, 1, 1, 1, 3)), 0)
        width = int(rng.choice([0, 1, 5, 400, 10**6]))
        low, high = ends[0], np.minimum(ends[1], ends[0] + width)
        k = rng.integers(0, 256, low.shape)
        x = np.linspace(low, high, 200).astype(np.int64)
        near = np.arange(300).reshape(-1, *(1,) * low.ndim)
        x = np.clip(np.concatenate([x, low + near, high - near]), low, high)
        rise = (k * found.p[0] * x).astype(object) * 2**INTERCEPT
        unit = 2 ** (found.q + ONE)
        above, below = (f(k, [(low, high)]).astype(object) * unit for f in (found.above, found.below))
        assert (highest(x).astype(object) * unit * 2**INTERCEPT <= rise + above).all()
        assert (lowest(x).astype(object) * unit * 2**INTERCEPT >= rise + below).all()


def sums() -> list[Atom]:
    found = [s.atom for p in programs(3, 8, middle=("add",), ends=("",), max_nodes=2) for s in p.steps]
    return [a for a in found if isinstance(a, Isotone)]


def check_pair(seed: int, change: Change = lambda found: found) -> None:
    """A sum's lines at every pair of codes of random boxes."""
    rng = np.random.default_rng(seed)
    atom = sums()[seed % len(sums())]
    assert isinstance(atom, Isotone)
    usual = [float(np.max(s)) for s in atom.rule.slopes(np.zeros(1), np.zeros(1))]
    q = int(rng.integers(5, 20))
    p = tuple(int(np.clip(round(u * 2**q * rng.uniform(0.5, 1.5)), 1 - MOST_P, MOST_P - 1)) for u in usual)
    full = np.array([[-128]]), np.array([[127]])
    found = change(lines(atom, Slope(q, p), (1,), [full, full]))
    codes = np.arange(-128, 128)
    for _ in range(12):
        (a, b), (c, d) = (np.sort(rng.integers(-128, 128, 2)) for _ in range(2))
        k = rng.integers(0, 160, (1, 1, 1))
        x1, x2 = (x.ravel() for x in np.meshgrid(codes[a + 128 : b + 129], codes[c + 128 : d + 129]))
        args = [(np.array([[[lo]]]), np.array([[[hi]]])) for lo, hi in ((a, b), (c, d))]
        above, below = (int(f(k, args)[0, 0, 0]) for f in (found.above, found.below))
        scaled = atom.rule.apply(x1, x2) * 2 ** (q + ONE + INTERCEPT)
        rise = int(k[0, 0, 0]) * (found.p[0] * x1 + found.p[1] * x2) * 2**INTERCEPT
        assert (scaled <= rise + above * 2 ** (q + ONE)).all() and (scaled >= rise + below * 2 ** (q + ONE)).all()


@pytest.mark.parametrize("seed", range(40))
def test_lines_hold_at_every_integer(seed: int) -> None:
    check_lines(seed)


@pytest.mark.parametrize("seed", range(16))
def test_lines_of_sums_hold_at_every_pair(seed: int) -> None:
    check_pair(seed)


@pytest.mark.parametrize(
    "fault",
    [
        lambda f: replace(f, least=f.least + (1 << f.q)),
        lambda f: replace(f, most=f.most - (1 << f.q)),
        lambda f: replace(f, highest=lambda x: f.highest(x) - 1),
        lambda f: replace(f, lowest=lambda x: f.lowest(x + 3)),
    ],
    ids=["least", "most", "off by one", "a later threshold"],
)
def test_the_line_check_sees_a_fault(fault: Change) -> None:
    with pytest.raises(AssertionError):
        for seed in range(40):
            check_lines(seed, fault)


@pytest.mark.parametrize(
    "fault",
    [
        lambda f: replace(f, over=f.over - (1 << f.q)),
        lambda f: replace(f, under=f.under + (1 << f.q)),
        lambda f: replace(f, hi=f.hi - 2),
        lambda f: replace(f, lo=f.lo + 2),
        lambda f: replace(f, p=(f.p[0], -f.p[1])),
    ],
    ids=["over", "under", "top", "bottom", "sign"],
)
def test_the_check_of_sums_sees_a_fault(fault: Change) -> None:
    def spoiled(found: Pair) -> Lines:
        wrong = fault(found)

        class Faulty(Pair):
            def above(self, k: Array, args: Array) -> Array:
                return wrong.above(k, args)

            def below(self, k: Array, args: Array) -> Array:
                return wrong.below(k, args)

        return Faulty(found.q, found.p, found.lo, found.hi, found.over, found.under)

    with pytest.raises(AssertionError):
        for seed in range(40):
            check_pair(seed, spoiled)


def test_inside_the_clamps_both_lines_are_within_a_rounding() -> None:
    rule = Monotone(Requantise("D", np.array([2**30]), np.array([-7]), 3))
    full = np.full((1, 1), -50_000), np.full((1, 1), 50_000)
    found = lines(rule, Slope(27, (2**19,)), (1,), [full])
    args = [(np.array([[[-20_000]]]), np.array([[[20_000]]]))]
    k = np.array([[[1 << ONE]]])
    assert (found.above(k, args) - found.below(k, args)) * 2.0**-INTERCEPT < 1.01


@pytest.mark.parametrize(
    ("slope", "why"),
    [
        (Slope(41, (1,)), "out of range"),
        (Slope(3, (MOST_P,)), "out of range"),
        (Slope(3, (1, 2)), "slopes for 3 channels"),
        (Slope(3, (-1,)), "none negative"),
    ],
)
def test_slopes_that_fit_no_rule_are_refused(slope: Slope, why: str) -> None:
    full = np.full((1, 1, 1, 3), -9), np.full((1, 1, 1, 3), 9)
    with pytest.raises(CertificateError, match=why):
        lines(Monotone(Clamp(0, 5)), slope, (1, 1, 3), [full])


def test_an_atom_without_lines_is_refused() -> None:
    full = np.full((1, 4, 4, 1), -9), np.full((1, 4, 4, 1), 9)
    with pytest.raises(CertificateError, match="no lines"):
        lines(Max((2, 2), (2, 2), NO_PADDING), Slope(3, (1,)), (2, 2, 1), [full])
