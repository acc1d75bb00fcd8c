"""Falsification on the integer network: looks for an input inside the region whose output is no strict win.

Untrusted search: it may miss a witness, but every witness it returns was executed by the interpreter. Projected gradient
steps (Madry et al., ICLR 2018, eq. 6) on the integers, with the straight-through estimate for rounding and clamping
(Bengio et al., arXiv 1308.3432): an accumulator's requantisation counts as the real line it approximates, with slope zero
where the output is clamped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

import numpy as np
import numpy.typing as npt

from cactus_edge.ir import atoms
from cactus_edge.ir.arith import INT8_MIN
from cactus_edge.ir.atoms import Program, Step
from cactus_edge.ir.binary import BinaryRule
from cactus_edge.ir.evaluate import run, values
from cactus_edge.ir.linear import output_size, pad_image
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.ir.rules import Elementwise

Real = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Attack:
    """`found[n]`: whether `witness[n]`, codes inside the region, makes the label lose or tie; otherwise the witness is the start."""

    found: npt.NDArray[np.bool_]
    witness: Codes


def strict_win(output: npt.NDArray[np.generic], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Whether output[n, labels[n]] > output[n, j] for every other j; output [N, K]."""
    rows = np.arange(len(output))
    others = output.astype(np.float64)
    own = others[rows, labels]
    others[rows, labels] = -np.inf
    won: npt.NDArray[np.bool_] = own > others.max(1)
    return won


def attack(
    program: Program,
    lower: Codes,
    upper: Codes,
    labels: npt.NDArray[np.int64],
    *,
    start: Codes,
    steps: int = 20,
    restarts: int = 3,
    seed: int = 0,
) -> Attack:
    """Searches the box [lower, upper] (codes [N, *shape]) around `start` for inputs that are not strictly won by `labels`.

    Restart 0 begins at `start`, the others at random corners; the step shrinks from the box's half width to one integer.
    Deterministic by `seed`. Samples that fall are not searched further.
    """
    rng = np.random.default_rng(seed)
    witness = np.clip(start, lower, upper)
    found = ~strict_win(run(program, witness).reshape(len(labels), -1), labels)
    for restart in range(restarts):
        left = np.flatnonzero(~found)
        if left.size == 0:
            break
        lo, hi, y = lower[left].astype(np.int64), upper[left].astype(np.int64), labels[left]
        x = start[left].astype(np.int64)
        if restart:
            x = np.where(rng.integers(0, 2, lo.shape, dtype=np.int8), lo, hi)
        radius = (hi - lo).max(initial=0) / 2
        for step in range(steps):
            size = max(1, round(radius * (1 - step / steps)))
            x = np.clip(x - size * np.sign(margin_gradient(program, x.astype(start.dtype), y)).astype(np.int64), lo, hi)
            fallen = ~strict_win(run(program, x.astype(start.dtype)).reshape(len(y), -1), y)
            witness[left[fallen]] = x[fallen]
            found[left[fallen]] = True
            keep = ~fallen
            left, lo, hi, y, x = left[keep], lo[keep], hi[keep], y[keep], x[keep]
            if left.size == 0:
                break
    return Attack(found, witness)


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
    gradients: dict[int, Real] = {top: seed.reshape(known[top].shape)}
    for step in reversed(program.steps):
        above = gradients.pop(step.out, None)
        if above is None:
            continue
        for argument, part in zip(step.args, _backward(step, known, above), strict=True):
            gradients[argument] = gradients[argument] + part if argument in gradients else part
    return gradients.get(program.input, np.zeros(x.shape))


def _backward(step: Step, known: list[Int64], above: Real) -> list[Real]:
    """The gradient with respect to each argument of `step`, given the one with respect to its output."""
    args = [known[a] for a in step.args]
    out = known[step.out]
    match atoms.example(step.atom):
        case atoms.Affine(linear=linear):
            return [linear.adjoint(above)]
        case atoms.Monotone(rule) | atoms.Between(_, rule, _):
            return [above * rule.slope() * _free(rule, out)]
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
