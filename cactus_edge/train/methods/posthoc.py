"""Post-hoc compression: a dense certified network, trained knowing nothing of what follows, loses channels afterwards.

What everyone does first, and the start of every baseline here: the stage `DENSE` trains the full network alone, channels go by
a criterion of their own weights, and what is left is fine-tuned for as long as the recipe says (0 epochs: not at all). Sources of
the criteria: l1, Li et al. 2017, arXiv 1608.08710; gamma of batch normalisation, Liu et al. 2017, arXiv 1708.06519.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe
from cactus_edge.train.folded import detach, fold
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.objectives.loss import Batch
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.prune import shrink, together
from cactus_edge.train.stages import (
    Enter,
    Schedule,
    Stage,
    clip,
    finetuning,
    joint,
    never,
    only_full,
    same,
    training,
)

DENSE = Stage("dense", same, False, training, only_full, clip, positive_gamma, never, shared=True)
"""The full network alone. Every method that begins with it finds the same one."""

Score = Callable[[Layers], tuple[Tensor, ...]]
"""How much each channel of each hidden layer matters, float [O] each: the more, the longer it stays."""

Criterion = Callable[[Recipe, Batch], Score]
"""How channels are ranked, from the recipe and a sample of the training data."""


def deployed(layers: Layers) -> Layers:
    """The layers with batch normalisation folded into weight and bias, detached: what the file will hold.

    Magnitudes are compared in this form. Behind batch normalisation a weight's own scale says nothing, and a channel that
    training has switched off by a small gamma keeps the large weights that it began with.
    """
    return tuple(replace(a.layer, weight=a.weight, bias=a.bias, norm=None) for a in detach(fold(layers)))


def l1(layers: Layers) -> tuple[Tensor, ...]:
    """sum |w| over the channel's own weights as they are deployed."""
    return tuple(layer.weight.abs().sum((1, 2, 3)) for layer in deployed(layers)[:-1])


def gamma(layers: Layers) -> tuple[Tensor, ...]:
    """|gamma| of the channel's batch normalisation. Raises InputError where a hidden layer has none."""
    scores = []
    for i, layer in enumerate(layers[:-1]):
        if layer.norm is None:
            raise InputError(
                f"hidden layer {i} has no batch normalisation, so channels have no gamma to be ranked by",
                hint="batch_norm = true under [model], or another method",
            )
        scores.append(layer.norm.gamma.detach().abs())
    return tuple(scores)


def random(seed: int) -> Score:
    """An order of channels that follows from the seed alone."""

    def score(layers: Layers) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(b"%d" % seed).digest()[:7], "little"))
        drawn = (torch.rand(layer.weight.shape[0], generator=generator) for layer in layers[:-1])
        return tuple(one.to(layers[0].weight.device) for one in drawn)

    return score


def removal(criterion: Criterion) -> Enter:
    """Channels go for good, down to the recipe's kept widths; the scores of tied channels are summed."""

    def enter(network: Network, recipe: Recipe, sample: Batch) -> Network:
        layers = network.layers()
        return shrink(network, network.kept_widths(), together(layers, criterion(recipe, sample)(layers)))[0]

    return enter


def refining(recipe: Recipe) -> Schedule:
    """The schedule of [compress], but the radius and the robust weight grow again over the first third of it.

    A network that lost most of its channels at once collapses to one class where it meets the whole radius at once.
    """
    whole = finetuning(recipe)
    return replace(whole, ramp=whole.epochs / 3)


def choosing(recipe: Recipe, part: int) -> Schedule:
    """The first 1/part of the fine-tuning's epochs, for what chooses what stays; the radius grows over the first half of them."""
    whole = refining(recipe)
    epochs = whole.epochs // part
    return replace(whole, epochs=epochs, ramp=epochs / 2, average_epochs=0)


def after_choosing(recipe: Recipe, part: int) -> Schedule:
    """What the first 1/part leaves of the fine-tuning's epochs; the radius grows over the first third of them."""
    whole = refining(recipe)
    epochs = whole.epochs - whole.epochs // part
    return replace(whole, epochs=epochs, ramp=epochs / 3, average_epochs=min(whole.average_epochs, epochs))


def posthoc(criterion: Criterion) -> tuple[Stage, ...]:
    """`DENSE`, then what is left after removal by the criterion, fine-tuned alone and at full precision."""
    return (
        DENSE,
        Stage("compress", removal(criterion), True, refining, only_full, clip, positive_gamma, never),
    )


UNCOMPRESSED = (Stage("train", same, False, joint, only_full, clip, positive_gamma, never),)
"""The upper reference: every channel stays, trained for as many epochs as any method has in all."""

L1 = posthoc(lambda recipe, sample: l1)
GAMMA = posthoc(lambda recipe, sample: gamma)
RANDOM = posthoc(lambda recipe, sample: random(recipe.train.seed))
