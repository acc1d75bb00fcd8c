"""From a checked graph to its `Program` under a profile: which atoms, with which rules, each op is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
    Rearrangement,
    ReshapeTo,
    Softmax,
    Step,
    Table,
    Take,
    Value,
)
from cactus_edge.ir.binary import Extreme
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.linear import Linear
from cactus_edge.ir.profile import PACKED, Profile, of_type
from cactus_edge.ir.rules import (
    Clamp,
    Elementwise,
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


@dataclass(frozen=True)
class _At:
    """A node with what its steps are made of: its first input x, its output, its arguments' values, and its kind to the profile."""

    builder: _Builder
    index: int
    inputs: tuple[int, ...]
    args: tuple[int, ...]
    x: Tensor
    out: Tensor
    kind: str

    @property
    def profile(self) -> Profile:
        return self.builder.profile

    def result(self, atom: Atom, *args: int) -> None:
        """The last step of the node; args: the values that it reads, by default the node's own."""
        self.builder.result(atom, args or self.args, self.index)

    def accumulator(self, atom: Affine) -> int:
        return self.builder.accumulator(atom, self.args, self.index)

    def summed(self, linear_part: Linear, rule: Elementwise) -> None:
        """`rule` of a sum of codes."""
        self.result(Monotone(rule), self.accumulator(Affine(linear_part, 0, np.zeros(1, np.int64))))

    def rescaled(self, clamp: tuple[int, int]) -> None:
        """The input's codes, in the output's scale."""
        x, out = self.x, self.out
        rule = self.profile.requantise(self.kind, x.scale, 1.0, out.scale, out.zero_point, clamp, x.zero_point)
        self.result(Monotone(rule))


def _expand(b: _Builder, index: int, node: Node) -> None:
    """Appends the steps of one node."""
    x, out = b.graph.tensors[node.inputs[0]], b.graph.tensors[node.output]
    args = tuple(b.of_tensor[i] for i in node.inputs)
    at = _At(b, index, node.inputs, args, x, out, b.profile.kind(node.op, x))
    match node.op:
        case ops.Conv2d() | ops.DepthwiseConv2d() | ops.TransposeConv2d() | ops.Dense() as op:
            _affine(at, op)
        case ops.Add() | ops.Sub() | ops.Mul() as op:
            _arithmetic(at, op)
        case ops.Maximum() | ops.Minimum():
            at.profile.rule(at.kind)
            at.result(Isotone(Extreme(isinstance(node.op, ops.Maximum)), (1, 1)))
        case ops.AvgPool() as op:
            _average(at, op)
        case ops.MaxPool() as op:
            _maximum(at, op)
        case ops.Mean() | ops.Sum() as op:
            _reduction(at, op)
        case ops.Pad() | ops.Concat() | ops.Reshape() | ops.Transpose() | ops.Slice() | ops.ResizeNearest() as op:
            at.profile.rule(at.kind)
            at.result(Gather(_rearrangement(op, x, out)))
        case ops.ResizeBilinear() as op:
            _interpolation(at, op)
        case ops.LeakyRelu() | ops.HardSwish() | ops.Logistic() | ops.Tanh() as op:
            at.profile.check_size(at.kind, out.size)
            at.result(Table(code_table(op, at.profile.rule(at.kind), x, out)))
        case ops.Relu() | ops.Requantize():
            at.profile.check_size(at.kind, out.size)
            activation = ops.Activation.RELU if isinstance(node.op, ops.Relu) else ops.Activation.NONE
            at.rescaled(activation_range(activation, out))
        case ops.Relu6():
            _relu6(at)
        case ops.Softmax(beta):
            at.result(Softmax(at.profile.softmax(at.kind, beta, x.scale, x.shape[-1])))
        case ops.Quantize() | ops.Dequantize():
            raise UnsupportedError("a float island inside the graph")
        case _:
            assert_never(node.op)


def _affine(at: _At, op: ops.Conv2d | ops.DepthwiseConv2d | ops.TransposeConv2d | ops.Dense) -> None:
    profile, kind, x, out = at.profile, at.kind, at.x, at.out
    profile.check_weight(kind, op.weight, op.weight.shape[1] if isinstance(op, ops.Dense) else x.shape[2])
    if isinstance(op, ops.TransposeConv2d):
        profile.check_stride(kind, op.weight.shape[1:3], op.stride)
    if isinstance(op, ops.Dense) and op.weight.shape[1] != x.size:
        profile.rule(of_type("DenseRows", x) + PACKED * (op.weight_bits == 4))
    clamp = profile.clamp(kind, op.activation, out)
    rule = profile.requantise(kind, x.scale, op.weight_scale, out.scale, out.zero_point, clamp)
    limit = INT32_MAX if op.bias.dtype == np.int32 else WIDE_MAX
    affine = Affine(linear_map(op, x.shape, out.shape), -x.zero_point, op.bias.astype(np.int64), limit)
    ends = profile.ends(kind, op, x, out, clamp)
    scaled = Monotone(rule) if ends is None else Between(ends[0], rule, ends[1])
    at.result(scaled, at.accumulator(affine))


def _arithmetic(at: _At, op: ops.Add | ops.Sub | ops.Mul) -> None:
    profile, graph, x, out = at.profile, at.builder.graph, at.x, at.out
    y = graph.tensors[at.inputs[1]]
    same = len({_origin(graph, i) for i in at.inputs}) == 1
    profile.check_operands(at.kind, x.shape, y.shape, same)
    scales, zero_points = (x.scale, y.scale), (x.zero_point, y.zero_point)
    clamp = profile.clamp(at.kind, op.activation, out)
    if isinstance(op, ops.Mul):
        product = profile.mul(at.kind, scales, zero_points, out.scale, out.zero_point, clamp)
        at.result(Isotone(product, (0, 0)))
    else:
        sign = -1 if isinstance(op, ops.Sub) else 1
        total = profile.add(at.kind, scales, zero_points, sign, out.scale, out.zero_point, clamp)
        at.result(Isotone(total, (1, sign)))


def _average(at: _At, op: ops.AvgPool) -> None:
    profile, x, out = at.profile, at.x, at.out
    pool = linear.WindowSum(_image(x.shape), op.kernel, op.stride, op.padding)
    clamp = profile.clamp(at.kind, op.activation, out)
    in_float = profile.rule(at.kind) == ("float32_sum",)
    if in_float and (op.kernel, op.padding) != (x.shape[:2], ops.NO_PADDING):
        at.result(FloatAverage(pool, x.scale, x.zero_point, out.scale, out.zero_point, *clamp))
    elif in_float:
        # ONNX Runtime takes a window that is the image for a global average, which sums codes.
        mean = profile.reduce("Mean", x, out, math.prod(op.kernel), x.shape[2])
        at.summed(pool, replace(mean, lo=clamp[0], hi=clamp[1]))
    elif x.quantised_like(out):
        at.summed(pool, RoundDivide(pool.reach(), *clamp))
    else:
        raise UnsupportedError("an average of another scale or zero point than its input's: this runtime divides codes")


def _reduction(at: _At, op: ops.Mean | ops.Sum) -> None:
    x, axis_sum = at.x, linear.AxisSum(at.x.shape, op.axes, op.keep_dims)
    image_channels = x.shape[2] if len(x.shape) == 3 and op.axes == (0, 1) and op.keep_dims else 0
    at.summed(axis_sum, at.profile.reduce(at.kind, x, at.out, axis_sum.count, image_channels))


def _rearrangement(
    op: ops.Pad | ops.Concat | ops.Reshape | ops.Transpose | ops.Slice | ops.ResizeNearest, x: Tensor, out: Tensor
) -> Rearrangement:
    match op:
        case ops.Pad(pads):
            return PadWith(pads, out.zero_point)
        case ops.Concat(axis):
            return Join(axis)
        case ops.Reshape():
            return ReshapeTo(out.shape)
        case _:
            return Take(source_index(op, x.shape, out.shape))


def _maximum(at: _At, op: ops.MaxPool) -> None:
    at.profile.rule(at.kind)
    atom = Max(op.kernel, op.stride, op.padding)
    if op.activation is ops.Activation.NONE:
        at.result(atom)
        return
    lo, hi = at.profile.clamp(at.kind, op.activation, at.out)
    inner = at.builder.value(at.out.shape, None, f"{at.out.name}.max")
    at.builder.steps.append(Step(atom, at.args, inner, at.index))
    at.result(Monotone(Clamp(lo, hi)), inner)


def _interpolation(at: _At, op: ops.ResizeBilinear) -> None:
    (rule_id,) = at.profile.rule(at.kind)
    sizes = zip(at.x.shape[:2], at.out.shape[:2], strict=True)
    rows, columns = (interpolation(rule_id, n, m, op.align_corners, op.half_pixel_centers) for n, m in sizes)
    at.summed(linear.Interpolation(rows, columns, at.x.shape[2]), _interpolated(rule_id))


def _relu6(at: _At) -> None:
    clamp = activation_range(ops.Activation.RELU6, at.out)
    if at.x.quantised_like(at.out):
        at.profile.rule(at.kind)
        at.result(Monotone(Clamp(*clamp)))
    elif at.profile.rule(at.kind) == ("clamp",):
        raise UnsupportedError("RELU6 with different input and output scales: this runtime only clamps, others rescale")
    else:
        at.rescaled(clamp)


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
