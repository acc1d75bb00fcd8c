"""QuantizeLinear and DequantizeLinear: where values of an ONNX file become codes of the graph, and codes real numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cactus_edge.errors import UnsupportedError
from cactus_edge.formats.onnx.read.layout import Image, check_activation, check_scales
from cactus_edge.formats.onnx.read.proto import INT8, UINT8, Array
from cactus_edge.formats.onnx.read.values import (
    FUSING,
    MOVING,
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
from cactus_edge.ir import ops
from cactus_edge.ir.arith import INT8_MIN
from cactus_edge.ir.graph import Tensor

CODES = (np.int8, np.uint8)
"""Types of activations in a file; uint8 codes are ours plus 128."""


def constant(o: Operator) -> None:
    """A tensor that stands in a node rather than among the initializers."""
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
    if o.plain(at, np.float32).size > 1:
        raise UnsupportedError(
            f"{o.what}: activations with a scale per channel are not supported: no integer kernel takes them",
            hint="quantise activations per tensor (NNCF: activations_quantization_params=QuantizationParameters(per_channel=False))",
        )
    scale = float(o.scalar(at, np.float32))
    if not (np.isfinite(scale) and scale > 0):
        raise o.malformed("a finite scale above zero", scale)
    check_scales(scale, o.what)
    if not o.has(at + 1):
        return scale, INT8_MIN if unsigned else 0, unsigned
    stored = o.scalar(at + 1, *CODES)
    return scale, int(stored) + (INT8_MIN if stored.dtype == np.uint8 else 0), stored.dtype == np.uint8


def quantize_linear(o: Operator) -> Value | None:
    """Rounds a result, or the graph's input, to codes; a float32 constant to a constant."""
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
    elif isinstance(op, MOVING) and not net.tensors[tensors[0]].quantised_like(out):
        raise o.unsupported("an output of another scale or zero point than its input's behind a copy")
    if isinstance(op, FUSING):
        check_activation(op.activation, out, o.what)
    return Codes(net.node(op, tensors, out, image), unsigned)


def _rescaled(net: Network, tensor: int, like: Tensor) -> int:
    """The tensor with the scale and zero point of `like`; no name of the file's."""
    out = replace(net.tensors[tensor], name="", scale=like.scale, zero_point=like.zero_point)
    return net.node(ops.Requantize(), (tensor,), out, net.images[tensor])


def dequantize_linear(o: Operator) -> Value:
    """Codes as the real numbers that they mean, under the scale and zero point that made them; a constant alike."""
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
    if integers.dtype not in (np.int8, np.uint8, np.int32):
        raise o.unsupported(f"dequantising {integers.dtype}")
    scale = o.plain(1, np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all() and scale.size):
        raise o.malformed("finite scales above zero", scale.ravel()[:4])
    axis += integers.ndim if axis < 0 else 0
    one = scale.size == 1 and scale.ndim <= 1
    if not one and (scale.ndim != 1 or not 0 <= axis < integers.ndim or scale.size != integers.shape[axis]):
        raise o.malformed(f"scales along one axis of {integers.shape}", f"{scale.shape} along {axis}")
    zero_point = o.plain(2, integers.dtype) if o.has(2) else np.zeros(1, integers.dtype)
    if zero_point.size not in (1, scale.size):
        raise o.malformed("a zero point per scale, or one", zero_point.shape)
    integers = centred(o, integers, zero_point, axis)
    return Constant(integers, ops.freeze(scale.reshape(-1), np.float32), None if one else axis)


def centred(o: Operator, integers: Array, zero_point: Array, axis: int) -> Array:
    """A constant less its zero point, or zero points along `axis`: int32 as it is, codes of 8 bits as int8 where they fit."""
    if integers.dtype == np.int32:
        if zero_point.any():
            raise o.unsupported("an int32 constant with a zero point other than 0")
        return integers
    if zero_point.any() or integers.dtype == np.uint8:
        o.net.shifted = True
    along = [-1 if i == axis and zero_point.size > 1 else 1 for i in range(integers.ndim)]
    moved = integers.astype(np.int32) - zero_point.astype(np.int32).reshape(along)
    if moved.size and (moved.min() < -128 or moved.max() > 127):
        raise UnsupportedError(
            f"{o.what}: weights from {moved.min()} to {moved.max()} around their zero point, which are more than 8 bits, are not "
            "supported",
            hint="quantise the weights symmetrically (quantize_static: extra_options={'WeightSymmetric': True})",
        )
    return ops.freeze(moved, np.int8)
