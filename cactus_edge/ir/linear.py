"""Integer linear maps of one sample: apply, adjoint, absolute value, reach.

A map takes x [N, *in_shape] to y [N, *out_shape], y = W x, and never adds a bias. Taps outside the image are zero,
which is why zero points are subtracted before. Exactness is the carrier's: in int64 always; in float64 (float32) iff
`reach` times the largest |x| stays below 2^53 (2^24), since then every partial sum in every order is a representable integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cactus_edge.ir.ops import NO_PADDING, Int64, Padding2d

Array = npt.NDArray[Any]


class Linear(Protocol):
    """What the interpreter and every verification rule know about a linear map."""

    @property
    def in_shape(self) -> tuple[int, ...]: ...

    @property
    def out_shape(self) -> tuple[int, ...]: ...

    def apply(self, x: Array) -> Array:
        """W x for x [N, *in_shape], in x's own dtype."""

    def adjoint(self, y: Array) -> Array:
        """W^T y for y [N, *out_shape], in y's own dtype."""

    def absolute(self) -> Linear:
        """The map |W|."""

    def reach(self) -> Int64:
        """sum_i |W[o, i]| for each output element, int64 [*out_shape] (broadcastable): the largest partial sum for |x| <= 1."""


def windows(x: Array, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> Array:
    """View [N, OH, OW, KH, KW, C] of x [N, H, W, C]: every window's taps. No copy."""
    n, h, w, c = x.shape
    (kh, kw), (sh, sw), (dh, dw) = kernel, stride, dilation
    out_h, out_w = (h - (kh - 1) * dh - 1) // sh + 1, (w - (kw - 1) * dw - 1) // sw + 1
    sn, sy, sx, sc = x.strides
    return np.lib.stride_tricks.as_strided(
        x, (n, out_h, out_w, kh, kw, c), (sn, sy * sh, sx * sw, sy * dh, sx * dw, sc), writeable=False
    )


def pad_image(x: Array, padding: Padding2d, value: int = 0) -> Array:
    """x [N, H, W, C] with `padding` rows and columns of `value` around it."""
    if padding == NO_PADDING:
        return x
    p = padding
    return np.pad(x, ((0, 0), (p.top, p.bottom), (p.left, p.right), (0, 0)), constant_values=value)


def output_size(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: Padding2d,
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """Height and width after sliding the window: floor((size + padding - (k-1)*dilation - 1) / stride) + 1."""
    h = (size[0] + padding.top + padding.bottom - (kernel[0] - 1) * dilation[0] - 1) // stride[0] + 1
    w = (size[1] + padding.left + padding.right - (kernel[1] - 1) * dilation[1] - 1) // stride[1] + 1
    return h, w


@dataclass(frozen=True, eq=False)
class Dense:
    """y[..., o] = sum_i weight[o, i] x[..., i]; weight [O, I]. An input of I elements is one row, whatever its shape."""

    weight: Array
    in_shape: tuple[int, ...]

    @property
    def out_shape(self) -> tuple[int, ...]:
        outputs, inputs = self.weight.shape
        one = int(np.prod(self.in_shape, dtype=np.int64)) == inputs
        return (outputs,) if one else (*self.in_shape[:-1], outputs)

    def apply(self, x: Array) -> Array:
        rows: Array = x.reshape(-1, self.weight.shape[1]) @ self.weight.T.astype(x.dtype, copy=False)
        return rows.reshape(len(x), *self.out_shape)

    def adjoint(self, y: Array) -> Array:
        result: Array = (y @ self.weight.astype(y.dtype, copy=False)).reshape(len(y), *self.in_shape)
        return result

    def absolute(self) -> Dense:
        return Dense(np.abs(self.weight.astype(np.int64)), self.in_shape)

    def reach(self) -> Int64:
        total: Int64 = np.abs(self.weight.astype(np.int64)).sum(1)
        return total


@dataclass(frozen=True, eq=False)
class Conv:
    """y[h,w,o] = sum_{kh,kw,i} weight[o,kh,kw,i] x[h*sh + kh*dh - top, w*sw + kw*dw - left, g(o)*I + i]; weight [O, KH, KW, I].

    Group g(o) = o // (O / groups), groups = C_in / I. A depthwise convolution is the case I = 1.
    """

    weight: Array
    in_shape: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: Padding2d = NO_PADDING
    dilation: tuple[int, int] = (1, 1)

    @property
    def kernel(self) -> tuple[int, int]:
        return self.weight.shape[1], self.weight.shape[2]

    @property
    def groups(self) -> int:
        return self.in_shape[2] // int(self.weight.shape[3])

    @property
    def out_shape(self) -> tuple[int, int, int]:
        size = output_size(self.in_shape[:2], self.kernel, self.stride, self.padding, self.dilation)
        return (*size, self.weight.shape[0])

    def _grouped(self, dtype: npt.DTypeLike) -> Array:
        """Weight as [G, KH*KW*I, O/G]."""
        o = self.weight.shape[0]
        grouped: Array = (
            self.weight.reshape(self.groups, o // self.groups, -1).transpose(0, 2, 1).astype(dtype, copy=False)
        )
        return grouped

    def apply(self, x: Array) -> Array:
        n, (oh, ow, o) = len(x), self.out_shape
        taps = windows(pad_image(x, self.padding), self.kernel, self.stride, self.dilation)
        if self.groups == 1:
            flat: Array = taps.reshape(n * oh * ow, -1) @ self.weight.reshape(o, -1).T.astype(x.dtype, copy=False)
            return flat.reshape(n, oh, ow, o)
        if self.weight.shape[3] == 1:
            return self._depthwise(taps).reshape(n, oh, ow, o)
        kh, kw = self.kernel
        grouped = taps.reshape(n, oh, ow, kh, kw, self.groups, -1).transpose(5, 0, 1, 2, 3, 4, 6)
        columns = grouped.reshape(self.groups, n * oh * ow, -1)
        result: Array = columns @ self._grouped(x.dtype)
        return result.transpose(1, 0, 2).reshape(n, oh, ow, o)

    def _depthwise(self, taps: Array) -> Array:
        """[N, OH, OW, C, O/C] from the taps [N, OH, OW, KH, KW, C], tap by tap: products of one element make poor matrices."""
        kh, kw = self.kernel
        weight = self.weight.reshape(self.groups, -1, kh, kw).astype(taps.dtype, copy=False)
        total: Array = taps[:, :, :, 0, 0, :, None] * weight[..., 0, 0]
        term = np.empty_like(total)
        for i, j in list(np.ndindex(kh, kw))[1:]:
            total += np.multiply(taps[:, :, :, i, j, :, None], weight[..., i, j], out=term)
        return total

    def adjoint(self, y: Array) -> Array:
        n, (oh, ow, o) = len(y), self.out_shape
        (kh, kw), (sh, sw), (dh, dw), p = self.kernel, self.stride, self.dilation, self.padding
        h, w, c = self.in_shape
        image = np.zeros((n, h + p.top + p.bottom, w + p.left + p.right, c), y.dtype)
        weight = self.weight.reshape(self.groups, o // self.groups, kh, kw, -1).astype(y.dtype)
        rows = y.reshape(n * oh * ow, self.groups, o // self.groups)
        for i in range(kh):
            for j in range(kw):
                # As matrices: numpy multiplies stacks of them slowly.
                parts = [rows[:, g] @ weight[g, :, i, j] for g in range(self.groups)]
                part = (parts[0] if self.groups == 1 else np.stack(parts, 1)).reshape(n, oh, ow, c)
                image[:, i * dh : i * dh + sh * oh : sh, j * dw : j * dw + sw * ow : sw][:, :oh, :ow] += part
        return image[:, p.top : p.top + h, p.left : p.left + w]

    def absolute(self) -> Conv:
        return Conv(np.abs(self.weight.astype(np.int64)), self.in_shape, self.stride, self.padding, self.dilation)

    def reach(self) -> Int64:
        # Taps in the padding only take away, so the full kernel bounds every position.
        total: Int64 = np.abs(self.weight.astype(np.int64)).sum((1, 2, 3))
        return total


@dataclass(frozen=True, eq=False)
class Transposed:
    """y = W^T x for the convolution W, which leads from images of y's shape to those of x's."""

    convolution: Conv

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return self.convolution.out_shape

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return self.convolution.in_shape

    def apply(self, x: Array) -> Array:
        return self.convolution.adjoint(x)

    def adjoint(self, y: Array) -> Array:
        return self.convolution.apply(y)

    def absolute(self) -> Transposed:
        return Transposed(self.convolution.absolute())

    def reach(self) -> Int64:
        # Every tap counted once, though no element meets all of them where the stride is above 1.
        total: Int64 = np.abs(self.convolution.weight.astype(np.int64)).sum((0, 1, 2))
        return total


@dataclass(frozen=True, eq=False)
class Interpolation:
    """y[h, w, c] = sum_ij rows[h, i] columns[w, j] x[i, j, c]; rows int64 [OH, H], columns int64 [OW, W]."""

    rows: Int64
    columns: Int64
    channels: int

    @property
    def in_shape(self) -> tuple[int, int, int]:
        return self.rows.shape[1], self.columns.shape[1], self.channels

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return len(self.rows), len(self.columns), self.channels

    def apply(self, x: Array) -> Array:
        lines = np.moveaxis(np.tensordot(self.rows.astype(x.dtype), x, (1, 1)), 0, 1)
        return np.moveaxis(np.tensordot(self.columns.astype(x.dtype), lines, (1, 2)), 0, 2)

    def adjoint(self, y: Array) -> Array:
        return Interpolation(self.rows.T, self.columns.T, self.channels).apply(y)

    def absolute(self) -> Interpolation:
        return Interpolation(np.abs(self.rows), np.abs(self.columns), self.channels)

    def reach(self) -> Int64:
        total: Int64 = np.multiply.outer(np.abs(self.rows).sum(1), np.abs(self.columns).sum(1))[..., np.newaxis]
        return total


@dataclass(frozen=True, eq=False)
class WindowSum:
    """y[h,w,c] = sum of x over the window's taps inside the image."""

    in_shape: tuple[int, int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding2d = NO_PADDING

    @property
    def out_shape(self) -> tuple[int, int, int]:
        return (*output_size(self.in_shape[:2], self.kernel, self.stride, self.padding), self.in_shape[2])

    def apply(self, x: Array) -> Array:
        result: Array = windows(pad_image(x, self.padding), self.kernel, self.stride).sum((3, 4), dtype=x.dtype)
        return result

    def adjoint(self, y: Array) -> Array:
        c = self.in_shape[2]
        ones = np.ones((c, *self.kernel, 1), np.int64)
        return Conv(ones, self.in_shape, self.stride, self.padding).adjoint(y)

    def absolute(self) -> WindowSum:
        return self

    def reach(self) -> Int64:
        """Taps inside the image per output position, int64 [OH, OW, 1]: also the pool's divisor."""
        h, w, p = *self.in_shape[:2], self.padding
        rows = _taps(h, self.kernel[0], self.stride[0], p.top, self.out_shape[0])
        columns = _taps(w, self.kernel[1], self.stride[1], p.left, self.out_shape[1])
        taps: Int64 = np.multiply.outer(rows, columns)[..., np.newaxis]
        return taps


def _taps(size: int, kernel: int, stride: int, before: int, count: int) -> Int64:
    """How many of the `kernel` positions from stride * i - before on lie in 0..size-1, for i < count."""
    first = stride * np.arange(count, dtype=np.int64) - before
    inside: Int64 = np.maximum(np.minimum(first + kernel, size) - np.maximum(first, 0), 0)
    return inside


@dataclass(frozen=True, eq=False)
class AxisSum:
    """y = sum of x over whole axes of the sample (0 is the first axis after the batch)."""

    in_shape: tuple[int, ...]
    axes: tuple[int, ...]
    keep_dims: bool

    @property
    def out_shape(self) -> tuple[int, ...]:
        kept = [(1 if a in self.axes else n) for a, n in enumerate(self.in_shape)]
        return tuple(kept) if self.keep_dims else tuple(n for a, n in enumerate(kept) if a not in self.axes)

    @property
    def count(self) -> int:
        """Elements summed per output."""
        return int(np.prod([self.in_shape[a] for a in self.axes], dtype=np.int64))

    def apply(self, x: Array) -> Array:
        result: Array = x.sum(tuple(a + 1 for a in self.axes), keepdims=self.keep_dims, dtype=x.dtype)
        return result

    def adjoint(self, y: Array) -> Array:
        shape = tuple(1 if a in self.axes else n for a, n in enumerate(self.in_shape))
        return np.broadcast_to(y.reshape(len(y), *shape), (len(y), *self.in_shape)).copy()

    def absolute(self) -> AxisSum:
        return self

    def reach(self) -> Int64:
        return np.full((1,) * len(self.out_shape), self.count, np.int64)
