"""Programs and regions for the tests of the search: random graphs that can be decided, and dense nets small enough to enumerate."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
from brute import programs

from cactus_edge.certify.attack import strict_win
from cactus_edge.certify.linear import Linear
from cactus_edge.errors import UnsupportedError
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.builder import GraphBuilder
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.graph import Tensor
from cactus_edge.ir.lowering import lower

Array = npt.NDArray[Any]
INPUTS = 3


def decidable(seed: int, count: int) -> list[Program]:
    """Random programs whose end has a decision rule, each from a seed of its own."""
    found: list[Program] = []
    while len(found) < count:
        (program,) = programs(seed, 1)
        seed += 1
        try:
            Linear(program)
        except UnsupportedError:
            continue
        found.append(program)
    return found


def dense(rng: np.random.Generator, inputs: int, outputs: int, activation: ops.Activation) -> ops.Dense:
    """Random weights and biases."""
    weight = ops.freeze(rng.integers(-127, 128, (outputs, inputs)), np.int8)
    bias = ops.freeze(rng.integers(-500, 500, outputs), np.int32)
    return ops.Dense(weight, bias, ops.freeze([np.float32(0.02)], np.float32), activation)


def network(seed: int, hidden: tuple[int, ...] = (6,), classes: int = 3, inputs: int = INPUTS) -> Program:
    """Few features, hidden layers with ReLU, few classes."""
    rng = np.random.default_rng(seed)
    b = GraphBuilder()
    value, width = b.input(Tensor("x", (inputs,), scale=float(np.float32(0.05)))), inputs
    for i, size in enumerate(hidden):
        scale = float(np.float32(0.5 if i else 0.08))
        tensor = Tensor(f"h{i}", (size,), scale=scale, zero_point=-128)
        value, width = b.node(dense(rng, width, size, ops.Activation.RELU), [value], tensor), size
    scale = float(np.float32(1.2 if len(hidden) > 1 else 0.3))
    last = dense(rng, width, classes, ops.Activation.NONE)
    return lower(b.finish(b.node(last, [value], Tensor("y", (classes,), scale=scale))), profile("tflm"))


def balls(program: Program, seed: int, count: int, radius: int) -> tuple[Array, Array, Array, Array]:
    """(lower, upper, labels, centres): random points with the classes they have."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(-100, 100, (count, *program.values[program.input].shape)).astype(np.int8)
    labels = run(program, centres).argmax(1).astype(np.int64)
    return centres - np.int8(radius), centres + np.int8(radius), labels, centres


def robust(program: Program, lower: Array, upper: Array, label: int) -> bool:
    """Whether the label wins strictly at every point of the box."""
    axes = [range(int(a), int(b) + 1) for a, b in zip(lower, upper, strict=True)]
    points = np.array(list(itertools.product(*axes))).astype(np.int8)
    return bool(strict_win(run(program, points), np.full(len(points), label)).all())
