"""Networks with int16 tensors and int8 weights, made from random int8 ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from strategies import random_graph

from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph

_MIDDLE = (
    "conv2d depthwise_conv2d dense add broadcast_add sub mul avg_pool max_pool mean sum pad concat reshape transpose slice "
    "resize_nearest relu relu6 requantize"
)
MIDDLE = tuple(_MIDDLE.split())
"""The kinds of `strategies` that some runtime was shown to run on int16."""


def wide(graph: Graph, rng: np.random.Generator, *, wide_bias: bool = True) -> Graph:
    """The graph with codes and sums of about 256 times the size: zero points 0, scales / 256, biases int64 (or int32)."""
    tensors = tuple(
        t if t.dtype == "float32" else replace(t, dtype="int16", zero_point=0, scale=t.scale / 256)
        for t in graph.tensors
    )
    constants = {
        i: ops.freeze(codes.astype(np.int64) * 256 + rng.integers(0, 256, codes.shape), np.int16)
        for i, codes in graph.constants.items()
    }

    def op(o: ops.Op) -> ops.Op:
        if not isinstance(o, ops.Conv2d | ops.DepthwiseConv2d | ops.Dense):
            return o
        bias = o.bias.astype(np.int64) * 256 + rng.integers(-128, 128, o.bias.shape)
        if wide_bias:
            return replace(o, bias=ops.freeze(bias, np.int64))
        return replace(o, bias=ops.freeze(np.clip(bias, -(2**29), 2**29), np.int32))

    nodes = tuple(replace(n, op=op(n.op)) for n in graph.nodes)
    return replace(graph, tensors=tensors, nodes=nodes, constants=constants)


def random_wide(rng: np.random.Generator, max_nodes: int = 5, middle: Any = MIDDLE, **options: Any) -> Graph:
    """`random_graph`, widened; its ends are "" and "dequantize" unless they are given."""
    wide_bias = options.pop("wide_bias", True)
    return wide(
        random_graph(rng, max_nodes, middle, **{"ends": ("", "dequantize"), **options}), rng, wide_bias=wide_bias
    )
