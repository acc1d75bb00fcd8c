"""The named arithmetics: what each runtime computes, rule by rule.

A *rule* is an integer function with its constants filled in; all rules here are exact on int64. A *profile* is
(runtime, version range, CPU class) -> one rule id per op kind; adding a runtime adds a row to `PROFILES` and, at most,
an entry to the rule tables below. Scales are float32 values held as Python floats.

Facts: the runtimes' sources named at each rule, confirmed by running them (tests/formats).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError, UnsupportedError
from cactus_edge.ir.arith import (
    INT8_MAX,
    INT8_MIN,
    INT32_MAX,
    exp_on_negative_q5_26,
    multiply_by_quantized_multiplier,
    one_over_one_plus_q0_31,
    quantize_multiplier,
    rdp,
    round_divide,
    round_half_away,
    srdhm,
)
from cactus_edge.ir.ops import Activation, Float32, Int8, Int64

REQUANTISE: Mapping[str, Callable[[Int64, Int64, Int64], Int64]] = {"D": multiply_by_quantized_multiplier}
"""Requantisation families: (accumulator, multiplier, shift) -> integer. D: gemmlowp double rounding (TFLM, CMSIS-NN)."""


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


@dataclass(frozen=True, eq=False)
class RoundDivide:
    """x -> clamp(x / divisor rounded half away from zero, lo, hi). Non-decreasing. divisor int64 > 0, broadcast."""

    divisor: Int64
    lo: int = INT8_MIN
    hi: int = INT8_MAX

    def apply(self, x: Int64) -> Int64:
        return np.clip(round_divide(x, self.divisor), self.lo, self.hi)


@dataclass(frozen=True)
class Clamp:
    """x -> min(max(x, lo), hi). Non-decreasing."""

    lo: int
    hi: int

    def apply(self, x: Int64) -> Int64:
        return np.clip(x, self.lo, self.hi)


@dataclass(frozen=True)
class AddRule:
    """(x1, x2) -> clamp(D(D((x1-z1)*2^L; m1,s1) + D((x2-z2)*2^L; m2,s2); mo,so) + z_out, lo, hi). Non-decreasing in both.

    All shifts are <= 0. Source: tensorflow/lite/micro/kernels/add_common.cc, reference/integer_ops/add.h.
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

    def apply(self, x1: Int64, x2: Int64) -> Int64:
        total = self.term(0, x1) + self.term(1, x2)
        scaled = multiply_by_quantized_multiplier(total, self.output_multiplier, self.output_shift)
        return np.clip(scaled + self.zero_point, self.lo, self.hi)

    def term(self, index: int, x: Int64) -> Int64:
        """The rescaled argument `index`, before the sum."""
        shifted = (np.asarray(x, np.int64) - self.zero_points[index]) << self.left_shift
        return multiply_by_quantized_multiplier(shifted, self.multipliers[index], self.shifts[index])


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
    e = exp_on_negative_q5_26(srdhm(kept << left, multiplier))
    return SoftmaxRule(np.where(difference >= difference_min, e, 0))


@dataclass(frozen=True)
class QuantizeRule:
    """float32 x -> clamp(round(f32(x / scale)) + zero_point). `rounding`: half_away (TFLM, LiteRT reference) or half_even."""

    scale: float
    zero_point: int
    rounding: str

    def apply(self, x: Float32) -> Int8:
        """int8 codes of float32 x. Raises InputError for NaN and for |x / scale| near 2^31: C leaves their conversion undefined."""
        with np.errstate(over="ignore", invalid="ignore"):
            real = (np.asarray(x, np.float32) / np.float32(self.scale)).astype(np.float64)
        if not (np.abs(real) < 2.0**31 - 128).all():
            raise InputError(
                "the data contain NaN, infinities or values beyond 2^31 input steps, which no two runtimes quantise alike",
                hint="clean the data, or clip them to the sensor's range",
            )
        if self.rounding == "half_away":
            rounded = np.trunc(real + np.copysign(0.5, real))
        else:
            rounded = np.rint(real)
        codes: Int8 = np.clip(rounded + self.zero_point, INT8_MIN, INT8_MAX).astype(np.int8)
        return codes


def activation_range(activation: Activation, scale: float, zero_point: int) -> tuple[int, int]:
    """[lo, hi] of the fused activation: q(v) = zero_point + half_away(f32(v / scale)), intersected with int8.

    Source: tensorflow/lite/kernels/kernel_util.cc CalculateActivationRangeQuantizedImpl.
    """

    def q(value: float) -> int:
        with np.errstate(over="ignore"):
            ratio = float(np.float32(value) / np.float32(scale))
        if not abs(ratio) < 2.0**31 - 128:
            raise UnsupportedError(f"a fused activation at {value} with scale {scale}: TFLM refuses {ratio:.3g} codes")
        return zero_point + round_half_away(ratio)

    match activation:
        case Activation.NONE:
            return INT8_MIN, INT8_MAX
        case Activation.RELU:
            return max(INT8_MIN, q(0.0)), INT8_MAX
        case Activation.RELU6:
            return max(INT8_MIN, q(0.0)), min(INT8_MAX, q(6.0))
        case Activation.RELU_N1_TO_1:
            return max(INT8_MIN, q(-1.0)), min(INT8_MAX, q(1.0))


def _double_product(s_in: float, s_weight: npt.NDArray[np.float64], s_out: float) -> npt.NDArray[np.float64]:
    return s_in * s_weight / s_out


def _float32_product(s_in: float, s_weight: npt.NDArray[np.float64], s_out: float) -> npt.NDArray[np.float64]:
    return (np.float32(s_in) * s_weight.astype(np.float32)).astype(np.float64) / s_out


def _float32_ratio(s_in: float, s_weight: npt.NDArray[np.float64], s_out: float) -> npt.NDArray[np.float64]:
    return s_weight * float(np.float32(s_in) / np.float32(s_out))


REAL_MULTIPLIERS: Mapping[str, Callable[[float, npt.NDArray[np.float64], float], npt.NDArray[np.float64]]] = {
    "double": _double_product,
    "float32_product": _float32_product,
    "float32_ratio": _float32_ratio,
}
"""How a runtime forms S_in * S_w / S_out before it quantises it (S_w = 1 where there are no weights).

double: every operation in double (kernel_util.cc PopulateConvolutionQuantizationParams). float32_product: S_in * S_w rounded to
float32 (kernel_util.cc GetQuantizedConvolutionMultipler). float32_ratio: S_in / S_out rounded to float32
(micro/kernels/activations_common.cc CalculateReluOpData).
"""


ACCUMULATING = frozenset({"Conv2d", "DepthwiseConv2d", "Dense", "DensePerChannel", "Mean"})
"""Ops that requantise a sum, whose range `verify.overflow` bounds; the others requantise one code, at most 255 in magnitude."""


def _shift_in_range(kind: str, value: float, largest: int = 30) -> tuple[int, int]:
    """`quantize_multiplier`, refused where it shifts left by more than `largest` bits, since int32 would then wrap."""
    multiplier, shift = quantize_multiplier(value)
    if shift > largest:
        raise UnsupportedError(f"{kind}: a multiplier of {value:.3g} shifts left by {shift} bits, more than {largest}")
    return multiplier, shift


@dataclass(frozen=True)
class Profile:
    """One runtime's arithmetic. `rules` maps an op kind to rule ids: (requantisation family, real-multiplier rule) or one id."""

    name: str
    runtime: str
    versions: str
    cpu: str
    rules: Mapping[str, tuple[str, ...]] = field(hash=False)
    source: str

    def digest(self) -> str:
        """SHA-256 (hex) of the profile's row, so that a certificate names exactly this arithmetic."""
        row = asdict(self) | {"rules": {k: list(v) for k, v in sorted(self.rules.items())}}
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()

    def rule(self, kind: str) -> tuple[str, ...]:
        """The rule ids for op kind `kind`. Raises UnsupportedError where this runtime was not shown to run it."""
        try:
            return self.rules[kind]
        except KeyError:
            raise UnsupportedError(
                f"profile {self.name!r} has no rule for {kind}: it was not shown equal to {self.runtime}"
            ) from None

    def multipliers(self, kind: str, s_in: float, s_weight: npt.ArrayLike, s_out: float) -> tuple[str, Int64, Int64]:
        """(family, m, s) of the op's requantisation; m, s int64 with one entry per entry of s_weight (float32)."""
        family, real = self.rule(kind)
        values = REAL_MULTIPLIERS[real](s_in, np.atleast_1d(np.asarray(s_weight, np.float64)), s_out)
        largest = 30 if kind in ACCUMULATING else 23
        pairs = [_shift_in_range(kind, float(v), largest) for v in values]
        return family, np.array([m for m, _ in pairs], np.int64), np.array([s for _, s in pairs], np.int64)

    def add(
        self, scales: tuple[float, float], zero_points: tuple[int, int], s_out: float, z_out: int, act: Activation
    ) -> AddRule:
        """The rule of ADD: t = 2 max(S1, S2), (m_i, s_i) = QM(S_i / t), (m_o, s_o) = QM(t / (2^20 S_out)), all in double."""
        (rule,) = self.rule("Add")
        if rule != "D_shift20":
            raise UnsupportedError(f"profile {self.name!r}: unknown ADD rule {rule!r}")
        twice = 2.0 * max(scales)
        reals = [scales[0] / twice, scales[1] / twice, twice / (2.0**20 * s_out)]
        if reals[2] >= 1:
            raise UnsupportedError(
                f"ADD with output scale {s_out} far below its inputs' {scales}: TFLM refuses a multiplier of {reals[2]:.3g}"
            )
        (m1, s1), (m2, s2), (mo, so) = (quantize_multiplier(r) for r in reals)
        lo, hi = activation_range(act, s_out, z_out)
        return AddRule(zero_points, (m1, m2), (s1, s2), 20, mo, so, z_out, lo, hi)

    def mean(self, s_in: float, z_in: int, s_out: float, z_out: int, count: int) -> Requantise:
        """The rule of MEAN on the sum over `count` elements: k = min(floor(log2 n), 32, 31 + s0), m = floor(m0 2^k / n), s = s0 - k.

        Source: tensorflow/lite/kernels/internal/reference/reduce.h QuantizedMeanOrSum.
        """
        family, _ = self.rule("Mean")
        m0, s0 = _shift_in_range("Mean", s_in / s_out)
        k = min(count.bit_length() - 1, 32, 31 + s0)
        m, s = (m0 << k) // count, s0 - k
        return Requantise(family, np.array([m]), np.array([s]), z_out, input_zero_point=z_in * count)

    def quantize(self, scale: float, zero_point: int) -> QuantizeRule:
        """The rule that maps float32 inputs to the graph's int8 input."""
        return QuantizeRule(scale, zero_point, self.rule("Quantize")[0])


PROFILES: Mapping[str, Profile] = {
    "tflm": Profile(
        name="tflm",
        runtime="TensorFlow Lite for Microcontrollers, reference and CMSIS-NN kernels (and the C that cactus-edge writes)",
        versions="0.5 (2021) to 2026-10 (wheel 0.dev20261023182759)",
        cpu="any; integer only, built without TFLITE_SINGLE_ROUNDING",
        rules={
            "Conv2d": ("D", "double"),
            "DepthwiseConv2d": ("D", "double"),
            "Dense": ("D", "float32_product"),
            "DensePerChannel": ("D", "double"),
            "Add": ("D_shift20",),
            "AvgPool": ("half_away",),
            "MaxPool": ("max",),
            "Mean": ("D", "folded_count"),
            "Pad": ("copy",),
            "Concat": ("copy",),
            "Reshape": ("copy",),
            "Relu": ("D", "float32_ratio"),
            "Relu6": ("clamp",),
            "Requantize": ("D", "double"),
            "Quantize": ("half_away",),
            "Dequantize": ("float32",),
            "Softmax": ("gemmlowp_q5_26",),
        },
        source="tensorflow/lite/micro/kernels, tensorflow/lite/kernels/internal/reference; vectors in tests/formats and tests/ir",
    )
}
"""Every profile by name. A profile enters this table only with vectors from the real runtime."""


def profile(name: str) -> Profile:
    """The profile `name`. Raises InputError with the nearest name."""
    if name in PROFILES:
        return PROFILES[name]
    near = difflib.get_close_matches(name, PROFILES, 1)
    raise InputError(
        f"unknown profile {name!r}", hint=f"did you mean {near[0]!r}?" if near else f"one of {', '.join(PROFILES)}"
    )
