"""SABR: the certified loss over a small box around an adversarial point instead of the whole region.

Source: Mueller et al., ICLR 2023, arXiv 2210.04871, section 3: x' maximises the cross-entropy over the region shrunk by 1 - ratio
(eq. (6)); bounds are propagated from the box of radius ratio * eps around it, which stays inside the region. A ratio of 1 is
IBP, one of 0 adversarial training (Madry et al. 2018): a box without radius has the loss of its centre.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.train.bounds import Box
from cactus_edge.train.folded import Folded, detach, forward

STEPS = 8
"""Steps of the attack, of 2.5 / STEPS of the shrunk radius each; the paper's number."""


def small_box(net: Folded, region: Box, y: Tensor, ratio: float, *, steps: int = STEPS) -> Box:
    """The box of radius ratio * r around the attack's point x', |x' - centre| <= (1 - ratio) * r elementwise; [N, C, H, W].

    The attack begins at a random point, drawn from torch's global generator.
    """
    if ratio == 1:
        return region
    net, reach = detach(net), (1 - ratio) * region.radius
    shift = (2 * torch.rand_like(region.centre) - 1) * reach
    for _ in range(steps):
        point = (region.centre + shift).requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(forward(net, point), y, reduction="sum"), point)
        shift = torch.minimum(torch.maximum(shift + 2.5 / steps * reach * gradient.sign(), -reach), reach)
    return Box(region.centre + shift, ratio * region.radius)
