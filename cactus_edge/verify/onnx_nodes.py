"""Nodes of the QDQ form of ONNX -> ops of the graph: each operator stands between a DequantizeLinear and a QuantizeLinear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from cactus_edge.ir import ops
from cactus_edge.ir.arith import INT8_MIN
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.linear import output_size
from cactus_edge.verify.onnx_layout import (
    LARGEST_FLOAT_BIAS,
    Image,
    as_image,
    check_activation,
    check_scales,
    clip_bounds,
    keeps_order,
    our_columns,
)
from cactus_edge.verify.onnx_proto import INT8, UINT8
from cactus_edge.verify.onnx_values import (
    FUSING,
    Clamped,
    Codes,
    Constant,
    Network,
    Operator,
    Pending,
    Real,
    Source,
    Value,
)

CODES = (np.int8, np.uint8)
"""Types of activations in a file; uint8 codes are ours plus 128."""

BIAS_SCALE_TOLERANCE = 1e-5
"""|S_in * S_w - S_bias| <= 1e-5 * S_in * S_w: float32 products in any order, and no other scale."""


def _constant(o: Operator) -> None:
    o.operands(0, 0)
    found = o.attributes.constant("value")
    if found is None:
        raise o.unsupported("a constant without a tensor `value`")
    o.define_constant(found)


def _quantisation(o: Operator) -> bool:
    """Reads the attributes of QuantizeLinear and DequantizeLinear. Whether codes without a zero point are uint8."""
    o.attributes.expect("block_size", 0)
    o.attributes.expect("saturate", 1, 0)
    stated = o.attributes.integer("output_dtype", 0)
    if stated not in ((0, INT8, UINT8) if o.kind == "QuantizeLinear" else (0,)):
        raise o.unsupported(f"output_dtype {stated}")
    o.attributes.expect("precision", 0)
    return stated != INT8


def parameters(o: Operator, unsigned: bool, at: int = 1) -> tuple[float, int, bool]:
    """(scale, zero point, whether the codes are uint8) of an activation, from operands `at` and behind it.

    unsigned: what the codes are without a zero point. A zero point of uint8 codes is given for the codes less 128.
    """
    scale = float(o.scalar(at, np.float32))
    if not (np.isfinite(scale) and scale > 0):
        raise o.malformed("a finite scale above zero", scale)
    check_scales(scale, o.what)
    if not o.has(at + 1):
        return scale, INT8_MIN if unsigned else 0, unsigned
    stored = o.scalar(at + 1, *CODES)
    return scale, int(stored) + (INT8_MIN if stored.dtype == np.uint8 else 0), stored.dtype == np.uint8


def _quantize_linear(o: Operator) -> Value | None:
    o.operands(2, 3)
    axis = o.attributes.integer("axis", 1)
    if o.inputs[0] in o.net.constants:
        _quantised_weight(o, axis)
        return None
    scale, zero_point, unsigned = parameters(o, _quantisation(o))
    net, name, value = o.net, o.outputs[0], o.value(0)
    match value:
        case Source():
            x = net.tensors[0]
            if net.nodes:
                raise o.unsupported("quantising the graph's input a second time")
            out = Tensor(name, x.shape, "int8", scale, zero_point)
            return Codes(net.node(ops.Quantize(), (0,), out, net.images[0]), unsigned)
        case Pending(op, tensors, shape, image):
            return rounded(o, op, tensors, Tensor(name, shape, "int8", scale, zero_point), image, unsigned)
        case Clamped(tensor, activation, alone):
            x = net.tensors[tensor]
            out = replace(x, name=name, scale=scale, zero_point=zero_point)
            check_activation(activation, out, o.what)
            if alone and net.fusible(tensor) and x.quantised_like(out):
                net.fuse(tensor, activation, name)
                return Codes(tensor, unsigned)
            if activation is ops.Activation.RELU and zero_point == INT8_MIN:
                # There the ReLU is redundant, and without it the two roundings around it are made one.
                raise o.unsupported("a ReLU of its own to the lowest zero point, which ONNX Runtime removes,")
            if activation is ops.Activation.RELU:
                return Codes(net.node(ops.Relu(), (tensor,), out, net.images[tensor]), unsigned)
            raise o.unsupported(f"{activation.value} on codes that changes their scale or is not their only reader")
        case Real(tensor):
            if (net.tensors[tensor].scale, net.tensors[tensor].zero_point) == (scale, zero_point):
                return Codes(tensor, unsigned)
            raise o.unsupported("another scale right behind the first, whose two roundings ONNX Runtime makes one,")
    raise o.unsupported("quantising a value that is neither the graph's input nor an operator's result")


def _quantised_weight(o: Operator, axis: int) -> None:
    """int8 codes RNE(f32(w / scale)) of a float32 constant, which ONNX Runtime computes once: torch and NNCF write weights so."""
    _quantisation(o)
    weight, scale, zero_point = (
        o.plain(0, np.float32),
        o.plain(1, np.float32),
        o.plain(2, np.int8) if o.has(2) else None,
    )
    if zero_point is None or zero_point.any() or zero_point.size not in (1, scale.size):
        raise o.unsupported("a quantised constant other than int8 with zero point 0")
    if not (np.isfinite(scale).all() and (scale > 0).all() and scale.size and np.isfinite(weight).all()):
        raise o.malformed("finite values, and scales above zero", scale.ravel()[:4])
    axis += weight.ndim if axis < 0 else 0
    if scale.size > 1 and not (scale.ndim == 1 and 0 <= axis < weight.ndim and scale.size == weight.shape[axis]):
        raise o.malformed(f"scales along one axis of {weight.shape}", f"{scale.shape} along {axis}")
    along = [-1 if i == axis and scale.size > 1 else 1 for i in range(weight.ndim)]
    with np.errstate(over="ignore"):
        steps = np.rint(weight / scale.reshape(along))
    o.define_constant(ops.freeze(np.clip(steps, -128, 127), np.int8))


def rounded(
    o: Operator, op: ops.Op, tensors: tuple[int, ...], out: Tensor, image: Image | None, unsigned: bool
) -> Codes:
    """The node that writes `out`. ONNX Runtime joins tensors of other scales by rounding each to the output's first."""
    net = o.net
    if isinstance(op, ops.Concat):
        tensors = tuple(t if net.tensors[t].quantised_like(out) else _rescaled(net, t, out) for t in tensors)
    elif isinstance(op, ops.MaxPool | ops.Reshape | ops.Pad) and not net.tensors[tensors[0]].quantised_like(out):
        raise o.unsupported("an output of another scale or zero point than its input's behind a copy")
    if isinstance(op, FUSING):
        check_activation(op.activation, out, o.what)
    return Codes(net.node(op, tensors, out, image), unsigned)


def _rescaled(net: Network, tensor: int, like: Tensor) -> int:
    """The tensor with the scale and zero point of `like`; no name of the file's."""
    out = replace(net.tensors[tensor], name="", scale=like.scale, zero_point=like.zero_point)
    return net.node(ops.Requantize(), (tensor,), out, net.images[tensor])


def _dequantize_linear(o: Operator) -> Value:
    o.operands(2, 3)
    axis = o.attributes.integer("axis", 1)
    _quantisation(o)
    value = o.value(0)
    if isinstance(value, Codes):
        tensor = o.net.tensors[value.tensor]
        if parameters(o, value.unsigned) != (tensor.scale, tensor.zero_point, value.unsigned):
            raise o.unsupported("a scale or zero point that differs from the QuantizeLinear's before it")
        return Real(value.tensor)
    if value is not None:
        raise o.unsupported("dequantising what is no int8 code")
    if not o.has(0):
        raise o.malformed("something to dequantise", "no name")
    integers = o.net.constants[o.inputs[0]]
    if integers.dtype not in (np.int8, np.int32):
        raise o.unsupported(f"dequantising {integers.dtype}")
    scale = o.plain(1, np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all() and scale.size):
        raise o.malformed("finite scales above zero", scale.ravel()[:4])
    if o.has(2):
        zero_point = o.plain(2, integers.dtype)
        if zero_point.any() or zero_point.size not in (1, scale.size):
            raise o.unsupported("a constant with a zero point other than 0")
    if scale.size == 1 and scale.ndim <= 1:
        return Constant(integers, ops.freeze(scale.reshape(1), np.float32), None)
    axis += integers.ndim if axis < 0 else 0
    if scale.ndim != 1 or not 0 <= axis < integers.ndim or scale.size != integers.shape[axis]:
        raise o.malformed(f"scales along one axis of {integers.shape}", f"{scale.shape} along {axis}")
    return Constant(integers, scale, axis)


def _conv(o: Operator) -> Value:
    o.operands(2, 3)
    x = o.net.tensors[o.real()]
    op, shape = conv_op(o, x, o.dequantised(1, np.int8), _bias)
    return _pending(o, op, shape)


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
    stride, dilation = _positive(o, "strides"), _positive(o, "dilations")
    padding, groups = _padding(o), o.attributes.integer("group", 1)
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


def _gemm(o: Operator) -> Value:
    o.operands(2, 3)
    if o.attributes.number("alpha", 1.0) != 1.0 or o.attributes.number("beta", 1.0) != 1.0:
        raise o.unsupported("alpha or beta other than 1")
    o.attributes.expect("transA", 0)
    return _dense(o, o.attributes.integer("transB", 0))


def _matmul(o: Operator) -> Value:
    o.operands(2, 2)
    return _dense(o, 0)


def _dense(o: Operator, transposed: int) -> Value:
    op = dense_op(o, o.real(), o.dequantised(1, np.int8), transposed, _bias)
    return _pending(o, op, (len(op.bias),))


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


def _max_pool(o: Operator) -> Value:
    o.operands(1, 1)
    op, shape = max_pool_op(o, o.net.tensors[o.real()])
    return _pending(o, op, shape)


def max_pool_op(o: Operator, x: Tensor) -> tuple[ops.MaxPool, tuple[int, int, int]]:
    """The pool of this node, and its output's shape."""
    if len(x.shape) != 3:
        raise o.unsupported(f"a pool over {x.shape}: only images [N, channels, height, width] are")
    kernel = _positive(o, "kernel_shape", 0)
    stride, padding = _positive(o, "strides"), _padding(o)
    if _positive(o, "dilations") != (1, 1):
        raise o.unsupported("a dilated pool")
    o.attributes.expect("ceil_mode", 0)
    o.attributes.expect("storage_order", 0)
    h, w = output_size((x.shape[0], x.shape[1]), kernel, stride, padding)
    return ops.MaxPool(kernel, stride, padding), (h, w, x.shape[2])


def _global_average(o: Operator) -> Value:
    o.operands(1, 1)
    x = o.net.tensors[o.real()]
    if len(x.shape) != 3:
        raise o.unsupported(f"a pool over {x.shape}: only images [N, channels, height, width] are")
    return _pending(o, ops.Mean((0, 1), True), (1, 1, x.shape[2]))


def _add(o: Operator) -> Value:
    o.operands(2, 2)
    if o.inputs[0] == o.inputs[1]:
        raise o.unsupported("a sum of a tensor with itself, which ONNX Runtime leaves in float,")
    return pending_add(o, (o.real(0), o.real(1)))


def pending_add(o: Operator, tensors: tuple[int, int]) -> Pending:
    """The sum of two tensors of one shape."""
    x, y = (o.net.tensors[t] for t in tensors)
    image, other = (o.net.images[t] for t in tensors)
    if x.shape != y.shape or image != other:
        raise o.unsupported(f"a sum of [N, *{x.shape}] and [N, *{y.shape}], of other shapes or orders,")
    return Pending(ops.Add(), tensors, x.shape, image)


def _concat(o: Operator) -> Value:
    if len(o.outputs) != 1 or not o.inputs:
        raise o.malformed("inputs and one output", f"{len(o.inputs)} and {len(o.outputs)}")
    return pending_concat(o, tuple(o.real(i) for i in range(len(o.inputs))))


def pending_concat(o: Operator, tensors: tuple[int, ...]) -> Pending:
    """The tensors behind each other along the node's axis, which counts the batch and the channels first."""
    shapes = [o.net.tensors[t].shape for t in tensors]
    rank, axis = len(shapes[0]), o.attributes.integer("axis", 0)
    axis += rank + 1 if axis < 0 else 0
    ours = {3: {1: 2, 2: 0, 3: 1}, 1: {1: 0}}.get(rank, {}).get(axis)
    if ours is None or any(
        len(s) != rank or any(a != b for i, (a, b) in enumerate(zip(s, shapes[0], strict=True)) if i != ours)
        for s in shapes
    ):
        raise o.malformed(f"shapes that join along axis {axis}", shapes)
    if rank == 1 and not all(keeps_order(o.net.images[t]) for t in tensors):
        raise o.unsupported("joining flattened images, whose elements are stored channel first,")
    shape = (*shapes[0][:ours], sum(s[ours] for s in shapes), *shapes[0][ours + 1 :])
    return Pending(ops.Concat(ours), tensors, shape, as_image(shape))


def _flatten(o: Operator) -> Value:
    o.operands(1, 1)
    o.attributes.expect("axis", 1)
    return pending_flat(o, o.real())


def _reshape(o: Operator) -> Value:
    o.operands(2, 2)
    source = o.real()
    reshape_sizes(o, source)
    return pending_flat(o, source)


def reshape_sizes(o: Operator, source: int) -> None:
    """Raises UnsupportedError unless the node reshapes the tensor to [N, all its elements]."""
    o.attributes.expect("allowzero", 0)
    shape, size = [int(n) for n in o.plain(1, np.int64).ravel()], o.net.tensors[source].size
    # A 0 keeps the batch; a 1 in front would join several samples.
    if shape not in ([0, -1], [0, size], [-1, size]):
        raise o.unsupported(f"a reshape to {shape}, other than to [0, -1], [0, {size}] or [-1, {size}],")


def pending_flat(o: Operator, source: int) -> Pending:
    """The elements of a tensor in the order in which they are stored."""
    return Pending(ops.Reshape(), (source,), (o.net.tensors[source].size,), o.net.images[source])


def _relu(o: Operator) -> Value:
    o.operands(1, 1)
    return _activate(o, ops.Activation.RELU)


def _clip(o: Operator) -> Value:
    o.operands(1, 3)
    bounds = tuple(float(o.scalar(i, np.float32)) if o.has(i) else None for i in (1, 2))
    if bounds == (0.0, None):
        return _activate(o, ops.Activation.RELU)
    for activation in ops.Activation:
        if clip_bounds(activation) == bounds:
            return _activate(o, activation)
    raise o.unsupported(f"clipping to {bounds}, other than to 0 and above, [0, 6] or [-1, 1],")


def _activate(o: Operator, activation: ops.Activation) -> Value:
    """An activation on a result that is not rounded yet, or on codes."""
    value, net = o.value(0), o.net
    match value:
        case Pending(op=ops.Conv2d() | ops.DepthwiseConv2d() | ops.Dense() | ops.MaxPool() | ops.Add() as op):
            if op.activation is not ops.Activation.NONE:
                raise o.unsupported("a second activation")
            return replace(value, op=replace(op, activation=activation))
        case Real(tensor):
            alone = net.uses[o.inputs[0]] == 1 and net.uses[net.tensors[tensor].name] == 1
            return Clamped(tensor, activation, alone)
    raise o.unsupported("an activation of neither codes nor a convolution, dense layer, pool or sum")


def _pending(o: Operator, op: ops.Op, shape: tuple[int, ...]) -> Value:
    return Pending(op, (o.real(),), shape, as_image(shape))


def _positive(o: Operator, name: str, default: int = 1) -> tuple[int, int]:
    """A pair (height, width) above zero; without a default it must be there."""
    h, w = o.attributes.integers(name, (default, default))
    if min(h, w) < 1:
        raise o.malformed(f"{name} above zero", (h, w))
    return h, w


def _padding(o: Operator) -> ops.Padding2d:
    top, left, bottom, right = o.attributes.integers("pads", (0, 0, 0, 0))
    automatic = o.attributes.text("auto_pad", b"NOTSET")
    if automatic not in (b"NOTSET", b"VALID") or (automatic == b"VALID" and (top, left, bottom, right) != (0, 0, 0, 0)):
        raise o.unsupported(f"auto_pad {automatic!r} with pads {(top, left, bottom, right)}")
    if min(top, left, bottom, right) < 0:
        raise o.malformed("pads of at least 0", (top, left, bottom, right))
    return ops.Padding2d(top, bottom, left, right)


READ: dict[str, Callable[[Operator], Value | None]] = {
    "Constant": _constant,
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "MaxPool": _max_pool,
    "GlobalAveragePool": _global_average,
    "Add": _add,
    "Concat": _concat,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Relu": _relu,
    "Clip": _clip,
}
"""Every operator that is understood."""
