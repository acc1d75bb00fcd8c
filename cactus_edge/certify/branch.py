"""Branch and bound: splits a region until lines separate every class in each part, or a point is found that the label loses.

A part is split at a threshold of a rule, at the knee where its clamp begins, or between its last few steps: that of the accumulator
whose relaxation costs the worst class most, or that which gained most of some that were tried (`local`, `splits`). Children
inherit their parent's slopes and multipliers. A part without such a threshold is searched once more, for longer, then split in
the middle of an input, if these are few, else of a rule's levels; one of few points is split at its inputs at once. Parts with
the largest gap come first. For every worst line the corner where it is least is tried as an input. All is deterministic but for
`stop`, which may end it anywhere.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cactus_edge.certify.bound import Bounder, Found, Part
from cactus_edge.certify.splits import FEW, Around
from cactus_edge.ir.atoms import Affine, Step
from cactus_edge.ir.evaluate import run
from cactus_edge.ir.ops import Codes, Int64
from cactus_edge.verify.goal import wins
from cactus_edge.verify.lines import INTERCEPT, ONE, Single
from cactus_edge.verify.proof import DEEPEST, NO_SHEET, Bytes, Leaf, Robust, Row, Split, Tighten, Tree

TOGETHER = 16
"""Parts split at a time; part of what a node budget means."""

STEPS, POLISH = 16, 120
"""Steps of the search for slopes and multipliers of a part, and of one without knees."""

SMALL = 12
"""Halvings to a point up to which a region's inputs are split first: its points are few enough to be told apart."""


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
        self._read = {s.args[0]: s for s in self._rules}

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
        lost = np.flatnonzero(
            ~wins(run(self.program, codes).reshape(len(codes), -1), labels, self.program.first_maximum)
        )
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
                    part, line = node.part, node.part.worst
                    node.cut = self._half(part, line) or self._middle(part, line)
        for node in nodes:
            for found in node.part.found.values():
                found.coefficients, found.cut = {}, None
        return [node for node in nodes if node.part.gap]

    def _threshold(self, part: Part, line: Found) -> Cut | None:
        """The threshold of a rule of accumulators at which a split of the part gains most for the line: one that was tried, else
        the one that promises most."""
        best: tuple[int, int, int, float] | None = line.cut
        if best is None:
            promising = [p for step in self._rules if (p := self._promising(part, line, step)) is not None]
            best = max(promising, key=lambda p: p[3], default=None)
        if best is None:
            return None
        value, element, level, score = best
        rule = self.bounder.checker.relaxation.lines[self._read[value].out]
        assert isinstance(rule, Single)
        low, high = part.known[value]
        return Cut(score, value, element, _first(rule, element, level, low, high))

    def _promising(self, part: Part, line: Found, step: Step) -> tuple[int, int, int, float] | None:
        """(accumulators, element, level, score) of the best split of one rule."""
        a = line.coefficients.get(step.out)
        rule = self.bounder.checker.relaxation.lines[step.out]
        if a is None or not isinstance(rule, Single):
            return None
        at = self.bounder.checker.sheet[step.out]
        low, high = (b[None] for b in part.known[step.args[0]])
        k_below, k_above = (line.sheet[side, at].astype(np.int64).reshape(low.shape) for side in (0, 1))
        below, above = (
            of(k, [(low, high)]) * 2.0**-INTERCEPT for of, k in ((rule.below, k_below), (rule.above, k_above))
        )
        facts = (low, high, rule.lowest(low), rule.highest(high), rule.p[0] / 2.0**rule.q, rule.most / 2.0**rule.q)
        tensor = self.bounder.twin.tensor
        around = Around(*(tensor(x) for x in (*facts, k_below / 2**ONE, k_above / 2**ONE, below, above)))
        score, level = around.promise(tensor(a))
        i = int(score.argmax())
        most = float(score.flatten()[i])
        return (step.args[0], i, int(level.flatten()[i]), most) if most > 0 else None

    def _middle(self, part: Part, line: Found) -> Cut | None:
        """The middle level of the rule whose rounding may move the line most."""
        best: Cut | None = None
        for step in self._rules:
            a = line.coefficients.get(step.out)
            rule = self.bounder.checker.relaxation.lines[step.out]
            if a is None or not isinstance(rule, Single):
                continue
            low, high = part.known[step.args[0]]
            first, last = (end(b[None])[0].ravel() for end, b in ((rule.lowest, low), (rule.highest, high)))
            score = np.where(last - first > FEW, np.abs(a).ravel(), 0.0)
            i = int(score.argmax())
            if score[i] > (best.score if best is not None else 0.0):
                level = int(first[i] + last[i] + 1) // 2
                best = Cut(float(score[i]), step.args[0], i, _first(rule, i, level, low, high))
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


def _first(rule: Single, element: int, level: int, low: Int64, high: Int64) -> int:
    """The least accumulator in low < a <= high [*shape] at which the rule's element is at `level` for sure; high where none is."""
    channels = low.shape[-1:]
    under, over = int(low.ravel()[element]), int(high.ravel()[element])
    while over - under > 1:
        middle = (under + over) // 2
        good = rule.lowest(np.full((1,) * low.ndim + channels, middle)).ravel()[element % channels[0]] >= level
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
