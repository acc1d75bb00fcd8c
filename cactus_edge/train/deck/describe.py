"""What a deck is, as a build records it: its cards, what each takes, and what the gate did with the validation split."""

from __future__ import annotations

from typing import Any

import numpy as np

from cactus_edge.ir import ops
from cactus_edge.ir.graph import Graph
from cactus_edge.recipe import Recipe
from cactus_edge.train.data import Dataset
from cactus_edge.train.deck.cards import TrainedDeck, cards


def described(deck: TrainedDeck, graph: Graph, dataset: Dataset, recipe: Recipe) -> dict[str, Any]:
    """As JSON values. bytes: of weights and biases. float_bytes: of the weights of one card in float32 before compression."""
    found: dict[str, Any] = {
        "cards": [
            {
                "scheme": card.scheme,
                "method": card.recipe.train.method,
                "seed": card.recipe.train.seed,
                "network": trained.digest(),
                "bytes": _bytes(graph, f"card{i}/"),
            }
            for i, (card, trained) in enumerate(zip(cards(recipe), deck.cards, strict=True))
        ],
        "float_bytes": max(4 * sum(card.weights_before) for card in deck.cards),
        "joint_bytes": _bytes(graph, "deck/") + _bytes(graph, "logits"),
        "gate": None,
    }
    if deck.gate is not None:
        grid = next(t for t in graph.tensors if t.name == "gate/code")
        codes = deck.gate.codes(dataset.validation.x, grid)
        found["gate"] = {
            "schemes": list(deck.schemes),
            "answer": [list(group) for group in deck.groups()],
            "tile": recipe.deck.tile,
            "bytes": _bytes(graph, "gate/"),
            "validation": [int(np.sum(codes == end)) for end in grid.codes],
            "undecided": int(np.sum((codes != grid.codes[0]) & (codes != grid.codes[1]))),
        }
    return found


def _bytes(graph: Graph, prefix: str) -> int:
    nodes = (node for node in graph.nodes if graph.tensors[node.output].name.startswith(prefix))
    return sum(array.nbytes for node in nodes for array in ops.constants(node.op).values())
