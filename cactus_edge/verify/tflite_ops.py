"""Operators of a .tflite file -> ops of the graph. Part of the trusted reader (`tflite_read`).

An operator that is not in `READ`, an option without counterpart in the graph, and an operand of another type are refused
by the operator's name and its index in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.ir import graph as ir
from cactus_edge.ir import ops
from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify.flatbuffer import Table, Tables
from cactus_edge.verify.tflite_tensors import Tensors, indices, quantization, refuse

BIAS_SCALE_TOLERANCE = 0.02
"""|S_in * S_w - S_bias| <= 0.02 * S_out. Source: kernels/kernel_util.cc GetQuantizedConvolutionMultipler."""


class Operator:
    """One operator of the file: its name, options and operands, with messages that name it and its index."""

    def __init__(self, tensors: Tensors, codes: Tables, table: Table, index: int) -> None:
        self.tensors = tensors
        code = codes[table.number(fb.Operator.OPCODE_INDEX, "I", 0)]
        # Files older than 2020 store the code in an int8; newer ones repeat it there, capped at 127.
        builtin = max(
            code.number(fb.OperatorCode.BUILTIN_CODE, "i", 0),
            code.number(fb.OperatorCode.DEPRECATED_BUILTIN_CODE, "b", 0),
        )
        known = 0 <= builtin < len(fb.BUILTIN_OPERATORS)
        self.name = fb.BUILTIN_OPERATORS[builtin] if known else f"builtin operator {builtin}"
        self.what = f"operator {index} {self.name}"
        if self.name == "CUSTOM":
            raise UnsupportedError(
                f"{self.what} {code.text(fb.OperatorCode.CUSTOM_CODE)!r}: custom operators are not supported"
            )
        if self.name not in READ:
            raise UnsupportedError(f"{self.what} is not supported", hint=f"supported: {', '.join(sorted(READ))}")
        if code.number(fb.OperatorCode.VERSION, "i", 1) < 1:
            raise ModelError(f"malformed .tflite: {self.what}: expected a version of at least 1")
        refuse(table, fb.Operator.CUSTOM_OPTIONS, fb.Operator.BUILTIN_OPTIONS_2)
        mutating = table.vector(fb.Operator.MUTATING_VARIABLE_INPUTS, "u1")
        if indices(table, fb.Operator.INTERMEDIATES) or (mutating is not None and mutating.any()):
            raise self.unsupported("an operator with state or intermediate tensors")
        self.options = self._options(table)
        self.inputs = indices(table, fb.Operator.INPUTS)
        self.outputs = indices(table, fb.Operator.OUTPUTS)

    def _options(self, table: Table) -> Table | None:
        if self.name not in fb.OPTIONS:
            return None
        code, fields = fb.OPTIONS[self.name]
        found = table.number(fb.Operator.BUILTIN_OPTIONS_TYPE, "B", 0)
        if found == 0 and self.name == "RESHAPE":
            return None
        if found != code:
            raise ModelError(
                f"malformed .tflite: {self.what}: expected options of type {code} ({fields.__name__}), got {found}"
            )
        return table.table(fb.Operator.BUILTIN_OPTIONS, fields)

    def option(self, field: IntEnum, code: str = "i", default: float = 0) -> Any:
        """An option's value, the schema's default where it is absent."""
        return default if self.options is None else self.options.number(field, code, default)

    def activation(self, field: IntEnum) -> ops.Activation:
        code = self.option(field, "b")
        name = fb.ACTIVATIONS[code] if 0 <= code < len(fb.ACTIVATIONS) else str(code)
        if name not in ops.Activation.__members__:
            raise UnsupportedError(f"{self.what}: fused activation {name} is not supported")
        return ops.Activation[name]

    def pair(self, h: IntEnum, w: IntEnum, default: int = 0) -> tuple[int, int]:
        """Two positive options, (height, width)."""
        found = (self.option(h, default=default), self.option(w, default=default))
        if min(found) < 1:
            raise ModelError(
                f"malformed .tflite: {self.what}: expected {h.name.lower()} and {w.name.lower()} above zero, got {found}"
            )
        return found

    def padding(
        self,
        field: IntEnum,
        x: ir.Tensor,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        dilation: tuple[int, int] = (1, 1),
    ) -> ops.Padding2d:
        code = self.option(field, "b")
        if not 0 <= code < len(fb.PADDINGS):
            raise UnsupportedError(f"{self.what}: padding {code} is not supported, expected SAME or VALID")
        if len(x.shape) != 3:
            raise ModelError(
                f"malformed .tflite: {self.what}: expected an input [1, height, width, channels], got [1, *{x.shape}]"
            )
        if fb.PADDINGS[code] == "VALID":
            return ops.Padding2d()
        return ops.same_padding((x.shape[0], x.shape[1]), kernel, stride, dilation)

    def operands(self, least: int, most: int) -> None:
        """Raises ModelError unless the operator has `least` to `most` inputs and one output."""
        if not least <= len(self.inputs) <= most or len(self.outputs) != 1:
            raise ModelError(
                f"malformed .tflite: {self.what}: expected {least} to {most} inputs and 1 output, got {len(self.inputs)} "
                f"and {len(self.outputs)}"
            )

    def x(self, index: int = 0) -> ir.Tensor:
        """The activation that is operand `index`."""
        return self.tensors.activations[self.tensors.use(self.inputs[index], f"input {index} of {self.what}")]

    def constant(self, index: int, type_name: str) -> tuple[npt.NDArray[Any], Table]:
        """The constant that is operand `index`, and its table."""
        return self.tensors.constant(self.inputs[index], type_name, f"input {index} of {self.what}")

    def vector(self, index: int) -> list[int]:
        """The int32 elements of the constant operand `index`."""
        return [int(v) for v in self.constant(index, "INT32")[0].ravel()]

    def output(self) -> ir.Tensor:
        """The activation it writes, before it is defined."""
        return self.tensors.peek(self.outputs[0])

    def malformed(self, expected: str, got: object) -> ModelError:
        return ModelError(f"malformed .tflite: {self.what}: expected {expected}, got {got}")

    def unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"{self.what}: {what} is not supported")


def _conv(o: Operator) -> ops.Op:
    f = fb.Conv2DOptions
    weight, bias, scale = _affine(o, rank=4, axis=0)
    stride, dilation = o.pair(f.STRIDE_H, f.STRIDE_W), o.pair(f.DILATION_H, f.DILATION_W, 1)
    padding = o.padding(f.PADDING, o.x(), (weight.shape[1], weight.shape[2]), stride, dilation)
    return ops.Conv2d(weight, bias, _per_channel(scale, bias), stride, padding, dilation, o.activation(f.ACTIVATION))


def _depthwise(o: Operator) -> ops.Op:
    f = fb.DepthwiseConv2DOptions
    weight, bias, scale = _affine(o, rank=4, axis=3)
    if weight.shape[0] != 1:
        raise o.malformed("a weight of shape [1, height, width, channels]", weight.shape)
    stride, dilation = o.pair(f.STRIDE_H, f.STRIDE_W), o.pair(f.DILATION_H, f.DILATION_W, 1)
    padding = o.padding(f.PADDING, o.x(), (weight.shape[1], weight.shape[2]), stride, dilation)
    multiplier = o.option(f.DEPTH_MULTIPLIER)
    if multiplier * o.x().shape[2] != weight.shape[3]:
        raise o.malformed(
            f"depth_multiplier * {o.x().shape[2]} input channels = {weight.shape[3]} output channels", multiplier
        )
    activation = o.activation(f.ACTIVATION)
    kernel = ops.freeze(weight[0], np.int8)
    return ops.DepthwiseConv2d(kernel, bias, _per_channel(scale, bias), stride, padding, dilation, activation)


def _dense(o: Operator) -> ops.Op:
    f = fb.FullyConnectedOptions
    if o.option(f.WEIGHTS_FORMAT, "b"):
        raise o.unsupported("a shuffled weight format")
    weight, bias, scale = _affine(o, rank=2, axis=0)
    if o.output().shape != (weight.shape[0],):
        raise o.unsupported(
            f"an output of shape [1, *{o.output().shape}] for a weight of {weight.shape} (keep_num_dims)"
        )
    return ops.Dense(weight, bias, scale, o.activation(f.ACTIVATION))


def _affine(o: Operator, rank: int, axis: int) -> tuple[ops.Int8, ops.Int32, ops.Float32]:
    """(weight int8, bias int32 [O], weight scale float32 [1] or [O]); output channels lie along `axis` of the weight."""
    weight, table = o.constant(1, "INT8")
    if weight.ndim != rank:
        raise o.malformed(f"a weight of {rank} axes", weight.shape)
    channels = weight.shape[axis]
    q = quantization(table)
    if q is None:
        raise o.malformed("a quantised weight", "one without scales")
    if q.zero_point.any():
        raise o.unsupported("a weight with a zero point other than 0")
    if q.scale.size != 1 and (q.scale.size != channels or q.dimension != axis):
        raise o.malformed(f"1 weight scale or {channels} along axis {axis}", f"{q.scale.size} along axis {q.dimension}")
    scale = ops.freeze(q.scale, np.float32)
    if len(o.inputs) < 3 or o.inputs[2] == -1:
        return ops.freeze(weight, np.int8), ops.freeze(np.zeros(channels), np.int32), scale
    bias, table = o.constant(2, "INT32")
    if bias.shape != (channels,):
        raise o.malformed(f"a bias of shape {(channels,)}", bias.shape)
    _check_bias_scale(o, scale, table, channels)
    return ops.freeze(weight, np.int8), ops.freeze(bias, np.int32), scale


def _check_bias_scale(o: Operator, weight_scale: ops.Float32, bias: Table, channels: int) -> None:
    """A bias that states a scale must mean S_in * S_w; runtimes add its integers without looking."""
    q = quantization(bias)
    if q is None:
        return
    if q.zero_point.any() or q.scale.size not in (1, channels):
        raise o.malformed(f"1 or {channels} bias scales and zero points of 0", f"{q.scale.size}, {q.zero_point.any()}")
    product = o.x().scale * weight_scale.astype(np.float64)
    error = float(np.abs(product - q.scale).max())
    if error > BIAS_SCALE_TOLERANCE * o.output().scale:
        raise o.malformed(
            f"bias scales within {BIAS_SCALE_TOLERANCE} * {o.output().scale} of S_in * S_w", f"a difference of {error}"
        )


def _per_channel(scale: ops.Float32, bias: ops.Int32) -> ops.Float32:
    """Convolutions hold one scale per output channel; a per-tensor scale counts for each."""
    return ops.freeze(np.broadcast_to(scale, bias.shape), np.float32)


def _add(o: Operator) -> ops.Op:
    return ops.Add(o.activation(fb.AddOptions.ACTIVATION))


def _pool(o: Operator, kind: type[ops.AvgPool] | type[ops.MaxPool]) -> ops.Op:
    f = fb.Pool2DOptions
    kernel, stride = o.pair(f.FILTER_HEIGHT, f.FILTER_WIDTH), o.pair(f.STRIDE_H, f.STRIDE_W)
    return kind(kernel, stride, o.padding(f.PADDING, o.x(), kernel, stride), o.activation(f.ACTIVATION))


def _mean(o: Operator) -> ops.Op:
    rank = len(o.x().shape) + 1
    axes = sorted({a + rank if a < 0 else a for a in o.vector(1)})
    if not axes or not 1 <= axes[0] <= axes[-1] < rank:
        raise o.unsupported(f"a mean over axes {axes} of a tensor of {rank} axes (the first is the batch)")
    return ops.Mean(tuple(a - 1 for a in axes), bool(o.option(fb.ReducerOptions.KEEP_DIMS, "B")))


def _pad(o: Operator) -> ops.Op:
    pads, _ = o.constant(1, "INT32")
    if pads.shape != (len(o.x().shape) + 1, 2) or pads.min() < 0:
        raise o.malformed(f"paddings >= 0 of shape {(len(o.x().shape) + 1, 2)}", f"{pads.shape}, least {pads.min()}")
    if pads[0].any():
        raise o.unsupported("padding the batch axis")
    return ops.Pad(tuple((int(a), int(b)) for a, b in pads[1:]))


def _concat(o: Operator) -> ops.Op:
    if o.activation(fb.ConcatenationOptions.ACTIVATION) is not ops.Activation.NONE:
        raise o.unsupported("a fused activation")
    rank = len(o.x().shape) + 1
    axis = o.option(fb.ConcatenationOptions.AXIS)
    axis = axis + rank if axis < 0 else axis
    if not 1 <= axis < rank:
        raise o.unsupported(f"axis {axis} of a tensor of {rank} axes (the first is the batch)")
    return ops.Concat(axis - 1)


def _reshape(o: Operator) -> ops.Op:
    """The output tensor's shape counts; the operand or option that repeats it must agree (-1 stands for any size)."""
    stored = None if o.options is None else o.options.vector(fb.ReshapeOptions.NEW_SHAPE, "<i4")
    shape = (1, *o.output().shape)
    for target in (o.vector(1) if len(o.inputs) == 2 else None, None if stored is None else stored.tolist()):
        if target is not None and not (
            len(target) == len(shape)
            and target.count(-1) <= 1
            and all(a in (-1, b) for a, b in zip(target, shape, strict=True))
        ):
            raise o.malformed(f"a target that fits the output's shape {shape}", target[: len(shape) + 1])
    return ops.Reshape()


def _quantize(o: Operator) -> ops.Op:
    return ops.Quantize() if o.x().dtype == "float32" else ops.Requantize()


def _softmax(o: Operator) -> ops.Op:
    return ops.Softmax(float(o.option(fb.SoftmaxOptions.BETA, "f")))


class Reading(NamedTuple):
    """How an operator is read: the number of its operands, how many of them are activations (0: all), its op."""

    least: int
    most: int
    activations: int
    read: Callable[[Operator], ops.Op]


READ: dict[str, Reading] = {
    "CONV_2D": Reading(2, 3, 1, _conv),
    "DEPTHWISE_CONV_2D": Reading(2, 3, 1, _depthwise),
    "FULLY_CONNECTED": Reading(2, 3, 1, _dense),
    "ADD": Reading(2, 2, 2, _add),
    "AVERAGE_POOL_2D": Reading(1, 1, 1, lambda o: _pool(o, ops.AvgPool)),
    "MAX_POOL_2D": Reading(1, 1, 1, lambda o: _pool(o, ops.MaxPool)),
    "MEAN": Reading(2, 2, 1, _mean),
    "PAD": Reading(2, 2, 1, _pad),
    "CONCATENATION": Reading(1, 1 << 16, 0, _concat),
    "RESHAPE": Reading(1, 2, 1, _reshape),
    "RELU": Reading(1, 1, 1, lambda _: ops.Relu()),
    "RELU6": Reading(1, 1, 1, lambda _: ops.Relu6()),
    "QUANTIZE": Reading(1, 1, 1, _quantize),
    "DEQUANTIZE": Reading(1, 1, 1, lambda _: ops.Dequantize()),
    "SOFTMAX": Reading(1, 1, 1, _softmax),
}
"""Every operator the graph has a counterpart for."""


def read_node(tensors: Tensors, codes: Tables, table: Table, index: int) -> ir.Node:
    """Operator `index` of the file as a node; its output becomes an activation."""
    operator = Operator(tensors, codes, table, index)
    reading = READ[operator.name]
    operator.operands(reading.least, reading.most)
    used = operator.inputs[: reading.activations or len(operator.inputs)]
    inputs = tuple(tensors.use(t, f"input {i} of {operator.what}") for i, t in enumerate(used))
    op = reading.read(operator)
    return ir.Node(op, inputs, tensors.define(operator.outputs[0], f"the output of {operator.what}"))
