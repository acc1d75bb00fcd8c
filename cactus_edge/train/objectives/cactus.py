"""CACTUS: the certified loss averaged over a set of compressed versions of the network.

L(theta) = 1/|C| * sum over theta' in C(theta) of (1 - lambda) * CE(theta'; x, y) + lambda * R(theta'; x, y, eps).
Source: Xu and Singh 2025, arXiv 2506.11992, eq. (8). The members are the transforms that the export applies: channel
removal (`prune.take`), int8 rounding (`fakequant.fake_quantise`) and, as the paper's proxy for rounding, an adversarial
weight perturbation of half a quantisation step (eq. (9)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.errors import InternalError
from cactus_edge.train.bounds import Bounds, Box
from cactus_edge.train.fakequant import Ceilings, fake_quantise, weight_scales
from cactus_edge.train.folded import Folded, Pass, fold_batch, forward
from cactus_edge.train.models import Layers
from cactus_edge.train.objectives.ibp import certified_loss
from cactus_edge.train.prune import choose, take


@dataclass(frozen=True)
class MemberLoss:
    """One member's share. clean, robust: mean cross-entropies, scalars; bounds: what the robust one came from."""

    clean: Tensor
    robust: Tensor
    bounds: Bounds

    def mixed(self, weight: float) -> Tensor:
        """(1 - weight) * clean + weight * robust."""
        return (1 - weight) * self.clean + weight * self.robust


@dataclass(frozen=True)
class Batch:
    """x [N, C, H, W] in sensor units, y int64 [N], and the region around x that has to keep its class."""

    x: Tensor
    y: Tensor
    region: Box


def full(clean: Pass, batch: Batch) -> MemberLoss:
    """The network as it is, from its clean pass over the batch."""
    robust, bounds = certified_loss(clean.net, batch.region, batch.y)
    return MemberLoss(F.cross_entropy(clean.logits, batch.y), robust, bounds)


def pruned(layers: Layers, batch: Batch, widths: tuple[int, ...]) -> MemberLoss:
    """The network of its `widths` most important channels, chosen anew at each step, with its own batch statistics."""
    return full(fold_batch(take(layers, choose(layers, widths)), batch.x), batch)


def quantised(net: Folded, batch: Batch, ceilings: Ceilings, levels: int = 255) -> MemberLoss:
    """The folded network in fake int8."""
    return _of(fake_quantise(net, ceilings, levels), batch)


def perturbed(net: Folded, batch: Batch, weight: float) -> MemberLoss:
    """The folded network at the weights W + eta * sign(dL/dW): one ascent step in the l-inf ball of half an int8 step.

    eta is half the channel's (tensor's) quantisation step, so the ball holds every rounding. One step approximates the
    maximiser, hence this is a reason to train so, not a bound.
    """
    probe = tuple(replace(a, weight=a.weight.detach().requires_grad_(), bias=a.bias.detach()) for a in net)
    gradients = torch.autograd.grad(_of(probe, batch).mixed(weight), [a.weight for a in probe])
    moved = []
    for affine, gradient in zip(net, gradients, strict=True):
        eta = weight_scales(affine.weight, per_channel=not affine.layer.dense)[:, None, None, None] / 2
        moved.append(replace(affine, weight=affine.weight + eta * gradient.sign()))
    return _of(tuple(moved), batch)


def _of(net: Folded, batch: Batch) -> MemberLoss:
    robust, bounds = certified_loss(net, batch.region, batch.y)
    return MemberLoss(F.cross_entropy(forward(net, batch.x), batch.y), robust, bounds)


def members(
    layers: Layers,
    batch: Batch,
    names: tuple[str, ...],
    *,
    widths: tuple[int, ...],
    clip: float,
    levels: int = 255,
    weight: float,
) -> tuple[dict[str, MemberLoss], Pass]:
    """Each named member's loss, and the full network's clean pass (computed in any case).

    widths: channels that the pruned member keeps per hidden layer. clip: the quantised member's activation range as a part of
    the batch's largest activation, in `levels` steps. weight: lambda, for the perturbation's ascent direction.
    """
    clean = fold_batch(layers, batch.x)
    found: dict[str, MemberLoss] = {}
    for name in names:
        match name:
            case "full":
                found[name] = full(clean, batch)
            case "pruned":
                found[name] = pruned(layers, batch, widths)
            case "quantised":
                found[name] = quantised(clean.net, batch, tuple(clip * peak for peak in clean.peaks), levels)
            case "perturbed":
                found[name] = perturbed(clean.net, batch, weight)
            case _:
                raise InternalError(f"no member is called {name!r}")
    return found, clean
