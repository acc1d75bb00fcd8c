"""How far each sample can be certified: brackets between the largest radius that was proved and the smallest that was refuted.

Radii are whole steps, by default of the input's quantisation: with each step a feature gains one code on either side, so that a
bracket of one step is as exact as the codes are. Bisection only chooses what to try. Nothing rests on a proof at one radius
holding at a smaller one: every radius that is reported as certified was proved itself, and every one reported as refuted holds
a counterexample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InternalError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.certificate import Decide, Find
from cactus_edge.verify.proof import Proof, Record, Robust, encode, parse
from cactus_edge.verify.regions import Bools, Index, Region, box

Array = npt.NDArray[Any]

NONE = -1
"""In place of a number of steps: at no radius."""

Ask = Callable[[Index, Int64], tuple[Bools, Mapping[int, Codes]]]
"""(samples, steps of each) -> whether each was proved at its radius, and counterexamples by their place in the list."""


@dataclass(frozen=True)
class Scale:
    """Radii in steps of `step`, in the unit of the data, up to the whole domain."""

    step: Fraction
    domain: tuple[Fraction, Fraction]

    @property
    def most(self) -> int:
        """The largest number of steps that a radius can have."""
        lo, hi = self.domain
        return int((hi - lo) / self.step)

    def radius(self, steps: int) -> Fraction:
        """That many steps; 0 for NONE."""
        return max(steps, 0) * self.step

    def region(self, steps: Int64) -> Region:
        """The region with these radii, one per sample."""
        return Region(tuple(self.radius(n) for n in steps.tolist()), self.domain, per_sample=True)


class Search:
    """What is known of the samples x [N, *input shape], in steps [N]: `certified`, NONE or the largest radius that was proved;
    `refuted`, the smallest with a counterexample, which is in `witnesses`, or scale.most + 1."""

    def __init__(self, program: Program, scale: Scale, x: Array) -> None:
        self.program, self.scale, self.x = program, scale, x
        self.certified: Int64 = np.full(len(x), NONE)
        self.refuted: Int64 = np.full(len(x), scale.most + 1)
        self.witnesses: dict[int, Codes] = {}

    def prove(self, ask: Ask) -> None:
        """Raises `certified`: tries further and further beyond it, then halves the gap to what was not proved."""
        failed: Int64 = np.full(len(self.x), self.scale.most + 1)
        gap = np.ones(len(self.x), np.int64)
        while (left := np.flatnonzero(np.minimum(failed, self.refuted) - self.certified > 1)).size:
            steps = self._between(self.certified[left], np.minimum(failed, self.refuted)[left], gap[left])
            proved = self._learn(ask, left, steps)
            failed[left[~proved]] = steps[~proved]
            gap[left[proved]] *= 2

    def refute(self, ask: Ask) -> None:
        """Lowers `refuted`: looks further and further beyond what is certified, then halves the gap to what was in vain."""
        vain, gap = self.certified.copy(), np.ones(len(self.x), np.int64)
        while (left := np.flatnonzero(self.refuted - vain > 1)).size:
            steps = self._between(vain[left], self.refuted[left], gap[left])
            self._learn(ask, left, steps)
            missed = self.refuted[left] > steps
            vain[left[missed]] = steps[missed]
            gap[left[missed]] *= 2

    def _between(self, low: Int64, high: Int64, gap: Int64) -> Int64:
        """What to try next: `gap` beyond low while there is no end above, else the middle."""
        most = self.scale.most
        return np.where(high > most, np.minimum(low + gap, most), (low + high) // 2)

    def _learn(self, ask: Ask, index: Index, steps: Int64) -> Bools:
        """Asks, and notes the answers. Raises InternalError where two of them contradict each other."""
        proved, points = ask(index, steps)
        self.certified[index[proved]] = np.maximum(self.certified[index[proved]], steps[proved])
        if points:
            at = np.array(sorted(points))
            codes = np.stack([points[int(i)] for i in at])
            radius = self._held(index[at], codes, steps[at])
            for i, n, point in zip(index[at].tolist(), radius.tolist(), codes, strict=True):
                if n < self.refuted[i]:
                    self.refuted[i], self.witnesses[i] = n, point
        wrong = np.flatnonzero(self.refuted <= self.certified)
        if len(wrong):
            i = int(wrong[0])
            raise InternalError(
                f"sample {i} is certified within {self.certified[i]} steps and has a counterexample within {self.refuted[i]}",
                hint="please report this model",
            )
        return proved

    def _held(self, index: Index, points: Codes, most: Int64) -> Int64:
        """The smallest radius in steps, at most `most`, whose codes hold each point."""
        low, high = np.full(len(index), NONE), most.copy()
        while (left := np.flatnonzero(high - low > 1)).size:
            steps = (low[left] + high[left]) // 2
            lower, upper = box(self.program, self.scale.region(steps), self.x[index[left]])
            inside = ((points[left] >= lower) & (points[left] <= upper)).reshape(len(left), -1).all(1)
            high[left[inside]] = steps[inside]
            low[left[~inside]] = steps[~inside]
        return high


def by_intervals(decide: Decide, search: Search, labels: Array) -> Ask:
    """Proves by intervals alone."""

    def ask(index: Index, steps: Int64) -> tuple[Bools, Mapping[int, Codes]]:
        d = decide(search.program, search.scale.region(steps), search.x[index], labels[index])
        return d.certified, {}

    return ask


class Proofs:
    """The records that show what is certified, and the counterexamples' records, as proofs that were found had them."""

    def __init__(self, search: Search, labels: Array, model_sha256: bytes) -> None:
        self.search, self.labels, self.model_sha256 = search, labels, model_sha256
        self._robust: dict[int, tuple[int, Record]] = {}
        self._empty: Proof | None = None

    def by(self, find: Find) -> Ask:
        """Asks `find` for proofs, and keeps the record of the largest radius that each sample was proved at."""
        search = self.search

        def ask(index: Index, steps: Int64) -> tuple[Bools, Mapping[int, Codes]]:
            region, x = search.scale.region(steps), search.x[index]
            found = parse(find(search.program, region, x, self.labels[index], self.model_sha256), search.program)
            self._empty = replace(found, records=())
            for i, n, record in zip(index.tolist(), steps.tolist(), found.records, strict=True):
                if isinstance(record.verdict, Robust) and n > self._robust.get(i, (NONE,))[0]:
                    self._robust[i] = n, replace(record, sample=i)
            proved = np.array([isinstance(r.verdict, Robust) for r in found.records], np.bool_)
            return proved, {p: r.verdict for p, r in enumerate(found.records) if isinstance(r.verdict, np.ndarray)}

        return ask

    def certified(self) -> bytes:
        """The proof that each sample is robust within what is certified; open, at radius 0, where nothing is."""
        open_ = _open(self.search, self.search.certified, self.labels)
        records = [self._robust[i][1] if i in self._robust else record for i, record in enumerate(open_)]
        return self._encoded(records)

    def refuted(self) -> bytes:
        """The proof that each sample that has a counterexample is refuted within that radius; open, at radius 0, without one."""
        search = self.search
        listed = _open(search, refuted_steps(search), self.labels)
        return self._encoded([replace(r, verdict=search.witnesses.get(i)) for i, r in enumerate(listed)])

    def _encoded(self, records: list[Record]) -> bytes:
        if self._empty is None:
            raise InternalError("nothing was asked")
        return encode(self.search.program, replace(self._empty, samples=len(records), records=records))


def refuted_steps(search: Search) -> Int64:
    """`Search.refuted` with NONE where there is no counterexample."""
    return np.where(search.refuted > search.scale.most, NONE, search.refuted)


def _open(search: Search, steps: Int64, labels: Array) -> list[Record]:
    lower, upper = box(search.program, search.scale.region(steps), search.x)
    return [Record(i, int(labels[i]), lower[i], upper[i], None) for i in range(len(labels))]
