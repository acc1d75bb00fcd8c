"""Gradients through the integer network, with a straight-through estimate for everything that rounds and clamps.

An accumulator's requantisation counts as the real line it approximates, with slope zero where the output is clamped (Bengio et
al., arXiv 1308.3432); or, `sharp` > 0, as that line plus sines of its period, whose slope 1 - sharp cos(2 pi u) at u steps is largest
where the rule rises and, at sharp = 1, zero in the middle of a step. No bound rests on any of this.
"""

from __future__ import annotations

from typing import Any, assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.ir import atoms
from cactus_edge.ir.arith import INT8_MIN
from cactus_edge.ir.atoms import Program, Step
from cactus_edge.ir.binary import BinaryRule
from cactus_edge.ir.evaluate import values
from cactus_edge.ir.linear import output_size, pad_image
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.ir.rules import Elementwise

Real = npt.NDArray[np.floating[Any]]


def margin_gradient(program: Program, x: Codes, labels: npt.NDArray[np.int64]) -> Real:
    """Straight-through gradient at x of the margin out_y - max_{j != y} out_j, taken before a final softmax; [N, *shape]."""
    known = values(program, x)
    last = next((s for s in program.steps if s.out == program.output), None)
    top = last.args[0] if last is not None and isinstance(atoms.example(last.atom), atoms.Softmax) else program.output
    output = known[top].reshape(len(x), -1)
    rows = np.arange(len(x))
    others = output.astype(np.float64)
    others[rows, labels] = -np.inf
    seed = np.zeros(output.shape)
    seed[rows, labels] = 1.0
    seed[rows, others.argmax(1)] -= 1.0
    return gradient(program, known, top, seed.reshape(known[top].shape))


def gradient(program: Program, known: list[Int64], value: int, seed: Real, sharp: float = 0.0) -> Real:
    """The gradient of <seed, value> by the input, [N, *input shape], at the point where the values are `known` [N, *shape].

    In the floating type of `seed`.
    """
    gradients: dict[int, Real] = {value: seed}
    for step in reversed(program.steps):
        above = gradients.pop(step.out, None)
        if above is None:
            continue
        if sharp and program.values[step.args[0]].tensor is None and isinstance(step.atom, atoms.Monotone):
            turns = known[step.args[0]].astype(seed.dtype) * step.atom.rule.slope().astype(seed.dtype)
            above = above * (1 - sharp * np.cos(2 * np.pi * turns))
        for argument, part in zip(step.args, _backward(step, known, above), strict=True):
            part = part.astype(seed.dtype, copy=False)
            gradients[argument] = gradients[argument] + part if argument in gradients else part
    return gradients.get(program.input, np.zeros(known[program.input].shape, seed.dtype))


def _backward(step: Step, known: list[Int64], above: Real) -> list[Real]:
    """The gradient with respect to each argument of `step`, given the one with respect to its output."""
    args = [known[a] for a in step.args]
    out = known[step.out]
    match atoms.example(step.atom):
        case atoms.Affine(linear=linear):
            return [linear.adjoint(above)]
        case atoms.Monotone(rule) | atoms.Between(_, rule, _):
            return [above * rule.slope().astype(above.dtype) * _free(rule, out)]
        case atoms.Isotone(rule, _):
            free = _free(rule, out)
            parts = (above * free * slope for slope in rule.slopes(args[0], args[1]))
            return [_summed_like(part, argument) for part, argument in zip(parts, args, strict=True)]
        case atoms.Table() as table:
            after, before = (table.apply(np.clip(args[0] + d, -128, 127)) for d in (1, -1))
            return [above * (after - before) / 2]
        case atoms.Max() as window:
            return [_max_backward(window, args[0], out, above)]
        case atoms.FloatAverage(pool=pool) as average:
            return [pool.adjoint(above * average.slope() * _free(average, out))]
        case atoms.Gather(rearrangement):
            return _gather_backward(rearrangement, args, above)
        case atoms.Softmax():
            # In the middle of a network; at its end the margin is taken before it.
            share = (out - INT8_MIN) / 256
            return [share * (above - (share * above).sum(-1, keepdims=True))]
        case other:
            assert_never(other)


def _summed_like(part: Real, argument: Int64) -> Real:
    """Summed over the axes along which `argument` was repeated."""
    repeated = tuple(a for a in range(1, part.ndim) if argument.shape[a] == 1)
    result: Real = part.sum(repeated, keepdims=True)
    return result


def _free(rule: Elementwise | BinaryRule | atoms.FloatAverage, out: Int64) -> npt.NDArray[np.bool_]:
    inside: npt.NDArray[np.bool_] = (out > rule.lo) & (out < rule.hi)
    return inside


def _max_backward(window: atoms.Max, x: Int64, out: Int64, above: Real) -> Real:
    """Sends the gradient to every tap that attains the maximum."""
    p, (kh, kw), (sh, sw) = window.padding, window.kernel, window.stride
    image = pad_image(x, p, atoms.LEAST - 1)
    below = np.zeros(image.shape)
    oh, ow = output_size(x.shape[1:3], window.kernel, window.stride, p)
    for i in range(kh):
        for j in range(kw):
            rows, columns = slice(i, i + sh * (oh - 1) + 1, sh), slice(j, j + sw * (ow - 1) + 1, sw)
            below[:, rows, columns] += above * (image[:, rows, columns] == out)
    return below[:, p.top : p.top + x.shape[1], p.left : p.left + x.shape[2]]


def _gather_backward(rearrangement: atoms.Rearrangement, args: list[Int64], above: Real) -> list[Real]:
    match rearrangement:
        case atoms.ReshapeTo():
            return [above.reshape(args[0].shape)]
        case atoms.PadWith(pads, _):
            inner = tuple(slice(a, above.shape[i + 1] - b) for i, (a, b) in enumerate(pads))
            return [above[(slice(None), *inner)]]
        case atoms.Join(axis):
            cuts = np.cumsum([a.shape[axis + 1] for a in args])[:-1]
            return list(np.split(above, cuts, axis=axis + 1))
        case atoms.Take(index):
            count, size = len(above), args[0][0].size
            at = np.arange(count)[:, None] * size + index.ravel()
            below = np.bincount(at.ravel(), above.reshape(count, -1).ravel(), count * size)
            return [below.reshape(args[0].shape).astype(np.float64)]
        case _:
            assert_never(rearrangement)
