"""The primitives against their definitions in unbounded Python integers and rationals."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cactus_edge.ir import arith

INT32 = st.integers(-(2**31), 2**31 - 1)


def c_division(a: int, b: int) -> int:
    return abs(a) // b * (1 if a >= 0 else -1)


def srdhm_as_gemmlowp_spells_it(a: int, b: int) -> int:
    if a == b == -(2**31):
        return 2**31 - 1
    product = a * b
    return c_division(product + (2**30 if product >= 0 else 1 - 2**30), 2**31)


def half_away(value: Fraction) -> int:
    return int(math.copysign(math.floor(abs(value) + Fraction(1, 2)), value)) if value else 0


@given(INT32, INT32)
def test_srdhm_equals_the_nudge_and_truncate_spelling(a: int, b: int) -> None:
    assert arith.srdhm(np.int64(a), b) == srdhm_as_gemmlowp_spells_it(a, b)


def test_srdhm_saturates_its_only_overflow() -> None:
    assert arith.srdhm(np.int64(-(2**31)), -(2**31)) == 2**31 - 1


@given(INT32, st.integers(0, 31))
def test_rdp_rounds_half_away(x: int, exponent: int) -> None:
    assert arith.rdp(np.int64(x), exponent) == half_away(Fraction(x, 2**exponent))


@pytest.mark.parametrize(("x", "exponent", "expected"), [(-3, 1, -2), (3, 1, 2), (-1, 1, -1), (1, 1, 1), (-5, 0, -5)])
def test_rdp_ties(x: int, exponent: int, expected: int) -> None:
    assert arith.rdp(np.int64(x), exponent) == expected


def test_rdp_exhaustively_on_small_numbers() -> None:
    x = np.arange(-(2**12), 2**12)
    for exponent in range(10):
        expected = [half_away(Fraction(int(v), 2**exponent)) for v in x]
        assert np.array_equal(arith.rdp(x, exponent), expected)


def test_planted_fault_half_up_instead_of_half_away_is_seen() -> None:
    x = np.arange(-64, 64)
    half_up = (x + 1) >> 1
    assert not np.array_equal(arith.rdp(x, 1), half_up)


def test_published_vector_where_only_one_rounding_happens() -> None:
    assert arith.multiply_by_quantized_multiplier(np.int64(-1032852841), 1578349059, 0) == -759122106


@given(st.integers(-(2**20), 2**20), st.integers(2**30, 2**31 - 1), st.integers(-31, 10))
def test_family_d_is_two_roundings_of_the_exact_product(x: int, m: int, s: int) -> None:
    high = math.floor(Fraction((x << max(s, 0)) * m, 2**31) + Fraction(1, 2))
    expected = half_away(Fraction(high, 2 ** max(-s, 0)))
    assert arith.multiply_by_quantized_multiplier(np.int64(x), m, s) == expected


@given(st.integers(-(2**20), 2**20), st.integers(2**30, 2**31 - 1), st.integers(-31, 10))
def test_family_d_stays_within_its_published_slack(x: int, m: int, s: int) -> None:
    exact = Fraction(x * m) * Fraction(2) ** (s - 31)
    e = max(-s, 0)
    slack = Fraction(1, 2) + Fraction(1, 2 ** (e + 1)) if e else Fraction(1, 2)
    assert abs(int(arith.multiply_by_quantized_multiplier(np.int64(x), m, s)) - exact) <= slack


@given(st.integers(2**30, 2**31 - 1), st.integers(-12, 4))
def test_family_d_is_monotone(m: int, s: int) -> None:
    y = arith.multiply_by_quantized_multiplier(np.arange(-5000, 5000), m, s)
    assert (np.diff(y) >= 0).all()


@given(st.floats(1e-9, 1e8))
def test_quantize_multiplier_is_the_nearest_31_bit_fraction(value: float) -> None:
    m, s = arith.quantize_multiplier(value)
    assert 2**30 <= m < 2**31
    assert abs(Fraction(m) * Fraction(2) ** (s - 31) - Fraction(value)) <= Fraction(2) ** (s - 32)


def test_quantize_multiplier_edges() -> None:
    assert arith.quantize_multiplier(0.0) == (0, 0)
    assert arith.quantize_multiplier(1.0) == (2**30, 1)
    assert arith.quantize_multiplier(1.0 - 2.0**-40) == (2**30, 1)
    assert arith.quantize_multiplier(2.0**-33) == (0, 0)
    assert arith.quantize_multiplier(2.0**31) == (2**30, 32)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError):
            arith.quantize_multiplier(bad)


@given(st.floats(-1e12, 1e12))
def test_round_half_away(value: float) -> None:
    assert arith.round_half_away(value) == half_away(Fraction(value))


def test_round_half_away_where_adding_a_half_in_double_goes_wrong() -> None:
    assert arith.round_half_away(0.49999999999999994) == 0
    assert arith.round_half_away(-2.5) == -3


@given(st.integers(-(2**20), 2**20), st.integers(1, 5000))
def test_round_divide(x: int, d: int) -> None:
    expected = c_division(x + d // 2, d) if x > 0 else c_division(x - d // 2, d)
    assert arith.round_divide(np.int64(x), d) == expected


def test_exp_on_negative_values_follows_exp() -> None:
    a = -np.arange(0, 31 * 2**26, 99991)
    error = arith.exp_on_negative(a, 5) / 2.0**31 - np.exp(a / 2.0**26)
    assert np.abs(error).max() < 4e-7
    assert arith.exp_on_negative(np.int64(0), 5) == 2**31 - 1


def test_reciprocal_follows_one_over_one_plus_x() -> None:
    t = np.arange(0, 2**31, 65537)
    error = arith.one_over_one_plus_q0_31(t) / 2.0**31 - 1 / (1 + t / 2.0**31)
    assert np.abs(error).max() < 5e-9


def nearest_f32(value: Fraction) -> float:
    """The float32 nearest to a rational, ties to even, without a double in between."""
    around = np.float32(float(value))
    near = [np.nextafter(around, np.float32(-np.inf)), around, np.nextafter(around, np.float32(np.inf))]
    return float(min(near, key=lambda v: (abs(Fraction(float(v)) - value), int(v.view(np.int32)) & 1)))


F32 = st.floats(2.0**-40, 2.0**20, width=32)


@given(st.integers(-(2**24), 2**24), F32, F32, st.booleans())
def test_fma_rounds_once(x: int, b: float, c: float, negative: bool) -> None:
    c = -c if negative else c
    got = float(arith.fma_f32(np.float32([x]), np.float32(b), np.float32(c))[0])
    assert got == nearest_f32(Fraction(x) * Fraction(b) + Fraction(c))


def test_fma_where_two_roundings_differ() -> None:
    """1 + 2^-24 + 2^-60: a tie in float32 once the double has lost 2^-60, and above it in truth."""
    x, b, c = np.float32([2**20 + 1]), np.float32(2.0**-44), np.float32(1)
    exact = Fraction(2**20 + 1, 2**44) + 1
    assert float(arith.fma_f32(x, b, c)[0]) == nearest_f32(exact)
    tie = np.float32([1 + 2.0**-23])
    got = arith.fma_f32(tie, np.float32(2.0**-24 * (1 - 2.0**-23)), np.float32(1))
    exact = Fraction(float(tie[0])) * Fraction(float(np.float32(2.0**-24 * (1 - 2.0**-23)))) + 1
    assert exact < 1 + Fraction(1, 2**24) and float(got[0]) == nearest_f32(exact) == 1.0
    up = arith.fma_f32(tie, np.float32(2.0**-24), np.float32(1))
    assert float(up[0]) == nearest_f32(1 + Fraction(2**23 + 1, 2**47)) == float(np.float32(1 + 2.0**-23))
