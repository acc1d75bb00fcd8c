"""QA-IBP: interval bounds of the quantised network, with a hinge on the margins and a price on the width of the logits.

Source: Lechner et al., AAAI 2023, arXiv 2211.16187. The bounds run through int8 weights and activations when the member is the
quantised one, on the grids that the export writes (the paper's scales are powers of two).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cactus_edge.train.bounds import logits
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step


def hinge_and_width(hinge_weight: float, hinge_margin: float, width_weight: float) -> Loss:
    """CE(clean) + p * (f_r * hinge + f_b * width), p the progress of the ramp in [0, 1].

    hinge: mean over samples of sum over classes j != y of relu(margin - lower(logit_y - logit_j)) / classes; width: mean of
    upper - lower over all logits. lambda has no part in it.
    """

    def of(member: Member, batch: Batch, step: Step) -> MemberLoss:
        bounds, box = logits(member.net, batch.region, batch.y)
        others = torch.ones_like(bounds.margin).scatter(1, batch.y[:, None], 0.0)
        hinge = (F.relu(hinge_margin - bounds.margin) * others).mean()
        width = 2 * box.radius.mean()
        clean = F.cross_entropy(member.logits(batch.x), batch.y)
        return MemberLoss(clean + step.progress * (hinge_weight * hinge + width_weight * width), bounds)

    return Loss(of)
