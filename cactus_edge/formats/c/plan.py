"""Where each int8 tensor lies in the one arena that a device gives to activations.

Placing tensors with known lifetimes in the fewest bytes is NP-complete, so the planner is greedy, tries a few orders and
keeps the best; it reports the live-set lower bound beside its result. Tensors that RESHAPE renames share their bytes. An
op that reads each element no later than it writes the element's place may write its output where its input begins.
Everything is deterministic: the plan is part of the canonical blob.

Source of greedy by size: tensorflow/lite/micro/memory_planner/greedy_memory_planner.cc; of greedy by breadth: Pisarchyk
and Lee, "Efficient Memory Management for Deep Neural Net Inference" (arXiv 2001.03288), section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph, Node

ALIGNMENT = 16
"""Bytes. A tensor begins where wide loads are fastest on every core we know."""


@dataclass(frozen=True)
class Lifetime:
    """A tensor's bytes hold its value from node `first` (-1: before the run) to node `last` (len(nodes): after it), inclusive."""

    size: int
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        """Whether both hold their values at some node."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """`offsets[t]`: byte offset of graph tensor t in the arena, None for a float32 one and a constant.

    `scratch[n]`: byte offset of what node n's kernel needs beside its tensors while it runs, 0 if it needs nothing.
    `live_bytes`: the largest sum of sizes alive at one node, below which no plan with the same in-place rules can go.
    """

    offsets: tuple[int | None, ...]
    scratch: tuple[int, ...]
    arena_bytes: int
    live_bytes: int


def plan(graph: Graph) -> Plan:
    """The memory plan of a checked graph's integer tensors."""
    home = _homes(graph)
    lives = _lifetimes(graph, home)
    # Scratch is a tensor of one node's life, numbered behind the graph's own.
    own = len(graph.tensors)
    for index, node in enumerate(graph.nodes):
        if size := scratch_bytes(node.op, graph.tensors[node.inputs[0]].shape):
            lives[own + index] = Lifetime(size, index, index)
    shared = _shared(graph, home, lives)
    placed = min((_place(order, lives, shared) for order in _orders(lives)), key=lambda p: _end(p, lives))
    offsets = tuple(placed.get(home[i]) for i in range(own))
    scratch = tuple(placed.get(own + index, 0) for index in range(len(graph.nodes)))
    return Plan(offsets, scratch, _end(placed, lives), _live_bytes(graph, home, lives, shared))


def scratch_bytes(op: ops.Op, in_shape: tuple[int, ...]) -> int:
    """What the portable kernels (export/c) gather: the taps of two pixels of one group, or of one pixel, all channels.

    A kernel of one tap reads the image in place, and so does a depthwise one without padding.
    """
    match op:
        case ops.Conv2d(weight=weight, padding=padding):
            taps = int(np.prod(weight.shape[1:], dtype=np.int64))
            in_place = weight.shape[1:3] == (1, 1) and padding == ops.NO_PADDING
            return 0 if in_place else 2 * taps
        case ops.DepthwiseConv2d(weight=weight, padding=padding):
            return 0 if padding == ops.NO_PADDING else weight.shape[0] * weight.shape[1] * in_shape[2]
        case _:
            return 0


def _homes(graph: Graph) -> list[int]:
    """For each tensor the tensor whose bytes it is: its own index, or through RESHAPE its source's."""
    home = list(range(len(graph.tensors)))
    for node in graph.nodes:
        if isinstance(node.op, ops.Reshape):
            home[node.output] = home[node.inputs[0]]
    return home


def _lifetimes(graph: Graph, home: Sequence[int]) -> dict[int, Lifetime]:
    spans: dict[int, tuple[int, int]] = {}

    def use(tensor: int, at: int) -> None:
        if graph.tensors[tensor].dtype != "float32" and tensor not in graph.constants:
            first, last = spans.get(home[tensor], (at, at))
            spans[home[tensor]] = min(first, at), max(last, at)

    for tensor in graph.inputs:
        use(tensor, -1)
    for index, node in enumerate(graph.nodes):
        for tensor in node.inputs:
            use(tensor, index)
        # The int8 input of a graph that begins with QUANTIZE is what the device is given: it is there before the run.
        use(node.output, -1 if isinstance(node.op, ops.Quantize) else index)
        if isinstance(node.op, ops.Dequantize):
            use(node.inputs[0], len(graph.nodes))
    for tensor in graph.outputs:
        use(tensor, len(graph.nodes))
    return {t: Lifetime(graph.tensors[t].bytes, *span) for t, span in spans.items()}


def in_place(op: ops.Op) -> bool:
    """Whether `op` may write its output from where an input of at least the output's size begins.

    Elementwise ops read element i before they write it. Pools and means write output k after every read of an input
    element below k: a window that does not begin outside the image begins at or behind its output's place.
    """
    match op:
        case ops.Add() | ops.Sub() | ops.Mul() | ops.Relu() | ops.Relu6() | ops.LeakyRelu() | ops.HardSwish():
            return True
        case ops.Maximum() | ops.Minimum():
            return True
        case ops.Logistic() | ops.Tanh() | ops.Requantize() | ops.Softmax() | ops.Mean() | ops.Sum():
            return True
        case ops.AvgPool() | ops.MaxPool():
            return op.padding.top == 0 and op.padding.left == 0
        case ops.Conv2d() | ops.DepthwiseConv2d() | ops.TransposeConv2d() | ops.Dense() | ops.Pad() | ops.Concat():
            return False
        case ops.Reshape() | ops.Transpose() | ops.Slice() | ops.ResizeNearest() | ops.ResizeBilinear():
            return False
        case ops.Quantize() | ops.Dequantize():
            return False
        case _:
            assert_never(op)


def _donors(node: Node, index: int, home: Sequence[int], lives: dict[int, Lifetime]) -> list[int]:
    """The inputs whose place the node's output may take: those that nobody reads later and that are large enough."""
    if not in_place(node.op):
        return []
    out = lives[home[node.output]]
    inputs = {home[i] for i in node.inputs if home[i] in lives}
    return sorted(i for i in inputs if lives[i].last == index and lives[i].size >= out.size)


def _shared(graph: Graph, home: Sequence[int], lives: dict[int, Lifetime]) -> set[tuple[int, int]]:
    """Pairs (donor, output) and their mirror images: both may be alive at one node and begin at the same byte."""
    pairs = [(d, home[n.output]) for i, n in enumerate(graph.nodes) for d in _donors(n, i, home, lives)]
    return {*pairs, *((b, a) for a, b in pairs)}


def _orders(lives: dict[int, Lifetime]) -> list[list[int]]:
    def breadth(t: int) -> int:
        return max(sum(o.size for o in lives.values() if o.first <= at <= o.last) for at in _span(lives[t]))

    return [
        sorted(lives, key=lambda t: (-lives[t].size, lives[t].first, t)),
        sorted(lives, key=lambda t: (-breadth(t), -lives[t].size, t)),
        sorted(lives, key=lambda t: (lives[t].first - lives[t].last, -lives[t].size, t)),
        sorted(lives, key=lambda t: (lives[t].first, t)),
    ]


def _span(life: Lifetime) -> range:
    return range(life.first, life.last + 1)


def _place(order: Sequence[int], lives: dict[int, Lifetime], shared: set[tuple[int, int]]) -> dict[int, int]:
    """Each tensor at the lowest aligned offset where it meets no placed tensor that is alive with it."""
    placed: dict[int, int] = {}
    for t in order:
        rivals = [o for o in placed if lives[o].overlaps(lives[t])]
        starts = {0, *(placed[o] for o in rivals if (o, t) in shared)}
        starts |= {-(-(placed[o] + lives[o].size) // ALIGNMENT) * ALIGNMENT for o in rivals}
        placed[t] = min(s for s in starts if all(_apart(t, s, o, placed[o], lives, shared) for o in rivals))
    return placed


def _apart(a: int, at: int, b: int, bt: int, lives: dict[int, Lifetime], shared: set[tuple[int, int]]) -> bool:
    """Whether tensor a at `at` and tensor b at `bt` may be alive together."""
    return at + lives[a].size <= bt or bt + lives[b].size <= at or (at == bt and (a, b) in shared)


def _end(placed: dict[int, int], lives: dict[int, Lifetime]) -> int:
    return max((offset + lives[t].size for t, offset in placed.items()), default=0)


def _live_bytes(graph: Graph, home: Sequence[int], lives: dict[int, Lifetime], shared: set[tuple[int, int]]) -> int:
    peak = 0
    for index, node in enumerate(graph.nodes):
        live = sum(life.size for life in lives.values() if life.first <= index <= life.last)
        out = home[node.output]
        if any((home[i], out) in shared and lives[home[i]].last == index for i in node.inputs if home[i] in lives):
            live -= lives[out].size
        peak = max(peak, live)
    return peak
