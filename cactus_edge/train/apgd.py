"""APGD: projected gradient ascent that sets its own steps, on the cross-entropy and on a loss that saturated logits do not stop.

Source: Croce and Hein, ICML 2020, arXiv 2003.01690: algorithm 1 with its constants, and the difference of logits ratio (eq. (6)).
An attack, so no bound: it finds what it finds.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.train.bounds import Box, Radius, ball, over_channels, visible
from cactus_edge.train.folded import Folded, detach, forward

Score = Callable[[Tensor, Tensor], Tensor]
"""What is climbed, [N], from logits [N, classes] and labels [N]."""

MOMENTUM = 0.75
"""alpha: the part of the new direction."""

RISING = 0.75
"""rho: the share of a window's steps that has to rise."""


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """-log softmax of the label."""
    return F.cross_entropy(logits, y, reduction="none")


def margin_ratio(logits: Tensor, y: Tensor) -> Tensor:
    """(max over j != y of z_j - z_y) / (z_1st - z_3rd), the order among all classes; with two classes the plain margin.

    The same for logits shifted or scaled as a whole, unlike the cross-entropy, whose gradient dies with large ones.
    """
    margin = _margin(logits, y)
    if logits.shape[1] < 3:
        return margin
    first = torch.topk(logits, 3).values
    return margin / (first[:, 0] - first[:, 2]).clamp(min=1e-12)


def checkpoints(steps: int) -> list[int]:
    """Steps after which step sizes are looked at again: 22 % of all, then windows shorter by 3 %, but of 6 % at least."""
    ends, window = [22], 22
    while ends[-1] < 100:
        window = max(window - 3, 6)
        ends.append(ends[-1] + window)
    return sorted({-(-end * steps // 100) for end in ends if end <= 100})


def apgd(
    net: Folded,
    x: Tensor,
    y: Tensor,
    eps: Radius,
    domain: tuple[Fraction, Fraction] | None,
    *,
    score: Score = cross_entropy,
    steps: int = 100,
    restarts: int = 1,
    seed: int = 0,
) -> Tensor:
    """Of the points [N, C, H, W] that climbing the score met in the balls around x, those of the largest margin
    max over j != y of z_j - z_y.

    Each restart begins at random points with steps of 2 eps. A sample's step is halved, and its climb goes on from the point of
    highest score, after a window in which too few steps rose, or in which, with the step as it was, nothing higher was met.
    """
    net = detach(net)
    region = visible(net, ball(x, eps, domain))
    reach = torch.zeros_like(x) + over_channels(eps, x)
    generator = torch.Generator().manual_seed(seed)
    best, most = x, torch.full((len(y),), -torch.inf).to(x)
    for _ in range(restarts):
        start = region.lower + 2 * region.radius * torch.rand(x.shape, generator=generator).to(x)
        point, margin = _Climb(net, y, score, region, reach, start).finish(steps)
        best, most = _where(margin > most, (point, margin), (best, most))
    return best


class _Climb:
    """One restart. point, value, slope: where it stands, its score [N] and the sign of its gradient; top: the same of the highest
    score; best: point and margin of the largest margin."""

    def __init__(self, net: Folded, y: Tensor, score: Score, region: Box, reach: Tensor, start: Tensor) -> None:
        self._net, self._y, self._score, self._region, self._reach = net, y, score, region, reach
        self._best = (start, torch.full((len(y),), -torch.inf).to(start))
        self._now = self._top = self._looked(start)

    def _looked(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        point = point.detach().requires_grad_()
        logits = forward(self._net, point)
        value = self._score(logits, self._y)
        (slope,) = torch.autograd.grad(value.sum(), point)
        point, logits = point.detach(), logits.detach()
        margin = _margin(logits, self._y)
        self._best = _where(margin > self._best[1], (point, margin), self._best)
        return point, value.detach(), slope.sign()

    def _inside(self, point: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(point, self._region.lower), self._region.upper)

    def finish(self, steps: int) -> tuple[Tensor, Tensor]:
        """The point of the largest margin after so many steps, and that margin [N]."""
        size = torch.full_like(self._now[1], 2.0)
        rises, halved, seen = torch.zeros_like(size), torch.ones_like(size, dtype=torch.bool), self._top[1]
        before, ends, begun = self._now[0], checkpoints(steps), 0
        for step in range(1, steps + 1):
            point, value, slope = self._now
            moved = self._inside(point + size[:, None, None, None] * self._reach * slope)
            if step > 1:
                moved = self._inside(point + MOMENTUM * (moved - point) + (1 - MOMENTUM) * (point - before))
            before, self._now = point, self._looked(moved)
            rises = rises + (self._now[1] > value)
            self._top = _where(self._now[1] > self._top[1], self._now, self._top)
            if step in ends:
                halved = (rises < RISING * (step - begun)) | (~halved & (self._top[1] <= seen))
                size = torch.where(halved, size / 2, size)
                self._now = _where(halved, self._top, self._now)
                seen, rises, begun = self._top[1], torch.zeros_like(rises), step
        return self._best


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    own = logits.gather(1, y[:, None])
    return logits.scatter(1, y[:, None], -torch.inf).amax(1) - own[:, 0]


_Tensors = TypeVar("_Tensors", bound=tuple[Tensor, ...])


def _where(chosen: Tensor, these: _Tensors, those: _Tensors) -> _Tensors:
    """By sample, chosen [N]."""
    picked = (torch.where(chosen.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(these, those, strict=True))
    return tuple(picked)  # type: ignore[return-value]
