"""Consistency: the network says of augmented versions of a sample what it says of the sample.

L + weight * (KL(p || M) + KL(p_1 || M) + KL(p_2 || M)) / 3 with the softmaxes p of a sample, p_1 and p_2 of its versions, and M
their mean: three times the Jensen-Shannon divergence, which is 0 where all three are equal. Source: Hendrycks et al. 2020, arXiv
1912.02781 (AugMix, equation 2, with a weight of 12). Versions meet the batch normalisation of the clean batch, as all else here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.train.folded import forward
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step

LEAST = 1e-7
"""Of a mean probability whose logarithm is taken."""


def consistent(loss: Loss, weight: float) -> Loss:
    """The objective + weight * the divergence between what a member says of the batch's samples and of their views."""

    def of(member: Member, batch: Batch, step: Step) -> MemberLoss:
        found = loss.of(member, batch, step)
        logits = [member.logits(batch.x), *(forward(member.net, view) for view in batch.views)]
        return replace(found, loss=found.loss + weight * divergence(logits))

    return replace(loss, of=of)


def divergence(logits: Sequence[Tensor]) -> Tensor:
    """Mean over samples and over `logits` [N, classes] each of KL(softmax || mean of all softmaxes), a scalar."""
    shares = [z.softmax(1) for z in logits]
    mean = torch.stack(shares).mean(0).clamp(LEAST, 1).log()
    return torch.stack([F.kl_div(mean, p, reduction="batchmean") for p in shares]).mean()
