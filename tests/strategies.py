"""Random legal integer networks, their inputs and input boxes, for every engine's tests.

    @given(data=st.data())
    def test_it(data):
        graph = data.draw(graphs(max_nodes=6))
        x = data.draw(inputs(graph, 8))

`graphs` lets hypothesis choose the structure (so that a failure shrinks to few, small ops) and fills weights from a seed it
chooses; `random_graph` makes the same networks from a numpy generator, for benchmarks. The networks are made to be
awkward: per-channel scales over many powers of two, so that shifts are negative, zero and positive; multipliers that
round to zero; zero points and outputs at both ends of int8; uneven padding, stride and dilation, groups, several outputs
per channel; residual sums and joins of earlier tensors. No accumulator of theirs overflows int32, shift included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from graph_parts import Array, Choices, DrawnChoices, Parts, RngChoices
from hypothesis import strategies as st

from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph, Tensor


class Maker(Parts):
    """Grows one network op by op. `make_<op>` returns the new tensor's index, or None where the op does not apply to x."""

    def make_conv2d(self, i: int, x: Tensor) -> int | None:
        w = self.window(x.shape[:2], dilate=True, any_padding=True) if len(x.shape) == 3 else None
        if w is None:
            return None
        groups = self.choose.pick([g for g in range(1, x.shape[2] + 1) if x.shape[2] % g == 0])
        o = groups * self.choose.integer(1, 3)
        a = self.affine(self.weights((o, *w["kernel"], x.shape[2] // groups)), (1, 2, 3), x, True)
        out = self.fresh((*w["out"], o), a.pop("out_scale"))
        return self.node(ops.Conv2d(**a, **_geometry(w), activation=self.activation()), [i], out)

    def make_depthwise_conv2d(self, i: int, x: Tensor) -> int | None:
        w = self.window(x.shape[:2], dilate=True, any_padding=True) if len(x.shape) == 3 else None
        if w is None:
            return None
        o = x.shape[2] * self.choose.integer(1, 3)
        a = self.affine(self.weights((*w["kernel"], o)), (0, 1), x, True)
        out = self.fresh((*w["out"], o), a.pop("out_scale"))
        return self.node(ops.DepthwiseConv2d(**a, **_geometry(w), activation=self.activation()), [i], out)

    def make_dense(self, i: int, x: Tensor) -> int | None:
        o = self.choose.integer(1, 8)
        a = self.affine(self.weights((o, x.size)), (1,), x, self.choose.pick([False, True]))
        out = self.fresh((o,), a.pop("out_scale"))
        return self.node(ops.Dense(**a, activation=self.activation()), [i], out)

    def make_add(self, i: int, x: Tensor) -> int | None:
        j = self.choose.pick(self._shaped(x))
        largest = max(x.scale, self.builder.tensor(j).scale)
        return self.node(ops.Add(self.activation()), [i, j], self.fresh(x.shape, largest * self.scale(0.5, 4.0)))

    def _operands(self, i: int, x: Tensor) -> tuple[list[int], Tensor]:
        """(x and another operand, in any order; that other one): of x's shape, constant, or repeated along axes of 1."""
        kind = self.choose.pick(["equal", "constant", "repeated"])
        fitting = [k for k in self.known if _repeats(self.builder.tensor(k).shape, x.shape)]
        if kind == "constant":
            shape = tuple(n if self.choose.integer(0, 1) else 1 for n in x.shape)
            made = replace(self.fresh(shape, x.scale * self.scale(0.2, 5.0)), name=f"c{len(self.known)}")
            j = self.builder.constant(made, ops.freeze(self.rng.integers(-128, 128, shape), np.int8))
        else:
            j = self.choose.pick(fitting if kind == "repeated" else self._shaped(x))
        return ([i, j] if self.choose.integer(0, 1) else [j, i]), self.builder.tensor(j)

    def make_sub(self, i: int, x: Tensor) -> int | None:
        pair, other = self._operands(i, x)
        largest = max(x.scale, other.scale)
        return self.node(ops.Sub(self.activation()), pair, self.fresh(x.shape, largest * self.scale(0.5, 4.0)))

    def make_broadcast_add(self, i: int, x: Tensor) -> int | None:
        pair, other = self._operands(i, x)
        largest = max(x.scale, other.scale)
        return self.node(ops.Add(self.activation()), pair, self.fresh(x.shape, largest * self.scale(0.5, 4.0)))

    def make_mul(self, i: int, x: Tensor) -> int | None:
        pair, other = self._operands(i, x)
        scale = x.scale * other.scale * self.scale(1.0, 2.0**9)
        return self.node(ops.Mul(self.activation()), pair, self.fresh(x.shape, scale))

    def _pool(self, kind: type[ops.AvgPool] | type[ops.MaxPool], i: int, x: Tensor) -> int | None:
        w = self.window(x.shape[:2], dilate=False, any_padding=False) if len(x.shape) == 3 else None
        if w is None:
            return None
        op = kind(w["kernel"], w["stride"], w["padding"], self.activation())
        return self.node(op, [i], self.like((*w["out"], x.shape[2]), x))

    def make_avg_pool(self, i: int, x: Tensor) -> int | None:
        return self._pool(ops.AvgPool, i, x)

    def make_max_pool(self, i: int, x: Tensor) -> int | None:
        return self._pool(ops.MaxPool, i, x)

    def make_mean(self, i: int, x: Tensor) -> int | None:
        axes = tuple(a for a in range(len(x.shape)) if self.choose.integer(0, 1))
        if not axes:
            return None
        keep = self.choose.pick([False, True])
        shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keep or a not in axes)
        return self.node(ops.Mean(axes, keep), [i], self.fresh(shape, x.scale * self.scale(0.1, 3.0)))

    def make_sum(self, i: int, x: Tensor) -> int | None:
        axes = tuple(a for a in range(len(x.shape)) if self.choose.integer(0, 1))
        if not axes:
            return None
        keep = self.choose.pick([False, True])
        shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keep or a not in axes)
        count = np.prod([x.shape[a] for a in axes])
        return self.node(ops.Sum(axes, keep), [i], self.fresh(shape, x.scale * np.sqrt(count) * self.scale(0.1, 3.0)))

    def make_pad(self, i: int, x: Tensor) -> int | None:
        pads = tuple((self.choose.integer(0, 2), self.choose.integer(0, 2)) for _ in x.shape)
        shape = tuple(n + a + b for n, (a, b) in zip(x.shape, pads, strict=True))
        return self.node(ops.Pad(pads), [i], self.like(shape, x))

    def make_concat(self, i: int, x: Tensor) -> int | None:
        if not x.shape:
            return None
        axis = self.choose.integer(0, len(x.shape) - 1)
        fitting = [k for k in self.known if _joins(self.builder.tensor(k), x, axis)]
        others = [self.choose.pick(fitting) for _ in range(self.choose.integer(0, 2))]
        if self.choose.integer(0, 1):
            sibling = self.builder.node(ops.Requantize(), [self.choose.pick(self._shaped(x))], self.like(x.shape, x))
            self.known.append(sibling)
            others.append(sibling)
        total = x.shape[axis] + sum(self.builder.tensor(k).shape[axis] for k in others)
        shape = (*x.shape[:axis], total, *x.shape[axis + 1 :])
        return self.node(ops.Concat(axis), [i, *others], self.like(shape, x))

    def make_reshape(self, i: int, x: Tensor) -> int | None:
        rank = self.choose.pick([1, 3, 2])
        shape: list[int] = []
        rest = x.size
        for _ in range(rank - 1):
            shape.append(self.choose.pick([n for n in range(1, rest + 1) if rest % n == 0]))
            rest //= shape[-1]
        return self.node(ops.Reshape(), [i], self.like((*shape, rest), x))

    def make_transpose(self, i: int, x: Tensor) -> int | None:
        rest = list(range(len(x.shape)))
        perm = tuple(rest.pop(self.choose.integer(0, len(rest) - 1)) for _ in x.shape)
        return self.node(ops.Transpose(perm), [i], self.like(tuple(x.shape[a] for a in perm), x))

    def make_slice(self, i: int, x: Tensor) -> int | None:
        begin = tuple(self.choose.integer(0, n - 1) for n in x.shape)
        stride = tuple(self.choose.integer(1, 3) for _ in x.shape)
        size = tuple(
            self.choose.integer(1, (n - 1 - b) // s + 1) for n, b, s in zip(x.shape, begin, stride, strict=True)
        )
        shape = tuple(n for n in size if n > 1 or self.choose.integer(0, 3))
        return self.node(ops.Slice(begin, size, stride), [i], self.like(shape, x))

    def make_resize_nearest(self, i: int, x: Tensor) -> int | None:
        if len(x.shape) != 3:
            return None
        shape = (self.choose.integer(1, 9), self.choose.integer(1, 9), x.shape[2])
        # LiteRT refuses both flags at once.
        aligned, centred = self.choose.pick([(False, False), (True, False), (False, True)])
        return self.node(ops.ResizeNearest(aligned, centred), [i], self.like(shape, x))

    def make_leaky_relu(self, i: int, x: Tensor) -> int | None:
        alpha = float(np.float32(self.choose.pick([0.01, 0.1, 0.2, 0.3, 0.5, 1.5])))
        return self.node(ops.LeakyRelu(alpha), [i], self.fresh(x.shape, x.scale * self.scale(0.1, 5.0)))

    def make_hard_swish(self, i: int, x: Tensor) -> int | None:
        return self.node(ops.HardSwish(), [i], self.fresh(x.shape, x.scale * self.scale(0.05, 5.0)))

    def make_logistic(self, i: int, x: Tensor) -> int | None:
        return self.node(ops.Logistic(), [i], Tensor(f"t{len(self.known)}", x.shape, "int8", 1 / 256, -128))

    def make_tanh(self, i: int, x: Tensor) -> int | None:
        return self.node(ops.Tanh(), [i], Tensor(f"t{len(self.known)}", x.shape, "int8", 1 / 128, 0))

    def make_relu(self, i: int, x: Tensor) -> int | None:
        return self.node(ops.Relu(), [i], self.fresh(x.shape, x.scale * self.scale(0.02, 5.0)))

    def make_relu6(self, i: int, x: Tensor) -> int | None:
        return self.node(ops.Relu6(), [i], self.like(x.shape, x))

    def make_requantize(self, i: int, x: Tensor) -> int | None:
        return self.node(ops.Requantize(), [i], self.fresh(x.shape, x.scale * self.scale(0.02, 20.0)))

    def make_maximum(self, i: int, x: Tensor) -> int | None:
        return self._extreme(ops.Maximum(), i, x)

    def make_minimum(self, i: int, x: Tensor) -> int | None:
        return self._extreme(ops.Minimum(), i, x)

    def _extreme(self, op: ops.Maximum | ops.Minimum, i: int, x: Tensor) -> int | None:
        sibling = self.builder.node(ops.Requantize(), [self.choose.pick(self._shaped(x))], self.like(x.shape, x))
        self.known.append(sibling)
        return self.node(op, self.choose.pick([[i, sibling], [sibling, i]]), self.like(x.shape, x))

    def make_dense_rows(self, i: int, x: Tensor) -> int | None:
        if len(x.shape) < 2 or x.shape[-1] == x.size:
            return None
        a = self.affine(
            self.weights((self.choose.integer(1, 6), x.shape[-1])), (1,), x, self.choose.pick([False, True])
        )
        out = self.fresh((*x.shape[:-1], len(a["bias"])), a.pop("out_scale"))
        return self.node(ops.Dense(**a, activation=self.activation()), [i], out)

    def make_transpose_conv2d(self, i: int, x: Tensor) -> int | None:
        if len(x.shape) != 3:
            return None
        stride = (self.choose.integer(1, 3), self.choose.integer(1, 3))
        kernel = tuple(self.choose.integer(s, s + 2) for s in stride)
        shape = (self.choose.integer(1, 4), *kernel, x.shape[2])
        a = self.affine(self.weights(shape), (1, 2, 3), x, True)
        sizes = ((n - 1) * s + k for n, s, k in zip(x.shape[:2], stride, kernel, strict=True))
        out = self.fresh((*sizes, shape[0]), a.pop("out_scale"))
        return self.node(ops.TransposeConv2d(**a, stride=stride, activation=self.activation()), [i], out)

    def make_resize_bilinear(self, i: int, x: Tensor) -> int | None:
        if len(x.shape) != 3:
            return None
        size = (self.choose.integer(1, 9), self.choose.integer(1, 9))
        mode = self.choose.pick([(False, False), (True, False), (False, True)])
        return self.node(ops.ResizeBilinear(*mode), [i], self.like((*size, x.shape[2]), x))

    def make_softmax(self, i: int, x: Tensor) -> int | None:
        if not x.shape:
            return None
        return self.node(ops.Softmax(), [i], Tensor(f"t{len(self.known)}", x.shape, "int8", 1 / 256, -128))

    def finish(self, last: int, ends: Sequence[str]) -> Graph:
        """The graph, after the closing ops that are chosen of `ends`: of "softmax", "reshape" and "dequantize", in this order."""
        closing = self.choose.pick(ends)
        x = self.builder.tensor(last)
        # From 512 equal inputs on, TFLM's softmax divides by 2^32, which it asserts not to do.
        if "softmax" in closing and x.shape and x.shape[-1] < 512:
            beta = self.choose.pick([1.0, 0.5, 2.0])
            last = self.builder.node(ops.Softmax(beta), [last], Tensor("softmax", x.shape, "int8", 1 / 256, -128))
        if "reshape" in closing:
            x = replace(self.builder.tensor(last), name="flat", shape=(1, x.size))
            last = self.builder.node(ops.Reshape(), [last], x)
        if "dequantize" in closing:
            last = self.builder.node(ops.Dequantize(), [last], Tensor("real", x.shape, "float32"))
        return self.builder.finish(last)


def _geometry(window: dict[str, Any]) -> dict[str, Any]:
    return {key: window[key] for key in ("stride", "padding", "dilation")}


def _repeats(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(a) == len(b) and all(n in (1, m) for n, m in zip(a, b, strict=True))


def _joins(a: Tensor, x: Tensor, axis: int) -> bool:
    same_rank = len(a.shape) == len(x.shape) and a.quantised_like(x)
    return same_rank and all(n == m for k, (n, m) in enumerate(zip(a.shape, x.shape, strict=True)) if k != axis)


_IN_C = "conv2d dense add depthwise_conv2d avg_pool max_pool mean pad concat reshape relu relu6 requantize sum"
IN_C = tuple(_IN_C.split())
"""Every op that can stand in the middle of a network and that the portable C runs."""

_BEYOND_C = "sub mul broadcast_add transpose slice resize_nearest leaky_relu hard_swish logistic tanh"
MIDDLE = (*IN_C, *_BEYOND_C.split())
"""Every op that can stand in the middle of a network and that most runtimes run."""

RARE = ("maximum", "minimum", "dense_rows", "transpose_conv2d", "resize_bilinear", "softmax")
"""The others: only where they are asked for."""

ENDS = ("", "softmax", "dequantize", "softmax dequantize")


def make_graph(
    choose: Choices,
    max_nodes: int = 5,
    middle: Sequence[str] = MIDDLE,
    *,
    ends: Sequence[str] = ENDS,
    shape: tuple[int, int, int] | None = None,
) -> Graph:
    """A network of 1 to `max_nodes` middle ops of the kinds in `middle`, int8 or float32 at its ends.

    `ends` are the closings to choose from; where "dequantize" may occur, a QUANTIZE may come first too. shape: the input's.
    """
    make = Maker(choose)
    shape = shape or (choose.integer(1, 8), choose.integer(1, 8), choose.integer(1, 4))
    first = Tensor("input", shape, "int8", make.scale(), make.zero_point())
    if any("dequantize" in end for end in ends) and choose.integer(0, 3) == 3:
        source = make.builder.input(Tensor("real_input", shape, "float32"))
        last = make.builder.node(ops.Quantize(), [source], first)
    else:
        last = make.builder.input(first)
    make.known.append(last)
    wanted = choose.integer(1, max_nodes)
    done = 0
    for _ in range(4 * max_nodes):
        if done == wanted:
            break
        # Mostly a chain; sometimes an earlier tensor, which leaves a branch for a later sum or join.
        source = choose.pick(make.known) if choose.integer(0, 4) == 4 else last
        made = getattr(make, f"make_{choose.pick(middle)}")(source, make.builder.tensor(source))
        if made is not None:
            last, done = made, done + 1
    if done == 0:
        made = make.make_requantize(last, make.builder.tensor(last))
        assert made is not None
        last = made
    return make.finish(last, ends)


def random_graph(rng: np.random.Generator, max_nodes: int = 5, middle: Sequence[str] = MIDDLE, **options: Any) -> Graph:
    """`make_graph` with decisions from `rng`."""
    return make_graph(RngChoices(rng), max_nodes, middle, **options)


def graphs(max_nodes: int = 5, ops: Sequence[str] = MIDDLE, *, ends: Sequence[str] = ENDS) -> st.SearchStrategy[Graph]:
    """Random legal networks; `ops` names the kinds in the middle (`MIDDLE`), `ends` the closings (`ENDS`)."""

    @st.composite
    def strategy(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Graph:
        return make_graph(DrawnChoices(draw), max_nodes, ops, ends=ends)

    return strategy()


def random_inputs(rng: np.random.Generator, graph: Graph, n: int) -> Array:
    """[n, *input.shape] in the input's dtype: uniform, constant at an end, near the zero point, two-valued, in turn.

    float32 inputs lie on the codes' real values, half of them moved by half a step so that they tie, some far outside.
    """
    starts_float = graph.input.dtype == "float32"
    core = graph.tensors[graph.nodes[0].output] if starts_float else graph.input
    least, most = core.codes
    x = rng.integers(least, most + 1, (n, *core.shape)).astype(np.int64)
    kind = np.arange(n) % 6
    x[kind == 1] = least
    x[kind == 2] = most
    x[kind == 3] = np.clip(core.zero_point + x[kind == 3] // 32, least, most)
    x[kind == 4] = np.where(x[kind == 4] < 0, least, most)
    if not starts_float:
        return x.astype(core.dtype)
    real = core.scale * (x - core.zero_point + rng.choice([0.0, 0.5, -0.5, 0.25], x.shape))
    real[kind == 5] *= 1000
    real32: Array = real.astype(np.float32)
    return real32


def inputs(graph: Graph, n: int) -> st.SearchStrategy[Array]:
    """`random_inputs` from a seed that hypothesis chooses."""
    return st.integers(0, 2**32 - 1).map(lambda seed: random_inputs(np.random.default_rng(seed), graph, n))


def regions(graph: Graph, max_radius: int = 32) -> st.SearchStrategy[tuple[Array, Array]]:
    """Boxes (lo, hi) of int8 input codes, lo <= hi, both [*core.shape]; core is the graph's first int8 tensor.

    A ball of some radius around a point, with features that are fixed or free over all of int8 among them.
    """
    core = graph.tensors[graph.nodes[0].output] if graph.input.dtype == "float32" else graph.input

    def box(seed: int, radius: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(seed)
        centre = rng.integers(-128, 128, core.shape)
        reach = np.where(rng.random(core.shape) < 0.1, rng.choice([0, 255], core.shape), radius)
        return (np.clip(centre - reach, -128, 127).astype(np.int8), np.clip(centre + reach, -128, 127).astype(np.int8))

    return st.builds(box, st.integers(0, 2**32 - 1), st.integers(0, max_radius))


@contextmanager
def ties() -> Iterator[None]:
    """Scales whose quotients are small fractions up to float32's rounding: exact ties, and near misses, in every op."""
    real = Maker.affine

    def scale(self: Maker, low: float = 2.0**-8, high: float = 1.0) -> float:
        power = 2.0 ** np.floor(self.rng.uniform(np.log2(low), np.log2(high)))
        return float(np.float32(power * self.rng.integers(8, 16) / self.choose.pick([8, 11, 7, 13])))

    def affine(self: Maker, weight: Any, taps: Any, x: Tensor, per_channel: bool) -> dict[str, Any]:
        made = real(self, weight, taps, x, per_channel)
        multiplier = made["weight_scale"].astype(np.float64) * x.scale / made["out_scale"]
        power = 2.0 ** np.floor(np.log2(multiplier))
        tied = np.where(self.rng.integers(0, 2, power.shape) == 0, power, 0.75 * power)
        weight_scale = np.asarray(tied * made["out_scale"] / x.scale, np.float32)
        return made | {"weight_scale": ops.freeze(np.maximum(weight_scale, np.float32(1e-30)), np.float32)}

    with mock.patch.object(Maker, "scale", scale), mock.patch.object(Maker, "affine", affine):
        yield
