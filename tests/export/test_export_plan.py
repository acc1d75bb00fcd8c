"""The memory plan: no two tensors that are alive together overlap, and the plan is as small as what is alive allows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import graphs

from cactus_edge.formats.c import plan as planning
from cactus_edge.formats.c.plan import ALIGNMENT, plan, scratch_bytes
from cactus_edge.ir import ops
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor

BINARY = ops.Add | ops.Sub | ops.Mul


def conflicts(graph: Graph) -> Iterator[str]:
    """Simulates the run byte by byte: what each node reads must still be there when it reads it.

    Knows nothing of lifetimes: every byte of the arena remembers which tensor wrote it. An in-place op is replayed
    element by element in the order of the kernels.
    """
    layout = plan(graph)
    owner: list[tuple[int, int] | None] = [None] * layout.arena_bytes
    home = {i: i for i in range(len(graph.tensors))}

    def place(tensor: int) -> int:
        offset = layout.offsets[tensor]
        assert offset is not None
        return offset

    def write(tensor: int, element: int) -> None:
        owner[place(tensor) + element] = (home[tensor], element)

    def reads(tensor: int, elements: range | list[int]) -> Iterator[str]:
        for e in elements:
            if owner[place(tensor) + e] != (home[tensor], e):
                yield f"element {e} of {graph.tensors[tensor].name} is gone"

    def fill(tensor: int) -> None:
        for e in range(graph.tensors[tensor].size):
            write(tensor, e)

    if graph.input.dtype == "int8":
        fill(graph.inputs[0])
    for index, node in enumerate(graph.nodes):
        out, op = node.output, node.op
        if isinstance(op, ops.Quantize):
            fill(out)
        elif isinstance(op, ops.Reshape):
            home[out] = home[node.inputs[0]]
        elif not isinstance(op, ops.Dequantize):
            size = scratch_bytes(op, graph.tensors[node.inputs[0]].shape)
            for e in range(size):
                owner[layout.scratch[index] + e] = None
            for e, needed in enumerate(_order(graph, index)):
                for tensor in node.inputs:
                    if tensor in graph.constants:
                        continue
                    yield from reads(tensor, _repeated(graph, tensor, out, e) if isinstance(op, BINARY) else needed)
                write(out, e)
        else:
            yield from reads(node.inputs[0], range(graph.tensors[node.inputs[0]].size))
    if graph.output.dtype == "int8":
        yield from reads(graph.outputs[0], range(graph.output.size))


def _repeated(graph: Graph, tensor: int, out: int, e: int) -> list[int]:
    """The element of an operand that element e of the output reads, along axes of 1 the same one."""
    t = graph.tensors[tensor]
    return [int(np.broadcast_to(np.arange(t.size).reshape(t.shape), graph.tensors[out].shape).flat[e])]


def _order(graph: Graph, index: int) -> Iterator[list[int]]:
    """For each output element in the order of writing, the input elements that are read no earlier than just before it."""
    node = graph.nodes[index]
    x, out = graph.tensors[node.inputs[0]], graph.tensors[node.output]
    places = np.arange(x.size).reshape(x.shape)
    match node.op:
        case ops.AvgPool() | ops.MaxPool() as op:
            top, left = op.padding.top, op.padding.left
            for h, w, c in np.ndindex(*out.shape):
                y, z = h * op.stride[0] - top, w * op.stride[1] - left
                rows, columns = slice(max(y, 0), y + op.kernel[0]), slice(max(z, 0), z + op.kernel[1])
                yield places[rows, columns, c].ravel().tolist()
        case ops.Mean(axes) | ops.Sum(axes):
            kept = np.moveaxis(places, axes, range(-len(axes), 0)).reshape(out.size, -1)
            yield from (row.tolist() for row in kept)
        case ops.Add() | ops.Sub() | ops.Mul() | ops.Relu() | ops.Relu6() | ops.Requantize():
            yield from ([e] for e in range(out.size))
        case ops.LeakyRelu() | ops.HardSwish() | ops.Logistic() | ops.Tanh():
            yield from ([e] for e in range(out.size))
        case ops.Softmax():
            depth = x.shape[-1]
            # The whole row is read before its first element is written, each element again just before its own.
            yield from (list(range(e, e + depth)) if e % depth == 0 else [e] for e in range(out.size))
        case _:
            # Inputs and output never overlap, so that any order shows an overlap: all inputs at every element's turn.
            yield from ([*range(x.size)] if e in (0, out.size - 1) else [] for e in range(out.size))


def small(graph: Graph) -> bool:
    """Concat reads inputs of several sizes; its reads are checked by the interpreter's comparison instead."""
    return not any(isinstance(node.op, ops.Concat) for node in graph.nodes)


@settings(max_examples=150)
@given(graphs(max_nodes=6))
def test_nothing_is_overwritten_before_it_is_read(graph: Graph) -> None:
    if small(graph):
        assert list(conflicts(graph)) == []


@settings(max_examples=150)
@given(graphs(max_nodes=8))
def test_tensors_alive_together_are_apart(graph: Graph) -> None:
    layout = plan(graph)
    last = {t: len(graph.nodes) for t in graph.outputs}
    home = list(range(len(graph.tensors)))
    for index, node in enumerate(graph.nodes):
        if isinstance(node.op, ops.Reshape):
            home[node.output] = home[node.inputs[0]]
        for t in node.inputs:
            last[home[t]] = max(last.get(home[t], -1), index + isinstance(node.op, ops.Dequantize))
    first = {node.output: i for i, node in enumerate(graph.nodes)} | dict.fromkeys(graph.inputs, -1)
    roots = [t for t in set(home) if graph.tensors[t].dtype == "int8" and t not in graph.constants]
    for t in graph.outputs:
        last[home[t]] = len(graph.nodes)
    for a, b in combinations(sorted(roots), 2):
        # Strictly: an in-place output shares bytes with an input of its own node only.
        if max(first[a], first[b]) < min(last.get(a, first[a]), last.get(b, first[b])):
            (pa, na), (pb, nb) = ((layout.offsets[t] or 0, graph.tensors[t].size) for t in (a, b))
            assert pa + na <= pb or pb + nb <= pa, f"{graph.tensors[a].name} and {graph.tensors[b].name}"


@settings(max_examples=100)
@given(graphs(max_nodes=8))
def test_plan_is_aligned_bounded_and_repeatable(graph: Graph) -> None:
    layout = plan(graph)
    assert layout == plan(graph)
    assert layout.live_bytes <= layout.arena_bytes
    sizes = [graph.tensors[n.output].size + scratch_bytes(n.op, graph.tensors[n.inputs[0]].shape) for n in graph.nodes]
    assert layout.arena_bytes <= graph.tensors[0].size + sum(sizes) + ALIGNMENT * (2 * len(sizes) + 1)
    for index, (tensor, offset) in enumerate(zip(graph.tensors, layout.offsets, strict=True)):
        assert (offset is None) == (tensor.dtype != "int8" or index in graph.constants)
        assert offset is None or (offset % ALIGNMENT == 0 and 0 <= offset <= layout.arena_bytes - tensor.size)


def chain(*nodes: tuple[ops.Op, tuple[int, ...]], start: tuple[int, ...] = (8, 8, 4)) -> Graph:
    builder = GraphBuilder()
    last = builder.input(Tensor("x", start, "int8", 0.5, 0))
    for i, (op, shape) in enumerate(nodes):
        last = builder.node(op, [last], Tensor(f"t{i}", shape, "int8", 0.5, 0))
    return builder.finish(last)


def test_elementwise_pool_and_mean_work_in_place() -> None:
    pool = ops.MaxPool((2, 2), (2, 2))
    graph = chain((ops.Relu(), (8, 8, 4)), (pool, (4, 4, 4)), (ops.Mean((0, 1)), (4,)))
    layout = plan(graph)
    assert layout.offsets == (0, 0, 0, 0)
    assert layout.arena_bytes == layout.live_bytes == 256


def test_a_padded_pool_does_not_work_in_place() -> None:
    pool = ops.MaxPool((3, 3), (1, 1), ops.Padding2d(1, 1, 1, 1))
    layout = plan(chain((pool, (8, 8, 4))))
    assert layout.arena_bytes == 512


def test_planted_fault_padded_pool_in_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "in_place", lambda op: isinstance(op, ops.MaxPool))
    pool = ops.MaxPool((3, 3), (1, 1), ops.Padding2d(1, 1, 1, 1))
    assert any(conflicts(chain((pool, (8, 8, 4)))))


def test_planted_fault_short_lifetime_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = GraphBuilder()
    a = builder.input(Tensor("x", (4, 4, 4), "int8", 0.5, 0))
    b = builder.node(ops.Pad(((0, 0), (0, 0), (0, 0))), [a], Tensor("b", (4, 4, 4), "int8", 0.5, 0))
    c = builder.node(ops.Pad(((0, 0), (0, 0), (0, 0))), [b], Tensor("c", (4, 4, 4), "int8", 0.5, 0))
    d = builder.node(ops.Add(), [a, c], Tensor("d", (4, 4, 4), "int8", 0.5, 0))
    graph = builder.finish(d)
    assert list(conflicts(graph)) == []
    real = planning._lifetimes

    def shorter(graph: Graph, home: list[int]) -> dict[int, planning.Lifetime]:
        lives = real(graph, home)
        lives[a] = planning.Lifetime(lives[a].size, -1, 0)
        return lives

    monkeypatch.setattr(planning, "_lifetimes", shorter)
    assert any(conflicts(graph))


def test_scratch_is_apart_from_both_tensors() -> None:
    weight = ops.freeze(np.ones((4, 3, 3, 4)), np.int8)
    conv = ops.Conv2d(
        weight,
        ops.freeze(np.zeros(4), np.int32),
        ops.freeze(np.full(4, 0.01), np.float32),
        padding=ops.Padding2d(1, 1, 1, 1),
    )
    layout = plan(chain((conv, (8, 8, 4))))
    assert sorted([layout.offsets[0], layout.offsets[1], layout.scratch[0]]) == [0, 256, 512]
    assert layout.arena_bytes == layout.live_bytes == 512 + 2 * 36
