"""Branch and bound: splits a region until lines separate every class in each part, or a point is found that the label loses.

A part is split at a threshold of a rule, at the knee where its clamp begins, or between its last few steps: that of the accumulator
whose relaxation costs the worst class most (in the spirit of BaBSR: Bunel et al., JMLR 2020, section 6). Children inherit their
parent's slopes and multipliers. A part without such a threshold is searched once more, for longer, then split in the middle of
an input, if these are few; one of few points is split there at once. Parts with the largest gap come first. For every worst
line the corner where it is least is tried as an input. All is deterministic but for `stop`, which may end it anywhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cactus_edge.certify.attack import strict_win
from cactus_edge.certify.bound import Bounder, Found, Part
from cactus_edge.ir.atoms import Affine
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.lines import INTERCEPT, ONE, Single
from cactus_edge.verify.proof import DEEPEST, NO_SHEET, Bytes, Leaf, Robust, Row, Split, Tighten, Tree

TOGETHER = 16
"""Parts split at a time; part of what a node budget means."""

STEPS, POLISH = 16, 120
"""Steps of the search for slopes and multipliers of a part, and of one without knees."""

FEW = 3
"""Steps of a rule's result within a part up to which a split between any two of them may gain something."""

SMALL = 12
"""Halvings to a point up to which a region's inputs are split first: its points are few enough to be told apart."""

FLAT = 1.5
"""Steps of a rule's result by which a clamp has to reach into the bounds for a knee."""


@dataclass(frozen=True)
class Outcome:
    """The verdict as in `Record`; nodes: parts bounded; gap: of the worst open part, 0 where none is; why: of an open verdict."""

    verdict: Robust | Codes | None
    nodes: int
    gap: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Cut:
    """A split, and about what it gains."""

    score: float
    value: int
    element: int
    threshold: int


@dataclass(eq=False)
class _Node:
    part: Part
    cut: Cut | None = None
    children: tuple[_Node, _Node] | None = None


class Branching:
    """Branch and bound for one program."""

    def __init__(self, bounder: Bounder) -> None:
        self.bounder, self.program = bounder, bounder.program
        affine = {s.out for s in self.program.steps if isinstance(s.atom, Affine)}
        self._rules = [
            s for s in self.program.steps if s.out in bounder.checker.relaxation.lines and s.args[0] in affine
        ]

    def decide(
        self, part: Part, *, nodes: int, stop: Callable[[], bool] = lambda: False, falsify: bool = True
    ) -> Outcome:
        """Decides a whole region within `nodes` parts, itself included; `part` is bounded already (`Bounder.evaluate`).

        falsify: whether a point that the label does not win is a verdict.
        """
        root = _Node(part)
        used, count = 1, 0
        queue: list[tuple[float, int, _Node]] = []
        fresh = [root]
        while True:
            opened = [node for node in fresh if node.part.gap]
            witness = self._corners(opened) if falsify else None
            if witness is not None:
                return Outcome(witness, used)
            for node in self._cut(opened, stop):
                heapq.heappush(queue, (-node.part.gap, count, node))
                count += 1
            if not queue:
                robust = assemble(root)
                if robust is not None:
                    return Outcome(robust, used)
                return Outcome(None, used, why="the proof would need too many sheets of slopes")
            if used >= nodes or stop():
                why = "the budget is used"
                break
            taken = [heapq.heappop(queue)[2] for _ in range(min(TOGETHER, len(queue), max((nodes - used) // 2, 1)))]
            fresh = []
            for node in taken:
                if node.cut is None or len(node.part.path) >= DEEPEST:
                    return Outcome(
                        None,
                        used,
                        node.part.gap,
                        "in some part only roundings are left, in more inputs than can be split",
                    )
                below, above = node.part.split(node.cut.value, node.cut.element, node.cut.threshold)
                node.children = _Node(below), _Node(above)
                fresh += node.children
            self.bounder.evaluate([n.part for n in fresh], STEPS, stop)
            used += len(fresh)
            for node in taken:
                node.part.known = []
        return Outcome(None, used, -queue[0][0], why)

    def _corners(self, nodes: Sequence[_Node]) -> Codes | None:
        """A corner of an open part where its worst line is least, if the label does not win it."""
        if not nodes:
            return None
        corners = []
        for node in nodes:
            low, high = node.part.known[self.program.input]
            slope = node.part.worst.coefficients.get(self.program.input, np.zeros(low.shape))
            corners.append(np.where(slope > 0, low, high))
        codes = np.stack(corners).astype(self.program.input_tensor.dtype)
        labels = np.array([node.part.region.label for node in nodes])
        lost = np.flatnonzero(~strict_win(run(self.program, codes).reshape(len(codes), -1), labels))
        found: Codes | None = codes[lost[0]] if len(lost) else None
        return found

    def _cut(self, nodes: Sequence[_Node], stop: Callable[[], bool]) -> list[_Node]:
        """Chooses each node's split; returns those that need one. What lines were made of is not kept."""
        smooth = []
        for node in nodes:
            small = self._halvings(node.part) <= SMALL
            node.cut = (self._half if small else self._threshold)(node.part, node.part.worst)
            if node.cut is None:
                smooth.append(node)
        if smooth:
            self.bounder.evaluate([node.part for node in smooth], POLISH, stop)
            for node in smooth:
                if node.part.gap:
                    node.cut = self._half(node.part, node.part.worst)
        for node in nodes:
            for found in node.part.found.values():
                found.coefficients = {}
        return [node for node in nodes if node.part.gap]

    def _threshold(self, part: Part, line: Found) -> Cut | None:
        """The threshold of a rule of accumulators at which a split of the part gains most for the line.

        Where the sum has a > 0 of the rule, the line below it counts. At the lower knee t of a clamp that lies as far off as
        the part's ends allow, s m (t - l) or (1 - s) m (u - t), whichever is less; the line above it, for a < 0, is off by its
        height above the knee. At an upper knee the two are exchanged. A rule with few levels left is a step or two, which no line
        comes close to: there the line's distance from the step counts, shared by the levels.
        """
        best: Cut | None = None
        for step in self._rules:
            a = line.coefficients.get(step.out)
            rule = self.bounder.checker.relaxation.lines[step.out]
            if a is None or not isinstance(rule, Single):
                continue
            at = self.bounder.checker.sheet[step.out]
            low, high = (b[None] for b in part.known[step.args[0]])
            k_below, k_above = (line.sheet[side, at].astype(np.int64).reshape(low.shape) for side in (0, 1))
            first, last = rule.lowest(low), rule.highest(high)
            p, m = np.maximum(rule.p[0], 1), rule.p[0] * 2.0**-rule.q
            below = rule.below(k_below, [(low, high)]) * 2.0**-INTERCEPT
            above = rule.above(k_above, [(low, high)]) * 2.0**-INTERCEPT
            s, t = k_below / 2**ONE, k_above / 2**ONE
            for upper, level in ((False, first + 1), (True, last)):
                # At or a little above the threshold itself.
                knee = -(-((level << rule.q) + rule.most) // p)
                inside = (knee > low) & (knee <= high) & (last > first) & (rule.p[0] > 0)
                over, under = t * m * knee + above - (level - 1), level - (s * m * knee + below)
                if upper:
                    flat = m * (high - knee) > FLAT
                    touching = np.minimum(t * m * (high - knee), (1 - t) * m * (knee - low))
                    cost = np.where(a > 0, under, touching)
                else:
                    flat = m * (knee - low) > FLAT
                    touching = np.minimum(s * m * (knee - low), (1 - s) * m * (high - knee))
                    cost = np.where(a < 0, over, touching)
                levels = np.maximum(last - first, 1)
                few = np.where(levels <= FEW, np.where(a > 0, under, over) / levels, 0.0)
                score = np.where(inside, np.abs(a) * np.where(flat, np.maximum(cost, few), few), 0.0).ravel()
                i = int(score.argmax())
                if score[i] > (best.score if best is not None else 0.0):
                    exact = _first(rule, i, int(level.ravel()[i]), low, int(knee.ravel()[i]))
                    best = Cut(float(score[i]), step.args[0], i, exact)
        return best

    def _halvings(self, part: Part) -> int:
        """Splits on a path to a single point."""
        low, high = part.known[self.program.input]
        return int(np.ceil(np.log2(high - low + 1)).sum())

    def _half(self, part: Part, line: Found) -> Cut | None:
        """The middle of the input that moves the line most; None in a single point, and where a path is too short to end in one."""
        if len(part.path) + self._halvings(part) > DEEPEST:
            return None
        low, high = (b.reshape(-1) for b in part.known[self.program.input])
        a = line.coefficients.get(self.program.input)
        slope = np.zeros(low.shape) if a is None else np.abs(a).reshape(-1)
        score = (slope + 1e-9 * (1 + slope.max(initial=0.0))) * (high - low)
        i = int(score.argmax())
        return Cut(float(score[i]), self.program.input, i, int((low[i] + high[i]) // 2 + 1)) if score[i] > 0 else None


def _first(rule: Single, element: int, level: int, low: Int64, reached: int) -> int:
    """The least accumulator above low [1, *shape] at which the rule's element is at `level` for sure; `reached` is one."""
    under, over = int(low.ravel()[element]), reached
    while over - under > 1:
        middle = (under + over) // 2
        good = rule.lowest(np.full_like(low, middle)).ravel()[element] >= level
        under, over = (under, middle) if good else (middle, over)
    return over


def proof_of(part: Part) -> Robust:
    """The proof of a region that needs no splits."""
    robust = assemble(_Node(part))
    assert robust is not None
    return robust


def assemble(root: _Node) -> Robust | None:
    """The proof of a finished tree; None where it has too many different sheets."""
    sheets: dict[bytes, int] = {}
    kept: list[Bytes] = []

    def number(sheet: Bytes) -> int:
        key = sheet.tobytes()
        if key not in sheets:
            sheets[key] = len(kept)
            kept.append(sheet)
        return sheets[key]

    def rows(part: Part) -> tuple[Row, ...]:
        lined = (Row(j, f.row.p, f.row.q, number(f.sheet), f.row.multipliers) for j, f in part.found.items())
        return tuple(sorted((*part.boxed, *lined), key=lambda row: row.other))

    def tree(node: _Node) -> Tree:
        if node.children is None:
            part = node.part
            if part.empty:
                return Leaf((), _tightened(part, number))
            return Leaf(rows(part), _tightened(part, number))
        assert node.cut is not None
        below, above = (tree(child) for child in node.children)
        return Split(node.cut.value, node.cut.element, node.cut.threshold, below, above)

    region = root.part.region
    whole = tuple(Tighten(v, number(region.sheet)) for v in region.tighten)
    made = tree(root)
    return Robust(tuple(kept), whole, made) if len(kept) < NO_SHEET else None


def _tightened(part: Part, number: Callable[[Bytes], int]) -> tuple[Tighten, ...]:
    if part.sheet is None:
        return ()
    sheet = number(part.sheet)
    return tuple(Tighten(v, sheet) for v in part.tighten)
