"""Linear bounds by those rows only that a verdict can depend on: what they show, the checker, which computes all rows, shows too.

Left out, before the accumulators that decide: elements whose rule is constant within their bounds, or meets none of its ends
there, so that its lines hardly depend on those bounds. Of the accumulators that decide only the label's least and the largest
of classes that are still open count. Every number is the exact checker's own, from bounds that are no closer than its: lines
over a smaller box are no further away, and so are decisions (`tail`). Where a max-pool picks its tap by such bounds that
could fail, and nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np

from cactus_edge.ir.atoms import Affine, Max, Program
from cactus_edge.ir.ops import Int64
from cactus_edge.verify.decide import flat
from cactus_edge.verify.goal import Bools, Goal
from cactus_edge.verify.interval import Bounds, full_range, step_bounds
from cactus_edge.verify.lines import Single
from cactus_edge.verify.relax import Hints, Relaxation
from cactus_edge.verify.tail import Pairs, Tail

BLOCK = 1 << 17
"""Coefficients of one value at a time, about: they stay near the cache. It changes no result."""


class Frugal:
    """For one relaxation and the goal of its program; narrow: the accumulators that a checker tightens."""

    def __init__(self, relaxation: Relaxation, goal: Goal, narrow: Sequence[int]) -> None:
        self.relaxation, self.goal = relaxation, goal
        self.value = goal.logits if goal.tail is None else goal.tail.value
        self._most = max(BLOCK // max(prod(v.shape) for v in relaxation.program.values), 1)
        self._whole = _picks(relaxation.program, narrow)
        self._readers = {v: _rules(relaxation, v) for v in narrow}

    def tightened(self, value: int, known: Mapping[int, Bounds], hints: Hints) -> Bounds:
        """As `Relaxation.tightened`, of the elements that count. Those that decide are left to `separated`."""
        if self._whole:
            return self.relaxation.tightened(value, known, hints)
        low, high = known[value]
        if value == self.value:
            return low, high
        sample, element = np.nonzero(self._bent(value, low, high).reshape(len(low), -1))
        unit = np.eye(prod(low.shape[1:]), dtype=np.int64)[element]
        found = self._bound(value, np.tile(sample, 2), np.concatenate([unit, -unit]), known, hints)
        low, high = low.copy(), high.copy()
        for ends, least, of in (
            (low, found[: len(sample)], np.maximum),
            (high, -found[len(sample) :], np.minimum),
        ):
            flat_ends = ends.reshape(len(ends), -1)
            flat_ends[sample, element] = of(flat_ends[sample, element], least)
        return low, high

    def separated(self, labels: Int64, known: Sequence[Bounds], hints: Hints) -> tuple[Bools, Bools]:
        """(boxed, all) [N, classes]: the classes that the last layer's box separates from the label, and with those that lines do."""
        tail, goal = self.goal.tail, self.goal
        low, high = flat(known[goal.logits])
        margins = low[np.arange(len(labels)), labels][:, None] - high
        sample, other = np.nonzero(np.arange(goal.classes) != labels[:, None])
        if tail is not None:
            return self._fused(tail, labels, tail.pairs(sample, labels[sample], other), margins, known, hints)
        boxed = np.arange(goal.classes) == labels[:, None]
        ones = np.ones_like(sample)
        least = self._bound(
            self.value,
            sample,
            self._rows(Pairs(sample, labels[sample], other, ones, ones)),
            dict(enumerate(known)),
            hints,
        )
        margins[sample, other] = np.maximum(margins[sample, other], least)
        return boxed, goal.won(margins, labels)

    def _fused(
        self, tail: Tail, labels: Int64, pairs: Pairs, margins: Int64, known: Sequence[Bounds], hints: Hints
    ) -> tuple[Bools, Bools]:
        by_value, unit = dict(enumerate(known)), np.eye(self.goal.classes, dtype=np.int64)
        acc_low, acc_high = (b.copy() for b in flat(known[self.value]))

        def open_after(pairs: Pairs, least: Int64) -> tuple[Bools, Int64]:
            """What is won now, and which of the pairs are not."""
            low, high = tail.lowest(acc_low), tail.highest(acc_high)
            ends = low[pairs.sample, pairs.label] - high[pairs.sample, pairs.other]
            fused = tail.behind(pairs, least, acc_low, low, high)
            margins[pairs.sample, pairs.other] = np.maximum(ends, fused)
            won = self.goal.won(margins, labels)
            return won, np.flatnonzero(~won[pairs.sample, pairs.other])

        boxed, rest = open_after(pairs, tail.difference(pairs, known[tail.source]))
        pairs = pairs[rest]
        mine = np.unique(pairs.sample)
        rows = np.concatenate([self._rows(pairs), unit[labels[mine]]])
        found = self._bound(self.value, np.concatenate([pairs.sample, mine]), rows, by_value, hints)
        least, own = found[: len(pairs)], found[len(pairs) :]
        acc_low[mine, labels[mine]] = np.maximum(acc_low[mine, labels[mine]], own)
        won, rest = open_after(pairs, least)
        pairs, least = pairs[rest], least[rest]
        found = -self._bound(self.value, pairs.sample, -unit[pairs.other], by_value, hints)
        acc_high[pairs.sample, pairs.other] = np.minimum(acc_high[pairs.sample, pairs.other], found)
        won, _ = open_after(pairs, least)
        return boxed, won

    def _rows(self, pairs: Pairs) -> Int64:
        """p e_label - q e_other, int64 [P, classes]."""
        rows, each = np.zeros((len(pairs), self.goal.classes), np.int64), np.arange(len(pairs))
        rows[each, pairs.label] += pairs.p
        rows[each, pairs.other] -= pairs.q
        return rows

    def _bent(self, value: int, low: Int64, high: Int64) -> Bools:
        """[N, *shape]: whether a rule that reads the element meets one of its ends within the bounds, and is not constant there."""
        bent = np.zeros(low.shape, np.bool_)
        for rule, least, most in self._readers[value]:
            if rule is None:
                return np.ones(low.shape, np.bool_)
            first, last = rule.lowest(low), rule.highest(high)
            bent |= (first < last) & ((first <= least) | (last >= most))
        return bent

    def _bound(self, value: int, sample: Int64, rows: Int64, known: Mapping[int, Bounds], hints: Hints) -> Int64:
        """`Relaxation.lower` of each row [M, elements of value] over the bounds of its sample [M], int64 [M]."""
        shape = self.relaxation.program.values[value].shape
        found = np.zeros(len(rows), np.int64)
        for at, samples in self._blocks(sample):
            row, place = at
            inside = np.searchsorted(samples, sample[row])
            wide = np.zeros((len(samples), int(place.max()) + 1, prod(shape)), np.int64)
            wide[inside, place] = rows[row]
            part = {v: (low[samples], high[samples]) for v, (low, high) in known.items()}
            chosen = {v: (below[samples], above[samples]) for v, (below, above) in hints.items()}
            least = self.relaxation.lower(value, wide.reshape(*wide.shape[:2], *shape), part, chosen)
            found[row] = least[inside, place]
        return found

    def _blocks(self, sample: Int64) -> Iterator[tuple[tuple[Int64, Int64], Int64]]:
        """((rows, each one's place among those of its sample), samples ascending): those with about as many rows together."""
        order = np.argsort(sample, kind="stable")
        mine, first, counts = np.unique(sample[order], return_index=True, return_counts=True)
        by_count = np.argsort(-counts, kind="stable")
        start = 0
        while start < len(mine):
            size = max(self._most // int(counts[by_count[start]]), 1)
            chosen = np.sort(by_count[start : start + size])
            start += size
            row = np.concatenate([order[first[k] : first[k] + counts[k]] for k in chosen])
            place = np.concatenate([np.arange(counts[k]) for k in chosen])
            yield (row, place), mine[chosen]


def _rules(relaxation: Relaxation, value: int) -> list[tuple[Single | None, Int64 | int, Int64 | int]]:
    """Of each step that reads the accumulators: the lines of its rule (None for another step), its least and its largest result."""
    program = relaxation.program
    (atom,) = (s.atom for s in program.steps if s.out == value)
    assert isinstance(atom, Affine)
    low, high = step_bounds(atom, [full_range(program, atom.linear.in_shape)])
    found: list[tuple[Single | None, Int64 | int, Int64 | int]] = []
    for step in program.steps:
        if value in step.args:
            rule = relaxation.lines.get(step.out)
            if isinstance(rule, Single):
                found.append((rule, rule.lowest(low), rule.highest(high)))
            else:
                found.append((None, 0, 0))
    return found


def _picks(program: Program, narrow: Sequence[int]) -> bool:
    """Whether a max-pool reads anything that depends on these values."""
    known = set(narrow)
    for step in program.steps:
        if known.intersection(step.args):
            if isinstance(step.atom, Max):
                return True
            known.add(step.out)
    return False
