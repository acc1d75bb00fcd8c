"""Every member of a change of brightness or contrast lies in the box of its cell, at every rounding; what is certified none refutes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from families_kit import UNIT, Array, clamp, codes_of, net
from hypothesis import given, settings
from hypothesis import strategies as st

from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.verify import families, regions
from cactus_edge.verify.decide import certify
from cactus_edge.verify.families import Tone, tone
from cactus_edge.verify.regions import Region, points


def toned(chosen: Tone, x: Array, b: Fraction, c: Fraction) -> list[Fraction]:
    """The definition: c (x - p) + p + b."""
    values = [Fraction(float(v)) for v in x.ravel()]
    pivot = sum(values) / len(values) if chosen.pivot == "mean" else Fraction(chosen.pivot)
    return [c * (v - pivot) + pivot + b for v in values]


def cell_of(value: Fraction, ends: tuple[Fraction, Fraction], cells: int) -> int:
    low, high = ends
    return 0 if low == high else min(int((value - low) / (high - low) * cells), cells - 1)


def check_member(program: Program, around: Region, x: Array, b: Fraction, c: Fraction, noise: list[Fraction]) -> None:
    """The member of these parameters and this noise lies in the box of its cell."""
    chosen = around.family
    assert isinstance(chosen, Tone)
    lower_codes, upper_codes, owner = around.boxes(program, x[None])
    assert (owner == 0).all() and len(owner) == around.count(x.shape)
    columns = 1 if chosen.contrast[0] == chosen.contrast[1] else chosen.cells
    cell = cell_of(b, chosen.brightness, chosen.cells) * columns + cell_of(c, chosen.contrast, chosen.cells)
    member = [clamp(v + n, around.domain) for v, n in zip(toned(chosen, x, b, c), noise, strict=True)]
    low, high = codes_of(program, member, x.shape)
    assert (lower_codes[cell] <= low).all() and (high <= upper_codes[cell]).all()
    exact_low, exact_high = around.around(program, x, (b, c))
    assert (exact_low <= low).all() and (high <= exact_high).all()
    assert (lower_codes[cell] <= exact_low).all() and (exact_high <= upper_codes[cell]).all()


SHARE = st.fractions(0, 1, max_denominator=1000)


@settings(max_examples=200, deadline=None)
@given(
    x=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    b=st.tuples(SHARE, SHARE, SHARE),
    c=st.tuples(SHARE, SHARE, SHARE),
    pivot=st.sampled_from(["mean", 0, "1/2", "1/3"]),
    eps=st.sampled_from([Fraction(0), Fraction(1, 1000)]),
    cells=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_members_lie_in_the_box_of_their_cell(
    x: list[float], b: Any, c: Any, pivot: Any, eps: Fraction, cells: int, seed: int
) -> None:
    chosen = tone((-b[0], b[1]), (1 - c[0], 1 + c[1]), pivot, cells)
    sides = np.random.default_rng(seed).integers(-1, 2, 4)
    check_member(
        net((4,)),
        Region((eps,), UNIT, chosen),
        np.array(x),
        -b[0] + (b[0] + b[1]) * b[2],
        1 - c[0] + (c[0] + c[1]) * c[2],
        [int(s) * eps for s in sides],
    )


def check_ends_of_cells() -> None:
    """A member at the very end of its cell that lies a hair beyond the last float32 of a code belongs to the next code."""
    program, domain, hair = net((3,), scale=0.25, zero=0), (Fraction(-30), Fraction(30)), Fraction(1, 2**70)
    rng = np.random.default_rng(0)
    for _ in range(60):
        x = rng.uniform(0.5, 4, 3)
        first = Fraction(float(x[0]))
        last = np.float32(0.25 * (int(rng.integers(1, 100)) + 0.5))
        last = (
            last
            if program.quantize.apply(last) != program.quantize.apply(np.nextafter(last, np.float32(99)))
            else np.nextafter(last, np.float32(0))
        )
        for side in (1, -1):
            end = side * (Fraction(float(last)) + hair)
            assert len(set(np.ravel(codes_of(program, [end], (1,))))) == 2
            b, c = end - first, end / first
            check_member(
                program,
                Region((Fraction(0),), domain, tone((min(b, 0), max(b, 0)), cells=2)),
                x,
                b,
                Fraction(1),
                [Fraction(0)] * 3,
            )
            if c > 0:
                around = Region((Fraction(0),), domain, tone(contrast=(min(c, 1), max(c, 1)), cells=3))
                check_member(program, around, x, Fraction(0), c, [Fraction(0)] * 3)
            for pivot in ("mean", "1/3"):
                chosen = tone(("-1/10", 0), ("0.9", 1), pivot, 2)
                at = toned(chosen, x, Fraction(0), Fraction("0.9"))[0]
                moved = tone((min(end - at, 0), max(end - at, 0)), ("0.9", 1), pivot, 2)
                check_member(
                    program, Region((Fraction(0),), domain, moved), x, end - at, Fraction("0.9"), [Fraction(0)] * 3
                )


def check_covering() -> None:
    """Members of every part of the ranges lie in some box, wherever that box stands in the order."""
    program = net((4,))
    x = np.array([0.1, 0.2, 0.7, 0.9], np.float32)
    for chosen in (tone(("-1/4", "1/4"), cells=6), tone(contrast=("1/2", "3/2"), pivot="1/2", cells=6)):
        around = Region((Fraction(0),), UNIT, chosen)
        low, high, _ = around.boxes(program, x[None])
        for k in range(49):
            b, c = (lo + (hi - lo) * k / 48 for lo, hi in (chosen.brightness, chosen.contrast))
            codes, _ = codes_of(program, [clamp(v, UNIT) for v in toned(chosen, x, b, c)], (4,))
            assert ((low <= codes) & (codes <= high)).all(1).any()


def test_ends_of_cells() -> None:
    check_ends_of_cells()


def test_the_cells_cover_the_ranges() -> None:
    check_covering()


def test_more_cells_are_never_wider() -> None:
    program = net((4,))
    x = np.array([[0.1, 0.2, 0.7, 0.9]])
    for pivot in ("mean", 0):
        wide, narrow = (
            Region((Fraction(1, 500),), UNIT, tone(("-0.1", "0.2"), ("0.8", "1.3"), pivot, cells)).boxes(program, x)
            for cells in (2, 4)
        )
        for i, j in itertools.product(range(4), repeat=2):
            parent = i // 2 * 2 + j // 2
            assert (narrow[0][4 * i + j] >= wide[0][parent]).all() and (narrow[1][4 * i + j] <= wide[1][parent]).all()


# Verdicts.


def members(program: Program, around: Region, x: Array) -> Iterator[Array]:
    """Every code vector of a one-parameter family without noise: the parameters where a code may change, and those between."""
    chosen = around.family
    assert isinstance(chosen, Tone)
    (b0, b1), (c0, c1) = chosen.brightness, chosen.contrast
    scale = Fraction(program.quantize.scale)
    flips = {b0, b1, c0, c1}
    for value, k in itertools.product([Fraction(float(v)) for v in x.ravel()], range(256)):
        border = scale * (2 * k + 1) / 2
        flips.add(border - value)
        if value:
            flips.add(border / value)
    low, high = (b0, b1) if b0 < b1 else (c0, c1)
    inside = sorted(f for f in flips if low <= f <= high)
    between = [(p + q) / 2 for p, q in itertools.pairwise(inside)]
    for value in [*inside, *between]:
        b, c = (value, c0) if b0 < b1 else (b0, value)
        yield from codes_of(program, [clamp(v, around.domain) for v in toned(chosen, x, b, c)], x.shape)


@pytest.mark.parametrize("kind", ["brightness", "contrast"])
def test_no_member_refutes_what_is_certified(kind: str) -> None:
    certified = 0
    for seed in range(12):
        program = net((3,), seed)
        x = np.random.default_rng(seed).random((6, 3)).astype(np.float32)
        labels = run(program, points(program, x)).argmax(1)
        made = {"brightness": (("-0.05", "0.05"), (1, 1)), "contrast": ((0, 0), ("0.9", "1.1"))}[kind]
        around = Region((Fraction(0),), UNIT, tone(*made, cells=8))
        decision = certify(program, around, x, labels)
        for i in np.flatnonzero(decision.certified):
            outputs = run(program, np.stack(list(members(program, around, x[i])))).astype(int)
            others = np.delete(outputs, labels[i], 1).max(1)
            assert (outputs[:, labels[i]] - others >= max(1, decision.margin[i])).all()
            certified += 1
    assert certified > 20


# Planted faults.


def test_checks_see_inward_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_down", lambda x: np.nextafter(x, np.inf))
    with pytest.raises(AssertionError):
        check_ends_of_cells()


def test_checks_see_results_that_are_not_rounded_outward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_up", lambda x: x)
    monkeypatch.setattr(families, "_down", lambda x: x)
    with pytest.raises(AssertionError):
        check_ends_of_cells()


def test_checks_see_cell_ends_rounded_inward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "_doubles", lambda values, side: np.array([float(v) - side * 1e-9 for v in values]))
    with pytest.raises(AssertionError):
        check_ends_of_cells()


def test_checks_see_a_missing_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tone, "count", lambda self, shape: 5)
    with pytest.raises(AssertionError):
        check_covering()


def test_checks_see_the_clamp_of_the_wrong_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where everything is cut off at one end of the domain, that end rounds both ways."""
    third = (Fraction(1, 3), Fraction(2, 3))

    def check() -> None:
        program = net((2,), scale=float(third[0]) / 4.5)
        around = Region((Fraction(0),), third, tone((-1, 1), cells=2))
        low, high = (codes_of(program, [end] * 2, (2,)) for end in third)
        lower_codes, upper_codes, _ = around.boxes(program, np.full((1, 2), 0.5))
        assert (lower_codes[0] <= low[0]).all() and (upper_codes[1] >= high[1]).all()
        narrow = Region((Fraction(0),), third, tone(("-1", "0"), cells=2))
        assert (narrow.boxes(program, np.full((1, 2), 0.5))[1][0] >= low[1]).all()

    check()
    cut = np.clip
    monkeypatch.setattr(
        regions.np, "clip", lambda x, a, b: cut(x, np.nextafter(a, np.float32(-1)), np.nextafter(b, np.float32(-1)))
    )
    with pytest.raises(AssertionError):
        check()
