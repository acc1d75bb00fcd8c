"""What an op looks up: int8 code -> int8 code, and output element -> the input element that it copies.

Functions that a runtime computes code by code, in its own fixed point or in floats, are tables of 256 entries here: whatever
their shape, the exact range over an interval of codes can be read off. Floating-point functions of a C library are accurate
to a few units in the last place only; a table whose entries depend on those is refused.
"""

from __future__ import annotations

from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.arith import (
    INT8_MAX,
    INT8_MIN,
    fma_f32,
    logistic_q4_27,
    multiply_by_quantized_multiplier,
    quantize_multiplier,
    rdp,
    round_half_away_f64,
    tanh_q4_27,
)
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.ops import Int64

Floats = npt.NDArray[np.floating[Any]]

CODES = np.arange(INT8_MIN, INT8_MAX + 1)


def code_table(
    op: ops.LeakyRelu | ops.HardSwish | ops.Logistic | ops.Tanh, rule: tuple[str, ...], x: Tensor, out: Tensor
) -> Int64:
    """The output code of each int8 code of x from -128 on, int64 [256], as rule id `rule` has it.

    Raises UnsupportedError for parameters that the runtime refuses or leaves undefined.
    """
    match op:
        case ops.LeakyRelu(alpha):
            values = _leaky_relu(rule, alpha, x, out)
        case ops.HardSwish():
            values = _hard_swish_in_float(x, out) if rule[0] == "dequantised" else _hard_swish(x, out)
        case ops.Logistic() | ops.Tanh():
            fixed = rule[0] == "gemmlowp_q4_27"
            values = _gemmlowp_sigmoid(op, rule[1:], x) if fixed else _float_sigmoid(op, rule[0], x, out)
        case _:
            assert_never(op)
    return np.clip(values, INT8_MIN, INT8_MAX)


def _multiplier(kind: str, value: float) -> tuple[int, int]:
    """`quantize_multiplier` of a float32 in which a code difference, at most 255, stays in int32 when it is shifted."""
    m, s = quantize_multiplier(value)
    if s > 23:
        raise UnsupportedError(f"{kind}: a multiplier of {value:.3g} shifts left by {s} bits, more than 23")
    return m, s


def _leaky_relu(rule: tuple[str, ...], alpha: float, x: Tensor, out: Tensor) -> Int64:
    """D: D(d; S_in / S_out) for d = code - z >= 0, D(d; S_in alpha / S_out) below, in float32 (reference/leaky_relu.h); with
    "double" in double.

    fraction8: (256 z_out + 128 + d m) >> 8 with m = RNE(256 S_in / S_out) or RNE(256 S_in / S_out alpha), ratios in [2^-8, 2^7]
    (XNNPACK src/microparams-init.c xnn_init_qs8_lrelu_scalar_params, src/qs8-vlrelu). dequantised: v or f32(v alpha) for
    v = f32(S_in d), rounded (onnxruntime contrib_ops/cpu/quantization/qlinear_lookup_table.cc).
    """
    real = np.float64 if rule[1:] == ("double",) else np.float32
    s_in, s_out, slope = real(x.scale), real(out.scale), real(alpha)
    d = CODES - x.zero_point
    if rule[0] == "dequantised":
        v = _dequantised(x)
        return _requantised(np.where(v >= 0, v, v * np.float32(alpha)), out)
    if alpha < 0:
        raise UnsupportedError(f"LEAKY_RELU with a negative alpha {alpha}, whose rounding changed between versions")
    if rule[0] == "fraction8":
        ratios = [float(s_in / s_out), float(s_in / s_out * slope)]
        if not all(2.0**-8 <= r <= 2.0**7 for r in ratios):
            raise UnsupportedError(f"LEAKY_RELU with multipliers {ratios}: XNNPACK takes them from 2^-8 to 2^7")
        m = np.where(d >= 0, *(round(256 * r) for r in ratios))
        shifted: Int64 = (256 * out.zero_point + 128 + d * m) >> 8
        return shifted
    sides = [_multiplier("LEAKY_RELU", float(v)) for v in (s_in / s_out, s_in * slope / s_out)]
    above, below = (multiply_by_quantized_multiplier(d, m, s) for m, s in sides)
    return np.where(d >= 0, above, below) + out.zero_point


def _hard_swish(x: Tensor, out: Tensor) -> Int64:
    """16-bit fixed point of reference/hard_swish.h: r = the relu part in Q0.15 of [0, 1], p = the input on the output's scale.

    h = 128 (code - z); p = SRDHM16(h, mo); r = h * 2^(er - 1) saturated, SRDHM16(., mr), doubled saturated (er > 0), or
    RDP(SRDHM16(h, mr), -er); r = (r + 2^15) >> 1; y = RDP(trunc(r p / 2^15), -eo) + z_out. Multipliers are QM of float32
    values, kept to 16 bits: mo of S_in / 128 / S_out, mr of S_in / 128 / (3 / 2^15).
    """
    hires = np.float32(1 / 128) * np.float32(x.scale)
    (mo, eo), (mr, er) = (
        quantize_multiplier(float(v)) for v in (hires / np.float32(out.scale), hires / np.float32(3 / 32768))
    )
    if not (-15 <= eo <= 0 and -15 <= er <= 15):
        raise UnsupportedError(
            f"HARD_SWISH with scales {x.scale} and {out.scale}: exponents {eo} and {er}, expected -15..0 and -15..15"
        )
    mo, mr = ((m + (1 << 15)) >> 16 if m < 2**31 - 1 - (1 << 15) else 2**15 - 1 for m in (mo, mr))

    def saturated(v: Int64) -> Int64:
        return np.clip(v, -(1 << 15), (1 << 15) - 1)

    h = (CODES - x.zero_point) << 7
    p = (h * mo + (1 << 14)) >> 15
    r = saturated(h << max(er - 1, 0))
    r = (r * mr + (1 << 14)) >> 15
    r = saturated(r << 1) if er > 0 else rdp(r, -er)
    product = ((r + (1 << 15)) >> 1) * p
    # C's division by 2^15 truncates.
    y = np.sign(product) * (np.abs(product) >> 15)
    return rdp(y, -eo) + out.zero_point


def _dequantised(x: Tensor) -> Floats:
    """v = f32(S_in (code - z)) of each code."""
    values: Floats = np.float32(x.scale) * (CODES - x.zero_point).astype(np.float32)
    return values


def _requantised(values: Floats, out: Tensor) -> Int64:
    """RNE(f32(v / S_out)) + z_out, unclamped: ONNX QuantizeLinear."""
    steps = np.clip(np.rint(values.astype(np.float32) / np.float32(out.scale)), -(2.0**31), 2.0**31)
    codes: Int64 = steps.astype(np.int64) + out.zero_point
    return codes


def _hard_swish_in_float(x: Tensor, out: Tensor) -> Int64:
    """v max(0, min(1, v / 6 + 1/2)) for v = f32(S_in (code - z)), in float32; refused where it matters whether product and sum are fused.

    Source: ONNX Runtime's float HardSigmoid and Mul, which it puts in the place of HardSwish.
    """
    v, sixth, half = _dequantised(x), np.float32(1 / 6), np.float32(0.5)
    once, twice = (
        _requantised(v * np.clip(inner, np.float32(0), np.float32(1)), out)
        for inner in (fma_f32(v, sixth, half), v * sixth + half)
    )
    if (once != twice).any():
        raise UnsupportedError(
            f"HardSwish of scale {x.scale} and zero point {x.zero_point}: an entry of its table depends on whether a product and "
            "a sum are rounded once"
        )
    return once


def _gemmlowp_sigmoid(op: ops.Logistic | ops.Tanh, family: tuple[str, ...], x: Tensor) -> Int64:
    """d = code - z -> f(D(d; QM(2^27 S_in))) in Q0.31, rounded to 8 bits; saturated from |d| >= R = floor(15 * 2^27 / 2^ls) on.

    family ("S",): one rounding, which is the same for left shifts up to 30, beyond which such builds keep 30.
    Source: reference/integer_ops/{logistic,tanh}.h, micro/kernels/logistic_common.cc, kernels/internal CalculateInputRadius.
    """
    multiplier, left = quantize_multiplier(x.scale * 2.0**27)
    most = 30 if family == ("S",) else 31
    if not 0 <= left <= most:
        raise UnsupportedError(f"{type(op).__name__} of scale {x.scale}: expected one from 2^-28 to 2^{most - 27}")
    radius = (15 << 27) >> left
    d = CODES - x.zero_point
    scaled = multiply_by_quantized_multiplier(np.clip(d, -radius, radius), multiplier, left)
    if isinstance(op, ops.Logistic):
        inner = rdp(logistic_q4_27(scaled), 23) + INT8_MIN
    else:
        inner = rdp(tanh_q4_27(scaled), 24)
    return np.where(d <= -radius, INT8_MIN, np.where(d >= radius, INT8_MAX, inner))


EXP_ULPS, TANH_ULPS = 1, 3
"""Units in the last place by which a C library's exp and tanhf may differ from the correctly rounded value: glibc documents at
most 1 and 2 (manual, "Known Maximum Errors in Math Functions")."""

MLAS_ERROR = 2.0**-21
"""More than ONNX Runtime's Sigmoid and Tanh, which are rational approximations, were seen to be off by (1.8e-7 and 3.1e-7)."""


def _float_sigmoid(op: ops.Logistic | ops.Tanh, rule: str, x: Tensor, out: Tensor) -> Int64:
    """round(f(S_in (code - z)) / S_out) + z_out; `rule` names precision and rounding. Raises UnsupportedError near a tie.

    float32_table: 1 / (1 + expf(-v)) or tanhf(v), RHA(f32(. * f32(1 / S_out))) + z_out (LiteRT common.h LUTPopulateInt8).
    xnnpack: e / (1 + e) in double, rounded to float32, or tanhf(v); RNE(f32(f32(. * f32(1 / S_out)) + z_out))
    (XNNPACK src/reference/unary-elementwise.cc, which fills a table). mlas: RNE(f32(f / S_out)) + z_out for f within `MLAS_ERROR`
    (ONNX Runtime, onnxruntime/core/mlas/lib/{logistic,tanh}.cpp).
    """
    v = np.float32(x.scale) * (CODES - x.zero_point).astype(np.float32)
    inverse = np.float32(1) / np.float32(out.scale)

    def rounded(f: Floats) -> Int64:
        scaled = f.astype(np.float32) * inverse
        if rule == "xnnpack":
            codes: Int64 = np.rint(scaled + np.float32(out.zero_point)).astype(np.int64)
        else:
            codes = round_half_away_f64(scaled.astype(np.float64)).astype(np.int64) + out.zero_point
        return codes

    wide = np.clip(v.astype(np.float64), -80, 80)
    results = []
    if rule == "mlas":
        exact = np.tanh(wide) if isinstance(op, ops.Tanh) else 1 / (1 + np.exp(-wide))
        return _unanimous(op, x, [_requantised(exact + e, out) for e in (0.0, -MLAS_ERROR, MLAS_ERROR)])
    most = TANH_ULPS if isinstance(op, ops.Tanh) else EXP_ULPS
    for ulps in range(-most, most + 1):
        if isinstance(op, ops.Tanh):
            results.append(rounded(_moved(np.tanh(wide).astype(np.float32), ulps)))
        elif rule == "xnnpack":
            e = _moved(np.exp(wide), ulps)
            results.append(rounded(e / (1 + e)))
        else:
            e = _moved(np.exp(-wide).astype(np.float32), ulps)
            results.append(rounded(np.float32(1) / (np.float32(1) + e)))
    return _unanimous(op, x, results)


def _unanimous(op: ops.Logistic | ops.Tanh, x: Tensor, results: list[Int64]) -> Int64:
    """The first of tables that must be one."""
    if any((r != results[0]).any() for r in results):
        raise UnsupportedError(
            f"{type(op).__name__} of scale {x.scale} and zero point {x.zero_point}: an entry of its table lies so near a tie "
            "that implementations may round it differently"
        )
    return results[0]


def _moved(values: Floats, ulps: int) -> Floats:
    """The floats `ulps` units in the last place away."""
    moved: Floats = values + ulps * np.spacing(values)
    return moved


def source_index(
    op: ops.Transpose | ops.Slice | ops.ResizeNearest, in_shape: tuple[int, ...], out_shape: tuple[int, ...]
) -> Int64:
    """Which element of the flattened input each element of the output copies, int64 [*out_shape]."""
    image = np.arange(int(np.prod(in_shape, dtype=np.int64))).reshape(in_shape)
    match op:
        case ops.Transpose(perm):
            picked = image.transpose(perm)
        case ops.Slice(begin, size, stride):
            cuts = tuple(slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(begin, size, stride, strict=True))
            picked = image[cuts]
        case ops.ResizeNearest(aligned, centred):
            rows, columns = (
                nearest_source(n, m, aligned, centred) for n, m in zip(in_shape[:2], out_shape[:2], strict=True)
            )
            picked = image[rows][:, columns]
        case _:
            assert_never(op)
    return picked.reshape(out_shape).copy()


def interpolation(rule: str, n: int, m: int, align_corners: bool, half_pixel_centers: bool) -> Int64:
    """The weights of m outputs on an axis of n, int64 [m, n]; each row sums to 2^10 (fixed10) or 2^11 (float11).

    With r = n / m, or (n - 1) / (m - 1) for aligned corners and m > 1, output k lies at k r, or at (k + 1/2) r - 1/2 for half-pixel
    centres, between two neighbours at its distance from them.
    fixed10: r and the place are integers in 2^-10, r rounded half up, centres by r // 2 - 2^9 (TFLite
    reference/resize_bilinear.h ResizeBilinearInteger). float11: r and the place are float32, clamped to the axis, and the distance
    is rounded half even to 2^-11 (XNNPACK src/indirection.c xnn_indirection_init_resize_bilinear2d_hwc_q11).
    """
    aligned = align_corners and m > 1
    over, under = (n - 1, m - 1) if aligned else (n, m)
    k = np.arange(m)
    if rule == "fixed10":
        unit = 1 << 10
        step = (unit * over + under // 2) // under
        place = k * step + (step // 2 - unit // 2 if half_pixel_centers else 0)
        # C's division truncates: what lies before the first element, by less than one, is at it.
        first = np.maximum(place, 0) // unit
        far = place - unit * first
        second = np.minimum(np.maximum(place + unit - 1, 0) // unit, n - 1)
    else:
        unit = 1 << 11
        ratio = np.float32(over) / np.float32(under)
        at = k.astype(np.float32) * ratio
        if half_pixel_centers:
            at = np.clip(at + (np.float32(0.5) * ratio - np.float32(0.5)), np.float32(0), np.float32(n - 1))
        first = at.astype(np.int64)
        far = np.rint((at - first.astype(np.float32)) * np.float32(unit)).astype(np.int64)
        second = np.minimum(first + 1, n - 1)
    weights = np.zeros((m, n), np.int64)
    if first.max() >= n:
        raise UnsupportedError(f"RESIZE_BILINEAR of {n} to {m}: its last place lies beyond the image")
    weights[k, first] += unit - far
    weights[k, second] += far
    if (weights < 0).any():
        raise UnsupportedError(f"RESIZE_BILINEAR of {n} to {m}: it would extrapolate")
    return weights


def nearest_source(n: int, m: int, align_corners: bool, half_pixel_centers: bool) -> Int64:
    """The source index of each of m outputs along an axis of n, int64 [m].

    With r = f32(n / m), or f32((n - 1) / (m - 1)) for aligned corners and m > 1, and h = 1/2 for half-pixel centres, else 0:
    min(floor(f32((i + h) * r)), n - 1); aligned corners round half away instead. Float32 throughout.
    Source: tensorflow/lite/kernels/internal/reference/resize_nearest_neighbor.h GetNearestNeighbor.
    """
    aligned = align_corners and m > 1
    ratio = np.float32(n - 1) / np.float32(m - 1) if aligned else np.float32(n) / np.float32(m)
    at = (np.arange(m).astype(np.float32) + np.float32(0.5 if half_pixel_centers else 0)) * ratio
    nearest = np.floor(at.astype(np.float64) + (0.5 if align_corners else 0))
    return np.minimum(nearest, n - 1).astype(np.int64)
