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
from cactus_edge.verify import tflite_schema as fb
from cactus_edge.verify import tflite_shapes
from cactus_edge.verify.flatbuffer import Table, Tables
from cactus_edge.verify.tflite_operator import Operator
from cactus_edge.verify.tflite_tensors import MAX_INDICES, Tensors, indices, quantization

MAX_COPIES = 64
"""Of one tensor in TILE: each becomes an input of a node, and a file must not grow much by being read."""

BIAS_SCALE_TOLERANCE = 0.02
"""|S_in * S_w - S_bias| <= 0.02 * S_out. Source: kernels/kernel_util.cc GetQuantizedConvolutionMultipler."""


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


def _pool(o: Operator, kind: type[ops.AvgPool] | type[ops.MaxPool]) -> ops.Op:
    f = fb.Pool2DOptions
    kernel, stride = o.pair(f.FILTER_HEIGHT, f.FILTER_WIDTH), o.pair(f.STRIDE_H, f.STRIDE_W)
    return kind(kernel, stride, o.padding(f.PADDING, o.x(), kernel, stride), o.activation(f.ACTIVATION))


def _reduction(o: Operator, kind: type[ops.Mean] | type[ops.Sum]) -> ops.Op:
    axes = sorted({o.axis(a) for a in o.vector(1)})
    if not axes:
        raise o.unsupported("a reduction over no axis")
    return kind(tuple(axes), bool(o.option(fb.ReducerOptions.KEEP_DIMS, "B")))


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
    return ops.Concat(o.axis(o.option(fb.ConcatenationOptions.AXIS)))


def _reshape(o: Operator) -> ops.Op:
    """The output tensor's shape counts; the operand or option that repeats it must agree (-1 stands for any size)."""
    field = fb.ReshapeOptions.NEW_SHAPE
    stored = indices(o.options, field) if o.options is not None and o.options.has(field) else None
    shape = (1, *o.output().shape)
    for target in (o.vector(1) if len(o.inputs) == 2 else None, stored):
        if target is not None and not (
            len(target) == len(shape)
            and target.count(-1) <= 1
            and all(a in (-1, b) for a, b in zip(target, shape, strict=True))
        ):
            raise o.malformed(f"a target that fits the output's shape {shape}", target[: len(shape) + 1])
    return ops.Reshape()


def _squeeze(o: Operator) -> ops.Op:
    shape = [1, *o.x().shape]
    stored = None if o.options is None else o.options.vector(fb.SqueezeOptions.SQUEEZE_DIMS, "<i4")
    dropped = {a + len(shape) if a < 0 else a for a in ([] if stored is None else stored.tolist())}
    if any(not 0 <= a < len(shape) or shape[a] != 1 for a in dropped):
        raise o.malformed("axes of size 1", sorted(dropped))
    kept = [n for a, n in enumerate(shape) if a not in dropped and (dropped or n > 1)]
    return _same_elements(o, kept)


def _expand_dims(o: Operator) -> ops.Op:
    shape = [1, *o.x().shape]
    target = o.vector(1)
    if len(target) != 1 or not -len(shape) - 1 <= target[0] <= len(shape):
        raise o.malformed(f"one axis of {len(shape) + 1}", target)
    shape.insert(target[0] + len(shape) + 1 if target[0] < 0 else target[0], 1)
    return _same_elements(o, shape)


def _same_elements(o: Operator, shape: list[int]) -> ops.Op:
    if shape != [1, *o.output().shape]:
        raise o.malformed(f"an output of shape {shape}", [1, *o.output().shape])
    return ops.Reshape()


def _transpose(o: Operator) -> ops.Op:
    perm = o.vector(1)
    rank = len(o.x().shape) + 1
    perm = [a + rank if a < 0 else a for a in perm]
    if sorted(perm) != list(range(rank)):
        raise o.malformed(f"a permutation of {rank} axes", perm)
    if perm[0] != 0:
        raise o.unsupported(f"permutation {perm}, which moves the batch axis,")
    return ops.Transpose(tuple(a - 1 for a in perm[1:]))


def _whole(o: Operator) -> tuple[list[int], list[int], list[int]]:
    """begin, size and stride of the slice that is the first activation itself."""
    shape = o.x(o.first).shape
    return [0] * len(shape), list(shape), [1] * len(shape)


def _pieces(o: Operator, axis: int, sizes: list[int]) -> list[ops.Op]:
    """Slices of the given sizes, one after the other along `axis` of the sample."""
    found: list[ops.Op] = []
    begin, size, stride = _whole(o)
    if sum(sizes) != size[axis] or min(sizes) < 1:
        raise o.malformed(f"positive sizes of sum {size[axis]}", sizes[:8])
    for n in sizes:
        size[axis] = n
        found.append(ops.Slice(tuple(begin), tuple(size), tuple(stride)))
        begin[axis] += n
    return found


def _split(o: Operator) -> list[ops.Op]:
    axes, count = o.vector(0), len(o.outputs)
    if len(axes) != 1 or count != o.option(fb.SplitOptions.NUM_SPLITS):
        raise o.malformed(f"one axis and {count} parts", f"{axes[:2]} and {o.option(fb.SplitOptions.NUM_SPLITS)}")
    axis = o.axis(axes[0])
    n = o.x(o.first).shape[axis]
    return _pieces(o, axis, [n // count] * count)


def _split_v(o: Operator) -> list[ops.Op]:
    sizes, axes = o.vector(1), o.vector(2)
    if len(axes) != 1 or len(sizes) != len(o.outputs) or sizes.count(-1) > 1:
        raise o.malformed(f"one axis and {len(o.outputs)} sizes", f"{axes[:2]} and {sizes[:8]}")
    axis = o.axis(axes[0])
    rest = o.x().shape[axis] - sum(n for n in sizes if n != -1)
    return _pieces(o, axis, [rest if n == -1 else n for n in sizes])


def _unpack(o: Operator) -> list[ops.Op]:
    axis = o.axis(o.option(fb.UnpackOptions.AXIS))
    return _pieces(o, axis, [1] * len(o.outputs))


def _slice(o: Operator) -> ops.Op:
    _, size, stride = _whole(o)
    first, extent = o.vector(1), o.vector(2)
    if len(first) != len(extent) or len(first) != len(size) + 1:
        raise o.malformed(f"begin and size for {len(size) + 1} axes", f"{first[:8]} and {extent[:8]}")
    if first[0] != 0 or extent[0] not in (-1, 1):
        raise o.unsupported("slicing the batch axis")
    size = [n - a if e == -1 else e for n, a, e in zip(size, first[1:], extent[1:], strict=True)]
    return ops.Slice(tuple(first[1:]), tuple(size), tuple(stride))


def _strided_slice(o: Operator) -> ops.Op:
    f = fb.StridedSliceOptions
    if o.option(f.ELLIPSIS_MASK) or o.option(f.NEW_AXIS_MASK) or o.option(f.OFFSET, "B"):
        raise o.unsupported("an ellipsis, a new axis or an offset")
    spec = [o.vector(i) for i in (1, 2, 3)]
    _, shape, _ = _whole(o)
    if len({len(v) for v in spec}) != 1 or len(spec[0]) > len(shape) + 1:
        raise o.malformed(f"begin, end and strides for up to {len(shape) + 1} axes", [v[:8] for v in spec])
    begin, size, stride = [0] * (len(shape) + 1), [1, *shape], [1] * (len(shape) + 1)
    for axis, (b, e, s) in enumerate(zip(*spec, strict=True)):
        if s < 1:
            raise o.unsupported(f"a stride of {s}")
        n = size[axis]
        shrinks = bool(o.option(f.SHRINK_AXIS_MASK) >> axis & 1)
        first = 0 if o.option(f.BEGIN_MASK) >> axis & 1 else min(max(b + n if b < 0 else b, 0), n)
        last = n if o.option(f.END_MASK) >> axis & 1 else min(max(e + n if e < 0 else e, 0), n)
        begin[axis], size[axis], stride[axis] = first, 1 if shrinks else max(-((first - last) // s), 0), s
    kept = [n for axis, n in enumerate(size) if not o.option(f.SHRINK_AXIS_MASK) >> axis & 1]
    if (begin[0], size[0], kept) != (0, 1, [1, *o.output().shape]):
        raise o.malformed(f"an output of shape {kept} that keeps the batch axis", [1, *o.output().shape])
    return ops.Slice(tuple(begin[1:]), tuple(size[1:]), tuple(stride[1:]))


def _tile(o: Operator) -> ops.Op:
    """Copies along one axis are a tensor joined with itself."""
    times = o.vector(1)
    repeated = [axis for axis, n in enumerate(times) if n != 1]
    if len(times) != len(o.x().shape) + 1 or min(times) < 1:
        raise o.malformed(f"{len(o.x().shape) + 1} positive multiples", times[:8])
    if len(repeated) > 1 or max(times) > MAX_COPIES:
        raise o.unsupported(f"repeating more than one axis or more than {MAX_COPIES} times, {times[:8]},")
    axis = o.axis(repeated[0] if repeated else len(times) - 1)
    o.copies = times[axis + 1]
    return ops.Concat(axis)


def _resize(o: Operator) -> ops.Op:
    f = fb.ResizeNearestNeighborOptions
    if o.vector(1) != list(o.output().shape[:2]):
        raise o.malformed(f"the output's size {o.output().shape[:2]}", o.vector(1)[:8])
    return ops.ResizeNearest(bool(o.option(f.ALIGN_CORNERS, "B")), bool(o.option(f.HALF_PIXEL_CENTERS, "B")))


def _quantize(o: Operator) -> ops.Op:
    return ops.Quantize() if o.x().dtype == "float32" else ops.Requantize()


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
    "FULLY_CONNECTED": Reading(2, 3, 1, _dense),
    "ADD": Reading(2, 2, 2, lambda o: ops.Add(o.activation(fb.AddOptions.ACTIVATION)), constants=True),
    "SUB": Reading(2, 2, 2, lambda o: ops.Sub(o.activation(fb.SubOptions.ACTIVATION)), constants=True),
    "MUL": Reading(2, 2, 2, lambda o: ops.Mul(o.activation(fb.MulOptions.ACTIVATION)), constants=True),
    "AVERAGE_POOL_2D": Reading(1, 1, 1, lambda o: _pool(o, ops.AvgPool)),
    "MAX_POOL_2D": Reading(1, 1, 1, lambda o: _pool(o, ops.MaxPool)),
    "MEAN": Reading(2, 2, 1, lambda o: _reduction(o, ops.Mean)),
    "SUM": Reading(2, 2, 1, lambda o: _reduction(o, ops.Sum)),
    "PAD": Reading(2, 2, 1, _pad),
    "CONCATENATION": Reading(1, MAX_INDICES, 0, _concat),
    "RESHAPE": Reading(1, 2, 1, _reshape),
    "SQUEEZE": Reading(1, 1, 1, _squeeze),
    "EXPAND_DIMS": Reading(2, 2, 1, _expand_dims),
    "TRANSPOSE": Reading(2, 2, 1, _transpose),
    "SLICE": Reading(3, 3, 1, _slice),
    "STRIDED_SLICE": Reading(4, 4, 1, _strided_slice),
    "SPLIT": Reading(2, 2, 1, _split, first=1),
    "SPLIT_V": Reading(3, 3, 1, _split_v),
    "UNPACK": Reading(1, 1, 1, _unpack),
    "TILE": Reading(2, 2, 1, _tile),
    "RESIZE_NEAREST_NEIGHBOR": Reading(2, 2, 1, _resize),
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


def read_nodes(tensors: Tensors, codes: Tables, table: Table, index: int) -> list[ir.Node]:
    """Operator `index` of the file as one node per output, which become activations; none for shape arithmetic."""
    operator = Operator(tensors, codes, table, index, READ.keys() | tflite_shapes.NAMES)
    if operator.name in tflite_shapes.NAMES and tflite_shapes.fold(operator):
        return []
    if operator.name not in READ:
        raise operator.unsupported("an operator on values that are no shapes")
    reading = READ[operator.name]
    operator.operands(reading.least, reading.most, len(operator.outputs) if operator.name in SEVERAL else 1)
    operator.first = reading.first
    used = operator.inputs[reading.first :][: reading.activations or len(operator.inputs)]
    roles = [(t, f"input {i + reading.first} of {operator.what}") for i, t in enumerate(used)]
    if reading.constants:
        inputs = tensors.use_operands(roles)
    else:
        inputs = tuple(tensors.use(t, role) for t, role in roles)
    found = reading.read(operator)
    return [
        ir.Node(op, inputs * operator.copies, tensors.define(output, f"the output of {operator.what}"))
        for op, output in zip(found if isinstance(found, list) else [found], operator.outputs, strict=True)
    ]
