"""From a checked graph to its `Program` under a profile: which atoms, with which rules, each op is."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import assert_never

import numpy as np

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import linear, ops
from cactus_edge.ir.arith import INT32_MAX, WIDE_MAX
from cactus_edge.ir.atoms import (
    Affine,
    Atom,
    Between,
    FloatAverage,
    Gather,
    Isotone,
    Join,
    Max,
    Monotone,
    PadWith,
    Program,
    ReshapeTo,
    Softmax,
    Step,
    Table,
    Take,
    Value,
)
from cactus_edge.ir.binary import Extreme
from cactus_edge.ir.graph import Graph, Node
from cactus_edge.ir.linear import Linear
from cactus_edge.ir.profile import Profile, of_type
from cactus_edge.ir.rules import (
    Clamp,
    Requantise,
    RoundDivide,
    activation_range,
)
from cactus_edge.ir.tables import code_table, interpolation, source_index


class _Builder:
    def __init__(self, graph: Graph, profile: Profile) -> None:
        self.graph, self.profile = graph, profile
        self.values: list[Value] = []
        self.steps: list[Step] = []
        self.of_tensor: dict[int, int] = {}

    def value(self, shape: tuple[int, ...], tensor: int | None, name: str) -> int:
        self.values.append(Value(shape, tensor, name))
        if tensor is not None:
            self.of_tensor[tensor] = len(self.values) - 1
        return len(self.values) - 1

    def accumulator(self, atom: Affine, args: tuple[int, ...], node: int) -> int:
        name = f"{self.graph.tensors[self.graph.nodes[node].output].name}.acc"
        out = self.value(atom.linear.out_shape, None, name)
        self.steps.append(Step(atom, args, out, node))
        return out

    def result(self, atom: Atom, args: tuple[int, ...], node: int) -> None:
        index = self.graph.nodes[node].output
        tensor = self.graph.tensors[index]
        self.steps.append(Step(atom, args, self.value(tensor.shape, index, tensor.name), node))


def lower(graph: Graph, profile: Profile) -> Program:
    """The program of `graph` under `profile`. Raises UnsupportedError, naming the op, for what the profile was not shown to run."""
    profile.admit(graph)
    builder = _Builder(graph, profile)
    first = graph.nodes[0] if graph.nodes else None
    starts_float = first is not None and isinstance(first.op, ops.Quantize)
    core = first.output if starts_float and first is not None else graph.inputs[0]
    source = graph.tensors[core]
    start = builder.value(source.shape, core, source.name)
    constants = {
        builder.value(codes.shape, index, graph.tensors[index].name): codes.astype(np.int64)
        for index, codes in graph.constants.items()
    }
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, ops.Quantize | ops.Dequantize):
            profile.check_size(profile.kind(node.op, source), graph.tensors[node.output].size)
            continue
        try:
            with np.errstate(over="raise", divide="raise", invalid="raise"):
                _expand(builder, index, node)
        except FloatingPointError as error:
            raise UnsupportedError(f"{graph.label(index)}: a constant made of its scales is no float32") from error
        except UnsupportedError as error:
            raise UnsupportedError(f"{graph.label(index)}: {error.message}", hint=error.hint) from error
    last = graph.nodes[-1] if graph.nodes else None
    ends_float = last is not None and isinstance(last.op, ops.Dequantize)
    end = last.inputs[0] if ends_float and last is not None else graph.outputs[0]
    return Program(
        graph,
        profile,
        tuple(builder.values),
        tuple(builder.steps),
        start,
        builder.of_tensor[end],
        profile.quantize(source),
        starts_float,
        ends_float,
        constants,
    )


def _expand(b: _Builder, index: int, node: Node) -> None:
    """Appends the steps of one node."""
    profile = b.profile
    args = tuple(b.of_tensor[i] for i in node.inputs)
    x = b.graph.tensors[node.inputs[0]]
    kind = profile.kind(node.op, x)
    out = b.graph.tensors[node.output]
    match node.op:
        case ops.Conv2d() | ops.DepthwiseConv2d() | ops.TransposeConv2d() | ops.Dense() as op:
            profile.check_weight(kind, op.weight)
            if isinstance(op, ops.TransposeConv2d):
                profile.check_stride(kind, op.weight.shape[1:3], op.stride)
            if isinstance(op, ops.Dense) and op.weight.shape[1] != x.size:
                profile.rule(of_type("DenseRows", x))
            clamp = profile.clamp(kind, op.activation, out)
            rule = profile.requantise(kind, x.scale, op.weight_scale, out.scale, out.zero_point, clamp)
            limit = INT32_MAX if op.bias.dtype == np.int32 else WIDE_MAX
            linear_part = linear_map(op, x.shape, out.shape)
            affine = Affine(linear_part, -x.zero_point, op.bias.astype(np.int64), limit)
            ends = profile.ends(kind, op, x, out, clamp)
            scaled = Monotone(rule) if ends is None else Between(ends[0], rule, ends[1])
            b.result(scaled, (b.accumulator(affine, args, index),), index)
        case ops.Add(activation) | ops.Sub(activation) | ops.Mul(activation):
            y = b.graph.tensors[node.inputs[1]]
            same = len({_origin(b.graph, i) for i in node.inputs}) == 1
            profile.check_operands(kind, x.shape, y.shape, same)
            scales, zero_points = (x.scale, y.scale), (x.zero_point, y.zero_point)
            clamp = profile.clamp(kind, activation, out)
            if isinstance(node.op, ops.Mul):
                product = profile.mul(kind, scales, zero_points, out.scale, out.zero_point, clamp)
                b.result(Isotone(product, (0, 0)), args, index)
            else:
                sign = -1 if isinstance(node.op, ops.Sub) else 1
                total = profile.add(kind, scales, zero_points, sign, out.scale, out.zero_point, clamp)
                b.result(Isotone(total, (1, sign)), args, index)
        case ops.Maximum() | ops.Minimum():
            profile.rule(kind)
            b.result(Isotone(Extreme(isinstance(node.op, ops.Maximum)), (1, 1)), args, index)
        case ops.AvgPool(kernel, stride, padding, activation):
            pool = linear.WindowSum(_image(x.shape), kernel, stride, padding)
            clamp = profile.clamp(kind, activation, out)
            in_float = profile.rule(kind) == ("float32_sum",)
            if in_float and (kernel, padding) != (x.shape[:2], ops.NO_PADDING):
                average = FloatAverage(pool, x.scale, x.zero_point, out.scale, out.zero_point, *clamp)
                b.result(average, args, index)
                return
            if in_float:
                # ONNX Runtime takes a window that is the image for a global average, which sums codes.
                mean = profile.reduce("Mean", x, out, math.prod(kernel), x.shape[2])
                divided = Monotone(replace(mean, lo=clamp[0], hi=clamp[1]))
            elif x.quantised_like(out):
                divided = Monotone(RoundDivide(pool.reach(), *clamp))
            else:
                raise UnsupportedError(
                    "an average of another scale or zero point than its input's: this runtime divides codes"
                )
            b.result(divided, (b.accumulator(Affine(pool, 0, np.zeros(1, np.int64)), args, index),), index)
        case ops.MaxPool(kernel, stride, padding, activation):
            profile.rule(kind)
            maximum = Max(kernel, stride, padding)
            if activation is ops.Activation.NONE:
                b.result(maximum, args, index)
            else:
                lo, hi = profile.clamp(kind, activation, out)
                inner = b.value(out.shape, None, f"{out.name}.max")
                b.steps.append(Step(maximum, args, inner, index))
                b.result(Monotone(Clamp(lo, hi)), (inner,), index)
        case ops.Mean(axes, keep_dims) | ops.Sum(axes, keep_dims):
            axis_sum = linear.AxisSum(x.shape, axes, keep_dims)
            acc = b.accumulator(Affine(axis_sum, 0, np.zeros(1, np.int64)), args, index)
            image_channels = x.shape[2] if len(x.shape) == 3 and axes == (0, 1) and keep_dims else 0
            b.result(Monotone(profile.reduce(kind, x, out, axis_sum.count, image_channels)), (acc,), index)
        case ops.Pad(pads):
            profile.rule(kind)
            b.result(Gather(PadWith(pads, out.zero_point)), args, index)
        case ops.Concat(axis):
            profile.rule(kind)
            b.result(Gather(Join(axis)), args, index)
        case ops.Reshape():
            profile.rule(kind)
            b.result(Gather(ReshapeTo(out.shape)), args, index)
        case ops.Transpose() | ops.Slice() | ops.ResizeNearest() as op:
            profile.rule(kind)
            b.result(Gather(Take(source_index(op, x.shape, out.shape))), args, index)
        case ops.ResizeBilinear(aligned, centred):
            (rule_id,) = profile.rule(kind)
            rows, columns = (
                interpolation(rule_id, n, m, aligned, centred) for n, m in zip(x.shape[:2], out.shape[:2], strict=True)
            )
            weights = Affine(linear.Interpolation(rows, columns, x.shape[2]), 0, np.zeros(1, np.int64))
            b.result(Monotone(_interpolated(rule_id)), (b.accumulator(weights, args, index),), index)
        case ops.LeakyRelu() | ops.HardSwish() | ops.Logistic() | ops.Tanh() as op:
            profile.check_size(kind, out.size)
            b.result(Table(code_table(op, profile.rule(kind), x, out)), args, index)
        case ops.Relu():
            profile.check_size(kind, out.size)
            clamp = activation_range(ops.Activation.RELU, out)
            rule = profile.requantise(kind, x.scale, 1.0, out.scale, out.zero_point, clamp, x.zero_point)
            b.result(Monotone(rule), args, index)
        case ops.Relu6():
            clamp = activation_range(ops.Activation.RELU6, out)
            if x.quantised_like(out):
                profile.rule(kind)
                b.result(Monotone(Clamp(*clamp)), args, index)
            elif profile.rule(kind) == ("clamp",):
                raise UnsupportedError(
                    "RELU6 with different input and output scales: this runtime only clamps, others rescale"
                )
            else:
                rule = profile.requantise(kind, x.scale, 1.0, out.scale, out.zero_point, clamp, x.zero_point)
                b.result(Monotone(rule), args, index)
        case ops.Requantize():
            profile.check_size(kind, out.size)
            clamp = activation_range(ops.Activation.NONE, out)
            rule = profile.requantise(kind, x.scale, 1.0, out.scale, out.zero_point, clamp, x.zero_point)
            b.result(Monotone(rule), args, index)
        case ops.Softmax(beta):
            b.result(Softmax(profile.softmax(kind, beta, x.scale, x.shape[-1])), args, index)
        case ops.Quantize() | ops.Dequantize():
            raise UnsupportedError("a float island inside the graph")
        case _:
            assert_never(node.op)


def _interpolated(rule: str) -> RoundDivide | Requantise:
    """What `tables.interpolation`'s weights of both axes are divided by: 2^20, half away from zero, or 2^22, half up."""
    return RoundDivide(np.array([1 << 20])) if rule == "fixed10" else Requantise("S", np.array([1]), np.array([9]), 0)


def linear_map(
    op: ops.Conv2d | ops.DepthwiseConv2d | ops.TransposeConv2d | ops.Dense,
    in_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
) -> Linear:
    """The op's integer linear map between these shapes, weight int8 unchanged."""
    match op:
        case ops.Conv2d():
            return linear.Conv(op.weight, _image(in_shape), op.stride, op.padding, op.dilation)
        case ops.DepthwiseConv2d():
            weight = np.ascontiguousarray(op.weight.transpose(2, 0, 1))[..., None]
            return linear.Conv(weight, _image(in_shape), op.stride, op.padding, op.dilation)
        case ops.TransposeConv2d():
            back = np.ascontiguousarray(op.weight.transpose(3, 1, 2, 0))
            return linear.Transposed(linear.Conv(back, _image(out_shape), op.stride, op.padding))
        case ops.Dense():
            return linear.Dense(op.weight, in_shape)
        case _:
            assert_never(op)


def _origin(graph: Graph, tensor: int) -> int:
    """The tensor whose elements `tensor` has, in the same order: itself, or what RESHAPE made it from."""
    reshaped = {n.output: n.inputs[0] for n in graph.nodes if isinstance(n.op, ops.Reshape)}
    while tensor in reshaped:
        tensor = reshaped[tensor]
    return tensor


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    h, w, c = shape
    return h, w, c
