"""The complete search: for each region the cheapest means first, until it is decided or its budget is used.

Intervals, lines with the usual slopes, a short attack, lines with slopes searched for, a longer attack, branch and bound, and
counterexamples from an integer solver around the best points of the attack. Whatever decides, the outcome is a record for the
checker: a tree, or a point. With a budget of nodes every answer is the same on every run; with one of seconds only where the
search ends may differ.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import inf, prod
from typing import Literal, get_args

import numpy as np

from cactus_edge.certify import solver
from cactus_edge.certify.attack import Search
from cactus_edge.certify.bound import FAR, Bounder, Part, Region
from cactus_edge.certify.branch import Branching, Outcome, proof_of
from cactus_edge.certify.linear import Linear
from cactus_edge.errors import InputError
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.interval import propagate
from cactus_edge.verify.proof import Record, Robust

Means = Literal["intervals", "lines", "attack", "slopes", "branching", "solver", "nothing"]
"""What decided a region."""

TOGETHER = 16
"""Regions whose first means are tried at once; part of what a node budget means."""

ELEMENTS = 1 << 23
"""Values times classes times regions, about, whose slopes are searched for at once: bounds the memory."""

SLOPE_STEPS, SHORT, LONG = 100, 30, 120
"""Steps of the search for slopes of whole regions, of the short and of the long attack."""

ATTACKING, BRANCHING = 0.1, 0.75
"""Parts of the seconds of a region after which the long attack, and then branch and bound, make way for the next means."""

FREE = (32, 64, 96)
"""Inputs that the solver may change at once, turn by turn."""

TURN = 1.0
"""Seconds, or units of deterministic work, of one turn of the solver."""

LOST = "another box of this sample is open"
"""Why a box is that no time was spent on."""

PARTS_PER_TURN = 25
"""Of a node budget: the solver has one turn for as many nodes."""


@dataclass(frozen=True)
class Budget:
    """What a region may cost: seconds, or nodes, parts of it that are bounded."""

    seconds: float = inf
    nodes: int | None = None

    @classmethod
    def parse(cls, text: str) -> Budget:
        """ "60s" or "500n". Raises InputError for anything else."""
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)s|(\d{1,9})n", text)
        if match is None:
            raise InputError(f"budget {text!r}, expected seconds or nodes for each region", hint="--budget 60s or 500n")
        seconds, nodes = match.groups()
        return cls(float(seconds)) if seconds is not None else cls(nodes=int(nodes))


@dataclass(frozen=True)
class Effort:
    """What decided one region of `sample`, within how many nodes and seconds of its own; of one that stayed open why, and how much
    the worst part's bound on the difference of two classes missed (`bound.Found.gap`)."""

    sample: int
    by: Means
    nodes: int = 0
    seconds: float = 0.0
    gap: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Decided:
    """A finished record, and how it came about."""

    record: Record
    effort: Effort


def _decided(record: Record, by: Means, nodes: int = 0, gap: float = 0.0, why: str = "") -> Decided:
    return Decided(record, Effort(record.sample, by, nodes, 0.0, gap, why))


class Complete:
    """For one program. device: torch's, for slopes. Raises UnsupportedError where the program has no proofs, InstallError
    without torch."""

    def __init__(self, program: Program, budget: Budget, *, seed: int = 0, device: str = "cpu") -> None:
        self.program, self.budget, self.seed = program, budget, seed
        self.linear = Linear(program)
        self.bounder = Bounder(self.linear, device)
        self.branching = Branching(self.bounder)
        self.solvable = find_spec("ortools") is not None
        total = sum(prod(v.shape) for v in program.values)
        several = ELEMENTS // (total * program.output_tensor.size)
        self._slopes_at_once = 1 if self.bounder.layers is not None else max(1, several)

    def records(
        self,
        lower: Codes,
        upper: Codes,
        samples: Int64,
        labels: Int64,
        start: Codes,
        *,
        falsify: bool = True,
        lost: set[int] | None = None,
    ) -> Iterator[Decided]:
        """The boxes lower <= x <= upper [N, *input shape] of `samples`, one after the other. start: where attacks begin.

        falsify: whether a point that the label does not win decides its box; under several arithmetics none ever does.
        lost: the samples that have a box which is not robust, so that further ones are not worth any search; they are added.
        """
        falsify, lost = falsify and self.program.definite, set() if lost is None else lost
        for first in range(0, len(labels), TOGETHER):
            part = slice(first, first + TOGETHER)
            live = [n for n, sample in enumerate(samples[part].tolist(), first) if sample not in lost]
            several = (lower[live], upper[live], samples[live], labels[live], start[live])
            found = self._together(*several, falsify, lost) if live else iter(())
            for n in range(first, min(part.stop, len(labels))):
                box = int(samples[n]), int(labels[n]), lower[n], upper[n]
                yield next(found) if n in live else _decided(Record(*box, None), "nothing", why=LOST)

    def _together(
        self,
        lower: Codes,
        upper: Codes,
        samples: Int64,
        labels: Int64,
        start: Codes,
        falsify: bool,
        lost: set[int],
    ) -> Iterator[Decided]:
        begun = time.monotonic()
        records = self.linear.records(lower, upper, samples, labels)
        found = {
            n: _decided(r, "lines" if r.verdict.sheets else "intervals")
            for n, r in enumerate(records)
            if isinstance(r.verdict, Robust)
        }
        left = np.array([n for n in range(len(labels)) if n not in found], np.int64)
        if not len(left) or self.budget.nodes == 0 or self.budget.seconds == 0:
            for n in range(len(labels)):
                yield found.get(n, _decided(records[n], "nothing", why="no budget"))
            return
        if falsify:
            attack = self._attack(lower[left], upper[left], labels[left], start[left])
            attack.gradients(0, SHORT)
            for i in np.flatnonzero(attack.found):
                found[int(left[i])] = _decided(replace(records[left[i]], verdict=attack.witness[i]), "attack")
        left = np.array([n for n in range(len(labels)) if n not in found], np.int64)
        parts: dict[int, Part] = {}
        for some in (left[i : i + self._slopes_at_once] for i in range(0, len(left), self._slopes_at_once)):
            regions = self.bounder.regions(lower[some], upper[some], labels[some])
            these = [Part(region) for region in regions]
            self.bounder.evaluate(
                these, SLOPE_STEPS, lambda: time.monotonic() - begun > self.budget.seconds * len(left)
            )
            parts |= dict(zip(some.tolist(), these, strict=True))
        for n, part in list(parts.items()):
            if not part.gap:
                found[n] = _decided(replace(records[n], verdict=proof_of(part)), "slopes", nodes=1)
        share = (time.monotonic() - begun) / len(labels)
        for n in range(len(labels)):
            if n in found:
                one, spent = found[n], share
            elif int(samples[n]) in lost:
                one, spent = _decided(records[n], "nothing", nodes=1, why=LOST), share
            else:
                since = time.monotonic() - share
                one = self._alone(parts.pop(n), records[n], start[n], since, falsify)
                spent = time.monotonic() - since
            if not isinstance(one.record.verdict, Robust):
                lost.add(int(samples[n]))
            yield replace(one, effort=replace(one.effort, seconds=spent))

    def _attack(self, lower: Codes, upper: Codes, labels: Int64, start: Codes) -> Search:
        return Search(self.program, lower, upper, labels, start, self.seed)

    def _alone(self, part: Part, record: Record, start: Codes, begun: float, falsify: bool) -> Decided:
        """One region, by what is left."""
        seconds, nodes = self.budget.seconds, self.budget.nodes

        def used(share: float) -> Callable[[], bool]:
            return lambda: time.monotonic() - begun > share * seconds

        attack = None
        if falsify:
            attack = self._attack(*(np.asarray(a)[None] for a in (record.lower, record.upper, record.label, start)))
            attack.gradients(0, LONG, used(ATTACKING))
            attack.squares(LONG, used(ATTACKING))
            attack.gradients(1, LONG, used(ATTACKING))
            if attack.found[0]:
                return _decided(replace(record, verdict=attack.witness[0]), "attack", nodes=1)
        limit = 1 << 40 if nodes is None else nodes
        outcome = self.branching.decide(part, nodes=limit, stop=used(BRANCHING), falsify=falsify)
        if outcome.verdict is not None:
            return _decided(replace(record, verdict=outcome.verdict), "branching", nodes=outcome.nodes)
        if attack is None:
            return _decided(record, "nothing", outcome.nodes, gap=outcome.gap, why=outcome.why)
        return self._last(part.region, record, attack, outcome, used(1.0))

    def _last(
        self, region: Region, record: Record, attack: Search, outcome: Outcome, used: Callable[[], bool]
    ) -> Decided:
        """The solver around the best points of further attacks, in turns."""
        whys = [outcome.why]
        turns = 1 << 40 if self.budget.nodes is None else self.budget.nodes // PARTS_PER_TURN
        free = int((record.lower < record.upper).sum())
        for turn in range(turns):
            if used():
                break
            if self.solvable:
                answer = self._solve(region, attack, turn)
                if answer.found is not None:
                    return _decided(replace(record, verdict=answer.found), "solver", outcome.nodes)
                if free <= max(FREE) and (answer.none or self.budget.nodes is not None):
                    whys.append(answer.why)
                    break
            if turn % len(FREE) == len(FREE) - 1 or not self.solvable:
                attack.gradients(2 + turn, LONG, used)
                attack.squares(LONG, used)
            if attack.found[0]:
                return _decided(replace(record, verdict=attack.witness[0]), "attack", outcome.nodes)
        if not self.solvable:
            whys.append("OR-tools is not installed")
        return _decided(record, "nothing", outcome.nodes, gap=outcome.gap, why="; ".join(whys))

    def _solve(self, region: Region, attack: Search, turn: int) -> solver.Answer:
        """One turn: over the whole region where that is small, else over some inputs around one of the attack's best points."""
        work: Literal["work", "time"] = "time" if self.budget.nodes is None else "work"
        order = np.argsort(attack.least[0], kind="stable")
        best = attack.best[0, order[0]]
        free = np.flatnonzero((region.lower < region.upper).ravel())
        known = region.known
        if len(free) > max(FREE):
            rng = np.random.default_rng((self.seed, turn))
            chosen = rng.choice(free, FREE[turn % len(FREE)], replace=False)
            low, high = best.copy(), best.copy()
            at = np.unravel_index(chosen, best.shape)
            low[at], high[at] = region.lower[at], region.upper[at]
            known = [(lo[0], hi[0]) for lo, hi in propagate(self.program, low[None], high[None])]
        goal = self.bounder.goal
        return solver.search(goal, self.program, known, region.label, seconds=TURN, limit=work, start=best, seed=turn)


def summary(efforts: Sequence[Effort]) -> list[tuple[str, str]]:
    """What decided the regions, and for each that stayed open what was reached, in words."""
    means = [(m, sum(e.by == m for e in efforts)) for m in get_args(Means)]
    return [
        ("decided by", ", ".join(f"{m} {n}" for m, n in means if n and m != "nothing") or "nothing"),
        *(
            ("", f"sample {e.sample} open: {e.why}; {e.nodes} parts{_missing(e.gap)}")
            for e in efforts
            if e.by == "nothing" and e.why != LOST
        ),
    ]


def _missing(gap: float) -> str:
    """What the worst part's bound misses, where it has one."""
    if gap >= FAR / 2:
        return ", the worst far from separating two classes"
    return f", the worst short by {gap:.0f} of separating two classes (steps of their accumulators)"
