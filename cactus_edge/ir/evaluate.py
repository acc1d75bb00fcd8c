"""The definition of what a graph computes: slow, plain, exact. Every runtime, the C and the board agree with it bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError
from cactus_edge.ir.atoms import Affine, Program
from cactus_edge.ir.graph import Graph
from cactus_edge.ir.linear import Conv
from cactus_edge.ir.lowering import lower
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.ir.profile import Profile

BATCH = 32
WORKING_SET = 1 << 24
"""At most BATCH samples, or about WORKING_SET elements of the widest step, at a time: bounds the memory, changes no result."""


def evaluate(graph: Graph, x: npt.NDArray[Any], profile: Profile) -> npt.NDArray[Any]:
    """The graph's output for x [N, *input.shape]: codes, or float32 where the graph ends in DEQUANTIZE.

    x is the input tensor's codes, in its type, or float32 in the user's units, quantised as the profile does it.
    """
    program = lower(graph, profile)
    out = run(program, quantised(program, x))
    if not program.float_output:
        return out
    return dequantize(out, program.output_tensor.scale, program.output_tensor.zero_point)


def trace(graph: Graph, x: npt.NDArray[Any], profile: Profile) -> list[Codes | None]:
    """Every integer tensor of the graph for x, by tensor index; None for float32 tensors. For finding the first layer that differs."""
    program = lower(graph, profile)
    tensors: list[Codes | None] = [None] * len(graph.tensors)
    for value, array in zip(program.values, values(program, quantised(program, x)), strict=True):
        if value.tensor is not None:
            tensors[value.tensor] = array.astype(graph.tensors[value.tensor].dtype)
    return tensors


def quantised(program: Program, x: npt.NDArray[Any]) -> Codes:
    """x as the program's input codes. Raises InputError for another shape or dtype."""
    shape = program.values[program.input].shape
    if x.shape[1:] != shape:
        raise InputError(
            f"the data have shape {x.shape[1:]} a sample, the model takes {shape}",
            hint="check the data set and its axis order (height, width, channel)",
        )
    dtype = program.input_tensor.dtype
    if x.dtype == dtype:
        return x
    if x.dtype == np.float32:
        return program.quantize.apply(x)
    raise InputError(
        f"the data are {x.dtype}; expected {dtype} codes or float32 values", hint="convert with .astype('float32')"
    )


def run(program: Program, x: Codes) -> Codes:
    """The program's output codes for input codes x [N, *shape]."""
    dtype = program.output_tensor.dtype
    if len(x) == 0:
        return np.zeros((0, *program.values[program.output].shape), dtype)
    size = min(BATCH, max(1, WORKING_SET // widest(program)))
    batches = (x[i : i + size] for i in range(0, len(x), size))
    return np.concatenate([values(program, b)[program.output].astype(dtype) for b in batches])


def widest(program: Program) -> int:
    """Elements of the largest array that a step forms for one sample: its output, or a convolution's unfolded windows."""
    sizes = [1]
    for step in program.steps:
        out = int(np.prod(program.values[step.out].shape, dtype=np.int64))
        sizes.append(out)
        if isinstance(step.atom, Affine) and isinstance(step.atom.linear, Conv):
            outputs, *taps = step.atom.linear.weight.shape
            sizes.append(out // outputs * step.atom.linear.groups * int(np.prod(taps, dtype=np.int64)))
    return max(sizes)


def dequantize(q: Codes, scale: float, zero_point: int) -> npt.NDArray[np.float32]:
    """f32(scale * (q - zero_point))."""
    return np.float32(scale) * (q.astype(np.int32) - zero_point).astype(np.float32)


def values(program: Program, x: Codes) -> list[Int64]:
    """Every value of the program for input codes x [N, *shape], by value index, accumulators included."""
    known: dict[int, Int64] = {program.input: x.astype(np.int64), **program.repeated_constants(len(x))}
    for step in program.steps:
        known[step.out] = step.atom.apply(*(known[a] for a in step.args))
    return [known[i] for i in range(len(program.values))]
