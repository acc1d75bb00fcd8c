"""What [deck] of a recipe asks for besides the values of single keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cactus_edge.recipe_reader import Reader

if TYPE_CHECKING:
    from cactus_edge.recipe import Recipe

MOST_CARDS = 9
"""Cards of a deck, at most."""


def with_training(table: dict[str, Any]) -> dict[str, Any]:
    """The recipe's table with the keys of [train] in each card that does not have them itself."""
    train, deck = table.get("train"), table.get("deck")
    cards = deck.get("card") if isinstance(deck, dict) else None
    if not isinstance(deck, dict) or not isinstance(cards, list) or not isinstance(train, dict):
        return table  # what is wrong with it, the reader says

    def whole(card: Any) -> Any:
        own = card.get("train", {}) if isinstance(card, dict) else None
        return card | {"train": train | own} if isinstance(own, dict) else card

    return table | {"deck": deck | {"card": [whole(card) for card in cards]}}


def check_deck(reader: Reader, recipe: Recipe) -> None:
    """Raises InputError for cards that cannot be joined, and for schemes that a gate cannot choose between."""
    deck, plain = recipe.deck, type(recipe.deck)()
    if deck == plain:
        return
    if not 2 <= deck.count <= MOST_CARDS:
        message = (
            f"[deck] has {deck.count} cards, expected 2 to {MOST_CARDS}: TFLM joins ten tensors, the gate's among them"
        )
        raise reader.error(("deck",), message, "a [[deck.card]] table with seeds = [0, 1, 2]")
    for i, card in enumerate(deck.card):
        if len(set(card.seeds)) < len(card.seeds):
            raise reader.error(("deck", "card", i, "seeds"), "a seed stands there twice", "equal cards say the same")
        if card.train.seed != recipe.train.seed:
            raise reader.error(("deck", "card", i, "train", "seed"), "a card has seeds", f"seeds = [{card.train.seed}]")
    if recipe.quantise.weight_bytes:
        message = "weight_bytes is what one network may take, and [deck] has several"
        raise reader.error(("quantise", "weight_bytes"), message, "weight_bits = [4], for all cards")
    schemes = list(dict.fromkeys(card.scheme for card in deck.card))
    if deck.gate == "spectral" and len(schemes) != 2:
        named = ", ".join(map(repr, schemes))
        raise reader.error(("deck", "gate"), f"a gate between {named}: it decides between two schemes", "two schemes")
    for key in ("tile", "alone"):
        if deck.gate == "none" and getattr(deck, key) != getattr(plain, key):
            raise reader.error(("deck", key), f"{key} says nothing without a gate", 'gate = "spectral"')
    if unknown := sorted(set(deck.alone) - set(schemes)):
        raise reader.error(("deck", "alone"), f"no card is of scheme {unknown[0]!r}", f"one of {', '.join(schemes)}")
