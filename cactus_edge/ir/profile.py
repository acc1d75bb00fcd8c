"""A profile: one runtime's arithmetic as rule ids per op kind, and the constants that it derives from scales.

The rules themselves stand in `rules.py`, the rows in `arithmetic.py`. Scales are float32 values held as Python floats.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.arith import fma_f32, quantize_multiplier
from cactus_edge.ir.binary import (
    AddRule,
    FixedPointAddRule,
    FloatAddRule,
    FusedAddRule,
    MulRule,
    UnsignedMulRule,
    VectorAddRule,
)
from cactus_edge.ir.envelope import EnvelopeEnd, check_range, requantise_ends
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.inputs import QuantizeRule
from cactus_edge.ir.multipliers import (
    ACCUMULATING,
    CODE_SHIFTS,
    FLOAT_LIMIT,
    REAL_MULTIPLIERS,
    WIDE_SHIFT,
    float_multipliers,
    fraction8,
    round_half_away_f32,
    shift_in_range,
)
from cactus_edge.ir.ops import (
    Activation,
    Conv2d,
    Dense,
    DepthwiseConv2d,
    Int8,
    Op,
    Quantize,
    TransposeConv2d,
    constants,
)
from cactus_edge.ir.rules import (
    FLOAT_REQUANTISE,
    AnySoftmaxRule,
    FloatAffine,
    FloatRequantise,
    FloatRescale,
    Requantise,
    activation_range,
    float_softmax_rule,
    scaled_softmax_rule,
    softmax_rule,
    table_softmax_rule,
)
from cactus_edge.ir.tinyengine import check_translated

BLOCKS = "blocks16"
"""Marks a rule that holds for tensors of a multiple of 16 elements only."""

ENVELOPE = "envelope"
"""Marks a rule that is one member of an envelope: the runtime may round otherwise, within `envelope.requantise_ends`."""

NARROW = "weights above -128"
"""Marks a rule that holds for weights in [-127, 127] only: kernels that add two int8 products in 16 bits wrap at (-128)^2 * 2."""

DISTINCT = "distinct"
"""Marks a rule that does not hold where both operands are one tensor, possibly reshaped."""

SIXTEEN_BITS = "sixteen_bits"
"""Marks a product that is requantised in vector code, whose 16 bits wrap beyond 2^15 - 256."""

OVERLAPPING = "strides within the kernel"
"""Marks a transposed convolution that other kernels compute where a stride is larger than the kernel."""

EVEN = "even channels"
"""Marks a rule for weights of 4 bits that holds for even numbers of input channels only: elsewhere rows begin inside a byte."""

SHOWN_ACTIVATIONS: Mapping[str, tuple[Activation, ...]] = {
    "relu": (Activation.NONE, Activation.RELU),
    "relu_only": (Activation.RELU,),
    "none_only": (Activation.NONE,),
}
"""Ids of fused activations under which a row has only some of them; the others were not shown to round as `half_away`."""


def of_type(kind: str, x: Tensor) -> str:
    """The op kind `kind` on the codes of x."""
    return kind if x.dtype == "int8" else f"{kind}.{x.dtype}"


PACKED = ".weights4"
"""Ends the kind of an op whose weights the file stores in 4 bits."""

WIDER = "store these weights in 8 bits, or name a profile that reads 4"

UINT8 = "uint8"
"""The kind under which a row says that its runtime computes uint8 codes as it does int8 ones, 128 below; behind "alone" stand the
kinds that were shown on uint8 codes and not on int8 ones, and then the codes of a file are of one type."""

STORED = "Stored"
"""The kind under which a row says that its runtime takes shapes and buffers as the file's tables store them, and finds out none."""

DELEGATE = "Delegate"
"""The kind under which a row says that its runtime hands to a delegate what has its operands as constants."""

Format = Literal["tflite", "onnx"]
"""A file format, as its files' names end."""


@dataclass(frozen=True)
class Profile:
    """One runtime's arithmetic, and the file format that the runtime reads.

    `rules` maps an op kind to rule ids: (requantisation family, real-multiplier rule) or one id. assumption: what has to be
    true of a run for verdicts under this profile to hold for it; empty where the runtime is known bit for bit. A profile with one
    is conditional: its rules bound the results, and it is never part of "all".
    """

    name: str
    runtime: str
    versions: str
    cpu: str
    reads: Format
    rules: Mapping[str, tuple[str, ...]] = field(hash=False)
    source: str
    assumption: str = ""

    def digest(self) -> str:
        """SHA-256 (hex) of the profile's row, so that a certificate names exactly this arithmetic."""
        row = {f.name: getattr(self, f.name) for f in fields(self)} | {"rules": dict(self.rules)}
        return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()

    def rule(self, kind: str) -> tuple[str, ...]:
        """The rule ids for op kind `kind`. Raises UnsupportedError where this runtime was not shown to run it."""
        try:
            return self.rules[kind]
        except KeyError:
            why = f"profile {self.name!r} has no rule for {kind}: it was not shown equal to {self.runtime}"
            raise UnsupportedError(why, hint=WIDER if kind.removesuffix(PACKED) in self.rules else "") from None

    def kind(self, op: Op, x: Tensor) -> str:
        """The op kind under which `rules` has `op` on x: weights per channel, groups and int16 codes take rules of their own.

        int16: ".int16" behind the kind for int8, and ".bias32" behind that where a bias of 32 bits keeps the sum in 32. PACKED ends
        that of weights in 4 bits.
        """
        name = type(op).__name__
        if isinstance(op, Dense) and op.weight_scale.size > 1:
            name = "DensePerChannel"
        if isinstance(op, Conv2d) and op.weight.shape[3] != x.shape[2]:
            name = "GroupedConv2d"
        narrow = hasattr(op, "bias") and op.bias.dtype == np.int32
        packed = PACKED * (getattr(op, "weight_bits", 8) == 4)
        return of_type(name, x) + ".bias32" * (narrow and x.dtype == "int16") + packed

    def clamp(self, kind: str, activation: Activation, out: Tensor) -> tuple[int, int]:
        """[lo, hi] of an activation fused into op kind `kind` that writes `out`; half_away where the profile has no entry for it.

        Raises UnsupportedError where this runtime was not shown to run it (`SHOWN_ACTIVATIONS`), or leaves it out ("ignored") although
        it would clamp.
        """
        (rounding,) = self.rules.get(f"{kind}.activation", ("half_away",))
        if activation not in SHOWN_ACTIVATIONS.get(rounding, (activation,)):
            raise UnsupportedError(f"{kind} with a fused {activation.value} was not shown equal to {self.runtime}")
        ends = activation_range(activation, out, rounding)
        if rounding == "ignored" and ends != out.codes:
            raise UnsupportedError(f"{kind} with a fused {activation.value} to {ends}: {self.runtime} leaves it out")
        return ends

    def check_operands(self, kind: str, x: tuple[int, ...], y: tuple[int, ...], same: bool) -> None:
        """`check_size` for an op of two operands, which a vector kernel must not broadcast either; same: they are one tensor."""
        if same and DISTINCT in self.rule(kind):
            raise UnsupportedError(f"{kind} of a tensor with itself: {self.runtime} puts another op in its place")
        if x != y and BLOCKS in self.rule(kind):
            raise UnsupportedError(f"{kind} of shapes {x} and {y} was not shown equal to {self.runtime}")
        self.check_size(kind, math.prod(x))

    def check_size(self, kind: str, size: int) -> None:
        """Raises UnsupportedError where `kind` has a vector kernel whose scalar tail would compute something else."""
        if BLOCKS in self.rule(kind) and size % 16:
            raise UnsupportedError(
                f"{kind} of {size} elements: {self.runtime} rounds what is left over from blocks of 16 in another way"
            )

    def check_stride(self, kind: str, kernel: tuple[int, ...], stride: tuple[int, int]) -> None:
        """Raises UnsupportedError where `kind` was shown only for windows that leave no gap."""
        if OVERLAPPING in self.rule(kind) and any(s > k for s, k in zip(stride, kernel, strict=True)):
            raise UnsupportedError(
                f"{kind} with stride {stride} beyond its kernel {kernel} was not shown equal to {self.runtime}"
            )

    def check_weight(self, kind: str, weight: Int8, channels: int) -> None:
        """Raises UnsupportedError where `kind` has a kernel that wraps, and these weights could make it, or that unpacks them wrongly.

        channels: those of the input; of a dense layer its inputs.
        """
        if EVEN in self.rule(kind) and channels % 2:
            why = f"{kind} of {channels} input channels, an odd number, was not shown equal to {self.runtime}"
            raise UnsupportedError(why, hint=WIDER)
        if NARROW in self.rule(kind) and weight.min(initial=0) == -128:
            raise UnsupportedError(
                f"{kind} with a weight of -128: {self.runtime} adds pairs of products in 16 bits, where two of them wrap",
                hint="quantise the weights to [-127, 127], as the file format asks",
            )

    def requantise(
        self,
        kind: str,
        s_in: float,
        s_weight: npt.ArrayLike,
        s_out: float,
        z_out: int,
        clamp: tuple[int, int],
        input_zero_point: int = 0,
    ) -> Requantise | FloatRequantise | FloatRescale:
        """The rule of op kind `kind` for multipliers S_in * S_w / S_out, one per entry of s_weight (float32)."""
        family, real, *marks = self.rule(kind)
        if real == "dequantised":
            return FloatRescale(s_in, s_out, z_out, *clamp, input_zero_point)
        if real == "fraction8":
            multiplier = fraction8(kind, s_in, s_out)
            return Requantise(family, np.array([multiplier]), np.array([23]), z_out, *clamp, input_zero_point)
        values = REAL_MULTIPLIERS[real](s_in, np.atleast_1d(np.asarray(s_weight, np.float64)), s_out)
        if family in FLOAT_REQUANTISE:
            return FloatRequantise(family, float_multipliers(kind, values), z_out, *clamp, input_zero_point)
        if SIXTEEN_BITS in marks and 255**2 * values.max() > 2**15 - 256:
            raise UnsupportedError(
                f"{kind}: a multiplier of {values.max():.3g}, with which {self.runtime} leaves its 16 bits"
            )
        sums = 30 if kind.partition(".")[0] in ACCUMULATING else CODE_SHIFTS[kind]
        largest = WIDE_SHIFT if family == "W" else sums
        m, s = np.array([shift_in_range(kind, float(v), largest) for v in values], np.int64).T
        return Requantise(family, m, s, z_out, *clamp, input_zero_point)

    def admit(self, graph: Graph) -> None:
        """Raises UnsupportedError where a rule for whole graphs forbids this one.

        "symmetric": zero points other than 0, weights of -128. "tinyengine": `check_translated`.
        """
        if self.rules.get("Graph") == ("tinyengine",):
            check_translated(graph)
        if self.rules.get("Tensor") == ("symmetric",):
            self._require_symmetric(graph)

    def _require_symmetric(self, graph: Graph) -> None:
        for tensor in graph.tensors:
            if tensor.dtype == "int8":
                check_range(tensor.scale, tensor.name)
                if tensor.zero_point:
                    raise UnsupportedError(
                        f"{tensor.name} has zero point {tensor.zero_point}: {self.runtime} takes symmetric codes only"
                    )
        for index, node in enumerate(graph.nodes):
            weight = constants(node.op).get("weight")
            if weight is not None and int(weight.min(initial=0)) < -127:
                raise UnsupportedError(f"{graph.label(index)}: a weight of -128, {self.runtime} takes -127 to 127")

    def ends(
        self,
        kind: str,
        op: Conv2d | DepthwiseConv2d | TransposeConv2d | Dense,
        x: Tensor,
        out: Tensor,
        clamp: tuple[int, int],
    ) -> tuple[EnvelopeEnd, EnvelopeEnd] | None:
        """The lowest and the highest result of the op's requantisation; None where its rule is one function."""
        if ENVELOPE not in self.rule(kind):
            return None
        return requantise_ends(x.scale, op.weight_scale, out.scale, op.bias, clamp, kind)

    def add(
        self,
        kind: str,
        scales: tuple[float, float],
        zero_points: tuple[int, int],
        sign: int,
        s_out: float,
        z_out: int,
        clamp: tuple[int, int],
    ) -> AddRule | VectorAddRule | FixedPointAddRule | FusedAddRule | FloatAddRule:
        """The rule of ADD (sign 1) or SUB (-1).

        D_shift20: t = 2 max(S1, S2), (m_i, s_i) = QM(S_i / t), (m_o, s_o) = QM(t / (2^20 S_out)), all in double. D_shift15: with 2^15.
        S_shift20: the same in family S. vector20, vector15: the same constants in VectorAddRule.
        fused_u8: r_i = f32(S_i / S_out) in FusedAddRule. float32: FloatAddRule.
        xnnpack: r_i = f32(S_i / S_out), shift = 20 - floor(log2(max r)), m_i = RNE(r_i 2^shift).
        """
        rule, *_ = self.rule(kind)
        if rule in ("xnnpack", "fused_u8", "float32"):
            ratios = [float(np.float32(s) / np.float32(s_out)) for s in scales]
            if not all(2.0**-10 <= r < 2.0**8 for r in ratios):
                who = "XNNPACK takes" if rule == "xnnpack" else "shown equal are"
                raise UnsupportedError(f"{kind} with scales {scales} over {s_out}: {who} ratios from 2^-10 to 2^8")
            if rule == "fused_u8":
                return FusedAddRule(zero_points, (ratios[0], ratios[1]), z_out, *clamp)
            if rule == "float32":
                return FloatAddRule(zero_points, scales, s_out, z_out, *clamp)
            shift = 21 - math.frexp(max(ratios))[1]
            m1, m2 = (round(r * 2.0**shift) for r in ratios)
            return FixedPointAddRule(zero_points, (m1, m2), shift, z_out, *clamp, sign)
        left = int(rule[-2:])
        twice = 2.0 * max(scales)
        reals = [scales[0] / twice, scales[1] / twice, twice / (2.0**left * s_out)]
        if reals[2] >= 1:
            raise UnsupportedError(
                f"{kind} with output scale {s_out} far below its inputs' {scales}: TFLM refuses a multiplier of {reals[2]:.3g}"
            )
        (m1, s1), (m2, s2), (mo, so) = (quantize_multiplier(r) for r in reals)
        if rule == f"vector{left}":
            # For int8 sums are narrowed to 16 bits before they are clamped, for int16 after.
            if min(s1, s2) < -left or (left == 20 and 255 * sum(scales) / s_out > 2**15 - 256):
                raise UnsupportedError(
                    f"{kind} with scales {scales} over {s_out}: LiteRT's vector code leaves its 16 bits"
                )
            return VectorAddRule(zero_points, (m1, m2), (s1, s2), left, mo, so, z_out, *clamp, sign)
        return AddRule(zero_points, (m1, m2), (s1, s2), left, mo, so, z_out, *clamp, sign, rule[0])

    def mul(
        self,
        kind: str,
        scales: tuple[float, float],
        zero_points: tuple[int, int],
        s_out: float,
        z_out: int,
        clamp: tuple[int, int],
    ) -> MulRule | UnsignedMulRule:
        """The rule of MUL: unsigned is M = f32(f32(S1 S2) / S_out) in UnsignedMulRule, the others requantise the product."""
        if self.rule(kind)[0] == "unsigned":
            (multiplier,) = REAL_MULTIPLIERS["float32"](scales[0], np.array([scales[1]]), s_out)
            if not 2.0**-16 <= multiplier < FLOAT_LIMIT:
                raise UnsupportedError(
                    f"{kind}: a multiplier of {multiplier:.3g}, expected one in [2^-16, {FLOAT_LIMIT})"
                )
            return UnsignedMulRule(zero_points, float(multiplier), z_out, *clamp)
        product = self.requantise(kind, scales[0], scales[1], s_out, z_out, clamp)
        if isinstance(product, FloatRescale):
            raise UnsupportedError(f"{kind} as a rescaling of codes: it scales a product of two")
        return MulRule(zero_points, product)

    def reduce(
        self, kind: str, x: Tensor, out: Tensor, count: int, image_channels: int
    ) -> Requantise | FloatAffine | FloatRequantise:
        """The rule of MEAN and SUM on the sum over n = `count` elements; `image_channels`: C where it is the mean of
        an image [H, W, C] over H and W, both kept as 1, else 0. SUM multiplies as if n were 1.

        folded_count: k = min(floor(log2 n), 32, 31 + s0), m = floor(m0 2^k / n), s = s0 - k (reference/reduce.h
        QuantizedMeanOrSum). float32_image: for images QM(f32(S_in / f32(n S_out))) on the plain sum and
        bias = z_out - RHA(f32(f32(z_in S_in) / S_out)) (optimized/integer_ops/mean.h), else folded_count.
        float32_image_count: for images FloatRequantise with M = f32(S_in / f32(n S_out)), 2^-32 <= M < 256 (ONNX
        Runtime's QLinearGlobalAveragePool).
        float32_reciprocal: FloatAffine with M = f32(f32(S_in / S_out) * f32(1 / n)), offset = f32(z_out - f32(n z_in M)) (XNNPACK).
        float32_fused: the same, each product and sum rounded once (XNNPACK on aarch64).
        """
        family, how = self.rule(kind)
        (s_in, z_in), (s_out, z_out) = (x.scale, x.zero_point), (out.scale, out.zero_point)
        divisor = count if kind.startswith("Mean") else 1
        single_in, single_out = np.float32(s_in), np.float32(s_out)
        if how in ("float32_reciprocal", "float32_fused"):
            if abs(z_in) * count >= 2**24:
                raise UnsupportedError(f"{kind} over {count} elements: the zero points' sum is no float32")
            multiplier = single_in / single_out * (np.float32(1) / np.float32(divisor))
            zeros = np.float32(z_in * count)
            if how == "float32_fused":
                (offset,) = fma_f32(-np.atleast_1d(zeros), multiplier, np.float32(z_out))
            else:
                offset = np.float32(z_out) - zeros * multiplier
            return FloatAffine(float(multiplier), float(offset), *out.codes, how == "float32_fused")
        if how == "float32_image_count":
            if not image_channels:
                raise UnsupportedError("Mean other than over the whole image: ONNX Runtime computes it in float")
            if count * 255 >= 2**24:
                raise UnsupportedError(f"Mean over {count} elements: their sum is no float32")
            multiplier = single_in / (np.float32(count) * single_out)
            if not 2.0**-32 <= multiplier < 256:
                raise UnsupportedError(
                    f"{kind}: its multiplier {multiplier} is outside [2^-32, 256), where ONNX Runtime refuses to run",
                    hint="choose scales that are closer to each other",
                )
            return FloatRequantise(family, np.array([float(multiplier)]), z_out, *out.codes, z_in * count)
        if how == "float32_image" and image_channels:
            m, s = shift_in_range("Mean", float(single_in / (np.float32(count) * single_out)))
            bias = round_half_away_f32(np.float32(z_in) * single_in / single_out)
            constants = np.full(image_channels, m), np.full(image_channels, s)
            return Requantise("HD16", *constants, z_out - bias, *out.codes)
        m0, s0 = shift_in_range(kind, s_in / s_out)
        k = min(divisor.bit_length() - 1, 32, 31 + s0)
        m, s = (m0 << k) // divisor, s0 - k
        return Requantise(family, np.array([m]), np.array([s]), z_out, *out.codes, z_in * count)

    def softmax(self, kind: str, beta: float, scale: float, depth: int) -> AnySoftmaxRule:
        """The rule of SOFTMAX over rows of `depth` int8 codes with this scale."""
        (rule,) = self.rule(kind)
        if rule == "uint16_table":
            return table_softmax_rule(beta, scale)
        if rule == "float32_scaled":
            if beta != 1:
                raise UnsupportedError(f"softmax with beta {beta}: {self.runtime} has none")
            return scaled_softmax_rule(scale, depth)
        return float_softmax_rule(beta, scale) if rule == "float32_table" else softmax_rule(beta, scale, depth)

    def quantize(self, x: Tensor) -> QuantizeRule:
        """The rule that maps float32 inputs to the graph's integer input x: "Input" where the runtime leaves that to its user."""
        kind = self.kind(Quantize(), x)
        return QuantizeRule(x.scale, x.zero_point, (self.rules.get("Input") or self.rule(kind))[0], x.dtype)
