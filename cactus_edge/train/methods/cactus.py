"""The network set while training; then the channels go for good and what is left is fine-tuned with its int8 version."""

from __future__ import annotations

from cactus_edge.recipe import Recipe
from cactus_edge.train.models import Network
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.prune import shrink
from cactus_edge.train.stages import (
    Stage,
    clip,
    finetuning,
    initial_widths,
    kept_widths,
    only_quantised,
    over_members,
    same,
    training,
)


def _compressed(network: Network, recipe: Recipe) -> Network:
    return shrink(network, kept_widths(recipe))[0]


CACTUS = (
    Stage(
        "train",
        same,
        initial_widths,
        training,
        over_members(lambda r: r.train.members),
        clip,
        positive_gamma,
        lambda r: only_quantised(r.train.members),
    ),
    Stage(
        "compress",
        _compressed,
        kept_widths,
        finetuning,
        over_members(lambda r: r.compress.members),
        clip,
        positive_gamma,
        lambda r: r.compress.finetune_epochs > 0 and only_quantised(r.compress.members),
    ),
)
