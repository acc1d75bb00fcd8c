"""The end of a network as the decision sees it: the last weights, the rules behind them, and the margin fused with both.

See `decide` for the bound. Everything that does not depend on the samples is computed once, by `find_tail`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.ir.arith import INT8_MAX
from cactus_edge.ir.atoms import Affine, AnyOf, Atom, Between, Gather, Monotone, Program, ReshapeTo, example
from cactus_edge.ir.ops import Int64
from cactus_edge.ir.rules import FloatRequantise, Requantise
from cactus_edge.verify.interval import Accumulate, Bounds, accumulate, full_range, step_bounds, thresholds

Array = npt.NDArray[Any]

PAIR_ELEMENTS = 1 << 20
"""Elements of the arrays over pairs of classes: bounds the memory, changes no result."""

TailAtom = Monotone | Between | AnyOf | Gather
"""What may stand behind the last Affine: non-decreasing rules, and moves that keep the order of the classes."""


@dataclass(frozen=True, eq=False)
class Tail:
    """The last Affine, which gives `value` from `source`, and the monotone steps between it and the logits, over K classes.

    weight float64 [K, I] and bias int64 [K]: acc = weight (x + offset) + bias. factors int64 [K]: the p of the module's
    head. steps int64 [1 + L, K]: steps[k - first_level, c] = the least reachable accumulator of class c with output >= k,
    at its highest. ladder: the thresholds of all classes at their lowest, from level own_level + 1 on, as one increasing
    array, class c raised by c * 2^40. Highest and lowest are one rule, except under an envelope.
    """

    source: int
    value: int
    offset: int
    shape: tuple[int, ...]
    atoms: tuple[TailAtom, ...]
    compiled: Accumulate
    weight: npt.NDArray[np.float64]
    bias: Int64
    factors: Int64
    first_level: int
    steps: Int64
    own_level: int
    ladder: Int64

    def accumulators(self, bounds: Bounds) -> tuple[Int64, Int64]:
        """Bounds of the accumulators, int64 [N, K], from those of the value `source`."""
        low, high = (np.asarray(b, np.int64).reshape(len(b), -1) >> 1 for b in self.compiled.ends(*bounds))
        return low, high

    def lowest(self, acc: Int64) -> Int64:
        """The least logits of accumulators acc int64 [M, K]."""
        return _apply(self.atoms, acc, self.shape, -1)

    def highest(self, acc: Int64) -> Int64:
        """The largest logits of accumulators acc int64 [M, K]."""
        return _apply(self.atoms, acc, self.shape, 1)

    def fused(
        self, sample: Int64, label: Int64, other: Int64, bounds: Bounds, acc_low: Int64, low: Int64, high: Int64
    ) -> Int64:
        """The fused bound on out_label - out_other, int64 [P], for P pairs of classes, each of one sample's box.

        sample, label, other int64 [P]; bounds [N, ...] of the value `source`; acc_low, low, high int64 [N, K]: what is known of
        the accumulators and the logits.
        """
        if not len(sample):
            return np.zeros(0, np.int64)
        block = max(PAIR_ELEMENTS // max(self.weight.shape[1], 256), 1)
        parts = [slice(k, k + block) for k in range(0, len(sample), block)]
        least = np.concatenate([self.difference(sample[c], label[c], other[c], bounds) for c in parts])
        return self.behind(sample, label, other, least, acc_low, low, high)

    def difference(self, i: Int64, y: Int64, j: Int64, bounds: Bounds) -> Int64:
        """The least p_y acc_y - p_j acc_j, int64 [P], over the box `bounds` [N, ...] of the value `source`."""
        lower, upper = (np.asarray(b, np.float64).reshape(len(b), -1) for b in bounds)
        p, q = self.factors[y], self.factors[j]
        rows = p[:, None] * self.weight[y] - q[:, None] * self.weight[j]
        centre, radius = lower[i] + upper[i] + 2 * self.offset, upper[i] - lower[i]
        twice = (rows * centre - np.abs(rows) * radius).sum(1)
        least: Int64 = (twice.astype(np.int64) >> 1) + p * self.bias[y] - q * self.bias[j]
        return least

    def behind(self, i: Int64, y: Int64, j: Int64, least: Int64, acc_low: Int64, low: Int64, high: Int64) -> Int64:
        """`fused`, from lower bounds `least` [P] on p_y acc_y - p_j acc_j, wherever they come from."""
        block = PAIR_ELEMENTS // 256
        parts = [slice(k, k + block) for k in range(0, len(i), block)]
        return np.concatenate([self._pairs(i[c], y[c], j[c], least[c], acc_low, low, high) for c in parts])

    def _pairs(self, i: Int64, y: Int64, j: Int64, least: Int64, acc_low: Int64, low: Int64, high: Int64) -> Int64:
        # First the highest level alone: where that is not passed, the ends' own bound has to do.
        margins: Int64 = low[i, y] - high[i, j]
        top = self._reached(i, y, j, high[i, j][:, None], least, acc_low, low)[:, 0] - high[i, j]
        rest = np.flatnonzero(top >= 1)
        if len(rest):
            i, y, j, least = i[rest], y[rest], j[rest], least[rest]
            start, end = low[i, j][:, None], high[i, j][:, None]
            level = np.minimum(start + np.arange(int((end - start).max()) + 1), end)
            margins[rest] = (self._reached(i, y, j, level, least, acc_low, low) - level).min(1)
        return margins

    def _reached(self, i: Int64, y: Int64, j: Int64, level: Int64, least: Int64, acc_low: Int64, low: Int64) -> Int64:
        """The lowest logit of class y where class j is at `level` [P, L], given p_y acc_y - p_j acc_j >= least."""
        p, q = self.factors[y], self.factors[j]
        # Below first_level stands what every accumulator reaches.
        row = np.maximum(level - self.first_level, 0)
        other_acc = np.maximum(self.steps[row, j[:, None]], acc_low[i, j][:, None])
        own_acc = -(-(q[:, None] * other_acc + least[:, None]) // p[:, None])
        reached: Int64 = np.maximum(self._level(own_acc, y[:, None]), low[i, y][:, None])
        return reached

    def _level(self, acc: Int64, label: Int64) -> Int64:
        """A lower bound on class `label`'s logit for accumulators >= acc: the thresholds of that class that acc reaches."""
        count = len(self.ladder) // len(self.factors)
        found = np.searchsorted(self.ladder, np.clip(acc, -(2**38), 2**38) + label * 2**40, side="right")
        level: Int64 = self.own_level + found - label * count
        return level


def find_tail(program: Program, logits: int, classes: int) -> Tail | None:
    """The tail that ends in value `logits`; None where only end points count: other steps lie between, or int16's many levels."""
    if program.codes[1] > INT8_MAX:
        return None
    writer = {step.out: step for step in program.steps}
    atoms: tuple[TailAtom, ...] = ()
    value = logits
    while value in writer:
        step = writer[value]
        match step.atom:
            case Affine():
                return _tail(program, step.atom, atoms, step.args[0], step.out, classes)
            case Monotone() | Between() | Gather(ReshapeTo()):
                atoms, value = (step.atom, *atoms), step.args[0]
            case AnyOf(choices) if all(isinstance(a, Monotone | Between) for a in choices):
                atoms, value = (step.atom, *atoms), step.args[0]
            case _:
                return None
    return None


def _tail(
    program: Program, affine: Affine, atoms: tuple[TailAtom, ...], source: int, value: int, classes: int
) -> Tail | None:
    shape = affine.linear.out_shape
    factors = _factors(atoms, shape, classes)
    reach = int((256 * affine.linear.reach() + np.abs(affine.bias)).max())
    # `fused` adds at most two classes, doubled, with centre and radius: every product through float64 must be exact.
    if 8 * int(factors.max()) * reach >= 2**53:
        return None
    low, high = (b.reshape(classes) for b in step_bounds(affine, [full_range(program, affine.linear.in_shape)]))
    # Sums of one weight and zeros: exact in float64, whose matrix products are quick.
    unit = np.eye(classes).reshape(classes, *shape)
    weight = affine.linear.adjoint(unit).reshape(classes, -1)
    bias = np.broadcast_to(affine.bias, shape).reshape(classes)
    _, t = thresholds(lambda acc: _apply(atoms, acc, shape, 1), low, high)
    _, own = thresholds(lambda acc: _apply(atoms, acc, shape, -1), low, high)
    first, own_first = (int(_apply(atoms, low[None], shape, sign).min()) for sign in (1, -1))
    ladder = (own + np.arange(classes) * 2**40).T.ravel()
    steps = np.vstack([low[None], t])
    compiled = accumulate(affine, program.codes)
    return Tail(
        source,
        value,
        affine.input_offset,
        shape,
        atoms,
        compiled,
        weight,
        bias,
        factors,
        first,
        steps,
        own_first,
        ladder,
    )


def _apply(atoms: tuple[TailAtom, ...], acc: Int64, shape: tuple[int, ...], sign: int) -> Int64:
    """The monotone steps on accumulators [M, K], through their own shape; at their lowest for sign -1, at their highest for 1."""
    value = acc.reshape(len(acc), *shape)
    for atom in atoms:
        value = _end(atom, value, sign)
    return value.reshape(len(acc), -1)


def _end(atom: Atom, value: Int64, sign: int) -> Int64:
    """One of them."""
    match atom:
        case Between(lowest, _, highest):
            return (lowest if sign < 0 else highest).apply(value)
        case AnyOf(atoms):
            return reduce(np.minimum if sign < 0 else np.maximum, (_end(a, value, sign) for a in atoms))
        case _:
            return atom.apply(value)


def _factors(atoms: tuple[TailAtom, ...], shape: tuple[int, ...], classes: int) -> Int64:
    """Positive integers [K] about proportional to what each class's accumulator is multiplied by; all 1 where that is one number."""
    examples = map(example, atoms)
    rules = (a.member if isinstance(a, Between) else a.rule for a in examples if isinstance(a, Monotone | Between))
    first = next(rules, None)
    if not isinstance(first, Requantise | FloatRequantise):
        return np.ones(classes, np.int64)
    scale = np.broadcast_to(first.slope(), shape).reshape(classes)
    if (scale == scale[0]).all():
        return np.ones(classes, np.int64)
    factors: Int64 = np.maximum(np.rint(4096 * scale / scale.max()), 1).astype(np.int64)
    return factors
