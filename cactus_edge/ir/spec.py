"""What is legal: the rules every graph obeys before anything computes with it.

`check` raises ModelError naming the op. It validates structure, shapes, dtypes and quantisation parameters; whether a
runtime can execute the graph is the profile's question (`lowering.lower`).
"""

from __future__ import annotations

import math
from typing import assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.arith import WIDE_MAX
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.linear import AxisSum, output_size

MAX_ELEMENTS = 1 << 26
"""Elements of one tensor; larger ones are refused rather than allocated."""

MAX_DIVISORS = 1 << 20
"""Positions of an average pool."""

MAX_FAN_IN = 1 << 16
"""Taps per accumulator: |w * x| <= 128 * 255 each, so 2^16 of them stay below 2^31 (the exact proof is verify's); for int16 2^38."""


def check(graph: Graph) -> None:
    """Raises ModelError where `graph` is not a legal integer network with one input and one output."""
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ModelError(f"a model has one input and one output, got {len(graph.inputs)} and {len(graph.outputs)}")
    if not graph.nodes:
        raise ModelError("the model has no op")
    types = sorted({t.dtype for t in graph.tensors if t.dtype != "float32"})
    if len(types) > 1:
        raise UnsupportedError(f"the model mixes {' and '.join(types)} activations, expected one integer type")
    for tensor in graph.tensors:
        _check_tensor(tensor)
    for index, codes in graph.constants.items():
        t = graph.tensors[index]
        if t.dtype == "float32" or codes.dtype != t.dtype or codes.shape != t.shape:
            raise ModelError(f"constant {t.name!r} is {codes.dtype} {codes.shape} for {t.dtype} {t.shape}")
    _check_order(graph)
    for index, node in enumerate(graph.nodes):
        try:
            _check_node(graph, index, node)
        except ModelError as error:
            raise type(error)(f"{graph.label(index)}: {error.message}", hint=error.hint) from error


def _check_tensor(t: Tensor) -> None:
    where = f"tensor {t.name!r}"
    if any(n <= 0 for n in t.shape) or math.prod(t.shape) > MAX_ELEMENTS:
        raise ModelError(f"{where}: shape {t.shape}, expected positive sizes and at most {MAX_ELEMENTS} elements")
    if t.dtype == "float32":
        return
    if not (math.isfinite(t.scale) and t.scale > 0 and float(np.float32(t.scale)) == t.scale):
        raise ModelError(f"{where}: scale {t.scale!r}, expected a finite float32 above zero")
    lo, hi = (0, 0) if t.dtype == "int16" else t.codes
    if not lo <= t.zero_point <= hi:
        raise ModelError(f"{where}: zero point {t.zero_point}, expected one in [{lo}, {hi}] for {t.dtype}")


def _check_order(graph: Graph) -> None:
    count = len(graph.tensors)
    known = {*graph.inputs, *graph.constants}
    for index, node in enumerate(graph.nodes):
        for tensor in (*node.inputs, node.output):
            if not 0 <= tensor < count:
                raise ModelError(
                    f"op {index} {type(node.op).__name__} names tensor {tensor}, expected one of 0..{count - 1}"
                )
        for tensor in node.inputs:
            if tensor not in known:
                raise ModelError(f"{graph.label(index)} reads {graph.tensors[tensor].name!r} before it is written")
        if node.output in known:
            raise ModelError(f"{graph.label(index)} writes a tensor that was written before")
        known.add(node.output)
    if graph.outputs[0] not in known or graph.outputs[0] in {*graph.inputs, *graph.constants}:
        raise ModelError("the model's output is not written by an op")


def _check_node(graph: Graph, index: int, node: Node) -> None:
    arity = len(node.inputs)
    binary = isinstance(node.op, ops.Add | ops.Sub | ops.Mul | ops.Maximum | ops.Minimum)
    if arity != (2 if binary else 1) and not isinstance(node.op, ops.Concat):
        raise ModelError(f"takes {arity} inputs")
    if all(i in graph.constants for i in node.inputs):
        raise ModelError("reads constants only: its result is one, which the file should hold")
    inputs = [graph.tensors[i] for i in node.inputs]
    x, out = inputs[0], graph.tensors[node.output]
    _check_dtypes(graph, index, node.op, inputs, out)
    match node.op:
        case ops.Conv2d() as op:
            _check_conv(op, x, out)
        case ops.DepthwiseConv2d() as op:
            _check_depthwise(op, x, out)
        case ops.TransposeConv2d() as op:
            _check_transposed(op, x, out)
        case ops.Dense() as op:
            _check_dense(op, x, out)
        case ops.Add() | ops.Sub() | ops.Mul():
            _expect_shape(out, _broadcast(x.shape, inputs[1].shape))
        case ops.Maximum() | ops.Minimum():
            for operand in inputs:
                _expect_like(operand, out)
            _expect_shape(out, _broadcast(x.shape, inputs[1].shape))
        case ops.AvgPool() | ops.MaxPool() as op:
            _check_pool(op, x, out)
        case ops.Mean(axes, keep_dims) | ops.Sum(axes, keep_dims):
            _check_reduction(axes, keep_dims, x, out)
        case ops.Reshape():
            _expect_like(x, out)
            if x.size != out.size:
                raise ModelError(f"reshapes {x.shape} to {out.shape}")
        case (
            ops.Pad() | ops.Concat() | ops.Transpose() | ops.Slice() | ops.ResizeNearest() | ops.ResizeBilinear() as op
        ):
            _check_move(op, inputs, out)
        case ops.Relu() | ops.Relu6() | ops.HardSwish() | ops.Requantize() | ops.Quantize() | ops.Dequantize():
            _expect_shape(out, x.shape)
        case ops.LeakyRelu() | ops.Logistic() | ops.Tanh() | ops.Softmax() as op:
            _check_function(op, x, out)
        case _:
            assert_never(node.op)


def _check_dtypes(graph: Graph, index: int, op: ops.Op, inputs: list[Tensor], out: Tensor) -> None:
    before, after = isinstance(op, ops.Quantize), isinstance(op, ops.Dequantize)
    for tensor, real in [*((t, before) for t in inputs), (out, after)]:
        if (tensor.dtype == "float32") != real:
            raise ModelError(f"tensor {tensor.name!r} is {tensor.dtype}, expected {'float32' if real else 'integers'}")
    if isinstance(op, ops.Quantize) and index != 0:
        raise ModelError("quantises in the middle of the graph: a float island")
    if isinstance(op, ops.Dequantize) and index != len(graph.nodes) - 1:
        raise ModelError("dequantises in the middle of the graph: a float island")
    # Else a program would end in what the DEQUANTIZE reads, and not in the model's output.
    if isinstance(op, ops.Dequantize) and graph.nodes[index].output != graph.outputs[0]:
        raise ModelError(f"dequantises {out.name!r}, which is not the model's output")


def _check_conv(op: ops.Conv2d, x: Tensor, out: Tensor) -> None:
    h, w, c = _image(x)
    o, kh, kw, i = _rank(op.weight, 4)
    if i == 0 or c % i or o % (c // i):
        raise ModelError(f"weight {op.weight.shape} does not fit {c} input channels")
    _check_affine(op, o, kh * kw * i, x, out)
    _check_window((h, w), (kh, kw), op, o, out, op.dilation)


def _check_depthwise(op: ops.DepthwiseConv2d, x: Tensor, out: Tensor) -> None:
    h, w, c = _image(x)
    kh, kw, o = _rank(op.weight, 3)
    if o % c:
        raise ModelError(f"{o} output channels are no multiple of {c} input channels")
    _check_affine(op, o, kh * kw, x, out)
    _check_window((h, w), (kh, kw), op, o, out, op.dilation)


def _check_transposed(op: ops.TransposeConv2d, x: Tensor, out: Tensor) -> None:
    _, _, c = _image(x)
    o, kh, kw, i = _rank(op.weight, 4)
    if i != c:
        raise ModelError(f"weight {op.weight.shape} does not fit {c} input channels")
    _check_affine(op, o, kh * kw * i, x, out)
    # The convolution back, from the output to the input.
    _check_window(_image(out)[:2], (kh, kw), op, c, x, (1, 1))
    _expect_shape(out, (*_image(out)[:2], o))


def _check_dense(op: ops.Dense, x: Tensor, out: Tensor) -> None:
    o, i = _rank(op.weight, 2)
    if i not in (x.size, *x.shape[-1:]):
        raise ModelError(f"weight {op.weight.shape} does not fit an input of shape {x.shape}")
    _check_affine(op, o, i, x, out)
    _expect_shape(out, (o,) if i == x.size else (*x.shape[:-1], o))


def _check_pool(op: ops.AvgPool | ops.MaxPool, x: Tensor, out: Tensor) -> None:
    h, w, c = _image(x)
    if isinstance(op, ops.MaxPool):
        _expect_like(x, out)
    _check_window((h, w), op.kernel, op, c, out, (1, 1))
    _check_average(op, out)
    _every_window_reads((h, w), op)


def _check_reduction(axes: tuple[int, ...], keep_dims: bool, x: Tensor, out: Tensor) -> None:
    if not axes or list(axes) != sorted(set(axes)) or not (axes[0] >= 0 and axes[-1] < len(x.shape)):
        raise ModelError(f"axes {axes} of a sample of shape {x.shape}, expected increasing ones within it")
    _expect_shape(out, AxisSum(x.shape, axes, keep_dims).out_shape)


def _check_move(
    op: ops.Pad | ops.Concat | ops.Transpose | ops.Slice | ops.ResizeNearest | ops.ResizeBilinear,
    inputs: list[Tensor],
    out: Tensor,
) -> None:
    x = inputs[0]
    match op:
        case ops.Pad(pads):
            _check_pads(pads, x, out)
        case ops.Concat(axis):
            _check_join(axis, inputs, out)
        case ops.Transpose(perm):
            _check_transpose(perm, x, out)
        case ops.Slice():
            _check_slice(op, x, out)
        case ops.ResizeNearest() | ops.ResizeBilinear():
            _expect_like(x, out)
            _expect_shape(out, (*_image(out)[:2], _image(x)[2]))
        case _:
            assert_never(op)


def _check_pads(pads: tuple[tuple[int, int], ...], x: Tensor, out: Tensor) -> None:
    if len(pads) != len(x.shape) or any(a < 0 or b < 0 for a, b in pads):
        raise ModelError(f"pads {pads} do not fit shape {x.shape}")
    _expect_like(x, out)
    _expect_shape(out, tuple(n + a + b for n, (a, b) in zip(x.shape, pads, strict=True)))


def _check_join(axis: int, inputs: list[Tensor], out: Tensor) -> None:
    shape = inputs[0].shape
    if not 0 <= axis < len(shape):
        raise ModelError(f"axis {axis} of a sample of shape {shape}")
    for other in inputs:
        _expect_like(other, out)
        if len(other.shape) != len(shape) or any(
            a != axis and n != m for a, (n, m) in enumerate(zip(other.shape, shape, strict=True))
        ):
            raise ModelError(f"joins shapes {shape} and {other.shape} along axis {axis}")
    _expect_shape(out, (*shape[:axis], sum(t.shape[axis] for t in inputs), *shape[axis + 1 :]))


def _check_function(op: ops.LeakyRelu | ops.Logistic | ops.Tanh | ops.Softmax, x: Tensor, out: Tensor) -> None:
    _expect_shape(out, x.shape)
    match op:
        case ops.LeakyRelu(alpha):
            if not (math.isfinite(alpha) and float(np.float32(alpha)) == alpha):
                raise ModelError(f"alpha {alpha!r}, expected a finite float32")
        case ops.Logistic():
            _expect_quantised(out, 1 / 256, -128)
        case ops.Tanh():
            _expect_quantised(out, 1 / 128, 0)
        case ops.Softmax(beta):
            if not x.shape:
                raise ModelError("a softmax needs at least one axis besides the batch")
            if not (math.isfinite(beta) and beta > 0):
                raise ModelError(f"beta {beta}, expected a finite number above zero")
            _expect_quantised(out, 1 / 256, -128)
        case _:
            assert_never(op)


def _check_affine(
    op: ops.Conv2d | ops.DepthwiseConv2d | ops.TransposeConv2d | ops.Dense, o: int, fan_in: int, x: Tensor, out: Tensor
) -> None:
    if fan_in > MAX_FAN_IN:
        raise ModelError(f"{fan_in} taps per output, expected at most {MAX_FAN_IN}")
    biases = ["int32"] if x.dtype == "int8" else ["int32", "int64"]
    if op.bias.shape != (o,) or op.bias.dtype not in biases or op.weight.dtype != np.int8:
        raise ModelError(
            f"weight {op.weight.dtype} with bias {op.bias.dtype} {op.bias.shape}, expected int8 and {' or '.join(biases)} ({o},)"
        )
    bits, found = getattr(op, "weight_bits", 8), (int(op.weight.min()), int(op.weight.max()))
    least, most = ops.WEIGHT_RANGES.get(bits, (0, -1))
    if found[0] < least or found[1] > most:
        raise ModelError(f"weights in {list(found)} of {bits} bits, expected 4 for [-8, 7] or 8")
    # Beyond it the 64-bit sums themselves would wrap somewhere, and ours with them.
    if max(-int(op.bias.min()), int(op.bias.max())) > WIDE_MAX:
        raise ModelError(
            f"a bias of magnitude {max(-int(op.bias.min()), int(op.bias.max()))}, expected at most {WIDE_MAX}"
        )
    scales = op.weight_scale
    if scales.shape != (o,) and not (isinstance(op, ops.Dense) and scales.shape == (1,)):
        raise ModelError(f"{scales.size} weight scales for {o} output channels")
    if scales.dtype != np.float32 or not (np.isfinite(scales).all() and (scales > 0).all()):
        raise ModelError("weight scales are not finite float32 above zero")


def _check_window(
    size: tuple[int, int],
    kernel: tuple[int, int],
    op: ops.Conv2d | ops.DepthwiseConv2d | ops.TransposeConv2d | ops.AvgPool | ops.MaxPool,
    channels: int,
    out: Tensor,
    dilation: tuple[int, int],
) -> None:
    p = op.padding
    if min(*kernel, *op.stride, *dilation) <= 0 or min(p.top, p.bottom, p.left, p.right) < 0:
        raise ModelError(
            f"kernel {kernel}, stride {op.stride}, dilation {dilation}, padding {p}: sizes must be positive"
        )
    padded = (size[0] + p.top + p.bottom) * (size[1] + p.left + p.right) * channels
    if padded > MAX_ELEMENTS:
        raise ModelError(f"{padded} elements after padding by {p}, expected at most {MAX_ELEMENTS}")
    h, w = output_size(size, kernel, op.stride, p, dilation)
    if h <= 0 or w <= 0:
        raise ModelError(f"a kernel of {kernel} does not fit an image of {size}")
    _expect_shape(out, (h, w, channels))


def _check_average(op: ops.AvgPool | ops.MaxPool, out: Tensor) -> None:
    """Each position of an average has a divisor of its own."""
    taps, positions = math.prod(op.kernel), math.prod(out.shape[:2])
    if isinstance(op, ops.AvgPool) and (taps > MAX_FAN_IN or positions > MAX_DIVISORS):
        raise ModelError(
            f"{positions} averages of {taps} elements, expected at most {MAX_DIVISORS} of at most {MAX_FAN_IN}"
        )


def _every_window_reads(size: tuple[int, int], op: ops.AvgPool | ops.MaxPool) -> None:
    p = op.padding
    if max(p.top, p.bottom) >= op.kernel[0] or max(p.left, p.right) >= op.kernel[1]:
        raise ModelError(f"padding {p} is not smaller than the window {op.kernel}")
    last = [(n - 1) * s for n, s in zip(output_size(size, op.kernel, op.stride, p), op.stride, strict=True)]
    if last[0] - p.top >= size[0] or last[1] - p.left >= size[1]:
        raise ModelError("the last window lies outside the image")


def _expect_like(x: Tensor, out: Tensor) -> None:
    if not x.quantised_like(out):
        raise ModelError(
            f"input scale {x.scale} and zero point {x.zero_point} differ from the output's {out.scale} and {out.zero_point}"
        )


def _expect_quantised(out: Tensor, scale: float, zero_point: int) -> None:
    """The output's scale and zero point where it is int8; int16 codes of functions into [-1, 1] are always steps of 2^-15."""
    if out.dtype == "int16":
        scale, zero_point = 2.0**-15, 0
    if (out.scale, out.zero_point) != (scale, zero_point):
        raise ModelError(
            f"output scale {out.scale} and zero point {out.zero_point}, expected 1/{1 / scale:.0f} and {zero_point}"
        )


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    if len(a) != len(b) or any(n != m and 1 not in (n, m) for n, m in zip(a, b, strict=False)):
        raise ModelError(f"shapes {a} and {b} do not broadcast: expected as many axes in both, equal or 1")
    return tuple(max(n, m) for n, m in zip(a, b, strict=True))


def _check_transpose(perm: tuple[int, ...], x: Tensor, out: Tensor) -> None:
    _expect_like(x, out)
    if sorted(perm) != list(range(len(x.shape))):
        raise ModelError(f"permutation {perm} of {len(x.shape)} axes")
    _expect_shape(out, tuple(x.shape[a] for a in perm))


def _check_slice(op: ops.Slice, x: Tensor, out: Tensor) -> None:
    _expect_like(x, out)
    if not len(op.begin) == len(op.size) == len(op.stride) == len(x.shape):
        raise ModelError(f"a slice over {len(op.begin)} axes of a sample of shape {x.shape}")
    for n, begin, size, stride in zip(x.shape, op.begin, op.size, op.stride, strict=True):
        if min(size, stride) < 1 or begin < 0 or begin + (size - 1) * stride >= n:
            raise ModelError(f"elements {begin} + i * {stride} for i < {size} along an axis of {n}")
    rest = list(out.shape)
    for n in op.size:
        if rest[:1] == [n]:
            rest.pop(0)
        elif n != 1:
            rest.append(0)
    if rest:
        raise ModelError(f"output {out.name!r} has shape {out.shape}, expected {op.size}, possibly without axes of 1")


def _expect_shape(out: Tensor, shape: tuple[int, ...]) -> None:
    if out.shape != shape:
        raise ModelError(f"output {out.name!r} has shape {out.shape}, expected {shape}")


def _image(x: Tensor) -> tuple[int, int, int]:
    if len(x.shape) != 3:
        raise ModelError(f"input {x.name!r} has shape {x.shape}, expected height, width and channels")
    return x.shape[0], x.shape[1], x.shape[2]


def _rank(weight: npt.NDArray[np.int8], rank: int) -> tuple[int, ...]:
    if weight.ndim != rank or 0 in weight.shape:
        raise ModelError(f"weight of shape {weight.shape}, expected {rank} positive sizes")
    return weight.shape
