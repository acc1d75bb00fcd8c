"""Exact fixed-point primitives on int64 arrays. A name is a contract: range, tie rule and hardware twin stand at each.

Every function takes and returns numpy int64 arrays (or Python ints) that hold int32 values, and is exact: no
intermediate leaves int64. Sources: gemmlowp/fixedpoint/fixedpoint.h, tensorflow/lite/kernels/internal/
{common.h, quantization_util.cc, reference/softmax.h}.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from cactus_edge.ir.ops import Int64

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
INT8_MIN, INT8_MAX = -128, 127
WIDE_MAX = 2**47 - 1
"""Largest sum that `multiply_wide` takes."""
LARGEST_FLOAT_BIAS = 1 << 21
"""A bias b up to here is the nearest integer to f32(b * S) / S for S rounded to float32 by anyone: the three roundings move it by less
than 3 * 2^-24 * 2^21 < 1/2."""


def srdhm(a: Int64, b: Int64 | int) -> Int64:
    """Saturating rounding doubling high multiply: floor((a*b + 2^30) / 2^31), 2^31 - 1 for a = b = -2^31.

    a, b in int32. Ties go up. Twin: NEON `vqrdmulh.s32`, MVE `vqrdmulh.s32`.
    """
    product: Int64 = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    product += 1 << 30
    product >>= 31
    return np.minimum(product, INT32_MAX)


def rdp(x: Int64, exponent: Int64 | int) -> Int64:
    """Rounding divide by 2^exponent: the nearest integer to x / 2^exponent, ties away from zero.

    x in int32, exponent in [0, 31]. Twin: gemmlowp RoundingDivideByPOT.
    """
    x, exponent = np.asarray(x, np.int64), np.asarray(exponent, np.int64)
    # floor((x + half) / 2^e) takes ties up; one less below zero takes them down there, and must not where nothing is divided.
    result: Int64 = (x >> 63) * (exponent > 0)
    result += x + ((np.int64(1) << exponent) >> 1)
    result >>= exponent
    return result


def multiply_by_quantized_multiplier(x: Int64, multiplier: Int64 | int, shift: Int64 | int) -> Int64:
    """Family D: rdp(srdhm(x * 2^max(shift, 0), multiplier), max(-shift, 0)), close to x * multiplier * 2^(shift - 31).

    x * 2^max(shift, 0) in int32 (verify proves it), multiplier in [0, 2^31 - 1], shift in [-31, 30].
    Source: common.h MultiplyByQuantizedMultiplier without TFLITE_SINGLE_ROUNDING.
    """
    shift = np.asarray(shift, np.int64)
    left = np.maximum(shift, 0)
    return rdp(srdhm(np.asarray(x, np.int64) << left, multiplier), np.maximum(-shift, 0))


def multiply_half_up(x: Int64, multiplier: Int64 | int, shift: Int64 | int) -> Int64:
    """Family H: y = srdhm(x * 2^max(shift, 0), multiplier), then floor(y / 2^r + 1/2) with r = max(-shift, 0).

    Ranges as in `multiply_by_quantized_multiplier`; ties of the second rounding go up. Source: ruy apply_multiplier.cc and its
    kernels, whose rounding shift is that of x86's and Arm's vector code.
    """
    shift = np.asarray(shift, np.int64)
    right: Int64 = np.maximum(-shift, 0)
    y = srdhm(np.asarray(x, np.int64) << np.maximum(shift, 0), multiplier)
    half = (np.ones_like(right) << right) >> 1
    result: Int64 = (y + half) >> right
    return result


def multiply_single_rounding(x: Int64, multiplier: Int64 | int, shift: Int64 | int) -> Int64:
    """Family S: floor((x * multiplier + 2^(30 - shift)) / 2^(31 - shift)): one rounding, ties up.

    x in int32, multiplier in [0, 2^31 - 1], shift in [-31, 30]: everything stays below 2^63. Source: common.h
    MultiplyByQuantizedMultiplier with TFLITE_SINGLE_ROUNDING; arm_nn_requantize with CMSIS_NN_USE_SINGLE_ROUNDING.
    """
    shift = np.asarray(shift, np.int64)
    product = np.asarray(x, np.int64) * np.asarray(multiplier, np.int64)
    result: Int64 = (product + (np.int64(1) << (30 - shift))) >> (31 - shift)
    return result


def multiply_wide(x: Int64, multiplier: Int64 | int, shift: Int64 | int) -> Int64:
    """Family W: floor((x * r + 2^(14 - shift)) / 2^(15 - shift)) with r = multiplier / 2^16 to the nearest, ties up, at most 2^15 - 1.

    |x| <= 2^47, multiplier in [0, 2^31 - 1], shift in [-31, 7]: everything stays below 2^63. Source: common.h
    MultiplyByQuantizedMultiplier for int64_t.
    """
    shift = np.asarray(shift, np.int64)
    reduced = np.minimum((np.asarray(multiplier, np.int64) + (1 << 15)) >> 16, (1 << 15) - 1)
    result: Int64 = (np.asarray(x, np.int64) * reduced + (np.int64(1) << (14 - shift))) >> (15 - shift)
    return result


def round_half_away_f64(value: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The nearest integer, ties away from zero (C `round`), elementwise, exact for every double.

    trunc and the difference are exact, so adding one where the difference reaches 1/2 never rounds; adding 1/2 first would
    (0.49999999999999994 + 0.5 = 1).
    """
    whole = np.trunc(value)
    result: npt.NDArray[np.float64] = whole + np.copysign(np.abs(value - whole) >= 0.5, value)
    return result


def fma_f32(a: npt.NDArray[np.float32], b: np.float32, c: np.float32) -> npt.NDArray[np.float32]:
    """f32(a * b + c) with one rounding, as a fused multiply-add does it.

    a * b is exact in double; the sum is rounded to odd there (its error, from TwoSum, sets the last bit), which makes the second
    rounding, to float32's 24 of 53 bits, the only one that counts (Boldo and Melquiond, IEEE TC 57(4), 2008).
    """
    product, addend = a.astype(np.float64) * np.float64(b), np.float64(c)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    even = (total.view(np.int64) & 1) == 0
    odd = np.where((error != 0) & even, np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return odd.astype(np.float32)


def round_half_away(value: float) -> int:
    """The nearest integer, ties away from zero (C `round`), exact for every finite double."""
    return (
        math.floor(Fraction(value) + Fraction(1, 2)) if value >= 0 else -math.floor(-Fraction(value) + Fraction(1, 2))
    )


def quantize_multiplier(value: float) -> tuple[int, int]:
    """(m, s) with value close to m * 2^(s - 31), m in [2^30, 2^31 - 1] or (0, 0); value a finite double >= 0.

    m = round_half_away(q * 2^31) for value = q * 2^s, q in [1/2, 1); m = 2^31 becomes (2^30, s + 1); s < -31 becomes
    (0, 0). Source: quantization_util.cc QuantizeMultiplier. Raises ValueError for a value that is negative or not finite.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"a multiplier is finite and not negative, got {value}")
    if value == 0:
        return 0, 0
    fraction, shift = math.frexp(value)
    multiplier = round_half_away(fraction * 2.0**31)
    if multiplier == 1 << 31:
        multiplier, shift = 1 << 30, shift + 1
    return (multiplier, shift) if shift >= -31 else (0, 0)


def round_divide(x: Int64, divisor: Int64 | int) -> Int64:
    """x / divisor to the nearest integer, ties away from zero: (|x| + floor(d/2)) div d with the sign of x; divisor > 0.

    Source: reference/integer_ops/pooling.h, whose C division truncates. For odd d there are no ties.
    """
    x = np.asarray(x, np.int64)
    half = np.asarray(divisor, np.int64) // 2
    result: Int64 = np.sign(x) * ((np.abs(x) + half) // divisor)
    return result


# Softmax: exp on negative Q5.26 numbers and 1/(1+x) on Q0.31, as gemmlowp computes them.

EXP_BARREL = (1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242)
"""exp(-2^j) as Q0.31 for j from -2 on."""


def exp_on_negative(a: Int64, integer_bits: int) -> Int64:
    """exp(a / 2^f) as Q0.31 for a <= 0 in int32, f = 31 - integer_bits; 2^31 - 1 for a = 0. integer_bits 4 or 5.

    Source: gemmlowp exp_on_negative_values.
    """
    a = np.asarray(a, np.int64)
    first = 31 - integer_bits - 2
    quarter = np.int64(1 << first)
    reduced = (a & (quarter - 1)) - quarter
    x = (reduced << integer_bits) + (1 << 28)
    x2 = srdhm(x, x)
    x3 = srdhm(x2, x)
    x4 = srdhm(x2, x2)
    tail = rdp(srdhm(rdp(x4, 2) + x3, 715827883) + x2, 1)
    result = 1895147668 + srdhm(np.asarray(1895147668, np.int64), x + tail)
    remainder = reduced - a
    for step, constant in enumerate(EXP_BARREL[: integer_bits + 2]):
        result = np.where(remainder & (1 << (first + step)), srdhm(result, constant), result)
    return np.where(a == 0, INT32_MAX, result)


def one_over_one_plus_q0_31(t: Int64) -> Int64:
    """1 / (1 + t / 2^31) as Q0.31 for t in [0, 2^31 - 1]. Source: gemmlowp one_over_one_plus_x_for_x_in_0_1."""
    result: Int64 = np.clip(_twice_reciprocal_q2_29(t) << 1, INT32_MIN, INT32_MAX)
    return result


def _twice_reciprocal_q2_29(t: Int64) -> Int64:
    """2 / (1 + t / 2^31) as Q2.29 for t in [0, 2^31 - 1]: three Newton steps."""
    t = np.asarray(t, np.int64)
    # RoundingHalfSum(t, 2^31 - 1): both are >= 0, so truncation rounds the half up.
    half = (t + INT32_MAX + 1) >> 1
    x = 1515870810 + srdhm(half, -1010580540)
    for _ in range(3):
        step = srdhm(x, (1 << 29) - srdhm(half, x))
        x = x + np.clip(step << 2, INT32_MIN, INT32_MAX)
    return x


def logistic_q4_27(a: Int64) -> Int64:
    """1 / (1 + exp(-a / 2^27)) as Q0.31 for a in int32. Source: gemmlowp logistic."""
    a = np.asarray(a, np.int64)
    above = one_over_one_plus_q0_31(exp_on_negative(-np.abs(a), 4))
    return np.where(a == 0, 1 << 30, np.where(a > 0, above, INT32_MAX - above))


def tanh_q4_27(a: Int64) -> Int64:
    """tanh(a / 2^27) as Q0.31 for a in int32: (1 - e) / (1 + e) with e = exp(-2 |a| / 2^27). Source: gemmlowp tanh."""
    a = np.asarray(a, np.int64)
    # The same bits in Q5.26 are twice the number.
    e = exp_on_negative(-np.abs(a), 5)
    result: Int64 = np.sign(a) * np.clip((_twice_reciprocal_q2_29(e) - (1 << 29)) << 2, INT32_MIN, INT32_MAX)
    return result
