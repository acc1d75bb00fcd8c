"""The rules of two arguments: sums and products of int8 tensors with scales of their own, exact on int64 arrays.

Which runtime takes which rule is `arithmetic.py`'s table. For every fixed value of one argument each rule is monotone in the
other; its class says in which direction. Arguments broadcast as numpy's do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from cactus_edge.ir.arith import INT8_MAX, INT8_MIN, round_half_away_f64, srdhm
from cactus_edge.ir.ops import Int64
from cactus_edge.ir.rules import REQUANTISE, FloatRequantise, Requantise


@dataclass(frozen=True)
class _GemmlowpAdd(ABC):
    """(x1, x2) -> clamp(R(term1 + sign * term2; mo,so) + z_out, lo, hi); the terms are a subclass's. All shifts are <= 0.

    R is `family` of `rules.REQUANTISE`. sign 1 (ADD): non-decreasing in both. sign -1 (SUB): non-increasing in x2.
    """

    zero_points: tuple[int, int]
    multipliers: tuple[int, int]
    shifts: tuple[int, int]
    left_shift: int
    output_multiplier: int
    output_shift: int
    zero_point: int
    lo: int
    hi: int
    sign: int = 1
    family: str = "D"

    def apply(self, x1: Int64, x2: Int64) -> Int64:
        total = self.term(0, x1) + self.sign * self.term(1, x2)
        scaled = self.scaled(total, self.output_multiplier, self.output_shift)
        return np.clip(scaled + self.zero_point, self.lo, self.hi)

    @abstractmethod
    def term(self, index: int, x: Int64) -> Int64:
        """The rescaled argument `index`, before the sum."""

    def scaled(self, x: Int64, multiplier: int, shift: int) -> Int64:
        """R(x; multiplier, shift)."""
        return REQUANTISE[self.family](x, np.asarray(multiplier, np.int64), np.asarray(shift, np.int64))

    def slopes(self, x1: Int64, x2: Int64) -> tuple[Any, Any]:
        """The derivative by each argument, roughly; no proof rests on it."""
        last = self.output_multiplier * 2.0 ** (self.output_shift - 31 + self.left_shift)
        first, second = (m * 2.0 ** (s - 31) * last for m, s in zip(self.multipliers, self.shifts, strict=True))
        return first, self.sign * second


@dataclass(frozen=True)
class AddRule(_GemmlowpAdd):
    """(x1, x2) -> clamp(R(R((x1-z1)*2^L; m1,s1) + sign * R((x2-z2)*2^L; m2,s2); mo,so) + z_out, lo, hi).

    Source: tensorflow/lite/micro/kernels/add_common.cc, reference/integer_ops/add.h, reference/sub.h.
    """

    def term(self, index: int, x: Int64) -> Int64:
        shifted = (np.asarray(x, np.int64) - self.zero_points[index]) << self.left_shift
        return self.scaled(shifted, self.multipliers[index], self.shifts[index])


@dataclass(frozen=True)
class VectorAddRule(_GemmlowpAdd):
    """AddRule with SRDHM((x-z) * 2^(L+s); m) as its terms: the shifts come first, so that each term is rounded once.

    L + s >= 0. Source: LiteRT optimized/integer_ops/add.h AddElementwiseInt8, its blocks of 16 under USE_NEON.
    """

    def term(self, index: int, x: Int64) -> Int64:
        shifted = (np.asarray(x, np.int64) - self.zero_points[index]) << (self.left_shift + self.shifts[index])
        return srdhm(shifted, self.multipliers[index])


@dataclass(frozen=True)
class FixedPointAddRule:
    """(x1, x2) -> clamp(((x1-z1)*m1 + sign*(x2-z2)*m2 + 2^(shift-1)) >> shift + z_out, lo, hi), m >= 0; signs as for sums above.

    XNNPACK adds bias + x1*m1 + x2*m2 (a negative m2 for SUB) with bias = 2^(shift-1) - z1*m1 - z2*m2; integers, so that the order is free.
    Source: XNNPACK src/microparams-init.c xnn_init_qs8_add_minmax_scalar_params, src/qs8-vadd.
    """

    zero_points: tuple[int, int]
    multipliers: tuple[int, int]
    shift: int
    zero_point: int
    lo: int
    hi: int
    sign: int = 1

    def apply(self, x1: Int64, x2: Int64) -> Int64:
        total = (1 << (self.shift - 1)) + self.term(0, x1) + self.sign * self.term(1, x2)
        clipped: Int64 = np.clip((total >> self.shift) + self.zero_point, self.lo, self.hi)
        return clipped

    def term(self, index: int, x: Int64) -> Int64:
        """The rescaled argument `index`, before the sum."""
        product: Int64 = (np.asarray(x, np.int64) - self.zero_points[index]) * self.multipliers[index]
        return product

    def slopes(self, x1: Int64, x2: Int64) -> tuple[Any, Any]:
        """The derivative by each argument; no proof rests on it."""
        return self.multipliers[0] * 2.0**-self.shift, self.sign * self.multipliers[1] * 2.0**-self.shift


@dataclass(frozen=True, eq=False)
class MulRule:
    """(x1, x2) -> requantise((x1-z1) * (x2-z2)): of x1, non-decreasing where x2 >= z2 and non-increasing where x2 <= z2.

    The requantisation is non-decreasing. Source: reference/integer_ops/mul.h; XNNPACK src/qs8-vmul.
    """

    zero_points: tuple[int, int]
    requantise: Requantise | FloatRequantise

    @property
    def lo(self) -> int:
        return self.requantise.lo

    @property
    def hi(self) -> int:
        return self.requantise.hi

    def apply(self, x1: Int64, x2: Int64) -> Int64:
        return self.requantise.apply(self.factor(0, x1) * self.factor(1, x2))

    def factor(self, index: int, x: Int64) -> Int64:
        """Argument `index` without its zero point."""
        return np.asarray(x, np.int64) - self.zero_points[index]

    def slopes(self, x1: Int64, x2: Int64) -> tuple[Any, Any]:
        """The derivative by each argument, roughly; no proof rests on it."""
        slope = self.requantise.slope()
        return slope * self.factor(1, x2), slope * self.factor(0, x1)


@dataclass(frozen=True)
class UnsignedMulRule:
    """(x1, x2) -> clamp(RNE(f32(f32((x1-z1)(x2-z2) * multiplier) + u_out)) - 128, lo, hi), u_out = z_out + 128. Monotone as MulRule.

    multiplier > 0 is a float32 value; the product of two codes is an exact one. The sum is clamped to [0, 255].
    Source: onnxruntime/core/mlas/lib/qlmul.cpp, where the graph optimiser turns int8 codes to uint8.
    """

    zero_points: tuple[int, int]
    multiplier: float
    zero_point: int
    lo: int = INT8_MIN
    hi: int = INT8_MAX

    def apply(self, x1: Int64, x2: Int64) -> Int64:
        product = (self.factor(0, x1) * self.factor(1, x2)).astype(np.float32) * np.float32(self.multiplier)
        total = product + np.float32(self.zero_point - INT8_MIN)
        codes: Int64 = np.rint(np.clip(total, 0, 255)).astype(np.int64) + INT8_MIN
        clipped: Int64 = np.clip(codes, self.lo, self.hi)
        return clipped

    def factor(self, index: int, x: Int64) -> Int64:
        """Argument `index` without its zero point."""
        return np.asarray(x, np.int64) - self.zero_points[index]

    def slopes(self, x1: Int64, x2: Int64) -> tuple[Any, Any]:
        """The derivative by each argument; no proof rests on it."""
        return self.multiplier * self.factor(1, x2), self.multiplier * self.factor(0, x1)


@dataclass(frozen=True)
class FusedAddRule:
    """(x1, x2) -> clamp(RNE(fma(u1, r1, fma(u2, r2, c))) - 128, lo, hi) on codes u = x + 128. Non-decreasing in both (r >= 0).

    c = f32(u_out - fma(u_z1, r1, f32(u_z2 * r2))) folds the zero points. ratios: float32 values in [2^-10, 2^8), so that every
    product, sum and constant is a multiple of 2^-33 below 2^19: float64 holds it, and one rounding to float32 is the fma's.
    Source: onnxruntime/core/mlas/lib/qladd.cpp on x86-64, where the graph optimiser turns int8 codes to uint8.
    """

    zero_points: tuple[int, int]
    ratios: tuple[float, float]
    zero_point: int
    lo: int = INT8_MIN
    hi: int = INT8_MAX

    def constant(self) -> float:
        """c, a float32 value."""
        (z1, z2), (r1, r2) = (z - INT8_MIN for z in self.zero_points), self.ratios
        folded = np.float32(z1 * r1 + float(np.float32(z2 * r2)))
        return float(np.float32(self.zero_point - INT8_MIN) - folded)

    def apply(self, x1: Int64, x2: Int64) -> Int64:
        u1, u2 = (np.asarray(x, np.float64) - INT8_MIN for x in (x1, x2))
        inner = (u2 * self.ratios[1] + self.constant()).astype(np.float32)
        total = (u1 * self.ratios[0] + inner.astype(np.float64)).astype(np.float32)
        codes: Int64 = np.rint(np.clip(total, 0, 255)).astype(np.int64) + INT8_MIN
        clipped: Int64 = np.clip(codes, self.lo, self.hi)
        return clipped

    def slopes(self, x1: Int64, x2: Int64) -> tuple[Any, Any]:
        """The derivative by each argument; no proof rests on it."""
        return self.ratios


@dataclass(frozen=True)
class FloatAddRule:
    """(x1, x2) -> clamp(RHA(f32(f32(a1 + a2) / S_out) + z_out), lo, hi), a_i = f32((x_i - z_i) * S_i), each step rounded to float32.

    scales: float32 values > 0. Non-decreasing in both. Source: TinyEngine fp_requantize_op/add_fpreq.c, compiled without contraction.
    """

    zero_points: tuple[int, int]
    scales: tuple[float, float]
    output_scale: float
    zero_point: int
    lo: int
    hi: int

    def apply(self, x1: Int64, x2: Int64) -> Int64:
        a, b = (
            (np.asarray(x, np.int64) - z).astype(np.float32) * np.float32(s)
            for x, z, s in zip((x1, x2), self.zero_points, self.scales, strict=True)
        )
        real = (a + b) / np.float32(self.output_scale) + np.float32(self.zero_point)
        return np.clip(round_half_away_f64(real.astype(np.float64)).astype(np.int64), self.lo, self.hi)

    def slopes(self, x1: Int64, x2: Int64) -> tuple[Any, Any]:
        """The derivative by each argument; no proof rests on it."""
        return self.scales[0] / self.output_scale, self.scales[1] / self.output_scale


@dataclass(frozen=True)
class Extreme:
    """(x1, x2) -> the larger, or the smaller, of two codes of one scale and zero point. Non-decreasing in both.

    Source: reference/maximum_minimum.h.
    """

    larger: bool
    lo: int = INT8_MIN
    hi: int = INT8_MAX

    def apply(self, x1: Int64, x2: Int64) -> Int64:
        chosen: Int64 = np.maximum(x1, x2) if self.larger else np.minimum(x1, x2)
        return chosen

    def slopes(self, x1: Int64, x2: Int64) -> tuple[Any, Any]:
        """1 by the argument that is chosen, 0 by the other; no proof rests on it."""
        first = (x1 >= x2) == self.larger
        return first.astype(np.float64), (~first).astype(np.float64)


BinaryRule = (
    AddRule | VectorAddRule | FixedPointAddRule | FusedAddRule | FloatAddRule | MulRule | UnsignedMulRule | Extreme
)
"""Every rule of two arguments."""
