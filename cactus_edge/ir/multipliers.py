"""The multipliers that runtimes form of scales, before they quantise them, and how large they may be.

Scales are float32 values held as Python floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.arith import quantize_multiplier
from cactus_edge.ir.rules import Float64


def _double_product(s_in: float, s_weight: Float64, s_out: float) -> Float64:
    return s_in * s_weight / s_out


def _float32_product(s_in: float, s_weight: Float64, s_out: float) -> Float64:
    return (np.float32(s_in) * s_weight.astype(np.float32)).astype(np.float64) / s_out


def _float32_ratio(s_in: float, s_weight: Float64, s_out: float) -> Float64:
    return s_weight * float(np.float32(s_in) / np.float32(s_out))


def _double_to_float32(s_in: float, s_weight: Float64, s_out: float) -> Float64:
    return (s_in * s_weight / s_out).astype(np.float32).astype(np.float64)


def _float32(s_in: float, s_weight: Float64, s_out: float) -> Float64:
    product = np.float32(s_in) * s_weight.astype(np.float32)
    return (product / np.float32(s_out)).astype(np.float64)


REAL_MULTIPLIERS: Mapping[str, Callable[[float, Float64, float], Float64]] = {
    "double": _double_product,
    "double_to_float32": _double_to_float32,
    "float32_product": _float32_product,
    "float32_ratio": _float32_ratio,
    "float32": _float32,
}
"""How a runtime forms S_in * S_w / S_out before it quantises it (S_w = 1 where there are no weights).

double: every operation in double (kernel_util.cc PopulateConvolutionQuantizationParams). double_to_float32: the same, rounded to
float32 at the end (TinyEngine tflite_parser/conv2d.py, CodeGenerator._parseEffectivescales). float32_product: S_in * S_w rounded to
float32 (kernel_util.cc GetQuantizedConvolutionMultipler). float32_ratio: S_in / S_out rounded to float32
(micro/kernels/activations_common.cc CalculateReluOpData). float32: both operations in float32, left to right (XNNPACK
src/operators/convolution-nhwc.c).
"""


ACCUMULATING = frozenset({"Conv2d", "GroupedConv2d", "DepthwiseConv2d", "TransposeConv2d", "Dense", "DensePerChannel"})
"""Ops that requantise a sum, whose range `verify.overflow` bounds."""

CODE_SHIFTS: Mapping[str, int] = {
    **dict.fromkeys(("Relu", "Relu6", "Requantize"), 23),
    **dict.fromkeys(("Relu.int16", "Requantize.int16"), 15),
    "Mul": 15,
    "Mul.int16": 0,
}
"""How far left the others may shift one code less its zero point, or (Mul) the product of two, within int32."""

WIDE_SHIFT = 7
"""The same for the 64-bit sums of family W."""


def shift_in_range(kind: str, value: float, largest: int = 30) -> tuple[int, int]:
    """`quantize_multiplier`, refused where it shifts left by more than `largest` bits, since int32 would then wrap."""
    multiplier, shift = quantize_multiplier(value)
    if shift > largest:
        raise UnsupportedError(f"{kind}: a multiplier of {value:.3g} shifts left by {shift} bits, more than {largest}")
    return multiplier, shift


FLOAT_LIMIT = 256.0
"""XNNPACK refuses convolutions with larger multipliers; a file that needs one is refused here for every float family."""


def fraction8(kind: str, s_in: float, s_out: float) -> int:
    """RNE(256 f32(S_in / S_out)): XNNPACK's multiplier between int8 tensors, for ratios in [2^-8, 2^7]."""
    ratio = float(np.float32(s_in) / np.float32(s_out))
    if not 2.0**-8 <= ratio <= 2.0**7:
        raise UnsupportedError(f"{kind} with scales {s_in} over {s_out}: XNNPACK takes ratios from 2^-8 to 2^7")
    return round(256 * ratio)


def round_half_away_f32(value: np.float32) -> int:
    """trunc(f32(value +- 1/2)): C's spelling of rounding, whose sum is itself rounded."""
    return int(np.trunc(value + np.float32(math.copysign(0.5, value))))


def float_multipliers(kind: str, values: Float64) -> Float64:
    """`values`, once a rule on floats takes them. Raises UnsupportedError where it was not shown to."""
    if kind == "Mul" and values.min() < 2.0**-16:
        raise UnsupportedError(f"Mul: a multiplier of {values.min():.3g}, expected one from 2^-16 on")
    if not (values < FLOAT_LIMIT).all():
        raise UnsupportedError(f"{kind}: a multiplier of {values.max():.3g}, expected one below {FLOAT_LIMIT}")
    return values
