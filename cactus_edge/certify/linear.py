"""Proofs by intervals and by lines with slopes chosen in one pass: the quick part of the search.

A rule's line has the slope 0, that of its chord, or that of the rule where it is not clamped, whichever is closest in the
middle of its bounds (after Zhang et al., NeurIPS 2018, section 3.3). Accumulators of narrow layers are tightened by lines too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import frexp, prod

import numpy as np

from cactus_edge.certify.frugal import Frugal
from cactus_edge.certify.quick import QuickRelaxation
from cactus_edge.errors import UnsupportedError
from cactus_edge.ir.atoms import Affine, Between, Isotone, Monotone, Program, Step, example
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.check import Checker
from cactus_edge.verify.decide import Decider
from cactus_edge.verify.goal import Bools
from cactus_edge.verify.interval import Bounds
from cactus_edge.verify.lines import INTERCEPT, MOST_P, MOST_Q, ONE, Lines, Pair, Single, Slope, ends_of
from cactus_edge.verify.proof import Bytes, Leaf, Record, Robust, Row, Tighten
from cactus_edge.verify.relax import Hints

MOST_CLASSES = 256
"""A leaf counts its rows in one byte."""

NARROW = 256
"""Elements up to which the accumulators of a layer are tightened, two rows each."""


def default_slopes(program: Program) -> dict[int, Slope]:
    """For each rule that has lines what it multiplies by, as integers below 2^20 of one unit 2^-Q per step."""
    found: dict[int, Slope] = {}
    for step in program.steps:
        multipliers = _multipliers(program, step)
        steepest = max(map(abs, multipliers), default=0.0)
        q = MOST_P.bit_length() - 2 - frexp(steepest)[1]
        if steepest and 0 <= q <= MOST_Q:
            found[step.out] = Slope(q, tuple(round(m * 2**q) for m in multipliers))
    return found


def _multipliers(program: Program, step: Step) -> list[float]:
    """By what a step multiplies: per channel or one, or one for each of two arguments; [] for one that is far from linear."""
    shape = program.values[step.out].shape
    match example(step.atom):
        case Monotone(rule) | Between(_, rule, _) if ends_of(step.atom) is not None:
            slopes = np.ravel(rule.slope()).tolist()
            return slopes if len(slopes) in (1, shape[-1] if shape else 1) else []
        case Isotone(sum_rule, _) if step.atom == example(step.atom):
            if any(program.values[a].shape != shape for a in step.args):
                return []
            here, there = (
                [float(np.max(s)) for s in sum_rule.slopes(np.full(1, a), np.full(1, b))] for a, b in ((0, 0), (3, -7))
            )
            return here if here == there else []
        case _:
            return []


class Linear:
    """The search for one program. narrow: the accumulators that are tightened, ascending.

    Raises UnsupportedError where a leaf has no room for a row for every class, and as `Checker` does.
    """

    def __init__(self, program: Program) -> None:
        if program.output_tensor.size > MOST_CLASSES:
            raise UnsupportedError(
                f"proofs are for up to {MOST_CLASSES} classes, this network has {program.output_tensor.size}",
                hint="take --bounds interval",
            )
        self.program, self.slopes = program, default_slopes(program)
        self.checker, self.decider = Checker(program, self.slopes, QuickRelaxation), Decider(program)
        first = {s.out for s in program.steps if s.args == (program.input,)}
        narrow = (s.out for s in program.steps if isinstance(s.atom, Affine) and s.out not in first)
        self.narrow = tuple(v for v in narrow if prod(program.values[v].shape) <= NARROW)
        self.frugal = Frugal(self.checker.relaxation, self.checker.goal, self.narrow)
        self._args = {s.out: s.args for s in program.steps}

    def records(self, lower: Codes, upper: Codes, samples: Int64, labels: Int64, *, lines: bool = True) -> list[Record]:
        """A record for each box lower <= x <= upper [N, *input shape] of the sample `samples` with label `labels`: robust or open.

        By intervals, and by lines what those leave open, if lines.
        """
        certified, _ = self.decider.decide(lower, upper, labels)
        everything = np.ones(self.checker.goal.classes, np.bool_)
        found: dict[int, Record] = {}
        for n in np.flatnonzero(certified).tolist():
            verdict = Robust((), (), Leaf(self._rows(int(labels[n]), everything)))
            found[n] = Record(int(samples[n]), int(labels[n]), lower[n], upper[n], verdict)
        rest, size = np.flatnonzero(~certified), self.checker.size
        for part in (rest[i : i + size] for i in range(0, len(rest), size)):
            if lines:
                together = self._together(lower[part], upper[part], samples[part], labels[part])
                found |= dict(zip(part.tolist(), together, strict=True))
            else:
                found |= {n: Record(int(samples[n]), int(labels[n]), lower[n], upper[n], None) for n in part.tolist()}
        return [found[n] for n in range(len(labels))]

    def _together(self, lower: Codes, upper: Codes, samples: Int64, labels: Int64) -> Iterator[Record]:
        hints: dict[int, tuple[Int64, Int64]] = {}

        def tighten(value: int, known: Mapping[int, Bounds]) -> Bounds | None:
            self.extend(hints, known)
            return self.frugal.tightened(value, known, hints) if value in self.narrow else None

        known, _ = self.checker.relaxation.forward(lower, upper, tighten=tighten)
        self.extend(hints, dict(enumerate(known)))
        boxed, won = self.frugal.separated(labels, known, hints)
        sheets, tightened = self.sheets(hints, len(labels)), tuple(Tighten(value, 0) for value in self.narrow)
        for n, (sample, label) in enumerate(zip(samples.tolist(), labels.tolist(), strict=True)):
            verdict = None
            if won[n].all():
                verdict = Robust((sheets[n],), tightened, Leaf(self._rows(label, boxed[n])))
            yield Record(sample, label, lower[n], upper[n], verdict)

    def _rows(self, label: int, boxed: Bools) -> tuple[Row, ...]:
        """A row for every other class: over the last layer's box, where there is one, if boxed [classes], else by the sheet 0."""
        tail, others = self.checker.goal.tail, [j for j in range(len(boxed)) if j != label]
        if tail is None:
            return tuple(Row(j, 1, 1, 0) for j in others if not boxed[j])
        factors = tail.factors.tolist()
        return tuple(Row(j, factors[label], factors[j], None if boxed[j] else 0) for j in others)

    def sheets(self, hints: Hints, count: int) -> list[Bytes]:
        """Hints [N, 1, *shape] of all rules as sheets uint8 [2, S], one per sample."""
        found = np.zeros((count, 2, self.checker.elements), np.uint8)
        for value, at in self.checker.sheet.items():
            for side in (0, 1):
                found[:, side, at] = hints[value][side].reshape(count, -1)
        return list(found)

    def extend(self, hints: dict[int, tuple[Int64, Int64]], known: Mapping[int, Bounds]) -> None:
        """Chooses the slopes of the rules whose arguments are known by now."""
        for value, between in self.checker.relaxation.lines.items():
            if value not in hints and all(a in known for a in self._args[value]):
                args = [(known[a][0][:, None], known[a][1][:, None]) for a in self._args[value]]
                hints[value] = closest(between, args)


def closest(between: Lines, args: list[Bounds]) -> tuple[Int64, Int64]:
    """(k below, k above) of the lines closest to a rule in the middle of its arguments' bounds, int64 [N, 1, *shape]."""
    step = [p * (hi - lo) for p, (lo, hi) in zip(between.p, args, strict=True)]
    middle = sum(p * ((lo + hi) / 2) for p, (lo, hi) in zip(between.p, args, strict=True))
    first, last = _ends(between, args)
    run = np.maximum(sum(np.abs(s) for s in step), 1)
    chord = np.clip(np.rint((last - first) * (1 << ONE) / run), 0, 1 << ONE).astype(np.int64)
    candidates = (np.zeros_like(chord), chord, np.full_like(chord, 1 << ONE))

    def best(side: int) -> Int64:
        intercept = between.above if side > 0 else between.below
        unit = 2.0 ** -(between.q + ONE)
        at = np.stack([side * (k * middle * unit + intercept(k, args) * 2.0**-INTERCEPT) for k in candidates])
        chosen: Int64 = np.choose(at.argmin(0), candidates)
        return chosen

    return best(-1), best(1)


def _ends(between: Lines, args: list[Bounds]) -> tuple[Int64, Int64]:
    """The rule's least and largest result over the bounds, about, in units of 2^-Q."""
    match between:
        case Single(q=q, lowest=lowest, highest=highest):
            ((low, high),) = args
            return lowest(low) << q, highest(high) << q
        case Pair(q=q, p=p, lo=lo, hi=hi, over=over, under=under):
            least, most = (
                np.asarray(sum(of(f * a, f * b) for f, (a, b) in zip(p, args, strict=True)))
                for of in (np.minimum, np.maximum)
            )
            return np.clip(least + under, lo << q, hi << q), np.clip(most + over, lo << q, hi << q)
        case _:
            raise TypeError(type(between).__name__)
