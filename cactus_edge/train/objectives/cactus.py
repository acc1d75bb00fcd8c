"""CACTUS: the certified loss averaged over a set of compressed versions of the network.

L(theta) = 1/|C| * sum over theta' in C(theta) of (1 - lambda) * CE(theta'; x, y) + lambda * R(theta'; x, y, eps).
Source: Xu and Singh 2025, arXiv 2506.11992, eq. (8). A member's loss is that of any certified objective (`loss.Loss`). The
members are the transforms that the export applies: channel removal (`prune.take`), zeros among the weights (`sparsity.sparse`),
int8 rounding (`fakequant.fake_quantise`), all of them at once and, as the paper's proxy for rounding, an adversarial weight
perturbation of half a quantisation step (eq. (9)).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cactus_edge.errors import InternalError
from cactus_edge.train.fakequant import Ceilings, fake_quantise, weight_scales
from cactus_edge.train.folded import Folded, Pass, fold_batch
from cactus_edge.train.models import Layers
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step
from cactus_edge.train.prune import choose, take
from cactus_edge.train.sparsity import Sparsity, sparse


def full(clean: Pass) -> Member:
    """The network as it is, from its clean pass over the batch."""
    return Member(clean.net, clean.logits)


def pruned(layers: Layers, batch: Batch, widths: tuple[int, ...]) -> Member:
    """The network of its `widths` most important channels, chosen anew at each step, with its own batch statistics."""
    return full(fold_batch(take(layers, choose(layers, widths)), batch.x))


def joint(
    layers: Layers, batch: Batch, widths: tuple[int, ...], sparsity: Sparsity | None, clip: float, levels: int
) -> Member:
    """What ships: the most important channels, of their weights the largest where the recipe wants zeros, in fake int8."""
    left = take(layers, choose(layers, widths))
    clean = fold_batch(left if sparsity is None else sparse(left, sparsity), batch.x)
    return quantised(clean.net, tuple(clip * peak for peak in clean.peaks), levels)


def quantised(net: Folded, ceilings: Ceilings, levels: int = 255) -> Member:
    """The folded network in fake int8."""
    return Member(fake_quantise(net, ceilings, levels))


def perturbed(net: Folded, loss: Loss, batch: Batch, step: Step) -> Member:
    """The folded network at the weights W + eta * sign(dL/dW): one ascent step in the l-inf ball of half an int8 step.

    eta is half the channel's (tensor's) quantisation step, so the ball holds every rounding, and 0 for a weight of 0, which
    rounding leaves alone. One step approximates the maximiser, hence this is a reason to train so, not a bound.
    """
    probe = tuple(replace(a, weight=a.weight.detach().requires_grad_(), bias=a.bias.detach()) for a in net)
    gradients = torch.autograd.grad(loss.of(Member(probe), batch, step).loss, [a.weight for a in probe])
    moved = []
    for affine, gradient in zip(net, gradients, strict=True):
        eta = weight_scales(affine.weight, per_channel=not affine.layer.dense)[:, None, None, None] / 2
        moved.append(replace(affine, weight=affine.weight + eta * gradient.sign() * (affine.weight != 0)))
    return Member(tuple(moved))


def members(
    layers: Layers,
    batch: Batch,
    names: tuple[str, ...],
    loss: Loss,
    step: Step,
    *,
    widths: tuple[int, ...],
    clip: float,
    levels: int = 255,
    sparsity: Sparsity | None = None,
) -> tuple[dict[str, MemberLoss], Pass, Batch]:
    """Each named member's loss, the full network's clean pass (computed in any case), and the batch that `loss` aimed at.

    widths: channels that the pruned member keeps per hidden layer. clip: the quantised member's activation range as a part of
    the batch's largest activation, in `levels` steps. sparsity: the sparse member's, its masks chosen anew at each step.
    """
    clean = fold_batch(layers, batch.x)
    batch = loss.aim(clean.net, batch, step)
    found: dict[str, MemberLoss] = {}
    for name in names:
        match name:
            case "full":
                member = full(clean)
            case "pruned":
                member = pruned(layers, batch, widths)
            case "quantised":
                member = quantised(clean.net, tuple(clip * peak for peak in clean.peaks), levels)
            case "perturbed":
                member = perturbed(clean.net, loss, batch, step)
            case "sparse" if sparsity is not None:
                member = full(fold_batch(sparse(layers, sparsity), batch.x))
            case "joint":
                member = joint(layers, batch, widths, sparsity, clip, levels)
            case _:
                raise InternalError(f"no member is called {name!r}")
        found[name] = loss.of(member, batch, step)
    return found, clean, batch
