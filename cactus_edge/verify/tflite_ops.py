"""Operators of a .tflite file -> ops of the graph. Part of the trusted reader (`tflite_read`).

An operator that is not in `READ`, an option without counterpart in the graph, and an operand of another type are refused
by the operator's name and its index in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cactus_edge.ir import graph as ir
from cactus_edge.ir import ops
from cactus_edge.verify import tflite_dilated as dilated
from cactus_edge.verify import tflite_moves as moves
from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify import tflite_shapes
from cactus_edge.verify.flatbuffer import Table, Tables
from cactus_edge.verify.tflite_operator import Operator
from cactus_edge.verify.tflite_tensors import MAX_INDICES, Tensors, quantization

BIAS_SCALE_TOLERANCE = 0.02
"""|S_in * S_w - S_bias| <= 0.02 * S_out. Source: kernels/kernel_util.cc GetQuantizedConvolutionMultipler."""


QUANTIZED_BIAS_TYPE = {
    "CONV_2D": fb.Conv2DOptions.QUANTIZED_BIAS_TYPE,
    "FULLY_CONNECTED": fb.FullyConnectedOptions.QUANTIZED_BIAS_TYPE,
}
"""Where an operator says of what type its bias, and therefore its sum, is."""


def _conv(o: Operator) -> ops.Op:
    f = fb.Conv2DOptions
    weight, bias, scale, bits = _affine(o, rank=4, axis=0)
    stride, dilation = o.pair(f.STRIDE_H, f.STRIDE_W), o.pair(f.DILATION_H, f.DILATION_W, 1)
    padding = o.padding(f.PADDING, o.x(), (weight.shape[1], weight.shape[2]), stride, dilation)
    geometry = stride, padding, dilation
    return ops.Conv2d(weight, bias, _per_channel(scale, bias), *geometry, o.activation(f.ACTIVATION), bits)


def _depthwise(o: Operator) -> ops.Op:
    f = fb.DepthwiseConv2DOptions
    weight, bias, scale, bits = _affine(o, rank=4, axis=3)
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
    return ops.DepthwiseConv2d(kernel, bias, _per_channel(scale, bias), stride, padding, dilation, activation, bits)


def _transpose_conv(o: Operator) -> ops.Op:
    f = fb.TransposeConvOptions
    weight, bias, scale, bits = _affine(o, rank=4, axis=0, bias_index=3)
    if bits != 8:
        raise o.unsupported(f"a transposed convolution with weights of {bits} bits")
    stride, image = o.pair(f.STRIDE_H, f.STRIDE_W), o.output()
    if o.vector(0) != [1, *image.shape]:
        raise o.malformed(f"the output's shape {(1, *image.shape)}", o.vector(0)[:8])
    if o.inputs[0] in o.tensors.folded and o.tensors.left is None:
        o.tensors.left = f"{o.what} computes the shape of its output"
    padding = o.padding(f.PADDING, image, (weight.shape[1], weight.shape[2]), stride)
    return ops.TransposeConv2d(weight, bias, _per_channel(scale, bias), stride, padding, o.activation(f.ACTIVATION))


def _bilinear(o: Operator) -> ops.Op:
    f = fb.ResizeBilinearOptions
    moves.check_size(o)
    return ops.ResizeBilinear(bool(o.option(f.ALIGN_CORNERS, "B")), bool(o.option(f.HALF_PIXEL_CENTERS, "B")))


def _dense(o: Operator) -> ops.Op:
    f = fb.FullyConnectedOptions
    if o.option(f.WEIGHTS_FORMAT, "b"):
        raise o.unsupported("a shuffled weight format")
    weight, bias, scale, bits = _affine(o, rank=2, axis=0)
    x, outputs, inputs = o.x(), *weight.shape
    if x.size % max(inputs, 1):
        raise o.malformed(f"an input of a multiple of {inputs} elements", x.size)
    if o.option(f.KEEP_NUM_DIMS, "B"):
        whole = o.sources[0] in o.tensors.whole
        o.shape = (*(1,) * (not whole), *x.shape[:-1], outputs)
    else:
        o.shape = (x.size // inputs, outputs)
        if o.shape[0] > 1 and len(x.shape) != 2:
            o.sources = (o.step(ops.Reshape(), o.sources, (o.shape[0], inputs)),)
    return ops.Dense(weight, bias, scale, o.activation(f.ACTIVATION), bits)


def _affine(
    o: Operator, rank: int, axis: int, bias_index: int = 2
) -> tuple[ops.Int8, ops.Int32 | ops.Int64, ops.Float32, int]:
    """(weight int8, bias int32 or int64 [O], weight scale float32 [1] or [O], the bits that each weight takes in the file).

    Output channels lie along `axis` of the weight.
    """
    bits = 4 if o.tensors.type_name(o.inputs[1]) == "INT4" else 8
    weight, table = o.constant(1, f"INT{bits}")
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
    bias_type = _bias_type(o, bias_index)
    if len(o.inputs) <= bias_index or o.inputs[bias_index] == -1:
        return ops.freeze(weight, np.int8), ops.freeze(np.zeros(channels), bias_type.lower()), scale, bits
    bias, table = o.constant(bias_index, bias_type)
    if bias.shape != (channels,):
        raise o.malformed(f"a bias of shape {(channels,)}", bias.shape)
    _check_bias_scale(o, scale, table, channels)
    return ops.freeze(weight, np.int8), ops.freeze(bias, bias.dtype.name), scale, bits


def _bias_type(o: Operator, index: int) -> str:
    """INT32; for int16 codes what the bias is."""
    return _wide_bias_type(o, index) if o.x(o.first).dtype == "int16" else "INT32"


def _wide_bias_type(o: Operator, index: int) -> str:
    """On which runtimes agree where the option does not say something else.

    LiteRT goes by the option, in which only INT32 means that, and TFLM by the tensor. Source: kernels/{conv,fully_connected}.cc.
    """
    field = QUANTIZED_BIAS_TYPE.get(o.name)
    code = 0 if field is None else o.option(field, "b")
    stated = "INT32" if code == fb.TYPES.index("INT32") else "INT64"
    absent = len(o.inputs) <= index or o.inputs[index] == -1
    if absent and (o.name != "FULLY_CONNECTED" or code != fb.TYPES.index("INT64")):
        raise o.unsupported("int16 without a bias, unless a dense layer's quantized_bias_type is INT64,")
    if not absent and field is not None and stated != o.tensors.type_name(o.inputs[index]):
        raise o.unsupported(
            f"a bias of {o.tensors.type_name(o.inputs[index])} where quantized_bias_type means {stated}"
        )
    return stated


def _check_bias_scale(o: Operator, weight_scale: ops.Float32, bias: Table, channels: int) -> None:
    """A bias that states a scale must mean S_in * S_w; runtimes add its integers without looking."""
    q = quantization(bias)
    if q is None:
        return
    if q.zero_point.any() or q.scale.size not in (1, channels):
        raise o.malformed(f"1 or {channels} bias scales and zero points of 0", f"{q.scale.size}, {q.zero_point.any()}")
    product = o.x(o.first).scale * weight_scale.astype(np.float64)
    error = float(np.abs(product - q.scale).max())
    if error > BIAS_SCALE_TOLERANCE * o.output().scale:
        raise o.malformed(
            f"bias scales within {BIAS_SCALE_TOLERANCE} * {o.output().scale} of S_in * S_w", f"a difference of {error}"
        )


def _per_channel(scale: ops.Float32, bias: ops.Int32 | ops.Int64) -> ops.Float32:
    """Convolutions hold one scale per output channel; a per-tensor scale counts for each."""
    return ops.freeze(np.broadcast_to(scale, bias.shape), np.float32)


def _pool(o: Operator, kind: type[ops.AvgPool] | type[ops.MaxPool]) -> ops.Op:
    f = fb.Pool2DOptions
    kernel, stride = o.pair(f.FILTER_HEIGHT, f.FILTER_WIDTH), o.pair(f.STRIDE_H, f.STRIDE_W)
    return kind(kernel, stride, o.padding(f.PADDING, o.x(), kernel, stride), o.activation(f.ACTIVATION))


def _sum(o: Operator, kind: type[ops.Add] | type[ops.Sub], f: type[fb.AddOptions] | type[fb.SubOptions]) -> ops.Op:
    # The option's default is true; kernels for int8 do not look at it.
    if o.x().dtype == "int16" and o.option(f.POT_SCALE_INT16, "B", 1):
        raise o.unsupported("int16 with scales that are powers of two (pot_scale_int16)")
    return kind(o.activation(f.ACTIVATION))


def _reduction(o: Operator, kind: type[ops.Mean] | type[ops.Sum]) -> ops.Op:
    axes = sorted({o.axis(a) for a in o.vector(1)})
    if not axes:
        raise o.unsupported("a reduction over no axis")
    return kind(tuple(axes), bool(o.option(fb.ReducerOptions.KEEP_DIMS, "B")))


def _quantize(o: Operator) -> ops.Op:
    if o.x().dtype == "float32":
        return ops.Quantize()
    written = o.tensors.type_name(o.outputs[0])
    if "UINT8" in (written, o.tensors.type_name(o.inputs[0])):
        o.unsigned = written == "UINT8"
        if not o.x().quantised_like(o.output()):
            raise o.unsupported("a change between uint8 and int8 that also changes the scale")
        # The codes of one are those of the other 128 above: the same in the graph.
        return ops.Reshape()
    return ops.Requantize()


def _softmax(o: Operator) -> ops.Op:
    return ops.Softmax(float(o.option(fb.SoftmaxOptions.BETA, "f")))


class Reading(NamedTuple):
    """How an operator is read: the number of its operands, how many of them from `first` on are activations (0: all), its op.

    `read` gives one op per output. `constants`: one of the activations may be a constant.
    """

    least: int
    most: int
    activations: int
    read: Callable[[Operator], ops.Op | list[ops.Op]]
    first: int = 0
    constants: bool = False


READ: dict[str, Reading] = {
    "CONV_2D": Reading(2, 3, 1, _conv),
    "DEPTHWISE_CONV_2D": Reading(2, 3, 1, _depthwise),
    "TRANSPOSE_CONV": Reading(3, 4, 1, _transpose_conv, first=2),
    "FULLY_CONNECTED": Reading(2, 3, 1, _dense),
    "ADD": Reading(2, 2, 2, lambda o: _sum(o, ops.Add, fb.AddOptions), constants=True),
    "SUB": Reading(2, 2, 2, lambda o: _sum(o, ops.Sub, fb.SubOptions), constants=True),
    "MUL": Reading(2, 2, 2, lambda o: ops.Mul(o.activation(fb.MulOptions.ACTIVATION)), constants=True),
    "MAXIMUM": Reading(2, 2, 2, lambda _: ops.Maximum(), constants=True),
    "MINIMUM": Reading(2, 2, 2, lambda _: ops.Minimum(), constants=True),
    "AVERAGE_POOL_2D": Reading(1, 1, 1, lambda o: _pool(o, ops.AvgPool)),
    "MAX_POOL_2D": Reading(1, 1, 1, lambda o: _pool(o, ops.MaxPool)),
    "MEAN": Reading(2, 2, 1, lambda o: _reduction(o, ops.Mean)),
    "SUM": Reading(2, 2, 1, lambda o: _reduction(o, ops.Sum)),
    "REDUCE_MAX": Reading(2, 2, 1, moves.reduce_max),
    "PAD": Reading(2, 2, 1, moves.pad),
    "PADV2": Reading(3, 3, 1, moves.pad_with),
    "MIRROR_PAD": Reading(2, 2, 1, moves.mirror_pad),
    "CONCATENATION": Reading(1, MAX_INDICES, 0, moves.concat, constants=True),
    "PACK": Reading(1, MAX_INDICES, 0, moves.pack),
    "RESHAPE": Reading(1, 2, 1, moves.reshape),
    "SQUEEZE": Reading(1, 1, 1, moves.squeeze),
    "EXPAND_DIMS": Reading(2, 2, 1, moves.expand_dims),
    "TRANSPOSE": Reading(2, 2, 1, moves.transpose),
    "SLICE": Reading(3, 3, 1, moves.cut),
    "STRIDED_SLICE": Reading(4, 4, 1, moves.strided_slice),
    "SPLIT": Reading(2, 2, 1, moves.split, first=1),
    "SPLIT_V": Reading(3, 3, 1, moves.split_v),
    "UNPACK": Reading(1, 1, 1, moves.unpack),
    "GATHER": Reading(2, 2, 1, moves.gather),
    "REVERSE_V2": Reading(2, 2, 1, moves.reverse),
    "TILE": Reading(2, 2, 1, moves.tile),
    "BROADCAST_TO": Reading(2, 2, 1, moves.broadcast_to),
    "DEPTH_TO_SPACE": Reading(1, 1, 1, moves.depth_to_space),
    "SPACE_TO_DEPTH": Reading(1, 1, 1, moves.space_to_depth),
    "RESIZE_BILINEAR": Reading(2, 2, 1, _bilinear),
    "RESIZE_NEAREST_NEIGHBOR": Reading(2, 2, 1, moves.resize_nearest),
    "RELU": Reading(1, 1, 1, lambda _: ops.Relu()),
    "RELU6": Reading(1, 1, 1, lambda _: ops.Relu6()),
    "LEAKY_RELU": Reading(1, 1, 1, lambda o: ops.LeakyRelu(float(o.option(fb.LeakyReluOptions.ALPHA, "f")))),
    "HARD_SWISH": Reading(1, 1, 1, lambda _: ops.HardSwish()),
    "LOGISTIC": Reading(1, 1, 1, lambda _: ops.Logistic()),
    "TANH": Reading(1, 1, 1, lambda _: ops.Tanh()),
    "QUANTIZE": Reading(1, 1, 1, _quantize),
    "DEQUANTIZE": Reading(1, 1, 1, lambda _: ops.Dequantize()),
    "SOFTMAX": Reading(1, 1, 1, _softmax),
}
"""Every operator the graph has a counterpart for."""

SEVERAL = frozenset({"SPLIT", "SPLIT_V", "UNPACK"})
"""Operators of several outputs: a node each."""


INT8_ONLY = frozenset(
    {
        "REDUCE_MAX",
        "PADV2",
        "MIRROR_PAD",
        "PACK",
        "SQUEEZE",
        "EXPAND_DIMS",
        "SLICE",
        "SPLIT",
        "SPLIT_V",
        "UNPACK",
        "GATHER",
    }
    | {"REVERSE_V2", "TILE", "BROADCAST_TO", "DEPTH_TO_SPACE", "SPACE_TO_DEPTH", "BATCH_TO_SPACE_ND"}
)
"""Operators that become other ops of the graph, and were shown to be those for int8 only."""

WHOLE = frozenset(
    {"FULLY_CONNECTED", "RESHAPE", "ADD", "SUB", "MUL", "RELU", "RELU6", "LEAKY_RELU", "HARD_SWISH", "LOGISTIC", "TANH"}
    | {"MAXIMUM", "MINIMUM", "QUANTIZE", "DEQUANTIZE"}
)
"""Operators without axes, or whose axes count from the end: they may read a tensor whose first axis is no batch (`Tensors.whole`)."""


def read_nodes(tensors: Tensors, codes: Tables, table: Table, index: int) -> list[ir.Node]:
    """Operator `index` of the file as nodes, the last ones being its outputs, which become activations.

    None for shape arithmetic, nor between the ends of a dilated convolution.
    """
    operator = Operator(tensors, codes, table, index, READ.keys() | tflite_shapes.NAMES | dilated.NAMES)
    if operator.name in tflite_shapes.NAMES and tflite_shapes.fold(operator):
        return []
    if (phases := tensors.phases.get(operator.inputs[0]) if operator.inputs else None) is not None:
        return _inside(operator, phases)
    if operator.name == "SPACE_TO_BATCH_ND":
        operator.operands(3, 3, 1)
        operator.sources = (tensors.use(operator.inputs[0], f"input 0 of {operator.what}"),)
        tensors.phases[operator.outputs[0]] = dilated.enter(operator)
        return operator.steps
    if operator.name not in READ:
        raise operator.unsupported("an operator on values that are no shapes, or outside a dilated convolution,")
    reading = READ[operator.name]
    operator.operands(reading.least, reading.most, len(operator.outputs) if operator.name in SEVERAL else 1)
    operator.first = reading.first
    used = operator.inputs[reading.first :][: reading.activations or len(operator.inputs)]
    roles = [(t, f"input {i + reading.first} of {operator.what}") for i, t in enumerate(used)]
    if reading.constants:
        operator.sources = tensors.use_operands(roles)
    else:
        operator.sources = tuple(tensors.use(t, role) for t, role in roles)
    found = reading.read(operator)
    return _defined(operator, found if isinstance(found, list) else [found])


def _defined(operator: Operator, found: list[ops.Op]) -> list[ir.Node]:
    """The operator's nodes, its outputs defined."""
    tensors, role = operator.tensors, f"the output of {operator.what}"
    outputs = [tensors.define(i, role, operator.shape, unsigned=operator.unsigned) for i in operator.outputs]
    if operator.name not in WHOLE and not tensors.whole.isdisjoint([*operator.sources, *outputs]):
        raise operator.unsupported("a tensor whose first (batch) axis is not 1")
    if operator.name != "QUANTIZE" and not tensors.unsigned.isdisjoint(operator.sources):
        raise operator.unsupported("an operator on uint8 codes")
    if operator.name in INT8_ONLY and any(tensors.activations[i].dtype == "int16" for i in operator.sources):
        raise operator.unsupported("an operator on int16 codes")
    return [*operator.steps, *(ir.Node(op, operator.sources, out) for op, out in zip(found, outputs, strict=True))]


def _inside(operator: Operator, phases: dilated.Phases) -> list[ir.Node]:
    """The nodes of an operator that reads what SPACE_TO_BATCH_ND made: none before BATCH_TO_SPACE_ND."""
    inner = operator.tensors.phases
    if operator.name == "BATCH_TO_SPACE_ND":
        operator.operands(3, 3, 1)
        return _defined(operator, [dilated.leave(operator, phases)])
    if operator.name in dilated.RENAMING:
        operator.operands(1, 2, 1)
        inner[operator.outputs[0]] = dilated.rename(operator, phases)
        return []
    operator.operands(2, 3, 1)
    operator.stands_for = dilated.image(operator, phases)
    if operator.name not in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        raise operator.unsupported("another operator than a convolution behind SPACE_TO_BATCH_ND")
    op = _conv(operator) if operator.name == "CONV_2D" else _depthwise(operator)
    inner[operator.outputs[0]] = dilated.convolve(operator, phases, op)
    return []
