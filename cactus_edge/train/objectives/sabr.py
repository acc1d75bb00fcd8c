"""SABR: the certified loss over a small box around an adversarial point instead of the whole region.

Source: Mueller et al., ICLR 2023, arXiv 2210.04871, section 3: x' maximises the cross-entropy over the region shrunk by 1 - ratio
(eq. (6)); bounds are propagated from the box of radius ratio * eps around it, which stays inside the region. A ratio of 1 is
IBP, one of 0 adversarial training (Madry et al. 2018): a box without radius has the loss of its centre.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from cactus_edge.train.attacks import Attack, climb
from cactus_edge.train.bounds import Box
from cactus_edge.train.folded import Folded
from cactus_edge.train.objectives.ibp import IBP
from cactus_edge.train.objectives.loss import Batch, Loss, Step


def small_box(net: Folded, region: Box, y: Tensor, ratio: float, attack: Attack, *, seed: int = 0) -> Box:
    """The box of radius ratio * r around the attack's point x', |x' - centre| <= (1 - ratio) * r elementwise; [N, C, H, W]."""
    if ratio == 1:
        return region
    return Box(climb(net, region, y, attack, reach=1 - ratio, seed=seed), ratio * region.radius)


def small_boxes(ratio: float, attack: Attack) -> Loss:
    """IBP's loss, on the small box; without radius there is nothing to look for."""

    def aim(net: Folded, batch: Batch, step: Step) -> Batch:
        if step.eps == 0:
            return batch
        return replace(batch, region=small_box(net, batch.region, batch.y, ratio, attack, seed=batch.seed))

    return Loss(IBP.of, aim)
