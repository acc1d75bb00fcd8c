"""MTL-IBP, CC-IBP and Exp-IBP: losses between that of an adversarial point and that of the interval bounds.

Each joins the two by a mix alpha in [0, 1]: 0 is adversarial training, 1 is IBP, and the loss grows with alpha between them.
Source: De Palma et al., ICLR 2024, arXiv 2305.13991, sections 3 and 4 (expressive losses).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.train.attacks import Attack, climb
from cactus_edge.train.bounds import Bounds
from cactus_edge.train.folded import Folded
from cactus_edge.train.objectives.loss import Batch, Loss, Member, Robust, Step, attacked_logits, mixed

SMALLEST = 1e-12
"""Losses below it count as it in a geometric mean, whose slope at 0 is infinite."""


def mtl_ibp(mix: float, attack: Attack) -> Loss:
    """R = (1 - mix) * CE(adversarial logits) + mix * CE(worst-case logits)."""

    def robust(member: Member, bounds: Bounds, batch: Batch, _: Step) -> Tensor:
        attacked = F.cross_entropy(attacked_logits(member, batch), batch.y)
        return (1 - mix) * attacked + mix * F.cross_entropy(-bounds.margin, batch.y)

    return _attacking(robust, attack)


def cc_ibp(mix: float, attack: Attack) -> Loss:
    """R = CE(-[(1 - mix) * z + mix * lower(z)]), z_j = logit_y - logit_j at the adversarial point."""

    def robust(member: Member, bounds: Bounds, batch: Batch, _: Step) -> Tensor:
        logits = attacked_logits(member, batch)
        margin = logits.gather(1, batch.y[:, None]) - logits
        return F.cross_entropy(-((1 - mix) * margin + mix * bounds.margin), batch.y)

    return _attacking(robust, attack)


def exp_ibp(mix: float, attack: Attack) -> Loss:
    """R = mean over the samples of CE(adversarial logits)^(1 - mix) * CE(worst-case logits)^mix."""

    def robust(member: Member, bounds: Bounds, batch: Batch, _: Step) -> Tensor:
        attacked = F.cross_entropy(attacked_logits(member, batch), batch.y, reduction="none")
        bounded = F.cross_entropy(-bounds.margin, batch.y, reduction="none")
        return torch.exp((1 - mix) * _log(attacked) + mix * _log(bounded)).mean()

    return _attacking(robust, attack)


def _log(loss: Tensor) -> Tensor:
    return loss.clamp(min=SMALLEST).log()


def _attacking(robust: Robust, attack: Attack) -> Loss:
    def aim(net: Folded, batch: Batch, step: Step) -> Batch:
        if step.eps == 0:
            return replace(batch, points=batch.region.centre)
        return replace(batch, points=climb(net, batch.region, batch.y, attack, seed=batch.seed))

    return Loss(mixed(robust), aim)
