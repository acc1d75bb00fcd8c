"""Regions are never rounded inward: every real, every float32 of a ball quantises inside its int8 box."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cactus_edge.errors import DataError, InputError
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify import regions
from cactus_edge.verify.regions import (
    Boxes,
    Region,
    below,
    box,
    check_data,
    data_digest,
    exact,
    float32_below,
    points,
    region,
)

Array = Any


def sensor(scale: float = 1 / 255, zero_point: int = -128, shape: tuple[int, ...] = (1,)) -> Program:
    """A program whose input has this quantisation."""
    build = GraphBuilder()
    first = build.input(Tensor("x", shape, "int8", float(np.float32(scale)), zero_point))
    last = build.node(ops.Reshape(), [first], Tensor("y", shape, "int8", float(np.float32(scale)), zero_point))
    return lower(build.finish(last), profile("tflm"))


def float32_between(low: Fraction, high: Fraction) -> Array:
    """Every float32 in [low, high], in order; there must be few."""
    values = [float32_below(low)]
    while Fraction(float(values[-1])) <= high:
        values.append(np.nextafter(values[-1], np.float32(np.inf)))
        assert len(values) < 20_000
    return np.array([v for v in values if low <= Fraction(float(v)) <= high], np.float32)


def check_ball(program: Program, x: float, eps: Fraction, domain: tuple[Fraction, Fraction]) -> None:
    """Every float32 of the ball, and every float32 next to one of its reals, quantises inside; the box is no larger than its ends."""
    sample = np.array([[x]])
    lower_code, upper_code = box(program, Region((eps,), domain), sample)
    low, high = max(Fraction(x) - eps, domain[0]), min(Fraction(x) + eps, domain[1])
    outward = np.array([float32_below(low), -float32_below(-high)])
    members = np.concatenate([float32_between(low, high), outward])
    codes = program.quantize.apply(members)
    assert lower_code[0, 0] <= codes.min() and codes.max() <= upper_code[0, 0]
    assert {int(lower_code[0, 0]), int(upper_code[0, 0])} <= set(program.quantize.apply(outward).tolist())


BALLS = [
    (x, eps) for x in (0.5, 0.1, 1 / 3, 1.0, 100.5 / 255) for eps in (0, Fraction(1, 10**6), Fraction(1, 3 * 10**5))
]


@pytest.mark.parametrize(("x", "eps"), BALLS)
def test_every_float32_of_a_small_ball(x: float, eps: Fraction) -> None:
    for centre in (x, float(np.float32(x))):
        check_ball(sensor(), min(centre, 1.0), Fraction(eps), (Fraction(0), Fraction(1)))


def test_a_ball_of_subnormals() -> None:
    check_ball(sensor(2.0**-149), 0.0, Fraction(1, 2**144), (Fraction(-1), Fraction(1)))


def test_balls_whose_end_is_a_rounding_tie() -> None:
    """x + eps lies exactly on the border of a code (S = 1/4: ties at odd eighths), and one float32 beside it."""
    program = sensor(0.25, 3)
    for tie in (Fraction(1, 8), Fraction(-3, 8), Fraction(29, 8)):
        for eps in (Fraction(1, 2**20), Fraction(1, 10**6), Fraction(1, 2**21) + Fraction(1, 2**60)):
            for x in (tie - eps, tie + eps, tie):
                check_ball(program, float(x), eps, (Fraction(-30), Fraction(30)))


@settings(max_examples=300)
@given(
    x=st.floats(-30, 30),
    eps=st.fractions(0, 1, max_denominator=10**9).map(lambda e: e / 10**6),
    scale=st.floats(2.0**-10, 2.0),
    zero_point=st.integers(-128, 127),
)
def test_sampled_reals_quantise_inside(x: float, eps: Fraction, scale: float, zero_point: int) -> None:
    program = sensor(scale, zero_point)
    lower_code, upper_code = box(program, Region((eps,), (Fraction(-30), Fraction(30))), np.array([[x]]))
    for k in range(9):
        real = Fraction(x) - eps + 2 * eps * k / 8
        if -30 <= real <= 30:
            code = program.quantize.apply(np.array([float32_below(real), -float32_below(-real)]))
            assert lower_code[0, 0] <= code.min() and code.max() <= upper_code[0, 0]


@given(
    x=st.floats(-(2.0**90), 2.0**90),
    radius=st.one_of(st.floats(0, 2.0**90), st.sampled_from([0.1, 1 / 16, 2.0**-149, 2.0**-1074])),
)
def test_below_is_the_largest_float32_not_above(x: float, radius: float) -> None:
    got = below(np.array([x]), np.array([radius]))[0]
    true = Fraction(x) - Fraction(radius)
    assert Fraction(float(got)) <= true < Fraction(float(np.nextafter(got, np.float32(np.inf))))


# Planted faults: rounding inward must turn the checks red.


def _all_checks() -> None:
    test_balls_whose_end_is_a_rounding_tie()
    for x, eps in BALLS:
        test_every_float32_of_a_small_ball(x, eps)


def test_checks_see_an_eps_rounded_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "double_above", lambda e: float(np.float16(e)) * 0.5)
    with pytest.raises(AssertionError):
        _all_checks()


@pytest.mark.parametrize("fault", ["nearest", "inward"])
def test_checks_see_ends_rounded_inward(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Array, radius: Array) -> Array:
        near = (x - radius).astype(np.float32)
        return near if fault == "nearest" else np.nextafter(near, np.float32(np.inf))

    monkeypatch.setattr(regions, "below", wrong)
    with pytest.raises(AssertionError):
        _all_checks()
        for k in range(400):
            x, eps = (k + 0.5) / 255 - 1e-9, Fraction(1, 10**9)
            if x <= 1:
                check_ball(sensor(), x, eps, (Fraction(0), Fraction(1)))


# What regions are, and what they refuse.


def test_the_domain_cuts_the_ball() -> None:
    program = sensor()
    lower_code, upper_code = box(program, region(program, "1/2", (0, 1)), np.array([[0.25], [1.0]], np.float32))
    assert lower_code.tolist() == [[-128], [-1]] and upper_code.tolist() == [[63], [127]]


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "mixed", "float64", "int8", "box"])
def test_the_memo_changes_nothing(kind: str) -> None:
    rng = np.random.default_rng(0)
    program = sensor(shape=(50,))
    steps = 65535 if kind == "16 bits" else 255
    x = (rng.integers(0, steps + 1, (300, 50)) / steps).astype(np.float32)
    if kind == "mixed":
        x[rng.random(x.shape) < 0.01] = 0.123
    x = {"float64": x.astype(np.float64), "int8": rng.integers(-128, 128, x.shape).astype(np.int8)}.get(kind, x)
    chosen = region(program, ["0.1"] * 49 + [0] if kind == "box" else "0.1", None if kind == "int8" else (0, 1))
    boxes = Boxes(program, chosen, x)
    for start in range(0, 300, 20):
        *got, owner = boxes(slice(start, start + 20))
        assert owner.tolist() == list(range(start, start + 20))
        for codes, expected in zip(got, box(program, chosen, x[start : start + 20]), strict=True):
            assert codes.dtype == np.int8 and np.array_equal(codes, expected)


def test_the_memo_never_answers_for_a_neighbour() -> None:
    program = sensor()
    chosen = region(program, 0, (0, 1))
    border = np.float32(100.5 / 255)
    boxes = Boxes(program, chosen, np.array([[border]]))
    for x in (np.nextafter(border, np.float32(0)), border, np.nextafter(border, np.float32(1)), np.float32(-0.0)):
        boxes.x = np.array([[x]])
        assert [int(c[0, 0]) for c in boxes()[:2]] == [int(c[0, 0]) for c in box(program, chosen, boxes.x)]
    for bad in (np.nan, np.inf, -np.inf, 3e38, 1.5):
        boxes.x = np.array([[bad]], np.float32)
        with pytest.raises(DataError):
            boxes()


def test_one_eps_per_feature() -> None:
    program = sensor(1.0, 0, (2,))
    chosen = region(program, [2, "0.25"], (-10, 10))
    assert chosen.kind == "box" and chosen.eps == (2, Fraction(1, 4))
    lower_code, upper_code = box(program, chosen, np.array([[5.0, 5.0]]))
    assert lower_code.tolist() == [[3, 5]] and upper_code.tolist() == [[7, 5]]
    with pytest.raises(InputError, match="3 values of eps for 2 features"):
        box(program, region(program, [1, 2, 3], (-10, 10)), np.array([[5.0, 5.0]]))


def test_int8_codes_stand_for_their_real_value() -> None:
    program = sensor(0.1, 7)
    x = np.array([[-128], [0], [127]], np.int8)
    whole = region(program, 0)
    assert box(program, whole, x)[0].tolist() == box(program, whole, x)[1].tolist() == x.tolist()
    lower_code, upper_code = box(program, region(program, "0.26"), x)
    assert lower_code.tolist() == [[-128], [-3], [124]] and upper_code.tolist() == [[-125], [3], [127]]
    assert np.array_equal(points(program, x), x)


@pytest.mark.parametrize(
    "eps", ["-1/16", -1, "nan", float("nan"), float("inf"), "1e999", "2", 1.5, "", "1/0", None, "x", "9" * 500]
)
def test_eps_that_makes_no_region(eps: Any) -> None:
    with pytest.raises(InputError, match=r"(?i)eps|number|range"):
        region(sensor(), eps if eps is not None else [None], (0, 1))


def test_a_float_eps_means_its_binary_value() -> None:
    assert exact(0.1, "eps") != Fraction(1, 10) == exact("0.1", "eps")


def test_a_domain_upside_down() -> None:
    with pytest.raises(InputError, match="lower end below"):
        region(sensor(), 0, (1, 0))


@pytest.mark.parametrize("bad", [1.5, -0.5, float("nan"), float("inf")])
def test_data_outside_the_domain(bad: float) -> None:
    with pytest.raises(DataError, match="sample 1 holds"):
        box(sensor(), region(sensor(), "1/16", (0, 1)), np.array([[0.5], [bad]], np.float32))


def test_a_domain_end_that_is_no_float32_holds_its_float32_neighbour() -> None:
    x = np.array([[0.1]], np.float32)
    assert Fraction(float(x[0, 0])) > Fraction(1, 10)
    box(sensor(), region(sensor(), 0, (0, "0.1")), x)


def test_data_and_labels_that_do_not_fit() -> None:
    program = sensor(1.0, 0, (3,))
    x, y = np.zeros((2, 3), np.float32), np.array([0, 2])
    assert check_data(program, x, y).tolist() == [0, 2]
    for bad_x, bad_y in (
        (np.zeros((2, 4), np.float32), y),
        (x.astype(np.int32), y),
        (x, y.astype(np.float32)),
        (x, np.array([0, 3])),
        (x, np.array([-1, 0])),
        (x, np.array([0])),
        (x[:0], y[:0]),
    ):
        with pytest.raises(DataError, match="expected"):
            check_data(program, bad_x, bad_y)


def test_the_data_digest_sees_every_change() -> None:
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([0, 1])
    changed = x.copy()
    changed[1, 2] = np.nextafter(changed[1, 2], np.float32(9))
    others = [(changed, y), (x.reshape(3, 2), y), (x.astype(np.float64), y), (x, y[::-1]), (-0.0 * x, y), (0.0 * x, y)]
    digests = {data_digest(a, b) for a, b in [(x, y), *others]}
    assert len(digests) == 1 + len(others)
    assert data_digest(x, y.astype(np.uint8)) == data_digest(x.astype(">f4"), y) == data_digest(np.asfortranarray(x), y)
    with pytest.raises(DataError, match="integers"):
        data_digest(x, y.astype(float))


@pytest.mark.parametrize("width", ["1/1" + "0" * 30, "1/1" + "0" * 60, "1e-45"])
@pytest.mark.parametrize("low", [0, 1])
def test_a_domain_that_floats_cannot_tell_apart_or_number(low: int, width: str) -> None:
    """Only the table of samples' boxes is of floats: without it the boxes are the same."""
    program = sensor(shape=(3,))
    chosen = region(program, 0, (low, low + Fraction(width)))
    x = np.full((2, 3), low, np.float32)
    for got, want in zip(Boxes(program, chosen, x)()[:2], box(program, chosen, x), strict=True):
        assert np.array_equal(got, want)
