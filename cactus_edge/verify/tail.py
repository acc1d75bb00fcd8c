"""The end of a network as the decision sees it: the last weights, the rules behind them, and the margin fused with both.

See `decide` for the bound. Everything that does not depend on the samples is computed once, by `find_tail`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
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

FACTOR = 4096
"""The largest factor of an accumulator: with int32 accumulators every product below stays under 2^46."""

TailAtom = Monotone | Between | AnyOf | Gather
"""What may stand behind the last Affine: non-decreasing rules, and moves that keep the order of the classes."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of classes of samples, int64 [P] each: p acc_label - q acc_other is what is bounded; 1 <= p, q <= FACTOR."""

    sample: Int64
    label: Int64
    other: Int64
    p: Int64
    q: Int64

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, at: slice | Int64) -> Pairs:
        return Pairs(self.sample[at], self.label[at], self.other[at], self.p[at], self.q[at])


@dataclass(frozen=True, eq=False)
class Tail:
    """The last Affine, which gives `value` from `source`, and the monotone steps between it and the logits, over K classes.

    weight float64 [K, I] and bias int64 [K]: acc = weight (x + offset) + bias. factors int64 [K]: the p of the module's
    head. steps int64 [1 + L, K]: steps[k - first_level, c] = the least reachable accumulator of class c with output >= k,
    at its highest. ladder: the thresholds of all classes at their lowest, from level own_level + 1 on, as one increasing
    array, class c raised by c * 2^40. Highest and lowest are one rule, except under an envelope. enough: the least margin that can win.
    """

    source: int
    value: int
    offset: int
    shape: tuple[int, ...]
    atoms: tuple[TailAtom, ...]
    affine: Affine
    codes: tuple[int, int]
    weight: npt.NDArray[np.float64]
    bias: Int64
    factors: Int64
    first_level: int
    steps: Int64
    own_level: int
    ladder: Int64
    enough: int

    @cached_property
    def compiled(self) -> Accumulate:
        """The last Affine on boxes, for `accumulators`."""
        return accumulate(self.affine, self.codes)

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

    def pairs(self, sample: Int64, label: Int64, other: Int64) -> Pairs:
        """The pairs with this tail's own factors."""
        return Pairs(sample, label, other, self.factors[label], self.factors[other])

    def fused(self, pairs: Pairs, bounds: Bounds, acc_low: Int64, low: Int64, high: Int64) -> Int64:
        """The fused bound on out_label - out_other, int64 [P].

        bounds [N, ...] of the value `source`; acc_low, low, high int64 [N, K]: what is known of the accumulators and the logits.
        """
        return self.behind(pairs, self.difference(pairs, bounds), acc_low, low, high)

    def difference(self, pairs: Pairs, bounds: Bounds) -> Int64:
        """The least p acc_label - q acc_other, int64 [P], over the box `bounds` [N, ...] of the value `source`."""
        lower, upper = (np.asarray(b, np.float64).reshape(len(b), -1) for b in bounds)
        centre, radius = lower + upper + 2 * self.offset, upper - lower
        block = max(PAIR_ELEMENTS // max(self.weight.shape[1], 256), 1)
        parts = [pairs[k : k + block] for k in range(0, len(pairs), block)]
        least = [
            self._least(part, centre[part.sample], radius[part.sample])
            + part.p * self.bias[part.label]
            - part.q * self.bias[part.other]
            for part in parts
        ]
        return np.concatenate([np.zeros(0, np.int64), *least])

    def _least(self, pairs: Pairs, centre: Array, radius: Array) -> Int64:
        rows = pairs.p[:, None] * self.weight[pairs.label] - pairs.q[:, None] * self.weight[pairs.other]
        twice: Array = (rows * centre - np.abs(rows) * radius).sum(1)
        return twice.astype(np.int64) >> 1

    def behind(self, pairs: Pairs, least: Int64, acc_low: Int64, low: Int64, high: Int64) -> Int64:
        """`fused`, from lower bounds `least` [P] on p acc_label - q acc_other, wherever they come from."""
        block = PAIR_ELEMENTS // 256
        parts = [slice(k, k + block) for k in range(0, len(pairs), block)]
        found = [self._behind(pairs[c], least[c], acc_low, low, high) for c in parts]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _behind(self, pairs: Pairs, least: Int64, acc_low: Int64, low: Int64, high: Int64) -> Int64:
        # First the highest level alone: where that is not passed, the ends' own bound has to do.
        i, y, j = pairs.sample, pairs.label, pairs.other
        margins: Int64 = low[i, y] - high[i, j]
        top = self._reached(pairs, high[i, j][:, None], least, acc_low, low)[:, 0] - high[i, j]
        rest = np.flatnonzero(top >= self.enough)
        if len(rest):
            start, end = low[i, j][rest, None], high[i, j][rest, None]
            level = np.minimum(start + np.arange(int((end - start).max()) + 1), end)
            margins[rest] = (self._reached(pairs[rest], level, least[rest], acc_low, low) - level).min(1)
        return margins

    def _reached(self, pairs: Pairs, level: Int64, least: Int64, acc_low: Int64, low: Int64) -> Int64:
        """The lowest logit of the label where the other class is at `level` [P, L], given p acc_label - q acc_other >= least."""
        # Below first_level stands what every accumulator reaches.
        row = np.maximum(level - self.first_level, 0)
        other_acc = np.maximum(self.steps[row, pairs.other[:, None]], acc_low[pairs.sample, pairs.other][:, None])
        own_acc = -(-(pairs.q[:, None] * other_acc + least[:, None]) // pairs.p[:, None])
        reached: Int64 = np.maximum(self._level(own_acc, pairs.label[:, None]), low[pairs.sample, pairs.label][:, None])
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
    # `difference` adds at most two classes, doubled, with centre and radius: every product through float64 must be exact.
    if 8 * FACTOR * reach >= 2**53:
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
    where = (source, value, affine.input_offset, shape, atoms, affine, program.codes)
    return Tail(*where, weight, bias, factors, first, steps, own_first, ladder, int(not program.first_maximum))


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
    factors: Int64 = np.maximum(np.rint(FACTOR * scale / scale.max()), 1).astype(np.int64)
    return factors
