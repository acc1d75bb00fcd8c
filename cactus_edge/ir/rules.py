"""The rules: integer functions of a runtime with their constants filled in, exact on int64 arrays.

Which runtime takes which rule is `arithmetic.py`'s table. Every rule is non-decreasing in each argument (softmax: in its own
entry), and names the source that it restates. Scales are float32 values held as Python floats. Rules on floats use IEEE
binary32 or binary64 operations one by one, as the runtimes do; multiplying by a positive constant, clamping and rounding are
each non-decreasing, so the whole is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.arith import (
    INT8_MAX,
    INT8_MIN,
    INT32_MAX,
    exp_on_negative,
    fma_f32,
    multiply_by_quantized_multiplier,
    multiply_half_up,
    multiply_single_rounding,
    multiply_wide,
    one_over_one_plus_q0_31,
    quantize_multiplier,
    rdp,
    round_divide,
    round_half_away,
    round_half_away_f64,
    srdhm,
)
from cactus_edge.ir.envelope import EnvelopeEnd
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.ops import Activation, Float32, Int64

Float64 = npt.NDArray[np.float64]


def _half_up_in_blocks(x: Int64, multiplier: Int64, shift: Int64, size: int) -> Int64:
    """H in the channels that fill blocks of `size`, D in the rest; multiplier, shift [C]."""
    in_blocks = np.arange(multiplier.size) < multiplier.size // size * size
    return np.where(
        in_blocks,
        multiply_half_up(x, multiplier, shift),
        multiply_by_quantized_multiplier(x, multiplier, shift),
    )


REQUANTISE: Mapping[str, Callable[[Int64, Int64, Int64], Int64]] = {
    "D": multiply_by_quantized_multiplier,
    "H": multiply_half_up,
    "HD8": partial(_half_up_in_blocks, size=8),
    "HD16": partial(_half_up_in_blocks, size=16),
    "S": multiply_single_rounding,
    "W": multiply_wide,
}
"""Integer requantisation families: (accumulator, multiplier, shift) -> integer.

D: gemmlowp double rounding (TFLM, CMSIS-NN, LiteRT's reference kernels). H: ruy, ties of the second rounding up. HD8,
HD16: LiteRT's optimised depthwise convolution and mean, whose vector code rounds as H and whose scalar tail as D.
S: one rounding. W: the kernels for int16 tensors with a 64-bit bias, |accumulator| <= 2^47.
"""


@dataclass(frozen=True, eq=False)
class Requantise:
    """x -> clamp(family(x - input_zero_point; multiplier, shift) + zero_point, lo, hi). Non-decreasing in x.

    multiplier, shift int64 [C] or [1], broadcast over the last axis.
    """

    family: str
    multiplier: Int64
    shift: Int64
    zero_point: int
    lo: int = INT8_MIN
    hi: int = INT8_MAX
    input_zero_point: int = 0

    def apply(self, x: Int64) -> Int64:
        scaled = REQUANTISE[self.family](x - self.input_zero_point, self.multiplier, self.shift)
        return np.clip(scaled + self.zero_point, self.lo, self.hi)

    def slope(self) -> Float64:
        """What the rule multiplies by, roughly, float64 [C] or [1]; no proof rests on it."""
        slope: Float64 = np.ldexp(self.multiplier.astype(np.float64), self.shift - 31)
        return slope


def _float32_half_even(x: Int64, multiplier: Float64) -> Float64:
    """RNE(f32(f32(x) * f32(multiplier))); |x| <= 2^31."""
    product = x.astype(np.float32) * multiplier.astype(np.float32)
    rounded: Float64 = np.rint(product).astype(np.float64)
    return rounded


def _float64_half_away(x: Int64, multiplier: Float64) -> Float64:
    """RHA(f64(x) * multiplier); |x| <= 2^53."""
    return round_half_away_f64(x.astype(np.float64) * multiplier)


def _float32_truncated(x: Int64, multiplier: Float64) -> Float64:
    """f32(f32(x) * f32(multiplier)) toward zero; |x| <= 2^31."""
    product = x.astype(np.float32) * multiplier.astype(np.float32)
    return np.trunc(product).astype(np.float64)


FLOAT_REQUANTISE: Mapping[str, Callable[[Int64, Float64], Float64]] = {
    "F": _float32_half_even,
    "E": _float64_half_away,
    "T": _float32_truncated,
}
"""Floating-point families: (accumulator, multiplier) -> integral float64.

F: XNNPACK, ST X-CUBE-AI (XNNPACK src/xnnpack/requantization.h xnn_qs8_requantize_fp32, whose clamp before the rounding is at
integers and therefore the same as one after it). E: LiteRT reference_integer_ops/fully_connected.h. T: TinyEngine
src/kernels/fp_requantize_op/mat_mul_kernels_fpreq.c and its depthwise template.
"""


@dataclass(frozen=True, eq=False)
class FloatRequantise:
    """x -> clamp(family(x - input_zero_point; multiplier) + zero_point, lo, hi). Non-decreasing in x, |x - z| <= 2^31 (E: 2^53).

    multiplier float64 [C] or [1] >= 0, broadcast over the last axis; float32 values in families F and T.
    """

    family: str
    multiplier: Float64
    zero_point: int
    lo: int = INT8_MIN
    hi: int = INT8_MAX
    input_zero_point: int = 0

    def apply(self, x: Int64) -> Int64:
        scaled = FLOAT_REQUANTISE[self.family](x - self.input_zero_point, self.multiplier)
        # Clamped as floats: what lies beyond int64 stays on its side.
        return np.clip(scaled, self.lo - self.zero_point, self.hi - self.zero_point).astype(np.int64) + self.zero_point

    def slope(self) -> Float64:
        """What the rule multiplies by, roughly, float64 [C] or [1]; no proof rests on it."""
        return self.multiplier


@dataclass(frozen=True)
class FloatAffine:
    """x -> RNE(clamp(f32(f32(f32(x) * multiplier) + offset), lo, hi)). Non-decreasing in x, |x| <= 2^31.

    multiplier >= 0 and offset: float32 values; the zero points are folded into the offset. fused: product and sum are rounded once.
    Source: XNNPACK's int8 MEAN, two roundings on x86-64 and a fused multiply-add on aarch64.
    """

    multiplier: float
    offset: float
    lo: int = INT8_MIN
    hi: int = INT8_MAX
    fused: bool = False

    def apply(self, x: Int64) -> Int64:
        single, multiplier, offset = x.astype(np.float32), np.float32(self.multiplier), np.float32(self.offset)
        real = fma_f32(single, multiplier, offset) if self.fused else single * multiplier + offset
        rounded: Int64 = np.rint(np.clip(real, self.lo, self.hi)).astype(np.int64)
        return rounded

    def slope(self) -> Float64:
        """The multiplier, float64 [1]; no proof rests on it."""
        return np.array([self.multiplier])


@dataclass(frozen=True, eq=False)
class RoundDivide:
    """x -> clamp(x / divisor rounded half away from zero, lo, hi). Non-decreasing. divisor int64 > 0, broadcast."""

    divisor: Int64
    lo: int = INT8_MIN
    hi: int = INT8_MAX

    def apply(self, x: Int64) -> Int64:
        return np.clip(round_divide(x, self.divisor), self.lo, self.hi)

    def slope(self) -> Float64:
        """1 / divisor; no proof rests on it."""
        slope: Float64 = 1.0 / self.divisor
        return slope


@dataclass(frozen=True)
class Clamp:
    """x -> min(max(x, lo), hi). Non-decreasing."""

    lo: int
    hi: int

    def apply(self, x: Int64) -> Int64:
        return np.clip(x, self.lo, self.hi)

    def slope(self) -> Float64:
        """1."""
        return np.ones(1)


@dataclass(frozen=True)
class FloatRescale:
    """x -> clamp(RNE(f32(f32(scale_in * (x - input_zero_point)) / scale_out)) + zero_point, lo, hi). Non-decreasing in a code x.

    Source: ONNX DequantizeLinear, then QuantizeLinear (onnxruntime/core/mlas/lib/{dequantize,quantize}.cpp, qlinear_lookup_table.cc).
    """

    scale_in: float
    scale_out: float
    zero_point: int
    lo: int = INT8_MIN
    hi: int = INT8_MAX
    input_zero_point: int = 0

    def apply(self, x: Int64) -> Int64:
        real = np.float32(self.scale_in) * (x - self.input_zero_point).astype(np.float32)
        steps = np.rint(real / np.float32(self.scale_out))
        clipped: Int64 = np.clip(steps, self.lo - self.zero_point, self.hi - self.zero_point).astype(np.int64)
        return clipped + self.zero_point

    def slope(self) -> Float64:
        """scale_in / scale_out, float64 [1]; no proof rests on it."""
        return np.array([self.scale_in / self.scale_out])


Elementwise = Requantise | FloatRequantise | FloatAffine | FloatRescale | RoundDivide | Clamp | EnvelopeEnd
"""Every rule of one argument. Each dispatch over it ends in `assert_never`."""


@dataclass(frozen=True, eq=False)
class SoftmaxRule:
    """Row softmax on int8: out_i = clamp(rdp(srdhm(g, E_i), nb + 23) - 128), E_i = exponentials[x_i - max x + 255].

    exponentials int64 [256]: Q0.31 for the differences -255..0, 0 where the difference is below `difference_min`.
    (g, nb) come from the sum of rdp(E_i, 12). Source: tensorflow/lite/kernels/internal/reference/softmax.h.
    """

    exponentials: Int64

    def apply(self, x: Int64) -> Int64:
        e = self.exponentials[x - x.max(-1, keepdims=True) + 255]
        g, shift = self.reciprocal(rdp(e, 12).sum(-1, keepdims=True))
        return np.clip(rdp(srdhm(g, e), shift) + INT8_MIN, INT8_MIN, INT8_MAX)

    @staticmethod
    def reciprocal(total: Int64) -> tuple[Int64, Int64]:
        """(g, nb + 23) for the Q12.19 sum `total` in [2^19, 2^31): 256 * E / (2^12 * total) is close to srdhm(g, E) / 2^(nb + 23)."""
        total = np.asarray(total, np.int64)
        # frexp is exact below 2^53; its exponent is the bit length.
        leading = 32 - np.frexp(total.astype(np.float64))[1].astype(np.int64)
        g = one_over_one_plus_q0_31((total << leading) - (1 << 31))
        return g, 12 - leading + 23


MAX_SOFTMAX_DEPTH = 511
"""Longest softmax row: 511 exponentials of at most 2^19 stay below 2^28, so that the last shift stays within rdp's 31 bits."""


def softmax_rule(beta: float, scale: float, depth: int) -> SoftmaxRule:
    """p = min(beta * scale * 2^26, 2^31 - 1); differences scaled by D(p) into Q5.26; below -floor(31 * 2^26 / 2^ls) skipped."""
    if depth > MAX_SOFTMAX_DEPTH:
        raise UnsupportedError(f"softmax over {depth} elements: TFLM's last shift is defined up to {MAX_SOFTMAX_DEPTH}")
    product = min(float(np.float32(beta)) * scale * 2.0**26, float(INT32_MAX))
    if product <= 1:
        raise UnsupportedError(f"softmax with beta * scale = {beta * scale}: TFLM needs more than 2^-26")
    multiplier, left = quantize_multiplier(product)
    difference_min = -math.floor(31.0 * 2.0**26 / 2.0**left)
    difference = np.arange(-255, 1, dtype=np.int64)
    # At a left shift of 31 only the difference 0 is kept, so nothing is ever shifted out.
    kept = np.maximum(difference, difference_min)
    e = exp_on_negative(srdhm(kept << left, multiplier), 5)
    return SoftmaxRule(np.where(difference >= difference_min, e, 0))


@dataclass(frozen=True, eq=False)
class FloatSoftmaxRule:
    """Row softmax on int8: out_i = clamp(RHA(f32(e_i * inv)) - 128), e_i = table[x_i - max x + 255], inv = f32(1 / f32(sum / 256)).

    table float32 [256]: exponentials of the differences -255..0; the sum is in float32, in index order.
    Source: LiteRT optimized_ops.h Softmax on int8 with PopulateSoftmaxLookupTable (x86-64; on aarch64 another table is built).
    """

    table: Float32

    def apply(self, x: Int64) -> Int64:
        e = self.table[x - x.max(-1, keepdims=True) + 255]
        total = np.add.accumulate(e, axis=-1)[..., -1:]
        inverse = np.float32(1) / (total * np.float32(1 / 256))
        rounded = round_half_away_f64((e * inverse).astype(np.float64)).astype(np.int64)
        return np.clip(rounded + INT8_MIN, INT8_MIN, INT8_MAX)


LARGEST_EXPONENT = 1e38
"""Below the largest float32; from there on products are infinite, and 0 times them is no number."""


def float_softmax_rule(beta: float, scale: float) -> FloatSoftmaxRule:
    """table[255 - d] = expf(f32(f32(-scale * beta) * d)).

    exp is rounded here from double precision. A C library's expf may differ in the last place; verify leaves room for that.
    """
    difference = np.arange(-255, 1).astype(np.float32)
    if not scale * beta * 255 < LARGEST_EXPONENT:
        raise UnsupportedError(f"a softmax of scale {scale} and beta {beta}: its exponents are no float32")
    step = np.float32(scale) * np.float32(beta)
    with np.errstate(under="ignore"):
        return FloatSoftmaxRule(np.exp((step * difference).astype(np.float64)).astype(np.float32))


@dataclass(frozen=True, eq=False)
class TableSoftmaxRule:
    """Row softmax on int8: out_i = clamp(D(e_i; m, s) - 128), e_i = table[x_i - max x + 255], (m, s) = QM(f32(1 / f32(sum / 256))).

    table int64 [256]: exponentials of the differences -255..0 in steps of 1 / 65535.
    Source: LiteRT optimized_ops.h SoftmaxInt8LUT on aarch64.
    """

    table: Int64

    def apply(self, x: Int64) -> Int64:
        e = self.table[x - x.max(-1, keepdims=True) + 255]
        inverse = np.float32(1) / (e.sum(-1, keepdims=True).astype(np.float32) * np.float32(1 / 256))
        known = {value: quantize_multiplier(float(value)) for value in np.unique(inverse)}
        m, s = np.array([known[value] for value in inverse.ravel()], np.int64).T.reshape(2, *inverse.shape)
        return np.clip(multiply_by_quantized_multiplier(e, m, s) + INT8_MIN, INT8_MIN, INT8_MAX)


def table_softmax_rule(beta: float, scale: float) -> TableSoftmaxRule:
    """table[255 - d] = min(trunc(f32(expf(f32(f32(scale * beta) * -d)) * 65535) + 1/2), 65535), expf as in `float_softmax_rule`."""
    e = float_softmax_rule(beta, scale).table * np.float32(65535)
    return TableSoftmaxRule(np.minimum(np.trunc(e.astype(np.float64) + 0.5), 65535).astype(np.int64))


@dataclass(frozen=True, eq=False)
class ScaledSoftmaxRule:
    """Row softmax on int8: out_i = min(RNE(f32(256 e_i / sum)), 255) - 128, e_i = table[x_i - max x + 255].

    table float32 [256]: exponentials of the differences -255..0, all times one large factor; the sum is in float32, in index order.
    Source: onnxruntime/contrib_ops/cpu/quantization/qlinear_softmax.cc on uint8 codes (on int8 ones 256 wraps to -128).
    """

    table: Float32

    def apply(self, x: Int64) -> Int64:
        e = self.table[x - x.max(-1, keepdims=True) + 255]
        total = np.add.accumulate(e, axis=-1)[..., -1:]
        rounded: Int64 = np.rint(e * np.float32(256) / total).astype(np.int64)
        return np.minimum(rounded, 255) + INT8_MIN


def scaled_softmax_rule(scale: float, depth: int) -> ScaledSoftmaxRule:
    """table[255 - d] = f32(exp((b - d) scale)) with b = (logf(f32(FLT_MAX / depth)) - 5) / scale, in double but for the logarithm."""
    if not 2 <= depth <= 1 << 16 or not scale < LARGEST_EXPONENT:
        raise UnsupportedError(f"softmax over {depth} elements of scale {scale}: not shown equal to ONNX Runtime")
    largest = np.finfo(np.float32).max / np.float32(depth)
    shift = (float(np.float32(np.log(np.float64(largest)))) - 5) / scale
    return ScaledSoftmaxRule(np.exp((np.arange(-255.0, 1.0) + shift) * scale).astype(np.float32))


AnySoftmaxRule = SoftmaxRule | FloatSoftmaxRule | TableSoftmaxRule | ScaledSoftmaxRule
"""The meanings of SOFTMAX."""


def activation_range(activation: Activation, out: Tensor, rounding: str = "half_away") -> tuple[int, int]:
    """[lo, hi] of the activation fused into what writes `out`: the codes of its ends, intersected with those of its type.

    half_away: q(v) = zero_point + RHA(f32(v / scale)) (tensorflow/lite/kernels/kernel_util.cc
    CalculateActivationRangeQuantizedImpl). half_even_sum: q(v) = RNE(f32(f32(v / scale) + zero_point)) (XNNPACK xnn_qs8_quantize).
    """

    (least, most), scale, zero_point = out.codes, out.scale, out.zero_point

    def q(value: float) -> int:
        with np.errstate(over="ignore"):
            ratio = np.float32(value) / np.float32(scale)
        if not abs(ratio) < 2.0**31 - 128:
            raise UnsupportedError(f"a fused activation at {value} with scale {scale}: TFLM refuses {ratio:.3g} codes")
        if rounding == "half_even_sum":
            return int(np.rint(ratio + np.float32(zero_point)))
        return zero_point + round_half_away(float(ratio))

    match activation:
        case Activation.NONE:
            return least, most
        case Activation.RELU:
            return max(least, q(0.0)), most
        case Activation.RELU6:
            return max(least, q(0.0)), min(most, q(6.0))
        case Activation.RELU_N1_TO_1:
            return max(least, q(-1.0)), min(most, q(1.0))
