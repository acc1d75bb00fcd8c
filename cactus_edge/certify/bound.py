"""Bounds of parts of regions, with slopes and multipliers searched for, and what they prove as rows of a proof.

A part is what the splits on a path leave of a region. Its bounds are the exact intervals of its values within the region's own,
cut with the splits, and those of its classes are the better of these intervals' and of lines'. Every bound that counts comes
from the checker (`verify.check`), with the rounded slopes and multipliers; floats decide only where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import frexp, ldexp, prod

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.condensed import ENTRIES, chain, entries
from cactus_edge.certify.linear import Linear
from cactus_edge.certify.local import Local
from cactus_edge.certify.slopes import Facts, Places, Searched, Twin
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.check import Path, cut
from cactus_edge.verify.interval import Bounds, step_bounds
from cactus_edge.verify.lines import ONE
from cactus_edge.verify.proof import MOST_MU, MOST_S, Bytes, Multiplier, Row
from cactus_edge.verify.tail import Pairs

Float64 = npt.NDArray[np.float64]

FAR = 1 << 40
"""Beyond every bound on a difference of two classes."""

TIGHTEN = 1 << 19
"""Coefficients, over all values, up to which the accumulators of narrow layers are tightened in every part and not only in the region."""

RATE, GENTLE = 0.1, 0.02
"""First steps of the search for slopes: from the usual ones, and from a parent's, which larger ones would spoil."""

SMALLEST = 2.0**-40
"""Multipliers below this, in magnitude, are left out."""


@dataclass(frozen=True, eq=False)
class Region:
    """A box of codes [*input shape] with its label and the bounds [*shape] of all values; lines of the slopes `sheet` tightened
    the accumulators `tighten`."""

    lower: Codes
    upper: Codes
    label: int
    known: list[Bounds]
    tighten: tuple[int, ...]
    sheet: Bytes


@dataclass(eq=False)
class Found:
    """The best line found for one class of one part: its row, whose sheet is `sheet`, and its multipliers as real numbers.

    gap: 0 where it separates the class, else about what its bound misses, in units of p acc_label - q acc_other (of logits);
    then coefficients has those of values in the bound, float32 [*shape], and cut a split that was tried (`slopes.Searched`).
    """

    row: Row
    sheet: Bytes
    multipliers: dict[tuple[int, int], float]
    gap: float = 0.0
    coefficients: dict[int, npt.NDArray[np.float32]] = field(default_factory=dict)
    cut: tuple[int, int, int, float] | None = None


@dataclass(eq=False)
class Part:
    """What the splits of `path` leave of a region. known: bounds [*shape] by value; tighten: the accumulators that lines of the
    slopes `sheet` tightened here. boxed: rows of the classes that need no lines; found: lines for the others.
    """

    region: Region
    path: Path = ()
    parent: Part | None = None
    known: list[Bounds] = field(default_factory=list)
    empty: bool = False
    tighten: tuple[int, ...] = ()
    sheet: Bytes | None = None
    boxed: tuple[Row, ...] = ()
    found: dict[int, Found] = field(default_factory=dict)

    @property
    def gap(self) -> float:
        """Of the class that is furthest from separated; 0 where all are."""
        return 0.0 if self.empty else max((f.gap for f in self.found.values()), default=0.0)

    @property
    def worst(self) -> Found:
        """The line of that class."""
        return max(self.found.values(), key=lambda f: f.gap)

    def split(self, value: int, element: int, threshold: int) -> tuple[Part, Part]:
        """Where the value's element is below the threshold, and where it is not."""
        below, above = (
            Part(self.region, (*self.path, (value, element, threshold, side)), self) for side in (False, True)
        )
        return below, above


class Bounder:
    """For one program; `device`: torch's, for the search of slopes."""

    def __init__(self, linear: Linear, device: str = "cpu") -> None:
        self.linear, self.checker = linear, linear.checker
        self.program: Program = linear.program
        self.goal = self.checker.goal
        self.twin = Twin(self.checker.relaxation, self.checker.sheet, device)
        self.value = self.goal.logits if self.goal.tail is None else self.goal.tail.value
        self.layers = chain(self.program, self.value, self.twin)
        self._local: tuple[Region, Local | None] | None = None
        total = sum(prod(v.shape) for v in self.program.values)
        self.deep = tuple(v for v in linear.narrow if 2 * prod(self.program.values[v].shape) * total <= TIGHTEN)

    def regions(self, lower: Codes, upper: Codes, labels: Int64) -> list[Region]:
        """The boxes [N, *input shape], bounded."""
        hints: dict[int, tuple[Int64, Int64]] = {}

        def tighten(value: int, known: Mapping[int, Bounds]) -> Bounds | None:
            self.linear.extend(hints, known)
            return self.checker.relaxation.tightened(value, known, hints) if value in self.linear.narrow else None

        known, _ = self.checker.relaxation.forward(lower, upper, tighten=tighten)
        self.linear.extend(hints, dict(enumerate(known)))
        sheets = self.linear.sheets(hints, len(labels))
        return [
            Region(lower[n], upper[n], int(y), [(lo[n], hi[n]) for lo, hi in known], self.linear.narrow, sheets[n])
            for n, y in enumerate(labels)
        ]

    def evaluate(
        self, parts: Sequence[Part], steps: int, stop: Callable[[], bool] = lambda: False, deep: bool = True
    ) -> None:
        """Bounds the parts, with `steps` steps of search for each class that needs lines, from those it had or its parent had.

        stop: asked between steps. deep: whether accumulators of small networks are tightened in parts of a region, too.
        """
        self._propagate([p for p in parts if p.path], deep)
        for part in parts:
            if not part.path:
                part.known = part.region.known
        live = [p for p in parts if not p.empty]
        if not live:
            return
        known = stacked([p.known for p in live])
        labels = np.array([p.region.label for p in live])
        boxed = [() if self.goal.tail is None else self._rows(p) for p in live]
        won = self.goal.won(self.checker.margins(labels, boxed, [()] * len(live), known), labels)
        before = [{**(p.parent.found if p.parent is not None else {}), **p.found} for p in live]
        for n, part in enumerate(live):
            part.boxed, part.found = tuple(row for row in boxed[n] if won[n, row.other]), {}
        inherited = [{j: f for j, f in fs.items() if not f.gap and not won[n, j]} for n, fs in enumerate(before)]
        if any(inherited):
            lines = [list(fs.values()) for fs in inherited]
            won |= self._separated(lines, labels, known)
            for n, part in enumerate(live):
                part.found = {j: f for j, f in inherited[n].items() if won[n, j]}
        wanted = [(n, j) for n in range(len(live)) for j in range(self.goal.classes) if not won[n, j]]
        if wanted:
            self._lines(live, known, labels, [(n, j, before[n].get(j)) for n, j in wanted], steps, stop)

    def _searcher(self, parts: Sequence[Part], known: Sequence[Bounds], sample: Int64) -> Callable[..., Searched]:
        """`Local.search` where all parts are of one region of a chain, unless that is too large, else `Twin.search`."""
        region = parts[0].region
        if self._local is None or self._local[0] is not region:
            layers = self.layers
            fits = layers is not None and entries(self.program, layers, region.known) <= ENTRIES
            self._local = region, Local(self.twin, layers, region.known) if layers is not None and fits else None
        local = self._local[1]
        if local is None or any(p.region is not region for p in parts):
            return partial(self.twin.search, self.value, facts=Facts(self.twin, known, sample))
        return partial(local.search, known=known, index=sample)

    def _separated(self, lines: Sequence[Sequence[Found]], labels: Int64, known: list[Bounds]) -> npt.NDArray[np.bool_]:
        """[N, classes]: what the checker says of each part's lines, whose rows are given the numbers of their sheets."""
        rows = [[replace(f.row, sheet=i) for i, f in enumerate(fs)] for fs in lines]
        return self.goal.won(self.checker.margins(labels, rows, [[f.sheet for f in fs] for fs in lines], known), labels)

    def _lines(
        self,
        parts: Sequence[Part],
        known: list[Bounds],
        labels: Int64,
        wanted: Sequence[tuple[int, int, Found | None]],
        steps: int,
        stop: Callable[[], bool],
    ) -> None:
        """Searches for lines for class j of part n for each (n, j, the line to start from)."""
        sample, other = np.array([(n, j) for n, j, _ in wanted], np.int64).T
        before = [line for _, _, line in wanted]
        pairs = self._pairs(sample, labels[sample], other)
        each = np.arange(len(wanted))
        rows = np.zeros((len(wanted), self.goal.classes))
        rows[each, pairs.label] += pairs.p
        rows[each, pairs.other] -= pairs.q
        usual = self._usual(known)
        places, start = self._places([parts[n].path for n in sample], before)
        need = self._need(pairs, known)
        search = self._searcher(parts, known, sample)
        found = search(
            rows.reshape(-1, *self.program.values[self.value].shape),
            starts=np.stack([_starts(usual[n], f) for n, f in zip(sample, before, strict=True)]),
            steps=steps,
            rate=RATE if all(f is None for f in before) else GENTLE,
            need=need + 1e-4 * np.abs(need) + 1,
            places=places,
            start=start,
            stop=stop,
        )
        mine: list[dict[tuple[int, int], float]] = [{} for _ in wanted]
        for v, values in found.multipliers.items():
            for r, element, mu in zip(*places[v], values, strict=True):
                if abs(mu) > SMALLEST:
                    mine[r][v, int(element)] = float(mu)
        lines: list[list[Found]] = [[] for _ in parts]
        for i, (n, j, _) in enumerate(wanted):
            exact = tuple(_integer(v, e, mu) for (v, e), mu in sorted(mine[i].items()))
            row = Row(j, int(pairs.p[i]), int(pairs.q[i]), 0, exact)
            parts[n].found[j] = Found(row, found.sheets[i], mine[i])
            if found.bound[i] > need[i]:
                lines[n].append(parts[n].found[j])
        won = self._separated(lines, labels, known)
        for i, (n, j, _) in enumerate(wanted):
            if not won[n, j]:
                line = parts[n].found[j]
                line.gap = max(float(need[i] - found.bound[i]), 0.0) + 1.0
                line.coefficients = {v: c[i] for v, c in found.seen.items()}
                line.cut = found.cuts[i] if found.cuts else None

    def _pairs(self, sample: Int64, label: Int64, other: Int64) -> Pairs:
        tail = self.goal.tail
        if tail is not None:
            return tail.pairs(sample, label, other)
        ones = np.ones_like(label)
        return Pairs(sample, label, other, ones, ones)

    def _rows(self, part: Part) -> tuple[Row, ...]:
        """For every other class, over the box of the last layer's input."""
        others = np.array([j for j in range(self.goal.classes) if j != part.region.label])
        pairs = self._pairs(np.zeros_like(others), np.full_like(others, part.region.label), others)
        return tuple(Row(int(j), int(p), int(q), None) for j, p, q in zip(others, pairs.p, pairs.q, strict=True))

    def _need(self, pairs: Pairs, known: list[Bounds]) -> Float64:
        """The least bound on each difference that separates the class, given the ends of the bounds; FAR where none is enough."""
        n, classes = len(pairs), self.goal.classes
        low, high = (b.reshape(len(b), -1) for b in known[self.goal.logits])
        each = np.arange(n)

        def enough(least: Int64) -> npt.NDArray[np.bool_]:
            found = least
            if self.goal.tail is not None:
                acc_low = known[self.value][0].reshape(len(low), -1)
                found = self.goal.tail.behind(pairs, least, acc_low, low, high)
            margins = np.full((n, classes), 1 << 20, np.int64)
            margins[each, pairs.other] = found
            won: npt.NDArray[np.bool_] = self.goal.won(margins, pairs.label)[each, pairs.other]
            return won

        under, over = np.full(n, -FAR), np.full(n, FAR)
        while (over - under > 1).any():
            middle = (under + over) >> 1
            good = enough(middle)
            under, over = np.where(good, under, middle), np.where(good, middle, over)
        return over.astype(np.float64)

    def _places(self, paths: Sequence[Path], before: Sequence[Found | None]) -> tuple[Places, dict[int, Float64]]:
        """Where each row's multipliers are: at the accumulators of the splits on its path; and those that its parent found."""
        places: dict[int, list[tuple[int, int, float]]] = {}
        for r, (path, found) in enumerate(zip(paths, before, strict=True)):
            for v, element in dict.fromkeys((v, e) for v, e, _, _ in path if v != self.program.input):
                mu = found.multipliers.get((v, element), 0.0) if found is not None else 0.0
                places.setdefault(v, []).append((r, element, mu))
        index = {v: (np.array([p[0] for p in ps]), np.array([p[1] for p in ps])) for v, ps in places.items()}
        return index, {v: np.array([p[2] for p in ps]) for v, ps in places.items()}

    def _propagate(self, parts: Sequence[Part], deep: bool) -> None:
        """Bounds every value of the parts, as the checker does; values that no split touches keep their region's bounds."""
        if not parts:
            return
        known = [(lo.copy(), hi.copy()) for lo, hi in stacked([p.region.known for p in parts])]
        changed = {v for p in parts for v, _, _, _ in p.path}
        for n, part in enumerate(parts):
            cut(known, n, part.path)
        if deep and self.deep:
            self._tightened(parts, known)
            return
        for step in self.program.steps:
            if changed.intersection(step.args):
                changed.add(step.out)
                low, high = step_bounds(step.atom, [known[a] for a in step.args])
                known[step.out] = np.maximum(known[step.out][0], low), np.minimum(known[step.out][1], high)
        for n, part in enumerate(parts):
            part.known = [(lo[n], hi[n]) for lo, hi in known]
            part.empty = any((lo > hi).any() for lo, hi in part.known)

    def _tightened(self, parts: Sequence[Part], known: list[Bounds]) -> None:
        """Likewise, with the accumulators `deep` tightened by the usual lines."""
        hints: dict[int, tuple[Int64, Int64]] = {}

        def tighten(value: int, so_far: Mapping[int, Bounds]) -> Bounds | None:
            self.linear.extend(hints, so_far)
            return self.checker.relaxation.tightened(value, so_far, hints) if value in self.deep else None

        known, empty = self.checker.relaxation.forward(*known[self.program.input], known, tighten)
        self.linear.extend(hints, dict(enumerate(known)))
        for n, (part, sheet) in enumerate(zip(parts, self.linear.sheets(hints, len(parts)), strict=True)):
            part.known = [(lo[n], hi[n]) for lo, hi in known]
            part.empty, part.tighten, part.sheet = bool(empty[n]), self.deep, sheet

    def _usual(self, known: Sequence[Bounds]) -> list[Bytes]:
        hints: dict[int, tuple[Int64, Int64]] = {}
        self.linear.extend(hints, dict(enumerate(known)))
        return self.linear.sheets(hints, len(known[0][0]))


def stacked(known: Sequence[Sequence[Bounds]]) -> list[Bounds]:
    """The bounds [*shape] of N parts by value, [N, *shape]."""
    return [(np.stack([b[0] for b in bounds]), np.stack([b[1] for b in bounds])) for bounds in zip(*known, strict=True)]


def _starts(usual: Bytes, found: Found | None) -> Bytes:
    """[2, 2, S]: the parent's slopes, but where a rule has become constant; and but where it has become constant or linear."""
    if found is None:
        return np.stack([usual, usual])
    same = usual[0] == usual[1]
    constant, linear = same & (usual[0] == 0), same & (usual[0] == 1 << ONE)
    return np.stack([np.where(constant, usual, found.sheet), np.where(constant | linear, usual, found.sheet)])


def _integer(value: int, element: int, real: float) -> Multiplier:
    """A real multiplier as mu 2^-s with 24 bits: the finest unit is the least likely to be too coarse for the checker."""
    s = min(max(24 - frexp(real)[1], 0), MOST_S)
    mu = round(ldexp(real, s))
    return Multiplier(value, element, max(min(mu, MOST_MU - 1), 1 - MOST_MU), s)
