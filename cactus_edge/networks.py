"""What a recipe trains: a single network or the cards of a deck, trained, quantised and described in one way."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cactus_edge.progress import Seldom
from cactus_edge.recipe import Recipe
from cactus_edge.steps import Advance

if TYPE_CHECKING:
    from cactus_edge.ir.graph import Graph
    from cactus_edge.train.data import Dataset
    from cactus_edge.train.deck.cards import TrainedDeck
    from cactus_edge.train.trained import TrainedModel


def train(
    recipe: Recipe, dataset: Dataset, workdir: Path, threads: int | None, advance: Advance
) -> TrainedModel | TrainedDeck:
    """As `loop.train` and `cards.train_deck`; from checkpoints in `workdir` where training is finished. advance: is told epochs."""
    from cactus_edge.train.deck.cards import train_deck
    from cactus_edge.train.history import EpochStats, Underway
    from cactus_edge.train.loop import planned, train

    if recipe.deck.card:

        def on_card(card: int, done: int, total: int, e: EpochStats) -> None:
            advance(done, total, f"card {card}: {e.val_clean:.1%} of validation right at full precision")

        return train_deck(recipe, dataset, workdir, on_card, threads=threads)
    plan, seldom = planned(recipe), Seldom()

    def on_epoch(e: EpochStats) -> None:
        shown = f"{e.val_clean:.1%} of validation right, {e.val_certified:.1%} certified, at full precision"
        advance(e.number(plan), sum(plan.values()), e.undone or shown)
        seldom.told()

    def on_step(u: Underway) -> None:
        if seldom.due():
            advance(u.finished(plan), sum(plan.values()), u.words)

    return train(recipe, dataset, workdir, on_epoch=on_epoch, threads=threads, on_step=on_step)


def quantised(network: TrainedModel | TrainedDeck, dataset: Dataset, recipe: Recipe) -> Graph:
    """The integer network, calibrated on the validation split."""
    from cactus_edge.train.calibrate import to_graph
    from cactus_edge.train.deck.cards import TrainedDeck, deck_graph

    if isinstance(network, TrainedDeck):
        return deck_graph(network, dataset, recipe)
    return to_graph(network, dataset, recipe)


def described(network: TrainedModel | TrainedDeck, graph: Graph, dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    """What a deck is, or which widths of its weights were chosen for a single network, as JSON values; nothing of any other."""
    from cactus_edge.train.deck.cards import TrainedDeck
    from cactus_edge.train.deck.describe import described

    if isinstance(network, TrainedDeck):
        return {"deck": described(network, graph, dataset, recipe)}
    return {} if network.chosen is None else {"weight_bits": asdict(network.chosen)}
