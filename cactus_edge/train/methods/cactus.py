"""The network set while training; then the channels go for good and what is left is fine-tuned with its int8 version."""

from __future__ import annotations

from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.stages import (
    Stage,
    clip,
    only_quantised,
    over_members,
    same,
    shipping,
    training,
    without_channels,
)

CACTUS = (
    Stage(
        "train",
        same,
        False,
        training,
        over_members(lambda r: r.train.members),
        clip,
        positive_gamma,
        lambda r: only_quantised(r.train.members),
    ),
    shipping(without_channels),
)
