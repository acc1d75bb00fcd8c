"""Convolutions and dense layers of an ONNX file -> ops of the graph: weights, biases, geometry."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cactus_edge.formats.onnx.read.layout import as_image, check_scales, our_columns
from cactus_edge.formats.onnx.read.values import Constant, Operator, Pending, Value
from cactus_edge.ir import ops
from cactus_edge.ir.arith import LARGEST_FLOAT_BIAS
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.linear import output_size

BIAS_SCALE_TOLERANCE = 1e-5
"""|S_in * S_w - S_bias| <= 1e-5 * S_in * S_w: float32 products in any order, and no other scale."""


def conv(o: Operator) -> Value:
    """A convolution in two dimensions."""
    o.operands(2, 3)
    source = o.real()
    op, shape = conv_op(o, o.net.tensors[source], o.dequantised(1, np.int8), _bias)
    return Pending(op, (source,), shape, as_image(shape))


Bias = Callable[[Operator, Constant, float, int], ops.Int32]
"""(node, weight, input scale, outputs) -> the bias [outputs]."""


def conv_op(o: Operator, x: Tensor, weight: Constant, bias_of: Bias) -> tuple[ops.Op, tuple[int, int, int]]:
    """The convolution of this node, and its output's shape."""
    if len(x.shape) != 3:
        raise o.unsupported(f"a convolution over {x.shape}: only images [N, channels, height, width] are")
    if weight.integers.ndim != 4 or 0 in weight.integers.shape:
        raise o.unsupported(f"a weight of shape {weight.integers.shape}, not [outputs, inputs, height, width],")
    outputs, per_group, kh, kw = weight.integers.shape
    if o.attributes.integers("kernel_shape", (kh, kw)) != (kh, kw):
        raise o.malformed(f"kernel_shape {(kh, kw)}", "another")
    stride, dilation = positive(o, "strides"), positive(o, "dilations")
    padding = padding_of(o, (x.shape[0], x.shape[1]), (kh, kw), stride, dilation)
    groups = o.attributes.integer("group", 1)
    if groups < 1 or per_group * groups != x.shape[2] or outputs % groups:
        raise o.malformed(f"groups that divide {x.shape[2]} inputs by {per_group} and {outputs} outputs", groups)
    bias = bias_of(o, weight, x.scale, outputs)
    scale = ops.freeze(np.broadcast_to(weight_scale(o, weight, 0), (outputs,)), np.float32)
    h, w = output_size((x.shape[0], x.shape[1]), (kh, kw), stride, padding, dilation)
    op: ops.Op
    if per_group == 1 and x.shape[2] > 1:
        kernel = ops.freeze(weight.integers[:, 0].transpose(1, 2, 0), np.int8)
        op = ops.DepthwiseConv2d(kernel, bias, scale, stride, padding, dilation)
    else:
        kernel = ops.freeze(weight.integers.transpose(0, 2, 3, 1), np.int8)
        op = ops.Conv2d(kernel, bias, scale, stride, padding, dilation)
    return op, (h, w, outputs)


def gemm(o: Operator) -> Value:
    """x W or x W^T, plus a bias."""
    o.operands(2, 3)
    if o.attributes.number("alpha", 1.0) != 1.0 or o.attributes.number("beta", 1.0) != 1.0:
        raise o.unsupported("alpha or beta other than 1")
    o.attributes.expect("transA", 0)
    return _dense(o, o.attributes.integer("transB", 0))


def matmul(o: Operator) -> Value:
    """x W."""
    o.operands(2, 2)
    return _dense(o, 0)


def _dense(o: Operator, transposed: int) -> Value:
    source = o.real()
    op = dense_op(o, source, o.dequantised(1, np.int8), transposed, _bias)
    return Pending(op, (source,), (len(op.bias),), None)


def dense_op(o: Operator, source: int, weight: Constant, transposed: int, bias_of: Bias) -> ops.Dense:
    """The product of the tensor `source` with this weight."""
    x = o.net.tensors[source]
    if len(x.shape) != 1 or weight.integers.ndim != 2:
        raise o.unsupported(f"a product of [N, *{x.shape}] and {weight.integers.shape}, other than of two matrices,")
    if transposed not in (0, 1):
        raise o.malformed("transB 0 or 1", transposed)
    axis = 0 if transposed else 1
    stored = weight.integers if transposed else weight.integers.T
    outputs, inputs = stored.shape
    if inputs != x.size or not outputs:
        raise o.malformed(f"a weight for {x.size} inputs", stored.shape)
    bias, scale = bias_of(o, weight, x.scale, outputs), weight_scale(o, weight, axis)
    columns = our_columns(stored, o.net.images[source])
    return ops.Dense(ops.freeze(columns, np.int8), bias, scale)


def weight_scale(o: Operator, weight: Constant, axis: int) -> ops.Float32:
    """The weight's scales, [1] or one per output along `axis`."""
    if weight.axis not in (None, axis):
        raise o.unsupported(f"weight scales along axis {weight.axis}, other than the outputs' axis {axis},")
    check_scales(weight.scale, f"{o.what}: weight")
    return weight.scale


def _bias(o: Operator, weight: Constant, s_in: float, outputs: int) -> ops.Int32:
    """The int32 bias [O] behind a DequantizeLinear, whose scales must be the weight's times S_in, or its float32 image."""
    if not o.has(2):
        return ops.freeze(np.zeros(outputs), np.int32)
    if o.inputs[2] in o.net.constants:
        return _float_bias(o, np.float32(s_in) * weight.scale, outputs)
    bias = o.dequantised(2, np.int32)
    if bias.integers.shape != (outputs,):
        raise o.malformed(f"a bias of shape {(outputs,)}", bias.integers.shape)
    product = s_in * weight.scale.astype(np.float64)
    if (np.abs(bias.scale - product) > BIAS_SCALE_TOLERANCE * product).any():
        raise o.unsupported("a bias whose scale is not that of input times weight")
    return ops.freeze(bias.integers, np.int32)


def _float_bias(o: Operator, scale: ops.Float32, outputs: int) -> ops.Int32:
    """RNE(f32(bias / scale)) as int32, which ONNX Runtime makes of a float32 bias; noted where that loses anything.

    Source: onnxruntime/core/optimizer/qdq_transformer/weight_bias_quantization.cc.
    """
    stored = o.plain(2, np.float32)
    if stored.shape != (outputs,) or not np.isfinite(stored).all():
        raise o.malformed(f"a finite bias of shape {(outputs,)}", stored.shape)
    with np.errstate(over="ignore"):
        codes = np.rint(stored / scale).astype(np.float64)
    if not (np.abs(codes) < 2**31).all():
        raise o.unsupported("a float32 bias of more than 32 bits in steps of input scale times weight scale")
    if (np.abs(codes) > LARGEST_FLOAT_BIAS).any() or not np.array_equal((codes * scale).astype(np.float32), stored):
        o.net.rounded = True
    return ops.freeze(codes, np.int32)


def positive(o: Operator, name: str, default: int = 1) -> tuple[int, int]:
    """A pair (height, width) above zero; without a default it must be there."""
    h, w = o.attributes.integers(name, (default, default))
    if min(h, w) < 1:
        raise o.malformed(f"{name} above zero", (h, w))
    return h, w


def padding_of(
    o: Operator,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> ops.Padding2d:
    """`pads`, or what `auto_pad` makes of it: SAME_UPPER is TensorFlow's SAME, SAME_LOWER puts the odd tap first."""
    top, left, bottom, right = o.attributes.integers("pads", (0, 0, 0, 0))
    automatic = o.attributes.text("auto_pad", b"NOTSET")
    if min(top, left, bottom, right) < 0:
        raise o.malformed("pads of at least 0", (top, left, bottom, right))
    if automatic != b"NOTSET" and (top, left, bottom, right) != (0, 0, 0, 0):
        raise o.unsupported(f"auto_pad {automatic!r} with pads {(top, left, bottom, right)}")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        p = ops.same_padding(size, kernel, stride, dilation)
        return p if automatic == b"SAME_UPPER" else ops.Padding2d(p.bottom, p.top, p.right, p.left)
    if automatic not in (b"NOTSET", b"VALID"):
        raise o.unsupported(f"auto_pad {automatic!r}")
    return ops.Padding2d(top, bottom, left, right)
