"""Rules whose result is only known to lie between two others: a runtime that promises int8 in and out, but no order of roundings.

Such a runtime sums integers exactly and scales in float32, with its factors and its bias in any order and grouping, fused or
not, and ties to either side. With u = 2^-24, n roundings move a product by a factor of (1 + u)^n at most; so with at most 12 on
any way from an integer to the result, and T the sum of the magnitudes of what is added,

    |computed - real| <= 12.001 u T.

`ROOM` = 16 u leaves the rest for the doubles in which the ends below are computed (2^-52 of T or less). No intermediate result may
leave float32's normal range, or a rounding is no relative error: `check_range` refuses scales outside [2^-24, 2^24], between
which every product of an int32, three scales and three inverses, in any order, stays within [2^-73, 2^104].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN
from cactus_edge.ir.ops import Int64

Float64 = npt.NDArray[np.float64]

ROOM = 2.0**-20
"""Relative room of a requantisation: 12 roundings to float32, and ours."""

INPUT_ROOM = 2.0**-22
"""Relative room of QUANTIZE: x * f32(1 / S) or x / S, two roundings, and the one of the quotient that is widened by it."""

SMALLEST_SCALE, LARGEST_SCALE = 2.0**-24, 2.0**24


def check_range(scales: npt.ArrayLike, where: str) -> None:
    """Raises UnsupportedError for scales outside [2^-24, 2^24]."""
    low, high = float(np.min(scales)), float(np.max(scales))
    if not (low >= SMALLEST_SCALE and high <= LARGEST_SCALE):
        raise UnsupportedError(
            f"{where}: scales from {low:.3g} to {high:.3g}, expected them in [2^-24, 2^24], where no order of float32 "
            "operations overflows or loses bits"
        )


def nearest(v: Float64, sign: int) -> Float64:
    """The integer that v rounds to, a tie to the side of `sign` (-1: down, 1: up)."""
    rounded: Float64 = np.ceil(v - 0.5) if sign < 0 else np.floor(v + 0.5)
    return rounded


@dataclass(frozen=True, eq=False)
class EnvelopeEnd:
    """x -> clamp(nearest(x M (1 +- room) + sign * slack), lo, hi), the factor the one that moves x M towards `sign`.

    multiplier M float64 > 0 and slack float64 >= 0, both [C] or [1], broadcast over the last axis; |x| <= 2^31. Non-decreasing in x:
    on each side of 0 a product with a positive constant, both 0 there, then a constant added, rounded and clamped.
    """

    multiplier: Float64
    slack: Float64
    sign: int
    lo: int = INT8_MIN
    hi: int = INT8_MAX
    room: float = ROOM

    def apply(self, x: Int64) -> Int64:
        away, toward = 1 + self.sign * self.room, 1 - self.sign * self.room
        factor = np.where(x >= 0, self.multiplier * away, self.multiplier * toward)
        real = x.astype(np.float64) * factor + self.sign * self.slack
        return np.clip(nearest(real, self.sign), self.lo, self.hi).astype(np.int64)

    def slope(self) -> Float64:
        """The multiplier, along every axis along which a constant varies; no proof rests on it."""
        return np.broadcast_arrays(self.multiplier, self.slack)[0]


def quantise_end(quotient: Float64, sign: int) -> Float64:
    """The extreme integer, towards `sign`, to which QUANTIZE may bring x, from quotient = f32(x / S). Non-decreasing."""
    return nearest(quotient + sign * INPUT_ROOM * np.abs(quotient), sign)


def requantise_ends(
    s_in: float, s_weight: npt.ArrayLike, s_out: float, bias: npt.ArrayLike, clamp: tuple[int, int], where: str
) -> tuple[EnvelopeEnd, EnvelopeEnd]:
    """The lowest and the highest result for acc = sum + bias: acc M rounded, M = S_in S_w / S_out, zero points 0.

    The bias may join the integers or, as float32, any later sum; so T = (|sum| + |bias|) M <= (|acc| + 2 |bias|) M.
    s_weight [C] or [1], bias integers [C] or [1]. Raises UnsupportedError for scales that `check_range` refuses.
    """
    weight = np.atleast_1d(np.asarray(s_weight, np.float64))
    for scales in (s_in, weight, s_out):
        check_range(scales, where)
    multiplier = s_in * weight / s_out
    slack = 2 * ROOM * np.abs(np.atleast_1d(np.asarray(bias, np.float64))) * multiplier
    low, high = (EnvelopeEnd(multiplier, slack, sign, *clamp) for sign in (-1, 1))
    return low, high
