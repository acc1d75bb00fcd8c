"""NRSLoss: hidden neurons are trained to be stable over the region, and the least stable channels go, a few at a time.

L = -mean over hidden neurons of tanh(1 + l u / (gamma^2 + 1e-8)), l and u the interval bounds before the ReLU and gamma the
channel's normalisation scale, without gradient: l u < 0 is a neuron that the region can switch. A channel's score is its own
mean of that tanh. Source: Li et al. 2023, Can pruning improve certified robustness of neural networks?, TMLR, arXiv 2206.07311
(equation of NRSLoss; 12 rounds of 11 % of the channels each). A round's share here is what leads to the recipe's widths in
`ROUNDS` rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.train.bounds import Bounds, propagate
from cactus_edge.train.folded import Affine, Folded, fold_batch
from cactus_edge.train.methods.posthoc import after_choosing
from cactus_edge.train.models import Layers, Network, per_channel
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.prune import shrink, together
from cactus_edge.train.stages import (
    Enter,
    Schedule,
    Stage,
    clip,
    finetuning,
    never,
    over_members,
    same,
    training,
)

WEIGHT = 0.01
"""Of the regulariser beside the certified loss; the published code's default."""

ROUNDS = 6
"""Rounds of removal, over the first half of the fine-tuning's epochs."""

SAMPLES = 1024
"""Training samples over which channels are scored."""


def stability(net: Folded, bounds: Bounds) -> tuple[Tensor, ...]:
    """tanh(1 + l u / (gamma^2 + 1e-8)) of every hidden neuron, [N, O, H, W] of each layer: near 1 is stable, near -1 is not."""
    return tuple(
        torch.tanh(1 + pre.lower * pre.upper / (per_channel(_gamma(affine)).square() + 1e-8))
        for affine, pre in zip(net, bounds.pre, strict=False)
    )


def _gamma(affine: Affine) -> Tensor:
    norm = affine.layer.norm
    return torch.ones_like(affine.bias).detach() if norm is None else norm.gamma.detach()


def regularised(loss: Loss, weight: float = WEIGHT) -> Loss:
    """The certified loss + weight * L over its own bounds."""

    def of(member: Member, batch: Batch, step: Step) -> MemberLoss:
        found = loss.of(member, batch, step)
        if found.bounds is None:
            raise InputError(
                "nrs steadies neurons by the bounds of its objective, and this one has none",
                hint='objective = "ibp" under [train]',
            )
        steady = stability(member.net, found.bounds)
        rectified = [t.flatten() for affine, t in zip(member.net, steady, strict=False) if affine.layer.relu]
        return MemberLoss(found.loss - weight * torch.cat(rectified).mean(), found.bounds)

    return replace(loss, of=of)


def score(layers: Layers, sample: Batch) -> tuple[Tensor, ...]:
    """Mean stability of each hidden channel over the sample's regions, float [O] each; -1 for one that is never active.

    (Such a channel is stable and worthless; the paper's score alone would keep it to the last.)
    """
    with torch.no_grad():
        net = fold_batch(layers, sample.x).net
        bounds = propagate(net, sample.region, sample.y)
        return tuple(
            torch.where(pre.upper.amax((0, 2, 3)) > 0, steady.mean((0, 2, 3)), -1.0)
            for steady, pre in zip(stability(net, bounds), bounds.pre, strict=True)
        )


def widths(now: tuple[int, ...], kept: tuple[int, ...], left: int) -> tuple[int, ...]:
    """Channels after the next of the `left` rounds from now on: the same share goes in each, down to `kept`."""
    return tuple(round(whole * (end / whole) ** (1 / left)) for whole, end in zip(now, kept, strict=True))


def _removal(done: int) -> Enter:
    def enter(network: Network, _: Recipe, sample: Batch) -> Network:
        layers, fewer = network.layers(), widths(network.widths(), network.kept_widths(), ROUNDS - done + 1)
        return shrink(network, fewer, together(layers, score(layers, sample.part(SAMPLES))))[0]

    return enter


def _round(done: int) -> Callable[[Recipe], Schedule]:
    """A round's part of the first half of the fine-tuning's epochs, at the training's learning rate."""

    def schedule(recipe: Recipe) -> Schedule:
        whole = finetuning(recipe)
        half = whole.epochs // 2
        epochs = half * done // ROUNDS - half * (done - 1) // ROUNDS
        return replace(whole, epochs=epochs, decay_from=1, average_epochs=0)

    return schedule


def _rest(recipe: Recipe) -> Schedule:
    return after_choosing(recipe, 2)


_objective = over_members(lambda _: ("full",), regularised)

NRS = (
    Stage("dense", same, False, training, _objective, clip, positive_gamma, never),
    *(
        Stage(f"round {done}", _removal(done), False, _round(done), _objective, clip, positive_gamma, never)
        for done in range(1, ROUNDS + 1)
    ),
    Stage("compress", same, True, _rest, _objective, clip, positive_gamma, never),
)
