"""Networks whose weights are stored in 4 bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from strategies import Maker, RngChoices

from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph, Node, Tensor
from cactus_edge.ir.linear import output_size

KINDS = ("conv2d", "grouped", "depthwise_conv2d", "dense", "dense_per_channel")
"""Layers that `layer` makes."""

NARROW = ops.Conv2d | ops.DepthwiseConv2d | ops.Dense


def narrow(graph: Graph, bits: int = 4) -> Graph:
    """The graph with the upper four bits of each weight, at 16 times the scale: about the same network."""
    return replace(graph, nodes=tuple(_narrow(node, bits) for node in graph.nodes))


def _narrow(node: Node, bits: int) -> Node:
    op = node.op
    if not isinstance(op, NARROW):
        return node
    scale = ops.freeze(op.weight_scale * np.float32(16), np.float32)
    return replace(
        node, op=replace(op, weight=ops.freeze(op.weight >> 4, np.int8), weight_scale=scale, weight_bits=bits)
    )


def widened(graph: Graph) -> Graph:
    """The same integers, a byte each."""
    nodes = [replace(n, op=replace(n.op, weight_bits=8)) if isinstance(n.op, NARROW) else n for n in graph.nodes]
    return replace(graph, nodes=tuple(nodes))


def layer(kind: str, seed: int) -> Graph:
    """One layer of 4-bit weights, of `KINDS`; sizes odd and even, up to 40 channels and 90 inputs."""
    rng = np.random.default_rng(seed)
    maker = Maker(RngChoices(rng))
    builder = maker.builder
    dense = kind.startswith("dense")
    size = tuple(int(n) for n in rng.integers(1, 6, 2))
    groups = int(rng.integers(2, 4)) if kind == "grouped" else 1
    channels = int(rng.integers(1, 41 if kind != "grouped" else 9)) * groups
    shape = (int(rng.integers(1, 90)),) if dense else (*size, channels)
    x = Tensor("x", shape, "int8", maker.scale(), maker.zero_point())
    kernel = tuple(int(rng.integers(1, n + 1)) for n in size)
    outputs = int(rng.integers(1, 33))
    if kind == "depthwise_conv2d":
        outputs, weight_shape = channels * (multiplier := int(rng.integers(1, 3))), (*kernel, channels * multiplier)
    elif dense:
        weight_shape = (outputs, shape[0])
    else:
        outputs = outputs * groups
        weight_shape = (outputs, *kernel, channels // groups)
    weight = rng.integers(-8, 8, weight_shape)
    fan_in = weight.size // outputs
    count = outputs if kind != "dense" else 1
    scale = ops.freeze(2.0 ** rng.uniform(-8, -1, count), np.float32)
    bias = ops.freeze(rng.integers(-300 - 20 * fan_in, 300 + 20 * fan_in, outputs), np.int32)
    typical = 300 * np.sqrt(fan_in) * x.scale * float(scale.max())
    s_out = float(np.float32(typical / 64 * 2.0 ** rng.uniform(-1, 1)))
    activation = list(ops.Activation)[int(rng.integers(4))]
    codes = ops.freeze(weight, np.int8)
    stride = tuple(int(n) for n in rng.integers(1, 3, 2))
    dilation = tuple(int(rng.integers(1, 3)) if 2 * k - 1 <= n else 1 for k, n in zip(kernel, size, strict=True))
    if dense:
        op: ops.Op = ops.Dense(codes, bias, scale, activation, 4)
        out_shape: tuple[int, ...] = (outputs,)
    else:
        same = bool(rng.integers(2))
        padding = ops.same_padding(size, kernel, stride, dilation) if same else ops.NO_PADDING
        made = ops.DepthwiseConv2d if kind == "depthwise_conv2d" else ops.Conv2d
        op = made(codes, bias, scale, stride, padding, dilation, activation, 4)
        out_shape = (*output_size(size, kernel, stride, padding, dilation), outputs)
    return builder.finish(
        builder.node(op, [builder.input(x)], Tensor("y", out_shape, "int8", s_out, maker.zero_point()))
    )
