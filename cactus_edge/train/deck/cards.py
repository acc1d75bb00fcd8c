"""The cards of a deck: trained one by one, each with a checkpoint of its own, and then quantised onto one grid of logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.ops import Float32
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_sections import DeckRecipe
from cactus_edge.train.augment import augmented
from cactus_edge.train.calibrate import CALIBRATION_SAMPLES, JUDGES, calibrate
from cactus_edge.train.data import Dataset, Split
from cactus_edge.train.deck.gate import Gate, fitted
from cactus_edge.train.deck.join import Means, joined
from cactus_edge.train.folded import forward
from cactus_edge.train.grids import input_grid
from cactus_edge.train.history import EpochStats
from cactus_edge.train.loop import planned, to_torch, train
from cactus_edge.train.quantize import export
from cactus_edge.train.ranking import range_grid
from cactus_edge.train.trained import TrainedModel

SPECTRUM_SAMPLES = 2000
"""Training images of each scheme behind its mean spectrum, at most."""

MEANS_SAMPLES = 1000
"""Validation images over which the range of the cards' means is taken, at most."""

WIDER = 0.05
"""Part of that range which is added at both ends."""

OnEpoch = Callable[[int, int, int, EpochStats], None]
"""(card, epochs that are finished, epochs of all cards, the last)."""


@dataclass(frozen=True)
class Card:
    """One card before it is trained: its scheme, and a recipe of its own, of a single network."""

    scheme: str
    recipe: Recipe


@dataclass(frozen=True, eq=False)
class TrainedDeck:
    """What training leaves of a deck. schemes: their names; scheme: the place there of each card's; alone: as in the recipe."""

    cards: tuple[TrainedModel, ...]
    schemes: tuple[str, ...]
    scheme: tuple[int, ...]
    gate: Gate | None
    alone: tuple[str, ...] = ()

    def digest(self) -> str:
        """SHA-256 (hex) over the cards' digests, in order, and the gate's integers."""
        h = hashlib.sha256("".join(card.digest() for card in self.cards).encode())
        if self.gate is not None:
            h.update(
                self.gate.weight.tobytes() + str(self.gate.bias).encode() + self.gate.filters.weight_scale.tobytes()
            )
        return h.hexdigest()

    @property
    def weights_before(self) -> tuple[int, ...]:
        """Weight elements of each layer of each card when training began."""
        return tuple(chain.from_iterable(card.weights_before for card in self.cards))

    @property
    def weights_after(self) -> tuple[int, ...]:
        """Those of the cards now."""
        return tuple(chain.from_iterable(card.weights_after for card in self.cards))

    @property
    def history(self) -> tuple[EpochStats, ...]:
        """The epochs of all cards, card by card; stages are named by card too."""
        return tuple(
            replace(stats, stage=f"card {i}, {stats.stage}")
            for i, card in enumerate(self.cards)
            for stats in card.history
        )

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The cards that answer: all of them, or with a gate those for either scheme."""
        every = tuple(range(len(self.cards)))
        if self.gate is None:
            return (every,)
        return tuple(
            tuple(i for i in every if self.scheme[i] == place) if not self.alone or name in self.alone else every
            for place, name in enumerate(self.schemes)
        )

    def together(self, logits: list[Float32], x: Float32) -> Float32:
        """The deck's logits [N, classes] for x from those of each card: the mean over the cards that answer."""
        means = [np.asarray(np.mean([logits[i] for i in group], axis=0), np.float32) for group in self.groups()]
        return means[0] if self.gate is None else np.where(self.gate.chosen(x)[:, None] == 1, means[1], means[0])


def cards(recipe: Recipe) -> list[Card]:
    """The cards of a recipe with a deck, in order: an own recipe each, whose seed is the recipe's plus the card's."""
    return [
        Card(card.scheme, replace(recipe, train=replace(card.train, seed=recipe.train.seed + seed), deck=DeckRecipe()))
        for card in recipe.deck.card
        for seed in card.seeds
    ]


def planned_deck(recipe: Recipe) -> list[dict[str, int]]:
    """The stages of each card with their epochs."""
    return [planned(card.recipe) for card in cards(recipe)]


def train_deck(
    recipe: Recipe, dataset: Dataset, workdir: Path, on_epoch: OnEpoch | None = None, threads: int | None = None
) -> TrainedDeck:
    """Trains every card as `loop.train` does, and fits the gate. Goes on where an interrupted call stopped."""
    found, whole = cards(recipe), planned_deck(recipe)
    total, models = sum(sum(plan.values()) for plan in whole), []
    for i, (card, plan) in enumerate(zip(found, whole, strict=True)):
        before = sum(sum(earlier.values()) for earlier in whole[:i])

        def tell(stats: EpochStats, i: int = i, plan: dict[str, int] = plan, before: int = before) -> None:
            if on_epoch:
                on_epoch(i, before + stats.number(plan), total, stats)

        models.append(train(card.recipe, dataset, workdir, tell, threads))
    schemes = tuple(dict.fromkeys(card.scheme for card in found))
    gate = None if recipe.deck.gate == "none" else fit_gate(recipe, dataset)
    return TrainedDeck(
        tuple(models), schemes, tuple(schemes.index(card.scheme) for card in found), gate, recipe.deck.alone
    )


def fit_gate(recipe: Recipe, dataset: Dataset) -> Gate:
    """The gate of the recipe's two schemes, from training images as the first card of each saw them."""
    first = {card.scheme: card.recipe for card in reversed(cards(recipe))}
    names = tuple(dict.fromkeys(card.scheme for card in recipe.deck.card))
    images, symmetric = dataset.train.x[:SPECTRUM_SAMPLES], recipe.quantise.symmetric
    samples = [as_trained(images, first[name], dataset) for name in names]
    grid = input_grid(recipe, dataset)
    source = Tensor("input", dataset.shape, "int8", grid.scale, grid.zero_point)
    return fitted(source, (names[0], names[1]), (samples[0], samples[1]), recipe.deck.tile, symmetric=symmetric)


def as_trained(x: Float32, recipe: Recipe, dataset: Dataset) -> Float32:
    """Images x [N, H, W, C] as the recipe's augmentation changes them, drawn by the split's seed.

    Those that it leaves as they are say nothing of it, and are left out where there are others.
    """
    train = replace(
        recipe.train, consistency=0.0
    )  # with it the samples themselves stay clean, and their versions are meant
    generator = torch.Generator().manual_seed(recipe.data.split_seed)
    planes = torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    made = augmented(planes, train, dataset.domain, generator, float(dataset.zero))
    changed = (made != planes).flatten(1).any(1)
    made = made[changed] if int(changed.sum()) > 1 else made
    return np.ascontiguousarray(made.numpy().transpose(0, 2, 3, 1))


def deck_graph(deck: TrainedDeck, dataset: Dataset, recipe: Recipe) -> Graph:
    """The integer deck: every card calibrated on the validation split as the recipe says, all logits on one grid."""
    symmetric = recipe.quantise.symmetric
    nets = [card.narrowed(recipe) for card in deck.cards]
    validation = Split(dataset.validation.x[:CALIBRATION_SAMPLES], dataset.validation.y[:CALIBRATION_SAMPLES])
    with torch.no_grad():
        x = to_torch(validation)[0]
        ends = [(float(z.min()), float(z.max())) for net in nets for z in (forward(net, x),)]
    grid = range_grid(min(low for low, _ in ends), max(high for _, high in ends), symmetric=symmetric)
    graphs = []
    for net, card in zip(nets, cards(recipe), strict=True):
        calibration = calibrate(net, dataset, card.recipe)
        placed = replace(calibration, out_scale=grid.scale, out_zero_point=grid.zero_point)
        graphs.append(export(net, placed, dataset.shape))
    means = _means(graphs, deck.groups(), validation.x[:MEANS_SAMPLES], JUDGES[symmetric])
    return joined(graphs, deck.groups(), deck.gate, means, symmetric=symmetric)


def _means(graphs: list[Graph], groups: tuple[tuple[int, ...], ...], x: Float32, judge: str) -> Means:
    codes = [evaluate(graph, x, profile(judge)).astype(np.float64) for graph in graphs]
    means = [np.mean([codes[i] for i in group], axis=0) for group in groups]
    least, most = min(float(m.min()) for m in means), max(float(m.max()) for m in means)
    margin = WIDER * (most - least)
    return Means(least - margin, most + margin)
