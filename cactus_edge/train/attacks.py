"""Projected gradient descent inside the l-inf ball: the float network's empirical counterpart of the bounds, and what training climbs."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.train.bounds import Box, Radius, ball, box, over_channels, visible
from cactus_edge.train.folded import Folded, detach, forward
from cactus_edge.train.models import short


def pgd(
    net: Folded,
    x: Tensor,
    y: Tensor,
    eps: Radius,
    domain: tuple[Fraction, Fraction],
    *,
    steps: int = 20,
    restarts: int = 1,
    seed: int = 0,
) -> Tensor:
    """Samples [N, C, H, W] in the ball around x that maximise the cross-entropy: x' = P(x + a * sign(grad)), random start.

    The step a is 2.5 * eps / steps. Samples that were broken once are kept. Points are those that the
    network sees (`visible`). Source: Madry et al. 2018, arXiv 1706.06083.
    """
    net = detach(net)
    region = visible(net, ball(x, eps, domain))
    generator = torch.Generator().manual_seed(seed)
    best = x.clone()
    broken = forward(net, x).argmax(1) != y
    for _ in range(restarts):
        z = region.lower + 2 * region.radius * torch.rand(x.shape, generator=generator)
        for _ in range(steps):
            z = z.detach().requires_grad_()
            (grad,) = torch.autograd.grad(F.cross_entropy(forward(net, z), y, reduction="sum"), z)
            step = 2.5 * over_channels(eps, x) / steps * grad.sign()
            z = torch.minimum(torch.maximum(z + step, region.lower), region.upper).detach()
        hit = (forward(net, z).argmax(1) != y) & ~broken
        best[hit] = z[hit]
        broken |= hit
    return best


@dataclass(frozen=True)
class Attack:
    """steps of `step` times the reach each, 0 for 2.5 / steps; restarts: random starts, the worst end counts.

    decay: what the step is multiplied by after half and again after seven eighths of the steps. random_start: whether an attack
    begins at random points, or else at the sample itself.
    """

    steps: int = 8
    restarts: int = 1
    step: float = 0.0
    decay: float = 1.0
    random_start: bool = True

    def sizes(self) -> list[float]:
        """Each step's size as a part of the reach."""
        first = self.step or 2.5 / max(self.steps, 1)
        return [first * self.decay ** ((2 * i >= self.steps) + (8 * i >= 7 * self.steps)) for i in range(self.steps)]


def climb(
    net: Folded,
    region: Box,
    y: Tensor,
    attack: Attack,
    *,
    reach: float = 1.0,
    seed: int = 0,
    origin: Tensor | None = None,
) -> Tensor:
    """Points x' [N, C, H, W] of high cross-entropy with |x' - centre| <= reach * radius elementwise: sign steps from random starts.

    A step moves each element by its size times reach * radius and is projected back. origin: where an attack without random
    starts begins, in the region (default: its centre). Gradients, of which the signs alone count, are found wholly in the type of
    `products_in`; the points are float32, and which end is the worst is judged there. Source: Madry et al. 2018, arXiv 1706.06083.
    """
    net, region = detach(net), visible(net, region)
    if origin is not None:
        origin = visible(net, box(origin, origin)).centre
    bound = reach * region.radius
    generator = torch.Generator().manual_seed(seed)
    best, worst = region.centre, torch.full((len(y),), -torch.inf, device=y.device)
    for _ in range(attack.restarts):
        if attack.random_start:
            start = torch.rand(region.centre.shape, generator=generator).to(region.centre)
            shift = (2 * start - 1) * bound
        else:
            shift = torch.zeros_like(bound) if origin is None else origin - region.centre
        for size in attack.sizes():
            point = short(region.centre + shift).requires_grad_()
            logits = forward(net, point).float()  # in bfloat16 a loss below 1/512 has no gradient
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), point)
            shift = torch.minimum(torch.maximum(shift + size * bound * gradient.sign(), -bound), bound)
        if attack.restarts == 1:
            return region.centre + shift
        with torch.no_grad():
            loss = F.cross_entropy(forward(net, region.centre + shift), y, reduction="none")
        best = torch.where((loss > worst)[:, None, None, None], region.centre + shift, best)
        worst = torch.maximum(worst, loss)
    return best
