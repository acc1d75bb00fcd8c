"""Nodes of the QDQ form of ONNX -> ops of the graph: each operator stands between a DequantizeLinear and a QuantizeLinear."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from cactus_edge.formats.onnx.read.affine import conv, gemm, matmul, positive
from cactus_edge.formats.onnx.read.layout import as_image, clip_bounds, keeps_order
from cactus_edge.formats.onnx.read.moves import MOVES, OUR_AXIS, image_of, window
from cactus_edge.formats.onnx.read.proto import FLOAT
from cactus_edge.formats.onnx.read.quantise import constant, dequantize_linear, quantize_linear
from cactus_edge.formats.onnx.read.values import Clamped, Codes, Operator, Pending, Real, Value
from cactus_edge.ir import ops
from cactus_edge.ir.linear import output_size


def _global_average(o: Operator) -> Value:
    o.operands(1, 1)
    return pending_average(o, o.real())


def pending_average(o: Operator, source: int) -> Pending:
    """The mean over the whole image."""
    shape = (1, 1, image_of(o, source)[2])
    return Pending(ops.Mean((0, 1), True), (source,), shape, shape)


def _average(o: Operator) -> Value:
    o.operands(1, 1)
    return pending_window(o, o.real())


def pending_window(o: Operator, source: int) -> Pending:
    """The mean over each window's taps inside the image."""
    h, w, c = image_of(o, source)
    kernel, stride, padding = window(o, source)
    if positive(o, "dilations") != (1, 1):
        raise o.unsupported("a dilated pool")
    o.attributes.expect("count_include_pad", 0, *((1,) if padding == ops.NO_PADDING else ()))
    shape = (*output_size((h, w), kernel, stride, padding), c)
    return Pending(ops.AvgPool(kernel, stride, padding), (source,), shape, shape)


def _binary(op: ops.Add | ops.Mul, o: Operator) -> Value:
    o.operands(2, 2)
    if o.inputs[0] == o.inputs[1]:
        raise o.unsupported("a sum or product of a tensor with itself, which ONNX Runtime leaves in float,")
    return pending_binary(o, op, (o.real(0), o.real(1)))


def pending_binary(o: Operator, op: ops.Add | ops.Mul, tensors: tuple[int, int]) -> Pending:
    """The sum or the product of two tensors of one shape; a product may repeat one pixel of all channels for an image."""
    x, y = (o.net.tensors[t].shape for t in tensors)
    images = [o.net.images[t] for t in tensors]
    image, other = (None if len(s) == 1 and keeps_order(i) else i for s, i in zip((x, y), images, strict=True))
    shape = x if len(x) != len(y) or math.prod(x) >= math.prod(y) else y
    pixel = isinstance(op, ops.Mul) and len(shape) == 3 and {x, y} == {shape, (1, 1, shape[-1])}
    if not pixel and (x != y or image != other):
        raise o.unsupported(f"a sum or product of [N, *{x}] and [N, *{y}], of other shapes or orders,")
    return Pending(op, tensors, shape, as_image(shape) if pixel else image)


def _concat(o: Operator) -> Value:
    if len(o.outputs) != 1 or not o.inputs:
        raise o.malformed("inputs and one output", f"{len(o.inputs)} and {len(o.outputs)}")
    return pending_concat(o, tuple(o.real(i) for i in range(len(o.inputs))))


def pending_concat(o: Operator, tensors: tuple[int, ...]) -> Pending:
    """The tensors behind each other along the node's axis, which counts the batch and the channels first."""
    shapes = [o.net.tensors[t].shape for t in tensors]
    rank, axis = len(shapes[0]), o.attributes.integer("axis", 0)
    axis += rank + 1 if axis < 0 else 0
    ours = OUR_AXIS[rank].get(axis)
    if ours is None or any(
        len(s) != rank or any(a != b for i, (a, b) in enumerate(zip(s, shapes[0], strict=True)) if i != ours)
        for s in shapes
    ):
        raise o.malformed(f"shapes that join along axis {axis}", shapes)
    if rank == 1 and not all(keeps_order(o.net.images[t]) for t in tensors):
        raise o.unsupported("joining flattened images, whose elements are stored channel first,")
    shape = (*shapes[0][:ours], sum(s[ours] for s in shapes), *shapes[0][ours + 1 :])
    return Pending(ops.Concat(ours), tensors, shape, as_image(shape))


def _unary(op: ops.Logistic | ops.Tanh | ops.HardSwish, o: Operator) -> Value:
    o.operands(1, 1)
    return pending_unary(o, op, o.real())


def _leaky_relu(o: Operator) -> Value:
    o.operands(1, 1)
    return pending_unary(o, leaky_relu(o), o.real())


def _softmax(o: Operator) -> Value:
    o.operands(1, 1)
    return pending_softmax(o, o.real())


def pending_softmax(o: Operator, source: int) -> Pending:
    """The softmax over all features of a sample."""
    shape = o.net.tensors[source].shape
    o.attributes.expect("axis", -1, 1)
    if len(shape) != 1:
        raise o.unsupported(f"a softmax over [N, *{shape}], other than [N, features],")
    return Pending(ops.Softmax(), (source,), shape, o.net.images[source])


def leaky_relu(o: Operator) -> ops.LeakyRelu:
    """The op with the slope that the node states."""
    return ops.LeakyRelu(o.attributes.number("alpha", float(np.float32(0.01))))


def pending_unary(o: Operator, op: ops.LeakyRelu | ops.Logistic | ops.Tanh | ops.HardSwish, source: int) -> Pending:
    """A function of each code alone."""
    return Pending(op, (source,), o.net.tensors[source].shape, o.net.images[source])


def _move(o: Operator) -> Value:
    return MOVES[o.kind](o, o.real())


def _same(o: Operator) -> None:
    """What exporters leave in the way: the value, or constant, under another name."""
    o.operands(1, 3 if o.kind == "Dropout" else 1)
    match o.kind:
        case "Cast":
            o.attributes.expect("saturate", 1)
            codes = isinstance(o.value(0), Codes) or o.inputs[0] in o.net.constants
            if codes or o.attributes.integer("to", 0) != FLOAT:
                raise o.unsupported("a cast other than of float32 to float32")
        case "Dropout":
            o.attributes.integer("seed", 0)
            if o.has(2) and o.plain(2, np.bool_).any():
                raise o.unsupported("a dropout in training mode")
    o.rename()


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
            name = net.tensors[tensor].name
            alone = name != "" and net.uses[o.inputs[0]] == 1 and net.uses[name] == 1
            return Clamped(tensor, activation, alone)
    raise o.unsupported("an activation of neither codes nor a convolution, dense layer, pool or sum")


READ: dict[str, Callable[[Operator], Value | None]] = {
    "Constant": constant,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _same,
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "Conv": conv,
    "Gemm": gemm,
    "MatMul": matmul,
    "GlobalAveragePool": _global_average,
    "AveragePool": _average,
    "Add": partial(_binary, ops.Add()),
    "Mul": partial(_binary, ops.Mul()),
    "Concat": _concat,
    "Relu": _relu,
    "Clip": _clip,
    "LeakyRelu": _leaky_relu,
    "Sigmoid": partial(_unary, ops.Logistic()),
    "Tanh": partial(_unary, ops.Tanh()),
    "HardSwish": partial(_unary, ops.HardSwish()),
    "Softmax": _softmax,
    **dict.fromkeys(MOVES, _move),
}
"""Every operator that is understood."""
