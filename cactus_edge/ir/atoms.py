"""What each op means, under a named arithmetic, as a short list of atoms.

The interpreter, the interval rule and the linear rule are written for these ten atoms only. A `Program` is what
`lowering` makes of a checked graph: values in order, each written by one step. All values are int64 while they are computed; a value
with a `tensor` is that tensor of the graph, one without is an accumulator inside an op.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cactus_edge.ir import linear
from cactus_edge.ir.arith import INT8_MAX, INT8_MIN, INT32_MAX
from cactus_edge.ir.binary import BinaryRule
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.inputs import AnyQuantizeRule
from cactus_edge.ir.linear import Array, Linear
from cactus_edge.ir.ops import Int64, Padding2d
from cactus_edge.ir.profile import Profile
from cactus_edge.ir.rules import AnySoftmaxRule, Elementwise


@dataclass(frozen=True, eq=False)
class Affine:
    """acc = linear(x + input_offset) + bias, the accumulation of the runtime; bias int64 [C] over the last axis.

    limit: up to which magnitude the runtime's sum is exact: int32's, or that of the 64-bit sums of family W.
    """

    linear: Linear
    input_offset: int
    bias: Int64
    limit: int = INT32_MAX

    def apply(self, x: Int64) -> Int64:
        """Through float64 matrix products: exact, for 8-bit weights and 16-bit codes keep every partial sum far below 2^53."""
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


LEAST = -(2**15)
"""No code of any type is less."""


@dataclass(frozen=True)
class Max:
    """y = maximum over the window's taps inside the image, at least one each; non-decreasing in every tap."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding2d

    def apply(self, x: Array) -> Array:
        image = linear.pad_image(x, self.padding, LEAST)
        result: Array = linear.windows(image, self.kernel, self.stride).max((3, 4))
        return result


@dataclass(frozen=True)
class FloatAverage:
    """y = clamp(RNE(f32(f32(f32(s / n) / scale_out) + u_out)) - 128, lo, hi), u_out = zero_out + 128; the sum is clamped to [0, 255].

    s = f32(scale_in (x - zero_in)) over the window's n taps inside the image, added in float32 one by one, row after row. Each
    float32 operation is non-decreasing in what it reads, so y is in every tap; it is no function of their sum.
    Source: onnxruntime/contrib_ops/cpu/quantization/qlinear_pool.cc QLinearAveragePool on uint8 codes.
    """

    pool: linear.WindowSum
    scale_in: float
    zero_in: int
    scale_out: float
    zero_out: int
    lo: int = INT8_MIN
    hi: int = INT8_MAX

    def apply(self, x: Array) -> Int64:
        real = np.float32(self.scale_in) * (x - self.zero_in).astype(np.float32)
        taps = linear.windows(linear.pad_image(real, self.pool.padding), self.pool.kernel, self.pool.stride)
        total = np.zeros((len(x), *self.pool.out_shape), np.float32)
        for row in range(self.pool.kernel[0]):
            for column in range(self.pool.kernel[1]):
                total += taps[:, :, :, row, column]  # a tap outside is 0, which changes no sum
        steps = total / self.pool.reach().astype(np.float32) / np.float32(self.scale_out)
        codes = np.rint(np.clip(steps + np.float32(self.zero_out - INT8_MIN), 0, 255)).astype(np.int64) + INT8_MIN
        clipped: Int64 = np.clip(codes, self.lo, self.hi)
        return clipped

    def slope(self) -> Array:
        """The derivative by each tap of a window, roughly, float64 [OH, OW, 1]; no proof rests on it."""
        slope: Array = self.scale_in / self.scale_out / self.pool.reach()
        return slope


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
    """Row softmax over the last axis. As the last step verify decides at its input; before others its outputs are any codes."""

    rule: AnySoftmaxRule

    def apply(self, x: Int64) -> Int64:
        return self.rule.apply(x)


Simple = Affine | Monotone | Between | Isotone | Table | Max | FloatAverage | Gather | Softmax
"""What one profile makes of a step."""


@dataclass(frozen=True, eq=False)
class AnyOf:
    """y = atom(x) for any one of `atoms`, chosen anew for each element and run: what several profiles make of a step (`mixture`).

    At least two, of one kind (all Monotone or Between, all Isotone, all Table, or all Softmax, whose choice is for a whole row).
    `apply`, the first, is an example and no definition.
    """

    atoms: tuple[Simple, ...]

    def apply(self, *args: Int64) -> Int64:
        return self.atoms[0].apply(*args)


Atom = Simple | AnyOf
"""The closed set of meanings."""


def example(atom: Atom) -> Simple:
    """What one profile makes of the step: the atom itself, or the first of several."""
    return atom.atoms[0] if isinstance(atom, AnyOf) else atom


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
    """A graph's integer core under one profile: codes in, codes out, all of them int8 or all int16.

    `quantize` is the rule that maps the user's float32 input to value `input`: the graph's own QUANTIZE where it begins
    with one, else the rule the profile would use. `float_input`, `float_output` say what the file itself takes and gives.
    `constants`: value index -> int64 [*shape] for values that no step writes. `first_maximum`: of equal outputs the first class
    wins, as an argmax that takes the first has it; else none of them.
    """

    graph: Graph
    profile: Profile
    values: tuple[Value, ...]
    steps: tuple[Step, ...]
    input: int
    output: int
    quantize: AnyQuantizeRule
    float_input: bool
    float_output: bool
    constants: Mapping[int, Int64]
    first_maximum: bool = False

    def repeated_constants(self, count: int) -> dict[int, Int64]:
        """The constants for `count` samples, [count, *shape]."""
        return {value: np.broadcast_to(codes, (count, *codes.shape)) for value, codes in self.constants.items()}

    @property
    def definite(self) -> bool:
        """Whether the program is one function: nothing in it is only known to lie in an envelope or to be one of several."""
        return self.quantize.definite and not any(isinstance(s.atom, Between | AnyOf) for s in self.steps)

    @property
    def codes(self) -> tuple[int, int]:
        """(least, most) code of each of its tensors."""
        return self.input_tensor.codes

    @property
    def input_tensor(self) -> Tensor:
        """The integer tensor that the program's input is."""
        return self._tensor(self.input)

    @property
    def output_tensor(self) -> Tensor:
        """The integer tensor that the program's output is."""
        return self._tensor(self.output)

    def _tensor(self, value: int) -> Tensor:
        tensor = self.values[value].tensor
        assert tensor is not None
        return self.graph.tensors[tensor]
