"""Every member of a family lies in one of its boxes, at every rounding; what is certified no member refutes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cactus_edge.errors import CertificateError, DataError, InputError, InternalError
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify import families, regions
from cactus_edge.verify.decide import certify
from cactus_edge.verify.families import Patch, Tone, read_region, tone
from cactus_edge.verify.regions import Boxes, Region, box, float32_below, points, region

Array = Any
UNIT = (Fraction(0), Fraction(1))


def net(shape: tuple[int, ...], seed: int = 0, scale: float = 1 / 255, classes: int = 2, zero: int = -128) -> Program:
    """One dense layer on an input of this shape."""
    rng = np.random.default_rng(seed)
    build = GraphBuilder()
    first = build.input(Tensor("x", shape, "int8", float(np.float32(scale)), zero))
    size = int(np.prod(shape))
    flat = build.node(ops.Reshape(), [first], Tensor("flat", (size,), "int8", float(np.float32(scale)), zero))
    weight = ops.freeze(rng.integers(-127, 128, (classes, size)), np.int8)
    bias = ops.freeze(rng.integers(-2000, 2000, classes), np.int32)
    dense = ops.Dense(weight, bias, ops.freeze([np.float32(0.02)], np.float32), ops.Activation.NONE)
    last = build.node(dense, [flat], Tensor("y", (classes,), "int8", float(np.float32(0.05 * scale * 255))))
    return lower(build.finish(last), profile("tflm"))


def codes_of(program: Program, values: list[Fraction], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The least and the largest codes of exact reals, whichever way they are rounded to float32."""
    down = np.array([float32_below(v) for v in values]).reshape(shape)
    up = np.array([-float32_below(-v) for v in values]).reshape(shape)
    return program.quantize.apply(down), program.quantize.apply(up)


def clamp(value: Fraction, domain: tuple[Fraction, Fraction]) -> Fraction:
    return min(max(value, domain[0]), domain[1])


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


# Patches.

IMAGES = [((4, 5, 2), (2, 3)), ((3, 3), (1, 1)), ((3, 4), (3, 4)), ((2, 3, 1), (1, 2))]


def check_patches() -> None:
    """Every window's every filling lies in some box, and every box is one window on the sample."""
    rng = np.random.default_rng(3)
    for shape, size in IMAGES:
        program, around = net(shape), Region((Fraction(0),), UNIT, Patch(*size))
        x = rng.integers(0, 256, (3, *shape)).astype(np.float32) / 255
        low, high, owner = around.boxes(program, x)
        rows, columns = (shape[a] - size[a] + 1 for a in (0, 1))
        assert owner.tolist() == [n for n in range(3) for _ in range(rows * columns)]
        expected = {n: [] for n in range(3)}
        for n, row, column in itertools.product(range(3), range(rows), range(columns)):
            wide, narrow = points(program, x[n][None])[0].copy(), points(program, x[n][None])[0].copy()
            window = np.s_[row : row + size[0], column : column + size[1]]
            narrow[window], wide[window] = -128, 127
            expected[n].append((narrow.tobytes(), wide.tobytes()))
            for got, want in zip(
                around.around(program, x[n], (Fraction(row), Fraction(column))), (narrow, wide), strict=True
            ):
                assert np.array_equal(got, want)
        for n in range(3):
            assert [
                (a.tobytes(), b.tobytes()) for a, b in zip(low[owner == n], high[owner == n], strict=True)
            ] == expected[n]


def test_patches() -> None:
    check_patches()


def test_a_patch_among_noise() -> None:
    program, around = net((2, 2)), Region((Fraction(3, 255),), UNIT, Patch(1, 1))
    low, high, _ = around.boxes(program, np.full((1, 2, 2), 100 / 255))
    assert low[0].tolist() == [[-128, -31], [-31, -31]] and high[0].tolist() == [[127, -25], [-25, -25]]


@pytest.mark.parametrize("part", [slice(0, 1), slice(3, 11), slice(5, 6), slice(11, 12), slice(0, 12), slice(7, 99)])
def test_any_part_of_the_boxes_is_that_part(part: slice) -> None:
    program = net((3, 3), 1)
    x = np.random.default_rng(0).random((3, 3, 3)).astype(np.float32)
    for chosen in (Patch(2, 2), tone(("-0.1", "0.1"), ("0.9", "1.1"), "mean", 2), None):
        around = Region((Fraction(1, 200),), UNIT, chosen)
        whole = around.boxes(program, x)
        for got, want in zip(around.boxes(program, x, part), whole, strict=True):
            assert np.array_equal(got, want[part])
        for got, want in zip(Boxes(program, around, x)(part), whole, strict=True):
            assert np.array_equal(got, want[part])


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


def test_no_patch_refutes_what_is_certified() -> None:
    certified = 0
    for seed in range(30):
        program = net((2, 2), seed, scale=1.0)
        domain = (Fraction(0), Fraction(5))
        x = np.random.default_rng(seed).integers(0, 6, (6, 2, 2)).astype(np.float32)
        labels = run(program, points(program, x)).argmax(1)
        around = Region((Fraction(0),), domain, Patch(1, 2))
        decision = certify(program, around, x, labels)
        for i in range(6):
            filled = []
            for row, *values in itertools.product(range(2), range(6), range(6)):
                image = x[i].copy()
                image[row] = values
                filled.append(image)
            outputs = run(program, points(program, np.stack(filled))).astype(int)
            wins = outputs[:, labels[i]] > np.delete(outputs, labels[i], 1).max(1)
            assert wins.all() or not decision.certified[i]
            certified += int(decision.certified[i])
    assert certified > 20


def test_batches_and_threads_change_nothing() -> None:
    program = net((4, 4), 5, classes=3)
    x = np.random.default_rng(1).random((7, 4, 4)).astype(np.float32)
    labels = run(program, points(program, x)).argmax(1)
    around = Region((Fraction(0),), UNIT, Patch(2, 2))
    whole = certify(program, around, x, labels)
    done: list[int] = []
    parts = certify(program, around, x, labels, batch=5, threads=3, progress=done.append)
    assert np.array_equal(whole.certified, parts.certified) and np.array_equal(whole.margin, parts.margin)
    assert done[-1] == 7 and done == sorted(done)


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


def test_checks_see_a_position_missed_at_the_border(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Patch._positions
    monkeypatch.setattr(
        Patch, "_positions", lambda self, shape: (right(self, shape)[0], max(1, right(self, shape)[1] - 1))
    )
    with pytest.raises(AssertionError):
        check_patches()


def test_checks_see_a_window_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Patch.moved

    def wrong(self: Patch, x: Array, owner: Array, position: Array) -> Any:
        return right(Patch(self.height, max(1, self.width - 1)), x, owner, position)

    monkeypatch.setattr(Patch, "moved", wrong)
    with pytest.raises((AssertionError, ValueError)):
        check_patches()


# Records, and what is refused.


@pytest.mark.parametrize(
    "chosen",
    [
        None,
        Patch(3, 3),
        tone(("-0.1", "1/3"), cells=7),
        tone(contrast=("0.8", 2), pivot="mean", cells=1),
    ],
    ids=["ball", "patch", "brightness", "contrast"],
)
@pytest.mark.parametrize("eps", [["1/16"], ["0", "1/2"]], ids=["one", "two"])
def test_a_region_is_read_as_it_was_written(chosen: Any, eps: list[str]) -> None:
    around = Region(tuple(map(Fraction, eps)), UNIT, chosen)
    assert read_region(around.record()) == around


GOOD = Region((Fraction(0),), UNIT, tone(("-0.1", "0.1"), cells=4)).record()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "polygon"},
        {"kind": None},
        {"cells": 0},
        {"cells": "4"},
        {"brightness": ["0"]},
        {"brightness": ["-1", 1]},
        {"pivot": 0},
        {"domain": ["0"]},
        {"eps": 0},
        {"kind": "patch"},
    ],
    ids=repr,
)
def test_records_of_another_form_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CertificateError):
        read_region({**GOOD, **change})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Patch(0, 0), "1 x 1"),
        (lambda: tone(("0.1", "0.2")), "the sample itself"),
        (lambda: tone(contrast=("1.1", "2")), "the sample itself"),
        (lambda: tone(contrast=("-1", "2")), "expected 0 to"),
        (lambda: tone(contrast=("1", "9999")), "expected 0 to"),
        (lambda: tone(cells=10**6), "cells"),
        (lambda: tone(("x", "1")), "brightness"),
        (lambda: tone().count((3,)), "not chosen"),
        (lambda: Patch(3, 3).count((9,)), "expected an image"),
        (lambda: Patch(3, 3).count((2, 9)), "on an image of 2 x 9"),
        (lambda: Patch(2, 2).member(np.zeros((3, 3)), (Fraction(2), Fraction(0))), "a row below 2"),
        (lambda: Patch(2, 2).member(np.zeros((3, 3)), (Fraction(1, 2), Fraction(0))), "a row below 2"),
        (lambda: Patch(2, 2).member(np.zeros((3, 3)), ()), "nothing"),
        (lambda: tone(("0", "1")).member(np.zeros(3), (Fraction(2), Fraction(1))), "inside their ranges"),
    ],
)
def test_families_that_make_no_sense(make: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()


def test_one_box_is_not_asked_of_many() -> None:
    program = net((3, 3))
    with pytest.raises(InternalError, match="not one box"):
        box(program, region(program, 0, (0, 1), Patch(2, 2)), np.zeros((1, 3, 3), np.float32))


def test_the_sample_that_is_outside_the_domain_is_named() -> None:
    program = net((3, 3))
    x = np.zeros((3, 3, 3), np.float32)
    x[2, 1, 1] = 2
    with pytest.raises(DataError, match="sample 2 holds"):
        region(program, 0, (0, 1), Patch(2, 2)).boxes(program, x, slice(8, 12))
