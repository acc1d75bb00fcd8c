"""The search for slopes and multipliers in one region of a chain of layers, on what is not constant there.

On the dense matrices that `condensed` leaves of the layers the search of `slopes.Twin` is the same and much faster.

Its gradient is written out. With respect to a value's coefficients the bound is linear, and its slope is a point of that value:
the worst corner of the input, put through every layer and along every line that is taken. So one pass down gives the bound, and
one up the gradient of every slope and multiplier.

For rows that stay open the most promising splits are tried: one pass down for each side (filtered smart branching: De Palma
et al., arXiv:2104.06718, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.condensed import Layer, Matrix, Rule, condensed
from cactus_edge.certify.slopes import BETAS, DECAY, MULTIPLIERS, STEEPEST, Float64, Places, Searched, Twin
from cactus_edge.certify.splits import Around
from cactus_edge.ir.ops import Int64
from cactus_edge.verify.interval import Bounds
from cactus_edge.verify.lines import Single
from cactus_edge.verify.proof import Bytes

if TYPE_CHECKING:
    from torch import Tensor

    Line = tuple[Tensor, Tensor, Tensor, Tensor]

TRIED = 6
"""Splits of a row that are tried."""

SECOND = 0.25
"""What a split's better side counts beside its worse one."""


@dataclass(frozen=True, eq=False)
class _Ends:
    """Of each row [N, K]: bounds of what a rule reads; the rule's lower end at both, and its upper end at both."""

    low: Tensor
    high: Tensor
    first: Tensor
    last: Tensor
    first_above: Tensor
    last_above: Tensor

    def at(self, *places: Any) -> _Ends:
        """At some places."""
        return _Ends(*(getattr(self, f.name)[places] for f in fields(self)))


@dataclass(frozen=True, eq=False)
class _Facts:
    """Of each row, rule by rule from the last: its ends, and the intercepts of its lines below (above) as the less (larger) of
    a + b s and c + d s; bounds of the input."""

    ends: list[_Ends]
    below: list[Line]
    above: list[Line]
    input: tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class _Seen:
    """Coefficients on the way down, layer by layer: of what it writes, and of what it reads."""

    written: list[Tensor]
    read: list[Tensor]


class Local:
    """For the region whose values are bounded by `known` [*shape]; layers: `chain` of `value`."""

    def __init__(self, twin: Twin, layers: Sequence[Layer], known: Sequence[Bounds]) -> None:
        self.twin, self.torch, self.program = twin, twin.torch, twin.program
        self.matrices = condensed(twin, layers, known)
        self.size = self.matrices[-1].span.stop
        self._rules = [(m, m.rule, m.lines) for m in self.matrices if m.rule is not None and m.lines is not None]
        # Of each rule's kept elements in a sheet.
        self._sheet = np.concatenate(
            [np.zeros(0, np.int64), *(twin.spans[r.out].start + m.kept for m, r, _ in self._rules)]
        )

    def search(
        self,
        rows: Float64,
        known: Sequence[Bounds],
        index: Int64,
        starts: Bytes,
        *,
        steps: int,
        rate: float,
        need: Float64,
        places: Places,
        start: Mapping[int, Float64],
        stop: Callable[[], bool] = lambda: False,
    ) -> Searched:
        """As `Twin.search`; known: bounds by value of some parts, index int64 [N]: the part of each row."""
        torch, twin = self.torch, self.twin
        facts = self._facts(known, index)
        a, wanted = twin.tensor(rows.reshape(len(rows), -1)), twin.tensor(need)
        given = twin.tensor(starts[..., self._sheet]) / STEEPEST
        mu, on = self._begun(len(rows), places, start)
        with torch.no_grad():
            tried = torch.stack([self._down(a, facts, given[:, i], mu)[0] for i in range(given.shape[1])])
            slopes = given[torch.arange(len(rows), device=twin.device), tried.argmax(0)]
            _, seen = self._down(a, facts, slopes, torch.zeros_like(mu))
            scale = torch.ones_like(mu)
            for (matrix, _, _), written in zip(self._rules, seen.written[1:], strict=True):
                if len(matrix.kept):
                    scale[:, matrix.span] = written.abs().amax(1, keepdim=True).clamp(min=1e-20)
            # Slopes below, slopes above, multipliers as parts of `scale`: [3, N, T].
            theta = torch.cat([slopes.transpose(0, 1), (mu / scale)[None]])
            most = torch.cat([torch.ones_like(theta[:2]), torch.where(on, theta[2:].abs().clamp(min=1), 0.0)])
            least = torch.cat([torch.zeros_like(theta[:2]), -most[2:]])
            rates = twin.tensor(np.array([rate, rate, rate * MULTIPLIERS]))[:, None, None]
            best, kept = torch.full_like(tried[0], -torch.inf), theta.clone()
            first, second = torch.zeros_like(theta), torch.zeros_like(theta)
            for i in range(steps + 1):
                now, seen = self._down(a, facts, theta[:2].transpose(0, 1), theta[2] * scale)
                better = now > best
                best = torch.maximum(best, now)
                kept[:, better] = theta[:, better]
                if i == steps or bool((best > wanted).all()) or stop():
                    break
                slope = self._up(seen, facts, theta, scale)
                first.mul_(BETAS[0]).add_(slope, alpha=1 - BETAS[0])
                second.mul_(BETAS[1]).addcmul_(slope, slope, value=1 - BETAS[1])
                size = (second / (1 - BETAS[1] ** (i + 1))).sqrt_().add_(1e-12)
                theta.addcdiv_(first * rates, size, value=DECAY**i / (1 - BETAS[0] ** (i + 1)))
                theta = torch.minimum(torch.maximum(theta, least), most)
            final, mu = (kept[:2].transpose(0, 1) * STEEPEST).round(), kept[2] * scale
            best, seen = self._down(a, facts, final / STEEPEST, mu)
            cuts = self._cuts(a, facts, final / STEEPEST, mu, best, seen, wanted)
        return self._searched(best, final, mu, seen, starts[:, 0], places, cuts)

    def _facts(self, known: Sequence[Bounds], index: Int64) -> _Facts:
        """Of each row: what its part says."""

        def taken(array: Int64, matrix: Matrix) -> Tensor:
            return self.twin.tensor(array.reshape(len(array), -1)[:, matrix.kept][index])

        low, high = (taken(b, self.matrices[-1]) for b in known[self.program.input])
        facts = _Facts([], [], [], (low, high))
        for matrix, step, constants in self._rules:
            rule = self.twin.exact.lines[step.out]
            assert isinstance(rule, Single)
            bounds = known[step.args[0]]
            lowest = [taken(rule.lowest(b), matrix) for b in bounds]
            highest = lowest if rule.highest is rule.lowest else [taken(rule.highest(b), matrix) for b in bounds]
            facts.ends.append(_Ends(*(taken(b, matrix) for b in bounds), *lowest, *highest))
            below, above = self._lines(constants, facts.ends[-1])
            facts.below.append(below)
            facts.above.append(above)
        return facts

    def _lines(self, rule: Rule, ends: _Ends) -> tuple[Line, Line]:
        """The intercepts of `verify.lines` for slopes of at most the rule's own: of its steps the first decides below, the last
        one above."""
        where, most = self.torch.where, rule.most + 1 - rule.m
        at_high, at_low = -rule.m * ends.high, -rule.m * ends.low
        some, some_above = ends.last > ends.first, ends.last_above > ends.first_above
        below = (
            where(some, ends.first, ends.last),
            where(some, -(ends.first + most), at_high),
            ends.last,
            at_high,
        )
        above = (
            where(some_above, ends.last_above, ends.first_above),
            where(some_above, -(ends.last_above + rule.least), at_low),
            ends.first_above,
            at_low,
        )
        return below, above

    def _down(self, a: Tensor, facts: _Facts, slopes: Tensor, mu: Tensor) -> tuple[Tensor, _Seen]:
        """(lower bounds [N] on <a, value>, the coefficients on the way); slopes [N, 2, T], mu [N, T]."""
        torch, seen = self.torch, _Seen([a], [])
        bound = torch.zeros(len(a), device=self.twin.device)
        for i, matrix in enumerate(self.matrices):
            bound = bound + a @ matrix.bias
            a = a @ matrix.weight
            seen.read.append(a)
            up, down = a.clamp(min=0), a.clamp(max=0)
            if matrix.lines is None:
                low, high = facts.input
                bound = bound + (up * low + down * high).sum(1)
                break
            s, t, mine, ends = slopes[:, 0, matrix.span], slopes[:, 1, matrix.span], mu[:, matrix.span], facts.ends[i]
            under, over = torch.minimum(*_two(facts.below[i], s)), torch.maximum(*_two(facts.above[i], t))
            bound = bound + (up * under + down * over - torch.maximum(mine * ends.low, mine * ends.high)).sum(1)
            a = (up * s + down * t) * matrix.lines.m + mine
            seen.written.append(a)
        return bound, seen

    def _up(self, seen: _Seen, facts: _Facts, theta: Tensor, scale: Tensor) -> Tensor:
        """The gradient of the bound, [3, N, T] as theta, from what `_down` has seen."""
        torch = self.torch
        found: Tensor = torch.zeros_like(theta)
        x = torch.where(seen.read[-1] > 0, *facts.input)
        for i in reversed(range(len(self._rules))):
            (matrix, _, rule), ends, a = self._rules[i], facts.ends[i], seen.read[i]
            accumulator = x @ self.matrices[i + 1].weight.T + self.matrices[i + 1].bias
            s, t, mine = theta[:, :, matrix.span]
            below, above = facts.below[i], facts.above[i]
            under, over, moved = _two(below, s), _two(above, t), rule.m * accumulator
            found[0, :, matrix.span] = a.clamp(min=0) * (moved + torch.where(under[0] < under[1], below[1], below[3]))
            found[1, :, matrix.span] = a.clamp(max=0) * (moved + torch.where(over[0] > over[1], above[1], above[3]))
            # At 0 a multiplier gains nothing where the point keeps the accumulator's bounds.
            inside = torch.minimum(torch.maximum(accumulator, ends.low), ends.high)
            paid = torch.where(mine > 0, ends.high, torch.where(mine < 0, ends.low, inside))
            found[2, :, matrix.span] = (accumulator - paid) * scale[:, matrix.span]
            x = torch.where(a > 0, s * moved + torch.minimum(*under), t * moved + torch.maximum(*over))
        return found

    def _cuts(
        self, a: Tensor, facts: _Facts, slopes: Tensor, mu: Tensor, bound: Tensor, seen: _Seen, wanted: Tensor
    ) -> list[tuple[int, int, int, float] | None]:
        """For each row the split (accumulators, element, level of their rule, gain) of those tried that gains most."""
        torch = self.torch
        open_ = torch.nonzero(bound <= wanted)[:, 0]
        if not len(open_) or not self.size:
            return [None] * len(a)
        scores, levels = [], []
        for i, (matrix, _, rule) in enumerate(self._rules):
            e, (s, t) = facts.ends[i].at(open_), (slopes[open_, side, matrix.span] for side in (0, 1))
            below, above = self._lines(rule, e)
            under, over = torch.minimum(*_two(below, s)), torch.maximum(*_two(above, t))
            around = Around(e.low, e.high, e.first, e.last_above, rule.m, rule.most, s, t, under, over)
            score, level = around.promise(seen.read[i][open_])
            scores.append(score)
            levels.append(level)
        score, level = torch.cat(scores, 1), torch.cat(levels, 1)
        top = score.topk(min(TRIED, self.size), 1)
        each = torch.arange(len(open_), device=self.twin.device)[:, None]
        row, column = (x.flatten() for x in torch.broadcast_tensors(each, top.indices))
        good = top.values.flatten() > 0
        row, column = row[good], column[good]
        if not len(row):
            return [None] * len(a)
        at = level[row, column]
        sides = torch.stack(
            [self._side(open_[row], column, at, above, a, facts, slopes, mu) for above in (False, True)]
        )
        gained = (torch.minimum(sides, wanted[open_[row]]) - bound[open_[row]]).clamp(min=0)
        gain = gained.amin(0) + SECOND * gained.amax(0)
        names = [(rule.args[0], int(k)) for matrix, rule, _ in self._rules for k in matrix.kept]
        best: dict[int, tuple[int, int, int, float]] = {}
        for n, c, k, g in zip(open_[row].tolist(), column.tolist(), at.tolist(), gain.tolist(), strict=True):
            if n not in best or g > best[n][3]:
                best[n] = (*names[c], int(k), g)
        return [best.get(n) for n in range(len(a))]

    def _side(
        self,
        row: Tensor,
        column: Tensor,
        level: Tensor,
        above: bool,
        a: Tensor,
        facts: _Facts,
        slopes: Tensor,
        mu: Tensor,
    ) -> Tensor:
        """[M]: the bound of the row where the rule's element is at `level` or above, or is not: with its slopes, or the element's
        own where that is now the rule's, or 0."""
        torch, each = self.torch, self.torch.arange(len(row), device=self.twin.device)
        ends, below, uppers = [], [], []
        slopes, settled = slopes[row], slopes[row].clone()
        for i, (matrix, _, rule) in enumerate(self._rules):
            mine = facts.ends[i].at(row)
            here = (column >= matrix.span.start) & (column < matrix.span.stop)
            m, k = each[here], column[here] - matrix.span.start
            knee = ((level[here] + rule.most[k]) / rule.m[k]).ceil()
            if above:
                mine.low[m, k], mine.first[m, k] = torch.maximum(mine.low[m, k], knee), level[here]
                mine.first_above[m, k] = torch.maximum(mine.first_above[m, k], level[here])
            else:
                mine.high[m, k], mine.last[m, k] = torch.minimum(mine.high[m, k], knee - 1), level[here] - 1
                mine.last_above[m, k] = torch.minimum(mine.last_above[m, k], level[here])
            flat = mine.last[m, k] <= mine.first[m, k]
            settled[m, :, column[here]] = torch.where(flat, 0.0, 1.0)[:, None]
            ends.append(mine)
            lines = self._lines(rule, mine)
            below.append(lines[0])
            uppers.append(lines[1])
        inside = _Facts(ends, below, uppers, (facts.input[0][row], facts.input[1][row]))
        tried = [self._down(a[row], inside, x, mu[row])[0] for x in (slopes, settled)]
        best: Tensor = torch.stack(tried).amax(0)
        return best

    def _begun(self, count: int, places: Places, start: Mapping[int, Float64]) -> tuple[Tensor, Tensor]:
        """(multipliers [N, T] to begin with, where they may be)."""
        mu, on = np.zeros((count, self.size), np.float32), np.zeros((count, self.size), np.bool_)
        for matrix, rule, _ in self._rules:
            if rule.args[0] in places:
                row, element = places[rule.args[0]]
                column = matrix.span.start + np.searchsorted(matrix.kept, element)
                mu[row, column], on[row, column] = start[rule.args[0]], True
        return self.twin.tensor(mu), self.torch.from_numpy(on).to(self.twin.device)

    def _searched(
        self,
        bound: Tensor,
        slopes: Tensor,
        mu: Tensor,
        seen: _Seen,
        sheets: Bytes,
        places: Places,
        cuts: list[tuple[int, int, int, float] | None],
    ) -> Searched:
        """Everything where it is in the whole program; sheets [N, 2, S]: of what is not kept."""
        sheets, found = sheets.copy(), mu.double().cpu().numpy()
        sheets[:, :, self._sheet] = slopes.cpu().numpy().astype(np.uint8)
        multipliers: dict[int, Float64] = {}
        coefficients: dict[int, npt.NDArray[np.float32]] = {}

        def spread(value: int, kept: Int64, a: Tensor) -> None:
            shape = self.program.values[value].shape
            whole = np.zeros((len(a), prod(shape)), np.float32)
            whole[:, kept] = a.cpu().numpy()
            coefficients[value] = whole.reshape(-1, *shape)

        spread(self.program.input, self.matrices[-1].kept, seen.read[-1])
        for i, (matrix, rule, _) in enumerate(self._rules):
            spread(rule.out, matrix.kept, seen.read[i])
            if rule.args[0] in places:
                row, element = places[rule.args[0]]
                multipliers[rule.args[0]] = found[row, matrix.span.start + np.searchsorted(matrix.kept, element)]
        return Searched(bound.double().cpu().numpy(), sheets, multipliers, coefficients, cuts)


def _two(line: Line, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Both linear functions of the slope."""
    a, b, c, d = line
    return a + b * slope, c + d * slope
