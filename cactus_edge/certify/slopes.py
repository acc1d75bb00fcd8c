"""Slopes and multipliers of linear bounds by gradient ascent: `verify.relax` once more, in floats and differentiable.

Untrusted search. For rows <a, v> over boxes it maximises the lower bound over

* the slopes of the lines below and above each rule, s = k / 128 in [0, 1] (alpha-CROWN: Xu et al., ICLR 2021, eq. 9), and
* a multiplier mu on every accumulator where the region was split, which costs max(mu l, mu u) over its bounds [l, u]
  (beta-CROWN: Wang et al., NeurIPS 2021, eq. 8; without a sign, since both ends of the bounds are constraints),

both for each row by itself. What comes out is rounded to the hints of the exact checker, which alone decides what they are
worth. Intercepts are functions of the slope (`verify.lines`), so a rounded slope still makes a line, a slightly different one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.adjoint import adjoint
from cactus_edge.errors import InstallError
from cactus_edge.ir.atoms import LEAST, Affine, Gather, Max, Step
from cactus_edge.ir.linear import pad_image, windows
from cactus_edge.ir.ops import Int64
from cactus_edge.verify.interval import Bounds
from cactus_edge.verify.lines import ONE, Lines, Pair, Single
from cactus_edge.verify.proof import Bytes
from cactus_edge.verify.relax import Relaxation

if TYPE_CHECKING:
    from torch import Tensor

STEEPEST = 1 << ONE
"""k of the rule's own slope."""

MULTIPLIERS, DECAY, BETAS = 2.5, 0.98, (0.9, 0.99)
"""Of Adam: how much larger the steps of multipliers are, as parts of the largest coefficient of their accumulators, which they never
exceed by themselves (much larger ones leave the checker's range); the factor by which all steps shrink; its averages."""

ONES = 1000
"""Above every code: where the elements of a `Gather`'s arguments are counted from, so that an inserted constant shows."""

Float64 = npt.NDArray[np.float64]

Places = Mapping[int, tuple[Int64, Int64]]
"""Accumulator -> (row [T], element [T]): where multipliers may be, no place twice."""


@dataclass(frozen=True, eq=False)
class Searched:
    """The best that was found for N rows: bound float64 [N]; sheets uint8 [N, 2, S]; multipliers by accumulator, one for each
    place; seen: the coefficients of values in the bound, float32 [N, *shape]. cuts: splits (accumulators, element, level of
    their rule, gain) that were tried and gain most for a row, where any were."""

    bound: Float64
    sheets: Bytes
    multipliers: dict[int, Float64]
    seen: dict[int, npt.NDArray[np.float32]]
    cuts: Sequence[tuple[int, int, int, float] | None] = ()


class Facts:
    """Bounds of N boxes, and what the lines need of them, as tensors [N, 1, *shape]."""

    def __init__(self, twin: Twin, known: Sequence[Bounds], index: Int64) -> None:
        """known: bounds by value of some boxes; index int64 [N]: which of them, in which order and how often."""
        self._twin, self._known, self._index = twin, known, index
        self._bounds: dict[int, tuple[Tensor, Tensor]] = {}
        self._ends: dict[int, tuple[Tensor, ...]] = {}
        self._taps: dict[int, tuple[Tensor, Tensor]] = {}

    def bounds(self, value: int) -> tuple[Tensor, Tensor]:
        """Of one value."""
        if value not in self._bounds:
            low, high = self._known[value]
            self._bounds[value] = self._tensor(low), self._tensor(high)
        return self._bounds[value]

    def ends(self, step: Step) -> tuple[Tensor, ...]:
        """(least, most) of the rule's lower end, then of its upper end, over its argument's bounds."""
        if step.out not in self._ends:
            rule = self._twin.exact.lines[step.out]
            assert isinstance(rule, Single)
            self._ends[step.out] = tuple(
                self._tensor(end(b)) for end in (rule.lowest, rule.highest) for b in self._known[step.args[0]]
            )
        return self._ends[step.out]

    def taps(self, step: Step, window: Max) -> tuple[Tensor, Tensor]:
        """(chosen, certain) [N, 1, *shape]: the flat source of the tap that counts, and whether no other can pass it."""
        if step.out not in self._taps:
            low, high = self._known[step.args[0]]
            p, (h, w, c) = window.padding, low.shape[1:]
            flat = pad_image(np.arange(h * w * c).reshape(1, h, w, c), p)
            lows, highs, sources = (
                windows(image, window.kernel, window.stride).transpose(0, 1, 2, 5, 3, 4)
                for image in (pad_image(low, p, LEAST), pad_image(high, p, LEAST), flat)
            )
            lows, highs, sources = (x.reshape(*x.shape[:4], -1) for x in (lows, highs, sources))
            first = lows.argmax(-1)[..., None]
            others = np.where(np.arange(lows.shape[-1]) == first, LEAST, highs).max(-1)
            certain = np.take_along_axis(lows, first, -1)[..., 0] >= others
            chosen = np.take_along_axis(np.broadcast_to(sources, lows.shape), first, -1)[..., 0]
            torch, device = self._twin.torch, self._twin.device
            where, sure = (torch.from_numpy(x[self._index]).to(device)[:, None] for x in (chosen, certain))
            self._taps[step.out] = where, sure
        return self._taps[step.out]

    def _tensor(self, array: Int64) -> Tensor:
        return self._twin.tensor(array[self._index])[:, None]


class Twin:
    """The float twin of one `Relaxation`."""

    def __init__(self, exact: Relaxation, spans: Mapping[int, slice], device: str = "cpu") -> None:
        """spans: where each rule's value lies in a sheet (`verify.proof.sheet_values`)."""
        try:
            import torch
        except ImportError as error:
            raise InstallError(
                "slopes are searched for with torch, which is not installed", hint="pip install torch"
            ) from error

        self.torch, self.exact, self.spans, self.device = torch, exact, spans, device
        self.program = exact.program
        self.adjoints = {
            s.out: adjoint(s.atom.linear, device)
            for s in self.program.steps
            if isinstance(s.atom, Affine) and s.out in exact.exact
        }
        self._moves = {s.out: self._sources(s) for s in self.program.steps if isinstance(s.atom, Gather)}

    def tensor(self, array: npt.NDArray[Any]) -> Tensor:
        """As float32 on the device."""
        return self.torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(self.device)

    def _slope(self, rule: Lines, argument: int) -> Tensor:
        p = rule.p[argument]
        return self.tensor(np.atleast_1d(p) / 2.0**rule.q)

    def _intercepts(self, step: Step, s: Tensor, t: Tensor, facts: Facts) -> tuple[Tensor, Tensor]:
        """Of the lines of slope s below a rule and t above it, in steps of its result (`verify.lines`)."""
        torch, rule = self.torch, self.exact.lines[step.out]
        if isinstance(rule, Single):
            low, high = facts.bounds(step.args[0])
            first, last, first_above, last_above = facts.ends(step)
            m = self._slope(rule, 0)
            most = self.tensor((rule.most + (1 << rule.q) - rule.p[0]) / 2.0**rule.q)
            least = self.tensor(rule.least / 2.0**rule.q)
            steps = torch.minimum(first * (1 - s), (last - 1) * (1 - s)) - s * most
            at_high = last - s * m * high
            below = torch.where(last > first, torch.minimum(steps, at_high), at_high)
            steps = torch.maximum((first_above + 1) * (1 - t), last_above * (1 - t)) - t * least
            at_low = first_above - t * m * low
            return below, torch.where(last_above > first_above, torch.maximum(steps, at_low), at_low)
        assert isinstance(rule, Pair)
        (x1, x2), (y1, y2) = ([self._slope(rule, i) * b for b in facts.bounds(a)] for i, a in enumerate(step.args))
        low, high = torch.minimum(x1, x2) + torch.minimum(y1, y2), torch.maximum(x1, x2) + torch.maximum(y1, y2)
        lo, hi, under, over = rule.lo, rule.hi, rule.under / 2.0**rule.q, rule.over / 2.0**rule.q

        def at(slope: Tensor, error: float, knee: float) -> Tensor:
            points = torch.stack([low, high, torch.clamp(torch.full_like(low, knee), low, high)])
            result: Tensor = (points + error).clamp(lo, hi) - slope * points
            return result

        return at(s, under, lo - under).amin(0), at(t, over, hi - over).amax(0)

    def lower(
        self,
        value: int,
        rows: Tensor,
        facts: Facts,
        slopes: Tensor,
        multipliers: Mapping[int, tuple[Tensor, Tensor, Tensor]] | None = None,
        seen: dict[int, Tensor] | None = None,
    ) -> Tensor:
        """Lower bounds [N, R] on <rows, value>, rows [N, R, *shape]; slopes [N, R or 1, 2, S] in [0, 1].

        multipliers: accumulator -> (row [T], element [T], mu [T]) for R = 1. seen: is filled with the coefficients of every value.
        """
        torch = self.torch
        pending = {value: rows}
        bound: Tensor = torch.zeros(rows.shape[:2], device=self.device)

        def give(to: int, a: Tensor) -> None:
            pending[to] = pending[to] + a if to in pending else a

        def pay(a: Tensor, what: int) -> Tensor:
            low, high = facts.bounds(what)
            least: Tensor = torch.where(a > 0, a * low, a * high).flatten(2).sum(2)
            return least

        for step in reversed(self.program.steps):
            if step.out not in pending:
                continue
            a = pending.pop(step.out)
            if multipliers and step.out in multipliers:
                row, element, mu = multipliers[step.out]
                low, high = (b.flatten(2)[row, 0, element] for b in facts.bounds(step.out))
                flat = a.flatten(2)
                a = flat.index_put((row, torch.zeros_like(row), element), mu, accumulate=True).reshape(a.shape)
                price = torch.maximum(mu * low, mu * high)
                bound = bound.index_put((row, torch.zeros_like(row)), -price, accumulate=True)
            if seen is not None:
                seen[step.out] = a.detach()
            match step.atom:
                case Affine(_, offset, bias) if step.out in self.adjoints:
                    below = self.adjoints[step.out](a)
                    bound = bound + (a * self.tensor(bias)).flatten(2).sum(2) + offset * below.flatten(2).sum(2)
                    give(step.args[0], below)
                case Gather():
                    constants, sources = self._moves[step.out]
                    flat = a.flatten(2)
                    bound = bound + flat @ constants
                    for argument, (places, elements) in zip(step.args, sources, strict=True):
                        shape = self.program.values[argument].shape
                        moved = torch.zeros(*a.shape[:2], prod(shape), device=self.device)
                        moved = moved.index_add(2, elements, flat[:, :, places])
                        give(argument, moved.reshape(*a.shape[:2], *shape))
                case Max() as window:
                    chosen, certain = facts.taps(step, window)
                    at_tap = torch.where((a > 0) | certain, a, 0.0)
                    bound = bound + ((a - at_tap) * facts.bounds(step.out)[1]).flatten(2).sum(2)
                    shape = self.program.values[step.args[0]].shape
                    moved = torch.zeros(*a.shape[:2], prod(shape), device=self.device)
                    where = chosen.flatten(2).expand(*a.shape[:2], -1)
                    give(step.args[0], moved.scatter_add(2, where, at_tap.flatten(2)).reshape(*a.shape[:2], *shape))
                case _ if step.out in self.spans:
                    k = slopes[..., self.spans[step.out]].reshape(
                        *slopes.shape[:3], *self.program.values[step.out].shape
                    )
                    s, t = k[:, :, 0], k[:, :, 1]
                    under, over = self._intercepts(step, s, t, facts)
                    up = a > 0
                    bound = bound + (a * torch.where(up, under, over)).flatten(2).sum(2)
                    sloped = a * torch.where(up, s, t)
                    for i, argument in enumerate(step.args):
                        give(argument, sloped * self._slope(self.exact.lines[step.out], i))
                case _:
                    bound = bound + pay(a, step.out)
        for rest, a in pending.items():
            if seen is not None:
                seen[rest] = a.detach()
            bound = bound + pay(a, rest)
        return bound

    def search(
        self,
        value: int,
        rows: Float64,
        facts: Facts,
        starts: Bytes,
        *,
        steps: int,
        rate: float,
        need: Float64 | None = None,
        places: Places | None = None,
        start: Mapping[int, Float64] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Searched:
        """`steps` steps of Adam from the best of each row's `starts` [N, K, 2, S] and the multipliers `start` at `places`;
        rows [N, *shape], one per box.

        rate: the first step of a slope. need [N]: what a row has to exceed; the search ends where all do. stop: asked between steps.
        """
        torch = self.torch
        a = self.tensor(rows)[:, None]
        given = self.tensor(starts) / STEEPEST
        index = {
            v: (torch.from_numpy(row).to(self.device), torch.from_numpy(element).to(self.device))
            for v, (row, element) in (places or {}).items()
        }
        begun = {
            v: self.tensor(start[v]) if start is not None else torch.zeros(len(r), device=self.device)
            for v, (r, _) in index.items()
        }
        seen: dict[int, Tensor] = {}
        with torch.no_grad():
            mus = {v: (*index[v], mu) for v, mu in begun.items()}
            tried = torch.stack(
                [self.lower(value, a, facts, given[:, i, None], mus)[:, 0] for i in range(given.shape[1])]
            )
            slopes = given[torch.arange(len(a), device=self.device), tried.argmax(0)][:, None]
            self.lower(value, a, facts, slopes, None, seen)
        index = {v: at for v, at in index.items() if v in seen}
        scale = {v: seen[v].flatten(1).abs().amax(1).clamp(min=1e-20)[row] for v, (row, _) in index.items()}
        theta = {v: (begun[v] / scale[v]).requires_grad_(True) for v in index}
        most = {v: t.detach().abs().clamp(min=1) for v, t in theta.items()}
        slopes.requires_grad_(True)
        groups = [{"params": [slopes], "lr": rate}]
        if theta:
            groups.append({"params": list(theta.values()), "lr": rate * MULTIPLIERS})
        adam = torch.optim.Adam(groups, betas=BETAS)
        best = torch.full_like(a.flatten(1)[:, :1], -torch.inf)
        best_slopes, best_theta = slopes.detach().clone(), {v: t.detach().clone() for v, t in theta.items()}
        wanted = None if need is None else self.tensor(need)[:, None]
        for i in range(steps + 1):
            bound = self.lower(value, a, facts, slopes, {v: (*index[v], theta[v] * scale[v]) for v in theta})
            now = bound.detach()
            better = (now > best)[:, 0]
            best = torch.maximum(best, now)
            best_slopes[better] = slopes.detach()[better]
            for v, t in theta.items():
                kept = better[index[v][0]]
                best_theta[v][kept] = t.detach()[kept]
            settled = wanted is not None and bool((best > wanted).all())
            if i == steps or settled or not bound.requires_grad or stop():
                break
            adam.zero_grad()
            (-(bound / a.flatten(2).abs().amax(2))).sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
            for group in adam.param_groups:
                group["lr"] *= DECAY
            with torch.no_grad():
                slopes.clamp_(0, 1)
                for v, t in theta.items():
                    t.copy_(torch.minimum(torch.maximum(t, -most[v]), most[v]))
        final = (best_slopes * STEEPEST).round()
        seen = {}
        with torch.no_grad():
            pairs = {v: (*index[v], best_theta[v] * scale[v]) for v in theta}
            best = self.lower(value, a, facts, final / STEEPEST, pairs, seen)
        return Searched(
            best[:, 0].double().cpu().numpy(),
            final[:, 0].to(torch.uint8).cpu().numpy(),
            {v: (best_theta[v] * scale[v]).double().cpu().numpy() for v in theta},
            {v: c[:, 0].cpu().numpy() for v, c in seen.items()},
        )

    def _sources(self, step: Step) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """(constants [out], per argument: the places in the result that it fills, and with which of its elements)."""
        assert isinstance(step.atom, Gather)
        shapes = [self.program.values[a].shape for a in step.args]
        starts = np.cumsum([ONES, *(prod(s) for s in shapes)])
        counted = [np.arange(b, e).reshape(1, *s) for b, e, s in zip(starts, starts[1:], shapes, strict=False)]
        flat = step.atom.apply(*counted).ravel()
        constants = self.tensor(np.where(flat < ONES, flat, 0))
        sources = []
        for begin, end in pairwise(starts):
            places = np.flatnonzero((flat >= begin) & (flat < end))
            pair = (self.torch.from_numpy(x).to(self.device) for x in (places, flat[places] - begin))
            sources.append((next(pair), next(pair)))
        return constants, sources
