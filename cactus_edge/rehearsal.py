"""A build without training, so that what would be refused at its end is refused before its hours.

The steps of the chain themselves run, on a few samples, in a folder that is thrown away, with a network that no epoch has trained:
its shape, its zeros and so its ops and bytes are those of the file that ships. No rule is written twice, and a refusal says what
it would say at the end. Nothing here draws from a generator that training draws from.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cactus_edge.errors import ModelError, UnsupportedError
from cactus_edge.recipe import Recipe

if TYPE_CHECKING:
    from cactus_edge.chain import Chain
    from cactus_edge.train.data import Dataset

SAMPLES = {"train": 4, "validation": 4, "test": 1}
"""Samples of each split: the steps of a large network take seconds each."""


def rehearse(chain: Chain) -> None:
    """Raises what the steps after training would raise for these ops, this size, this machine.

    What depends on the weights is left to the trained ones: a sum that leaves int32 with others says nothing of theirs.
    """
    with TemporaryDirectory(prefix="cactus-edge-") as folder:
        trial = copy(chain)
        trial.folder, trial.recipe, trial.dataset = Path(folder), untrained(chain.recipe), few(chain.dataset)
        trial.compared = SAMPLES["validation"]
        try:
            for step in (trial.compress, trial.lower, trial.agree):
                step(_nothing)
            # At a radius of 0 there is nothing to attack and no curve, and what is refused is the same.
            trial.recipe = replace(trial.recipe, certify=replace(trial.recipe.certify, eps=Fraction(0)))
            trial.certify(_nothing)
        except UnsupportedError:
            raise
        except ModelError:
            return


def _nothing(done: int, total: int, text: str) -> None:
    """No progress is told of a rehearsal."""


def untrained(recipe: Recipe) -> Recipe:
    """The recipe without an epoch, quantised by the quickest criterion.

    Weights are drawn so that a deep network hands signals on without batch normalisation, as a trained one does.
    """
    cards = tuple(replace(card, train=replace(card.train, epochs=0)) for card in recipe.deck.card)
    return replace(
        recipe,
        model=replace(recipe.model, init="kaiming"),
        train=replace(recipe.train, epochs=0),
        compress=replace(recipe.compress, finetune_epochs=0, rewind_epochs=0),
        quantise=replace(recipe.quantise, calibration="min-max"),
        deck=replace(recipe.deck, card=cards),
    )


def few(dataset: Dataset) -> Dataset:
    """The first samples of each split."""
    splits = {name: getattr(dataset, name) for name in SAMPLES}
    return replace(dataset, **{k: replace(s, x=s.x[: SAMPLES[k]], y=s.y[: SAMPLES[k]]) for k, s in splits.items()})
