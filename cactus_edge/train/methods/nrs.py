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

from cactus_edge.recipe import Recipe
from cactus_edge.train.bounds import Bounds, propagate
from cactus_edge.train.folded import Affine, Folded, fold_batch
from cactus_edge.train.models import Layers, Network, per_channel
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.prune import shrink
from cactus_edge.train.stages import (
    Enter,
    Schedule,
    Stage,
    clip,
    finetuning,
    initial_widths,
    kept_widths,
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
    """tanh(1 + l u / (gamma^2 + 1e-8)) of every hidden neuron, [N, O, H, W] of each layer: 1 is stable, -1 is not."""
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
        steady = torch.cat([t.flatten() for t in stability(member.net, found.bounds)]).mean()
        return MemberLoss(found.loss - weight * steady, found.bounds)

    return replace(loss, of=of)


def score(layers: Layers, sample: Batch) -> tuple[Tensor, ...]:
    """Mean stability of each hidden channel over the sample's regions, float [O] each."""
    with torch.no_grad():
        net = fold_batch(layers, sample.x).net
        bounds = propagate(net, sample.region, sample.y)
        return tuple(t.mean((0, 2, 3)) for t in stability(net, bounds))


def widths(done: int) -> Callable[[Recipe], tuple[int, ...]]:
    """Channels after `done` rounds: the same share goes in each, down to the recipe's kept widths."""

    def of(recipe: Recipe) -> tuple[int, ...]:
        ends = zip(initial_widths(recipe), kept_widths(recipe), strict=True)
        return tuple(round(whole * (kept / whole) ** (done / ROUNDS)) for whole, kept in ends)

    return of


def _removal(done: int) -> Enter:
    def enter(network: Network, recipe: Recipe, sample: Batch) -> Network:
        return shrink(network, widths(done)(recipe), score(network.layers(), sample.part(SAMPLES)))[0]

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
    whole = finetuning(recipe)
    epochs = whole.epochs - whole.epochs // 2
    return replace(whole, epochs=epochs, average_epochs=min(whole.average_epochs, epochs))


_objective = over_members(lambda _: ("full",), regularised)

NRS = (
    Stage("dense", same, initial_widths, training, _objective, clip, positive_gamma, never),
    *(
        Stage(f"round {done}", _removal(done), widths(done), _round(done), _objective, clip, positive_gamma, never)
        for done in range(1, ROUNDS + 1)
    ),
    Stage("compress", same, kept_widths, _rest, _objective, clip, positive_gamma, never),
)
