"""One dense layer on an input of any shape, and the codes of exact reals: what the tests of families of inputs share."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.verify.regions import float32_below

Array = Any
UNIT = (Fraction(0), Fraction(1))


def net(shape: tuple[int, ...], seed: int = 0, scale: float = 1 / 255, classes: int = 2, zero: int = -128) -> Program:
    """One dense layer on an input of this shape."""
    rng = np.random.default_rng(seed)
    build = GraphBuilder()
    first = build.input(Tensor("x", shape, "int8", float(np.float32(scale)), zero))
    size = int(np.prod(shape))
    flat = build.node(ops.Reshape(), [first], Tensor("flat", (size,), "int8", float(np.float32(scale)), zero))
    weight = ops.freeze(rng.integers(-127, 128, (classes, size)), np.int8)
    bias = ops.freeze(rng.integers(-2000, 2000, classes), np.int32)
    dense = ops.Dense(weight, bias, ops.freeze([np.float32(0.02)], np.float32), ops.Activation.NONE)
    last = build.node(dense, [flat], Tensor("y", (classes,), "int8", float(np.float32(0.05 * scale * 255))))
    return lower(build.finish(last), profile("tflm"))


def codes_of(program: Program, values: list[Fraction], shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The least and the largest codes of exact reals, whichever way they are rounded to float32."""
    down = np.array([float32_below(v) for v in values]).reshape(shape)
    up = np.array([-float32_below(-v) for v in values]).reshape(shape)
    return program.quantize.apply(down), program.quantize.apply(up)


def clamp(value: Fraction, domain: tuple[Fraction, Fraction]) -> Fraction:
    return min(max(value, domain[0]), domain[1])
