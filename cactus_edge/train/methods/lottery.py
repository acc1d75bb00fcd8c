"""Lottery tickets: the smallest weights go in rounds, and after each the rest is trained for the whole schedule again.

Round k leaves (1 - f)^k of the weights, those of largest |w| over all layers or in each; f is the recipe's round_share, and the
last round leaves what its sparsity says. LTH rewinds what is left to what it was early in training (Frankle and Carbin 2019,
arXiv 1803.03635; at an epoch after the first step: Frankle et al. 2020, arXiv 1912.05671). LRR rewinds the learning rate alone:
what is left goes on from where it was (Renda, Frankle and Carbin 2020, arXiv 2003.02389). Both as compared for compact, accurate
and robust networks by Diffenderfer et al. 2021, arXiv 2106.09129.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from cactus_edge.recipe import Recipe
from cactus_edge.recipe_sections import CompressRecipe
from cactus_edge.train.models import Layers, Network
from cactus_edge.train.objectives.loss import Batch
from cactus_edge.train.projections import positive_gamma
from cactus_edge.train.sparsity import Sparsity, masks, single_weights, sparsified
from cactus_edge.train.stages import (
    Enter,
    Schedule,
    Stage,
    clip,
    never,
    only_full,
    plain,
    same,
    shipping,
    training,
)

_EARLY = "early_"


class Rewound(Network):
    """A network that carries the state to which it is rewound, in buffers."""

    def __init__(self, layers: Layers) -> None:
        super().__init__(layers)
        for name, value in list(self.state_dict().items()):
            self.register_buffer(_EARLY + name, value.clone())

    def without(self, sparsity: Sparsity) -> Rewound:
        """The network as it was early, with zeros for the weights that are smallest now."""
        kept = masks(self.layers(), sparsity)
        early = {
            name.removeprefix(_EARLY): value for name, value in self.state_dict().items() if name.startswith(_EARLY)
        }
        made = Rewound(self.layers())
        made.load_state_dict(early | {_EARLY + name: value for name, value in early.items()})
        with torch.no_grad():
            for layer, mask in zip(made.layers(), kept, strict=True):
                layer.weight.mul_(mask)
        return made


def shares(share: float, compress: CompressRecipe) -> tuple[float, ...]:
    """The share of weights that is gone after each round, up to `share`, all that go."""
    return (*(1 - (1 - compress.round_share) ** k for k in range(1, compress.rounds)), share)


def lth(recipe: Recipe) -> tuple[Stage, ...]:
    """Weights rewound after each round."""
    return (
        Stage("start", same, False, _start, only_full, clip, positive_gamma, never),
        _round(0, _remember),
        *(_round(k, _back(sparsity)) for k, sparsity in enumerate(_rounds(recipe, "lth"), 1)),
        shipping(plain),
    )


def lrr(recipe: Recipe) -> tuple[Stage, ...]:
    """The learning rate rewound after each round."""
    return (
        _round(0, same),
        *(_round(k, thinner(sparsity)) for k, sparsity in enumerate(_rounds(recipe, "lrr"), 1)),
        SHIPS,
    )


def thinner(sparsity: Sparsity) -> Enter:
    """The network without its smallest weights."""

    def enter(network: Network, _: Recipe, __: Batch) -> Network:
        return sparsified(network, sparsity)

    return enter


def _rounds(recipe: Recipe, method: str) -> list[Sparsity]:
    whole = single_weights(recipe, method)
    return [replace(whole, share=share) for share in shares(whole.share, recipe.compress)]


def _round(number: int, enter: Enter) -> Stage:
    return Stage(f"round {number}", enter, False, training, only_full, clip, positive_gamma, never, training=True)


def _start(recipe: Recipe) -> Schedule:
    """Epochs before the learning rate falls; what they end with is what is rewound to."""
    return replace(training(recipe), epochs=recipe.compress.rewind_epochs, decay="linear", decay_from=1)


def _remember(network: Network, _: Recipe, __: Batch) -> Network:
    return Rewound(network.layers())


def _back(sparsity: Sparsity) -> Enter:
    def enter(network: Network, _: Recipe, __: Batch) -> Network:
        # A resumed run comes here with a network that never had an early state: its own arrives with the checkpoint.
        return (network if isinstance(network, Rewound) else Rewound(network.layers())).without(sparsity)

    return enter


SHIPS = shipping(same)
"""What is left, fine-tuned as [compress] says: with its int8 version, for 0 epochs not at all."""
