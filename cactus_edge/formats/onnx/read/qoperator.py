"""Nodes of ONNX's QOperator form -> ops of the graph: each computes from codes to codes, with scales and zero points as inputs.

Source: onnx.ai QLinearConv, QLinearMatMul; onnxruntime docs/ContribOperators.md, domain com.microsoft.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from cactus_edge.formats.onnx.read.affine import conv_op, dense_op
from cactus_edge.formats.onnx.read.layout import Image, as_image
from cactus_edge.formats.onnx.read.moves import MOVES
from cactus_edge.formats.onnx.read.nodes import (
    leaky_relu,
    pending_average,
    pending_binary,
    pending_concat,
    pending_softmax,
    pending_unary,
    pending_window,
)
from cactus_edge.formats.onnx.read.quantise import CODES, centred, parameters, rounded
from cactus_edge.formats.onnx.read.values import Codes, Constant, Operator, Pending, Value
from cactus_edge.ir import ops
from cactus_edge.ir.graph import Tensor


def _codes(o: Operator, at: int) -> Codes:
    """The codes that are operand `at`, whose scale and zero point are the two operands behind it."""
    value = o.codes(at)
    tensor = o.net.tensors[value.tensor]
    if parameters(o, value.unsigned, at + 1) != (tensor.scale, tensor.zero_point, value.unsigned):
        raise o.unsupported("a scale or zero point that differs from that of the tensor it reads")
    return value


def _weight(o: Operator, axis: int) -> Constant:
    """Operands 3 to 5: weights of 8 bits, scales along `axis` or one, zero points alike."""
    weight, scale = o.plain(3, *CODES), o.plain(4, np.float32)
    zero_point = o.plain(5, weight.dtype)
    if zero_point.size not in (1, scale.size):
        raise o.malformed("a zero point per scale, or one", zero_point.shape)
    if not (np.isfinite(scale).all() and (scale > 0).all() and scale.size and scale.ndim <= 1):
        raise o.malformed("finite scales above zero", scale.ravel()[:4])
    one = scale.size == 1
    if not one and (axis >= weight.ndim or weight.shape[axis] != scale.size):
        raise o.malformed(f"scales along axis {axis} of {weight.shape}", scale.shape)
    integers = centred(o, weight, zero_point, axis)
    return Constant(integers, ops.freeze(scale.reshape(-1), np.float32), None if one else axis)


def _bias(at: int) -> Callable[[Operator, Constant, float, int], ops.Int32]:
    def bias(o: Operator, weight: Constant, s_in: float, outputs: int) -> ops.Int32:
        stored = o.plain(at, np.int32) if o.has(at) else np.zeros(outputs, np.int32)
        if stored.shape != (outputs,):
            raise o.malformed(f"a bias of shape {(outputs,)}", stored.shape)
        return ops.freeze(stored, np.int32)

    return bias


def _result(
    o: Operator,
    op: ops.Op,
    sources: tuple[Codes, ...],
    shape: tuple[int, ...],
    image: Image | None,
    at: int,
) -> Value:
    """The op's output, whose scale and zero point are the operands `at` and behind it."""
    scale, zero_point, unsigned = parameters(o, sources[0].unsigned, at)
    out = Tensor(o.outputs[0], shape, "int8", scale, zero_point)
    return rounded(o, op, tuple(s.tensor for s in sources), out, image, unsigned)


def _conv(o: Operator) -> Value:
    o.operands(8, 9)
    x = _codes(o, 0)
    op, shape = conv_op(o, o.net.tensors[x.tensor], _weight(o, 0), _bias(8))
    return _result(o, op, (x,), shape, as_image(shape), 6)


def _matmul(o: Operator) -> Value:
    o.operands(8, 8)
    x = _codes(o, 0)
    op = dense_op(o, x.tensor, _weight(o, 1), 0, _bias(8))
    return _result(o, op, (x,), (len(op.bias),), None, 6)


def _gemm(o: Operator) -> Value:
    o.operands(9, 9)
    x, transposed = _codes(o, 0), o.attributes.integer("transB", 0)
    o.attributes.expect("transA", 0)
    if o.attributes.number("alpha", 1.0) != 1.0:
        raise o.unsupported("alpha other than 1")
    op = dense_op(o, x.tensor, _weight(o, 0 if transposed else 1), transposed, _bias(6))
    return _result(o, op, (x,), (len(op.bias),), None, 7)


def _rounded(o: Operator, pending: Pending, sources: tuple[Codes, ...], at: int) -> Value:
    return _result(o, pending.op, sources, pending.shape, pending.image, at)


def _binary(op: ops.Add | ops.Mul, o: Operator) -> Value:
    o.operands(8, 8)
    x, y = _codes(o, 0), _codes(o, 3)
    if not x.unsigned:
        raise o.unsupported("an int8 sum or product, which ONNX Runtime rounds in another way than a uint8 one,")
    return _rounded(o, pending_binary(o, op, (x.tensor, y.tensor)), (x, y), 6)


def _global_average(o: Operator) -> Value:
    o.operands(5, 5)
    o.attributes.expect("channels_last", 0)
    x = _codes(o, 0)
    return _rounded(o, pending_average(o, x.tensor), (x,), 3)


def _average(o: Operator) -> Value:
    o.operands(5, 5)
    o.attributes.expect("channels_last", 0)
    x = _codes(o, 0)
    if not x.unsigned:
        raise o.unsupported(
            "an average of int8 codes, which ONNX Runtime rounds in another way than one of uint8 codes,"
        )
    return _rounded(o, pending_window(o, x.tensor), (x,), 3)


def _concat(o: Operator) -> Value:
    if len(o.outputs) != 1 or len(o.inputs) < 5 or len(o.inputs) % 3 != 2:
        raise o.malformed("a scale, a zero point and three inputs per tensor", len(o.inputs))
    sources = tuple(_codes(o, at) for at in range(2, len(o.inputs), 3))
    return _rounded(o, pending_concat(o, tuple(s.tensor for s in sources)), sources, 0)


def _leaky_relu(o: Operator) -> Value:
    o.operands(5, 5)
    x = _codes(o, 0)
    return _rounded(o, pending_unary(o, leaky_relu(o), x.tensor), (x,), 3)


def _softmax(o: Operator) -> Value:
    o.operands(5, 5)
    x = _codes(o, 0)
    o.attributes.integer("opset", 13)  # a matrix has one row either way
    if not x.unsigned:
        raise o.unsupported("a softmax of int8 codes, whose largest output wraps in ONNX Runtime,")
    return _rounded(o, pending_softmax(o, x.tensor), (x,), 3)


def _sigmoid(o: Operator) -> Value:
    o.operands(5, 5)
    x = _codes(o, 0)
    return _rounded(o, pending_unary(o, ops.Logistic(), x.tensor), (x,), 3)


def _move(o: Operator) -> Value:
    """An op that keeps scale and zero point."""
    x = o.codes(0)
    pending, like = MOVES[o.kind](o, x.tensor), o.net.tensors[x.tensor]
    out = Tensor(o.outputs[0], pending.shape, "int8", like.scale, like.zero_point)
    return rounded(o, pending.op, (x.tensor,), out, pending.image, x.unsigned)


ON_CODES: dict[tuple[str, str], Callable[[Operator], Value]] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    ("com.microsoft", "QGemm"): _gemm,
    ("com.microsoft", "QLinearAdd"): partial(_binary, ops.Add()),
    ("com.microsoft", "QLinearMul"): partial(_binary, ops.Mul()),
    ("com.microsoft", "QLinearAveragePool"): _average,
    ("com.microsoft", "QLinearSoftmax"): _softmax,
    ("com.microsoft", "QLinearLeakyRelu"): _leaky_relu,
    ("com.microsoft", "QLinearSigmoid"): _sigmoid,
    ("com.microsoft", "QLinearGlobalAveragePool"): _global_average,
    ("com.microsoft", "QLinearConcat"): _concat,
    **{("", kind): _move for kind in MOVES},
}
"""Every operator that is understood on codes, by domain and name."""
