"""What each op means, under a named arithmetic, as a short list of atoms.

The interpreter, the interval rule and the linear rule are written for these eight atoms only. `lower` turns a checked
graph into a `Program`: values in order, each written by one step. All values are int64 while they are computed; a value
with a `tensor` is that int8 tensor of the graph, one without is an accumulator inside an op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import assert_never

import numpy as np

from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import linear, ops
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN
from cactus_edge.ir.binary import BinaryRule, MulRule
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.linear import Array, Linear
from cactus_edge.ir.ops import Int64, Padding2d
from cactus_edge.ir.profile import Profile
from cactus_edge.ir.rules import (
    AnySoftmaxRule,
    Clamp,
    Elementwise,
    FloatRescale,
    QuantizeRule,
    RoundDivide,
    activation_range,
)
from cactus_edge.ir.tables import code_table, source_index


@dataclass(frozen=True, eq=False)
class Affine:
    """acc = linear(x + input_offset) + bias, the int32 accumulation of the runtime; bias int64 [C] over the last axis."""

    linear: Linear
    input_offset: int
    bias: Int64

    def apply(self, x: Int64) -> Int64:
        """Through float64 matrix products: exact, for int8 operands keep every partial sum far below 2^53."""
        acc = self.linear.apply((x + self.input_offset).astype(np.float64))
        return acc.astype(np.int64) + self.bias


@dataclass(frozen=True)
class Monotone:
    """y = rule(x), elementwise and non-decreasing (per channel where the rule's constants are)."""

    rule: Elementwise

    def apply(self, x: Int64) -> Int64:
        return self.rule.apply(x)


@dataclass(frozen=True)
class Between:
    """lowest(x) <= y <= highest(x), elementwise: a runtime's choice that is not known. `member` is one function in there.

    Bounds hold for every choice, made anew for each element and run; `apply`, the member, is an example and no definition.
    """

    lowest: Elementwise
    member: Elementwise
    highest: Elementwise

    def apply(self, x: Int64) -> Int64:
        return self.member.apply(x)


@dataclass(frozen=True)
class Isotone:
    """y = rule(x1, x2), elementwise, with axes of size 1 repeated. For every fixed value of the other argument the rule is
    monotone in argument i: non-decreasing where `signs[i]` is +1, non-increasing for -1, one or the other for 0.
    """

    rule: BinaryRule
    signs: tuple[int, ...]

    def apply(self, *args: Int64) -> Int64:
        return self.rule.apply(*args)


@dataclass(frozen=True, eq=False)
class Table:
    """y = table[x + 128] for int8 codes x, elementwise; table int64 [256] of int8 codes, in any order."""

    table: Int64

    @cached_property
    def extremes(self) -> tuple[Int64, Int64]:
        """(least, most) int64 [256, 256]: least[l + 128, u + 128] = min of y over l <= x <= u, most the maximum."""
        begun = np.arange(256)[:, None] <= np.arange(256)
        least: Int64 = np.minimum.accumulate(np.where(begun, self.table, INT8_MAX), 1)
        most: Int64 = np.maximum.accumulate(np.where(begun, self.table, INT8_MIN), 1)
        return least, most

    def apply(self, x: Int64) -> Int64:
        result: Int64 = self.table[x - INT8_MIN]
        return result


@dataclass(frozen=True)
class Max:
    """y = maximum over the window's taps inside the image; non-decreasing in every tap."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding2d

    def apply(self, x: Array) -> Array:
        image = linear.pad_image(x, self.padding, INT8_MIN)
        result: Array = linear.windows(image, self.kernel, self.stride).max((3, 4))
        return result


@dataclass(frozen=True)
class ReshapeTo:
    """The same elements in row-major order as [N, *shape]."""

    shape: tuple[int, ...]

    def apply(self, *args: Array) -> Array:
        return args[0].reshape(len(args[0]), *self.shape)


@dataclass(frozen=True)
class PadWith:
    """The sample surrounded by `value`."""

    pads: tuple[tuple[int, int], ...]
    value: int

    def apply(self, *args: Array) -> Array:
        return np.pad(args[0], ((0, 0), *self.pads), constant_values=self.value)


@dataclass(frozen=True)
class Join:
    """Concatenation along `axis` of the sample."""

    axis: int

    def apply(self, *args: Array) -> Array:
        return np.concatenate(args, axis=self.axis + 1)


@dataclass(frozen=True, eq=False)
class Take:
    """y[i] = x_flat[index[i]], row-major within the sample; index int64 [*out shape]."""

    index: Int64

    def apply(self, *args: Array) -> Array:
        x = args[0]
        return x.reshape(len(x), -1)[:, self.index]


Rearrangement = ReshapeTo | PadWith | Join | Take
"""Ways to move elements without computing; PadWith inserts constants."""


@dataclass(frozen=True)
class Gather:
    """y = a rearrangement of its arguments."""

    rearrangement: Rearrangement

    def apply(self, *args: Array) -> Array:
        return self.rearrangement.apply(*args)


@dataclass(frozen=True)
class Softmax:
    """Row softmax over the last axis. Only as the last step; verify decides at its input."""

    rule: AnySoftmaxRule

    def apply(self, x: Int64) -> Int64:
        return self.rule.apply(x)


Atom = Affine | Monotone | Between | Isotone | Table | Max | Gather | Softmax
"""The closed set of meanings."""


@dataclass(frozen=True)
class Value:
    """One array of the program: per-sample shape, the graph tensor it is (None: an accumulator), a name for messages."""

    shape: tuple[int, ...]
    tensor: int | None
    name: str


@dataclass(frozen=True)
class Step:
    """values[out] = atom(values[args]...); `node` is the graph node it belongs to."""

    atom: Atom
    args: tuple[int, ...]
    out: int
    node: int


@dataclass(frozen=True)
class Program:
    """A graph's integer core under one profile: int8 in, int8 out.

    `quantize` is the rule that maps the user's float32 input to value `input`: the graph's own QUANTIZE where it begins
    with one, else the rule the profile would use. `float_input`, `float_output` say what the file itself takes and gives.
    `constants`: value index -> int64 [*shape] for values that no step writes.
    """

    graph: Graph
    profile: Profile
    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    input: int
    output: int
    quantize: QuantizeRule
    float_input: bool
    float_output: bool
    constants: Mapping[int, Int64]

    def repeated_constants(self, count: int) -> dict[int, Int64]:
        """The constants for `count` samples, [count, *shape]."""
        return {value: np.broadcast_to(codes, (count, *codes.shape)) for value, codes in self.constants.items()}

    @property
    def output_tensor(self) -> Tensor:
        """The int8 tensor that the program's output is."""
        tensor = self.values[self.output].tensor
        assert tensor is not None
        return self.graph.tensors[tensor]


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
            profile.check_size(type(node.op).__name__, graph.tensors[node.output].size)
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
        profile.quantize(source.scale, source.zero_point),
        starts_float,
        ends_float,
        constants,
    )


def _expand(b: _Builder, index: int, node: Node) -> None:
    """Appends the steps of one node."""
    profile, kind = b.profile, type(node.op).__name__
    args = tuple(b.of_tensor[i] for i in node.inputs)
    x = b.graph.tensors[node.inputs[0]]
    out = b.graph.tensors[node.output]
    match node.op:
        case ops.Conv2d() | ops.DepthwiseConv2d() | ops.Dense() as op:
            kind = profile.kind(op, x.shape)
            profile.check_weight(kind, op.weight)
            clamp = profile.clamp(kind, op.activation, out.scale, out.zero_point)
            rule = profile.requantise(kind, x.scale, op.weight_scale, out.scale, out.zero_point, clamp)
            affine = Affine(linear_map(op, x.shape), -x.zero_point, op.bias.astype(np.int64))
            ends = profile.ends(kind, op, x, out, clamp)
            scaled = Monotone(rule) if ends is None else Between(ends[0], rule, ends[1])
            b.result(scaled, (b.accumulator(affine, args, index),), index)
        case ops.Add(activation) | ops.Sub(activation) | ops.Mul(activation):
            y = b.graph.tensors[node.inputs[1]]
            same = len({_origin(b.graph, i) for i in node.inputs}) == 1
            profile.check_operands(kind, x.shape, y.shape, same)
            scales, zero_points = (x.scale, y.scale), (x.zero_point, y.zero_point)
            clamp = profile.clamp(kind, activation, out.scale, out.zero_point)
            if isinstance(node.op, ops.Mul):
                product = profile.requantise(kind, x.scale, y.scale, out.scale, out.zero_point, clamp)
                if isinstance(product, FloatRescale):
                    raise UnsupportedError(f"{kind} as a rescaling of codes: it scales a product of two")
                b.result(Isotone(MulRule(zero_points, product), (0, 0)), args, index)
            else:
                sign = -1 if isinstance(node.op, ops.Sub) else 1
                total = profile.add(kind, scales, zero_points, sign, out.scale, out.zero_point, clamp)
                b.result(Isotone(total, (1, sign)), args, index)
        case ops.AvgPool(kernel, stride, padding, activation):
            profile.rule(kind)
            pool = linear.WindowSum(_image(x.shape), kernel, stride, padding)
            acc = b.accumulator(Affine(pool, 0, np.zeros(1, np.int64)), args, index)
            clamp = profile.clamp(kind, activation, out.scale, out.zero_point)
            b.result(Monotone(RoundDivide(pool.reach(), *clamp)), (acc,), index)
        case ops.MaxPool(kernel, stride, padding, activation):
            profile.rule(kind)
            lo, hi = profile.clamp(kind, activation, out.scale, out.zero_point)
            maximum = Max(kernel, stride, padding)
            if (lo, hi) == (INT8_MIN, INT8_MAX):
                b.result(maximum, args, index)
            else:
                inner = b.value(out.shape, None, f"{out.name}.max")
                b.steps.append(Step(maximum, args, inner, index))
                b.result(Monotone(Clamp(lo, hi)), (inner,), index)
        case ops.Mean(axes, keep_dims) | ops.Sum(axes, keep_dims):
            axis_sum = linear.AxisSum(x.shape, axes, keep_dims)
            acc = b.accumulator(Affine(axis_sum, 0, np.zeros(1, np.int64)), args, index)
            image_channels = x.shape[2] if len(x.shape) == 3 and axes == (0, 1) and keep_dims else 0
            reduced = profile.reduce(
                kind, x.scale, x.zero_point, out.scale, out.zero_point, axis_sum.count, image_channels
            )
            b.result(Monotone(reduced), (acc,), index)
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
        case ops.LeakyRelu() | ops.HardSwish() | ops.Logistic() | ops.Tanh() as op:
            profile.check_size(kind, out.size)
            b.result(Table(code_table(op, profile.rule(kind), x, out)), args, index)
        case ops.Relu():
            profile.check_size(kind, out.size)
            clamp = activation_range(ops.Activation.RELU, out.scale, out.zero_point)
            rule = profile.requantise(kind, x.scale, 1.0, out.scale, out.zero_point, clamp, x.zero_point)
            b.result(Monotone(rule), args, index)
        case ops.Relu6():
            clamp = activation_range(ops.Activation.RELU6, out.scale, out.zero_point)
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
            clamp = activation_range(ops.Activation.NONE, out.scale, out.zero_point)
            rule = profile.requantise(kind, x.scale, 1.0, out.scale, out.zero_point, clamp, x.zero_point)
            b.result(Monotone(rule), args, index)
        case ops.Softmax(beta):
            b.result(Softmax(profile.softmax(beta, x.scale, x.shape[-1])), args, index)
        case ops.Quantize() | ops.Dequantize():
            raise UnsupportedError("a float island inside the graph")
        case _:
            assert_never(node.op)


def linear_map(op: ops.Conv2d | ops.DepthwiseConv2d | ops.Dense, in_shape: tuple[int, ...]) -> Linear:
    """The op's integer linear map for one input shape, weight int8 unchanged."""
    match op:
        case ops.Conv2d():
            return linear.Conv(op.weight, _image(in_shape), op.stride, op.padding, op.dilation)
        case ops.DepthwiseConv2d():
            weight = np.ascontiguousarray(op.weight.transpose(2, 0, 1))[..., None]
            return linear.Conv(weight, _image(in_shape), op.stride, op.padding, op.dilation)
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
