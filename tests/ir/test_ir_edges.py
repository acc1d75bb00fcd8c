"""Edges of single rules: a tie of a fused product, a bias that cancels its sum, windows outside, rules of equal constants."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from cactus_edge.ir import linear, ops
from cactus_edge.ir import mixture as mixture_module
from cactus_edge.ir.arith import fma_f32
from cactus_edge.ir.atoms import AnyOf, Isotone, Step
from cactus_edge.ir.binary import AddRule, VectorAddRule
from cactus_edge.ir.envelope import requantise_ends


def test_a_fused_product_is_rounded_once_beside_a_tie() -> None:
    """Sums that lie less than half a double below a float32 tie, or above it: rounded to odd they stay on their side."""
    rng, seen = np.random.default_rng(0), 0
    for a in rng.integers(2**23, 2**24, 4000).tolist():
        for target in (2**47 - 3 * 2**17, 2**47 + 3 * 2**17):
            b = target // a
            if abs(a * b - 2**47) >= 2**19 or abs(a * b - 2**47) <= 2**18:
                continue
            x, y, c = np.float32(a), np.float32(b * 2.0**-71), np.float32(1 + 2.0**-23)
            exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(c))
            tie = Fraction(float(c)) + Fraction(1, 2**24)
            want = c if exact < tie else np.nextafter(c, np.float32(2))
            assert fma_f32(np.array([x]), y, c)[0] == want, (a, b)
            seen += 1
    assert seen > 100


@pytest.mark.parametrize("bias", [10**6, -(10**6), 3 * 10**6])
def test_a_bias_that_cancels_the_sum_keeps_the_error_of_both(bias: int) -> None:
    """Sum and bias each off by 12 roundings to float32, in opposite directions: the worst that the module's head admits."""
    (low, high), unit = requantise_ends(1.0, [1.0], 1.0, [bias], (-128, 127), ""), Fraction(12, 2**24)
    for acc in range(-100, 101):
        sum_ = acc - bias
        ends = [sum_ * (1 + s * unit) + bias * (1 + t * unit) for s in (-1, 1) for t in (-1, 1)]
        least, most = (int(rule.apply(np.array([acc]))[0]) for rule in (low, high))
        assert least <= max(min(ends), -128) + Fraction(1, 2) and min(max(ends), 127) - Fraction(1, 2) <= most


@pytest.mark.parametrize("padding", [(1, 0, 0, 0), (0, 0, 2, 1), (2, 1, 1, 2)])
def test_a_window_that_begins_outside_counts_its_taps_inside(padding: tuple[int, int, int, int]) -> None:
    pool = linear.WindowSum((3, 4, 1), (3, 3), (2, 1), ops.Padding2d(*padding))
    assert np.array_equal(pool.reach(), pool.apply(np.ones((1, 3, 4, 1), np.int64))[0])


def test_rules_of_equal_constants_are_not_one_function() -> None:
    """AddRule and VectorAddRule have the same fields, and round where the other does not."""
    constants = ((0, 0), (2**30, 2**30 + 12345), (0, -1), 20, 2**30 + 999, -19, 0, -128, 127)
    plain, vector = Isotone(AddRule(*constants), (1, 1)), Isotone(VectorAddRule(*constants), (1, 1))
    step = Step(plain, (0, 1), 2, 0)
    both = mixture_module._mixed([step, replace(step, atom=vector)]).atom
    assert isinstance(both, AnyOf) and both.atoms == (plain, vector)
    assert mixture_module._mixed([step, replace(step, atom=Isotone(AddRule(*constants), (1, 1)))]) is step
