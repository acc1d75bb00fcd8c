"""Random networks that TinyEngine's code generator translates: pointwise and depthwise convolutions, sums, one pool at the end."""

from __future__ import annotations

from typing import Any

import numpy as np

from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower


def _affine(rng: np.random.Generator, weight: Any, taps: tuple[int, ...], scale: float) -> tuple[dict[str, Any], float]:
    """Weights with biases and scales that use the output's range, and the output's scale."""
    spread = np.maximum(np.sqrt((weight.astype(float) ** 2).sum(taps)) * 74, 1)
    out = float(np.float32(np.exp(rng.uniform(-3, 1))))
    multiplier = 64 / spread * 2.0 ** rng.uniform(-2, 1, spread.shape)
    constants = {
        "weight": ops.freeze(weight, np.int8),
        "bias": ops.freeze(np.rint(rng.normal(0, 1, spread.shape) * spread), np.int32),
        "weight_scale": ops.freeze(multiplier * out / scale, np.float32),
    }
    return constants, out


def translated_graph(rng: np.random.Generator, max_nodes: int = 5) -> Graph:
    """One to `max_nodes` convolutions and sums, and sometimes a pool."""
    b = GraphBuilder()
    names = iter(f"t{k}" for k in range(99))

    def fresh(shape: tuple[int, ...], scale: float) -> Tensor:
        return Tensor(next(names), shape, "int8", float(np.float32(scale)), int(rng.integers(-128, 128)))

    def like(shape: tuple[int, ...], x: Tensor) -> Tensor:
        return Tensor(next(names), shape, "int8", x.scale, x.zero_point)

    def pointwise(i: int, count: int) -> int:
        x = b.tensor(i)
        a, scale = _affine(rng, rng.integers(-128, 128, (count, 1, 1, x.shape[2])), (1, 2, 3), x.scale)
        return b.node(ops.Conv2d(**a), [i], fresh((*x.shape[:2], count), scale))

    def depthwise(i: int) -> int:
        x = b.tensor(i)
        (h, w, c), stride = x.shape, int(rng.integers(1, 3))
        a, scale = _affine(rng, rng.integers(-128, 128, (3, 3, c)), (0, 1), x.scale)
        out = (-(-h // stride), -(-w // stride), c)
        padding = ops.same_padding((h, w), (3, 3), (stride, stride), (1, 1))
        if (padding.top, padding.left) != (1, 1) or rng.integers(2):
            i, padding = b.node(ops.Pad(((1, 1), (1, 1), (0, 0))), [i], like((h + 2, w + 2, c), x)), ops.Padding2d()
        return b.node(ops.DepthwiseConv2d(**a, stride=(stride, stride), padding=padding), [i], fresh(out, scale))

    i = b.input(fresh((*(int(n) for n in rng.integers(1, 5, 2)), 4), float(np.exp(rng.uniform(-5, 0)))))
    for _ in range(int(rng.integers(1, max_nodes + 1))):
        x = b.tensor(i)
        j = pointwise(i, 4)
        match int(rng.integers(3)):
            case 0:
                i = j
            case 1:
                i = depthwise(j)
            case _:
                largest = max(x.scale, b.tensor(j).scale)
                i = b.node(ops.Add(), [i, j], fresh(x.shape, largest * np.exp(rng.uniform(-1, 1))))
    x = b.tensor(i)
    if rng.integers(3) == 0:
        i = b.node(ops.AvgPool((x.shape[0], x.shape[1]), (1, 1)), [i], like((1, 1, x.shape[2]), x))
    return b.finish(i)


def translated_programs(seed: int, count: int, max_nodes: int = 5) -> list[Program]:
    """Such networks, each from a seed of its own."""
    made = (translated_graph(np.random.default_rng(seed + k), max_nodes) for k in range(1, count + 1))
    return [lower(graph, profile("tinyengine")) for graph in made]
