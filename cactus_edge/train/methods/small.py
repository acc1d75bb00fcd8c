"""The baseline: the network that `cactus` ends with, trained from the start, for as many epochs, without compression."""

from __future__ import annotations

from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.stages import Stage, clip, joint, over_members, same

SMALL = (Stage("train", same, True, joint, over_members(lambda _: ("full",)), clip, positive_gamma, lambda _: False),)
