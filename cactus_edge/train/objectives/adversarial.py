"""Objectives that bound nothing: cross-entropy of the samples as they are, and at adversarial points.

Sources: Madry et al. 2018, arXiv 1706.06083 (adversarial training); Goodfellow et al. 2015, arXiv 1412.6572 (its mix with the clean
loss). With robust_weight = 1, `attack_random_start = false` and `attack_in_domain = false` this is what AdverFine trains by
(Thorsteinsson et al. 2024, arXiv 2403.09441).
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F

from cactus_edge.train.attacks import Attack, climb
from cactus_edge.train.folded import Folded
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step, attacked_logits


def _clean(member: Member, batch: Batch, _: Step) -> MemberLoss:
    return MemberLoss(F.cross_entropy(member.logits(batch.x), batch.y), None)


STANDARD = Loss(_clean)
"""CE(clean): radius and robust weight have no part in it."""


def adversarial(attack: Attack) -> Loss:
    """(1 - lambda) * CE(clean) + lambda * CE(x'), x' the attack's points on the full network, for every member."""

    def aim(net: Folded, batch: Batch, step: Step) -> Batch:
        if step.eps == 0 or step.robust_weight == 0:
            return replace(batch, points=batch.x)
        return replace(batch, points=climb(net, batch.region, batch.y, attack, seed=batch.seed, origin=batch.x))

    def of(member: Member, batch: Batch, step: Step) -> MemberLoss:
        weight = step.robust_weight
        if weight == 0:
            return _clean(member, batch, step)
        loss = weight * F.cross_entropy(attacked_logits(member, batch), batch.y)
        if weight < 1:
            loss = loss + (1 - weight) * F.cross_entropy(member.logits(batch.x), batch.y)
        return MemberLoss(loss, None)

    return Loss(of, aim)
