"""The op table: one frozen dataclass per operation of an integer network, joined in one closed union.

An op holds what the file says (integers, scales, geometry) and nothing a runtime derives from it: multipliers and
shifts belong to a *profile* (`arithmetic.py`), meaning to `atoms.py`. Shapes are those of one sample, without the batch
axis, in the order height, width, channel. Every array is read-only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

Int8 = npt.NDArray[np.int8]
Codes = npt.NDArray[np.signedinteger[Any]]
"""Integers of a tensor, in its own type: int8 or int16."""
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


WEIGHT_RANGES: Mapping[int, tuple[int, int]] = {4: (-8, 7), 8: (-128, 127)}
"""Bits that a stored weight takes, and the integers that fit."""


class Activation(Enum):
    """Fused activation: the output is clamped to the quantised image of this real range."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"
    RELU_N1_TO_1 = "relu_n1_to_1"


@dataclass(frozen=True)
class Padding2d:
    """Taps outside the image on each side. They are skipped, which is the same as reading the input's zero point."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0


NO_PADDING = Padding2d()


def same_padding(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int] = (1, 1)
) -> Padding2d:
    """TensorFlow's SAME: out = ceil(in/stride), total = max((out-1)*stride + (k-1)*dilation + 1 - in, 0), the odd one last.

    Source: tensorflow/lite/kernels/padding.h, ComputePaddingWithOffset.
    """

    def one(n: int, k: int, s: int, d: int) -> tuple[int, int]:
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        return total // 2, total - total // 2

    top, bottom = one(size[0], kernel[0], stride[0], dilation[0])
    left, right = one(size[1], kernel[1], stride[1], dilation[1])
    return Padding2d(top, bottom, left, right)


@dataclass(frozen=True, eq=False)
class Conv2d:
    """acc[o] = sum_{kh,kw,i} weight[o,kh,kw,i] * (x[h*sh+kh*dh-top, w*sw+kw*dw-left, g*I+i] - z_in) + bias[o], then requantised.

    weight int8 [O, KH, KW, I] symmetric, bias int32 [O], weight_scale float32 [O]. Groups = C_in / I. For int16 tensors the
    bias may be int64, and with it the runtime's accumulator. weight_bits: how wide each weight is stored, one of
    WEIGHT_RANGES; it says nothing about what is computed.
    """

    weight: Int8
    bias: Int32 | Int64
    weight_scale: Float32
    stride: tuple[int, int] = (1, 1)
    padding: Padding2d = NO_PADDING
    dilation: tuple[int, int] = (1, 1)
    activation: Activation = Activation.NONE
    weight_bits: int = 8


@dataclass(frozen=True, eq=False)
class DepthwiseConv2d:
    """As Conv2d with one input channel per output channel: output o reads channel o // (O / C_in).

    weight int8 [KH, KW, O], bias int32 (int64) [O], weight_scale float32 [O]. weight_bits as in Conv2d.
    """

    weight: Int8
    bias: Int32 | Int64
    weight_scale: Float32
    stride: tuple[int, int] = (1, 1)
    padding: Padding2d = NO_PADDING
    dilation: tuple[int, int] = (1, 1)
    activation: Activation = Activation.NONE
    weight_bits: int = 8


@dataclass(frozen=True, eq=False)
class TransposeConv2d:
    """acc[h,w,o] = sum over h = y*sh+kh-top, w = x*sw+kw-left and i of weight[o,kh,kw,i] * (x[y,x,i] - z_in), + bias[o]; requantised.

    weight int8 [O, KH, KW, I], bias int32 (int64) [O], weight_scale float32 [O]. The padding is that of the convolution from its
    output to its input, which it is the transpose of.
    """

    weight: Int8
    bias: Int32 | Int64
    weight_scale: Float32
    stride: tuple[int, int] = (1, 1)
    padding: Padding2d = NO_PADDING
    activation: Activation = Activation.NONE


@dataclass(frozen=True, eq=False)
class Dense:
    """acc[o] = sum_i weight[o,i] * (x[i] - z_in) + bias[o] over the flattened input, then requantised; output shape (O,).

    An input [..., I] of several rows gives an output [..., O], row by row.
    weight int8 [O, I], bias int32 (int64) [O], weight_scale float32 [1] (per tensor) or [O] (per channel). weight_bits as in
    Conv2d.
    """

    weight: Int8
    bias: Int32 | Int64
    weight_scale: Float32
    activation: Activation = Activation.NONE
    weight_bits: int = 8


@dataclass(frozen=True)
class Add:
    """x + y of tensors with scales and zero points of their own; an axis of size 1 is repeated to fit the other's."""

    activation: Activation = Activation.NONE


@dataclass(frozen=True)
class Sub:
    """x - y, as Add."""

    activation: Activation = Activation.NONE


@dataclass(frozen=True)
class Mul:
    """x * y elementwise, shapes and scales as in Add."""

    activation: Activation = Activation.NONE


@dataclass(frozen=True)
class Maximum:
    """The larger of two tensors elementwise, all of equal scale and zero point; an axis of size 1 is repeated."""


@dataclass(frozen=True)
class Minimum:
    """The smaller of two tensors, as Maximum."""


@dataclass(frozen=True)
class AvgPool:
    """Mean over the window's taps inside the image, rounded to the output's scale; in most runtimes it is the input's."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding2d = NO_PADDING
    activation: Activation = Activation.NONE


@dataclass(frozen=True)
class MaxPool:
    """Maximum over the window's taps inside the image. Input and output share scale and zero point."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding2d = NO_PADDING
    activation: Activation = Activation.NONE


@dataclass(frozen=True)
class Mean:
    """Mean over whole axes of one sample (0 is height), requantised from the input's scale to the output's."""

    axes: tuple[int, ...]
    keep_dims: bool = False


@dataclass(frozen=True)
class Sum:
    """Sum over whole axes of one sample, requantised from the input's scale to the output's."""

    axes: tuple[int, ...]
    keep_dims: bool = False


@dataclass(frozen=True)
class Pad:
    """Surrounds the sample by the output's zero point: `pads[axis] = (before, after)`."""

    pads: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Concat:
    """Joins tensors of equal scale and zero point along one axis of the sample."""

    axis: int


@dataclass(frozen=True)
class Reshape:
    """The same elements in row-major order under another shape (the output tensor's)."""


@dataclass(frozen=True)
class Transpose:
    """y[i_0, i_1, ...] = x at the index whose component perm[k] is i_k; axes are those of the sample."""

    perm: tuple[int, ...]


@dataclass(frozen=True)
class Slice:
    """y[i_0, i_1, ...] = x[begin_0 + i_0 * stride_0, ...] for i_k < size_k; the output may leave out axes of size 1."""

    begin: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class ResizeNearest:
    """Each pixel of the output copies the nearest of the image, chosen in float32 (`tables.nearest_source`)."""

    align_corners: bool = False
    half_pixel_centers: bool = False


@dataclass(frozen=True)
class ResizeBilinear:
    """Each pixel of the output is interpolated between the four around its place; weights are rounded (`tables.interpolation`)."""

    align_corners: bool = False
    half_pixel_centers: bool = False


@dataclass(frozen=True)
class Relu:
    """max(x, 0) as an op of its own, requantised from the input's scale to the output's."""


@dataclass(frozen=True)
class Relu6:
    """min(max(x, 0), 6) as an op of its own. TFLM only clamps, so input and output must share scale and zero point there."""


@dataclass(frozen=True)
class LeakyRelu:
    """x where x >= 0, alpha * x below, requantised; alpha is a float32 value held as a Python float."""

    alpha: float


@dataclass(frozen=True)
class HardSwish:
    """x * min(max(x + 3, 0), 6) / 6, requantised. Not monotone: it falls before -1.5."""


@dataclass(frozen=True)
class Logistic:
    """1 / (1 + exp(-x)); output scale 1/256, zero point -128 (int16: 1/32768, 0)."""


@dataclass(frozen=True)
class Tanh:
    """tanh(x); output scale 1/128 (int16: 1/32768), zero point 0."""


@dataclass(frozen=True)
class Requantize:
    """int8 to int8, or int16 to int16, with another scale and zero point."""


@dataclass(frozen=True)
class Quantize:
    """float32 to int8 or int16: round(x / scale) + zero_point, saturated; the tie rule is the profile's."""


@dataclass(frozen=True)
class Dequantize:
    """int8 or int16 to float32: scale * (x - zero_point)."""


@dataclass(frozen=True)
class Softmax:
    """softmax(beta * x) over the last axis; output scale 1/256, zero point -128 (int16: 1/32768, 0)."""

    beta: float = 1.0


Op = (
    Conv2d
    | DepthwiseConv2d
    | TransposeConv2d
    | Dense
    | Add
    | Sub
    | Mul
    | Maximum
    | Minimum
    | AvgPool
    | MaxPool
    | Mean
    | Sum
    | Pad
    | Concat
    | Reshape
    | Transpose
    | Slice
    | ResizeNearest
    | ResizeBilinear
    | Relu
    | Relu6
    | LeakyRelu
    | HardSwish
    | Logistic
    | Tanh
    | Requantize
    | Quantize
    | Dequantize
    | Softmax
)
"""Every op there is. Each dispatch over it ends in `assert_never`, so the type checker lists what a new op owes."""


def constants(op: Op) -> dict[str, npt.NDArray[Any]]:
    """The op's arrays by field name, in field order."""
    return {f.name: v for f in fields(op) if isinstance(v := getattr(op, f.name), np.ndarray)}


def freeze(array: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """A read-only C-contiguous copy. Raises OverflowError where a value does not survive the conversion to an integer dtype."""
    source = np.asarray(array)
    out = np.array(source, dtype=dtype, order="C")
    if np.issubdtype(out.dtype, np.integer) and not np.array_equal(out.astype(np.float64), source.astype(np.float64)):
        raise OverflowError(f"values outside {np.dtype(dtype)}: range [{source.min()}, {source.max()}]")
    out.setflags(write=False)
    return out
