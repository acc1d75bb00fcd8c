"""Projected gradient descent inside the l-inf ball: the float network's empirical counterpart of the bounds."""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.train.bounds import Radius, ball, over_channels
from cactus_edge.train.folded import Folded, detach, forward


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

    The step a is 2.5 * eps / steps. Samples that were broken once are kept. Source: Madry et al. 2018, arXiv 1706.06083.
    """
    region = ball(x, eps, domain)
    net = detach(net)
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
