"""CACTUS: the certified loss averaged over a set of compressed versions of the network.

L(theta) = 1/|C| * sum over theta' in C(theta) of (1 - lambda) * CE(theta'; x, y) + lambda * R(theta'; x, y, eps).
Source: Xu and Singh 2025, arXiv 2506.11992, eq. (8). A member's loss is that of any certified objective (`loss.Loss`). The
members are the transforms that the export applies: channel removal (`prune.take`), zeros among the weights (`sparsity.sparse`),
int8 rounding (`fakequant.fake_quantise`), all of them at once and, as the paper's proxy for rounding, an adversarial weight
perturbation of half a quantisation step (eq. (9)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cactus_edge.errors import InternalError
from cactus_edge.train.fakequant import Ceilings, fake_quantise, narrowed, weight_scales
from cactus_edge.train.folded import Folded, Pass, fold_batch
from cactus_edge.train.models import Layers
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step
from cactus_edge.train.prune import choose, importance, take
from cactus_edge.train.sparsity import Sparsity, sparse


def full(clean: Pass) -> Member:
    """The network as it is, from its clean pass over the batch."""
    return Member(clean.net, clean.logits)


@dataclass(frozen=True)
class Ships:
    """What compression makes of a network. Channels and weights are chosen anew at each step.

    widths: channels that stay of each hidden layer, the first by `rank`. sparsity: of what is left, None for none. clip: the int8
    range of an activation as a part of the batch's largest, in `levels` steps. bits: of the weights, as `narrowed` takes them.
    """

    widths: tuple[int, ...]
    rank: Callable[[Layers], tuple[Tensor, ...]] = importance
    sparsity: Sparsity | None = None
    clip: float = 1.0
    levels: int = 255
    bits: tuple[int, ...] = (8,)

    def taken(self, layers: Layers) -> Layers:
        """Without the channels that go."""
        return take(layers, choose(layers, self.widths, self.rank(layers)))

    def thinned(self, layers: Layers) -> Layers:
        """With zeros for the weights that go."""
        return layers if self.sparsity is None else sparse(layers, self.sparsity)

    def rounded(self, clean: Pass) -> Member:
        """In fake integers."""
        return quantised(narrowed(clean.net, self.bits), tuple(self.clip * peak for peak in clean.peaks), self.levels)


def quantised(net: Folded, ceilings: Ceilings, levels: int = 255) -> Member:
    """The folded network in fake int8."""
    return Member(fake_quantise(net, ceilings, levels))


def perturbed(net: Folded, loss: Loss, batch: Batch, step: Step) -> Member:
    """The folded network at the weights W + eta * sign(dL/dW): one ascent step in the l-inf ball of half a step.

    eta is half the channel's (tensor's) quantisation step, so the ball holds every rounding, and 0 for a weight of 0, which
    rounding leaves alone. One step approximates the maximiser, hence this is a reason to train so, not a bound.
    """
    probe = tuple(replace(a, weight=a.weight.detach().requires_grad_(), bias=a.bias.detach()) for a in net)
    gradients = torch.autograd.grad(loss.of(Member(probe), batch, step).loss, [a.weight for a in probe])
    moved = []
    for affine, gradient in zip(net, gradients, strict=True):
        scales = weight_scales(affine.weight, per_channel=not affine.layer.dense, bits=affine.weight_bits)
        eta = scales[:, None, None, None] / 2
        moved.append(replace(affine, weight=affine.weight + eta * gradient.sign() * (affine.weight != 0)))
    return Member(tuple(moved))


def members(
    layers: Layers,
    batch: Batch,
    names: tuple[str, ...],
    loss: Loss,
    step: Step,
    ships: Ships,
) -> tuple[dict[str, MemberLoss], Pass, Batch]:
    """Each named member's loss, the full network's clean pass (computed in any case), and the batch that `loss` aimed at.

    Smaller and sparser members have their own batch statistics.
    """
    clean = fold_batch(layers, batch.x)
    batch = loss.aim(clean.net, batch, step)
    found: dict[str, MemberLoss] = {}
    for name in names:
        match name:
            case "full":
                member = full(clean)
            case "pruned":
                member = full(fold_batch(ships.taken(layers), batch.x))
            case "quantised":
                member = ships.rounded(clean)
            case "perturbed":
                member = perturbed(narrowed(clean.net, ships.bits), loss, batch, step)
            case "sparse":
                member = full(fold_batch(ships.thinned(layers), batch.x))
            case "joint":
                member = ships.rounded(fold_batch(ships.thinned(ships.taken(layers)), batch.x))
            case _:
                raise InternalError(f"no member is called {name!r}")
        found[name] = loss.of(member, batch, step)
    return found, clean, batch
