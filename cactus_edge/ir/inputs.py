"""What becomes of the user's float32 input: the rules by which runtimes quantise it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError
from cactus_edge.ir.envelope import quantise_end
from cactus_edge.ir.graph import DType, code_range
from cactus_edge.ir.ops import Codes, Float32

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class QuantizeRule:
    """float32 x -> clamp(round(x / scale) + zero_point) in `dtype`. Non-decreasing in x. `rounding` names both steps:

    half_away: RHA(f32(x / scale)) (TFLM and LiteRT reference/quantize.h). half_even_product: RNE(f32(x * f32(1 / scale))) (XNNPACK
    f32-qs8-vcvt; LiteRT optimized_ops.h AffineQuantize, its vector code). half_even: RNE(f32(x / scale)) (ONNX QuantizeLinear).
    envelope: anything between `lowest` and `highest`, of which `apply` is half_even; under the others the three are one function.
    """

    scale: float
    zero_point: int
    rounding: str
    dtype: DType = "int8"

    def apply(self, x: Float32) -> Codes:
        """The codes of float32 x. Raises InputError for NaN and for |x / scale| near 2^31: C leaves their conversion undefined."""
        real = self._real(x)
        if self.rounding == "half_away":
            rounded = np.trunc(real + np.copysign(0.5, real))
        else:
            rounded = np.rint(real)
        return self._codes(rounded)

    def lowest(self, x: Float32) -> Codes:
        """The least codes that the rule admits for x. Non-decreasing; raises as `apply` does."""
        return self._codes(quantise_end(self._real(x), -1)) if self.rounding == "envelope" else self.apply(x)

    def highest(self, x: Float32) -> Codes:
        """The largest codes that the rule admits for x. Non-decreasing; raises as `apply` does."""
        return self._codes(quantise_end(self._real(x), 1)) if self.rounding == "envelope" else self.apply(x)

    @property
    def definite(self) -> bool:
        """Whether it is one function."""
        return self.rounding != "envelope"

    def _real(self, x: Float32) -> Float64:
        """x / scale as this rounding forms it."""
        with np.errstate(over="ignore", invalid="ignore"):
            scale, values = np.float32(self.scale), np.asarray(x, np.float32)
            quotient = values * (np.float32(1) / scale) if self.rounding == "half_even_product" else values / scale
            real: Float64 = quotient.astype(np.float64)
        if not (np.abs(real) < 2.0**31 - 128).all():
            raise InputError(
                "the data contain NaN, infinities or values beyond 2^31 input steps, which no two runtimes quantise alike",
                hint="clean the data, or clip them to the sensor's range",
            )
        return real

    def _codes(self, rounded: Float64) -> Codes:
        codes: Codes = np.clip(rounded + self.zero_point, *code_range(self.dtype)).astype(self.dtype)
        return codes


@dataclass(frozen=True)
class MixedQuantizeRule:
    """float32 x -> the code that any one of `rules` gives, all with one scale and zero point. `apply` is the first's."""

    rules: tuple[QuantizeRule, ...]

    @property
    def scale(self) -> float:
        return self.rules[0].scale

    @property
    def zero_point(self) -> int:
        return self.rules[0].zero_point

    @property
    def definite(self) -> bool:
        """Whether it is one function."""
        return len(self.rules) == 1 and self.rules[0].definite

    def apply(self, x: Float32) -> Codes:
        """The first rule's codes; raises as it does."""
        return self.rules[0].apply(x)

    def lowest(self, x: Float32) -> Codes:
        """The least codes among the rules'. Non-decreasing; raises as `QuantizeRule.apply` does."""
        codes: Codes = np.minimum.reduce([rule.lowest(x) for rule in self.rules])
        return codes

    def highest(self, x: Float32) -> Codes:
        """The largest codes among the rules'. Non-decreasing; raises as `QuantizeRule.apply` does."""
        codes: Codes = np.maximum.reduce([rule.highest(x) for rule in self.rules])
        return codes


AnyQuantizeRule = QuantizeRule | MixedQuantizeRule
"""What may become of the input."""
