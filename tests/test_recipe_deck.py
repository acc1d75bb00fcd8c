"""[deck] of a recipe: what a card inherits, and that every refusal names the line and a way out."""

from __future__ import annotations

import pytest

from cactus_edge.errors import InputError
from cactus_edge.recipe import BUILT_IN, load_recipe, parse_recipe

PLAIN = (BUILT_IN / "digits.toml").read_text()
DECK = """
[deck]
gate = "spectral"

[[deck.card]]
scheme = "still"
seeds = [0, 1]

[[deck.card]]
scheme = "moved"
seeds = [0, 1]

[deck.card.train]
shift_pixels = 1.0
epochs = 30
"""
LINES = PLAIN.count("\n")


def test_a_card_has_the_keys_of_train_but_its_own() -> None:
    recipe = parse_recipe(PLAIN + DECK, "mine.toml")
    still, moved = (card.train for card in recipe.deck.card)
    assert still == recipe.train
    assert (moved.shift_pixels, moved.epochs, moved.batch) == (1.0, 30, recipe.train.batch)
    assert recipe.deck.count == 4


def test_a_deck_survives_being_written_as_toml() -> None:
    for recipe in (parse_recipe(PLAIN + DECK, "mine.toml"), load_recipe("deck-fmnist"), load_recipe("digits")):
        assert parse_recipe(recipe.to_toml(), "again.toml") == recipe


def test_a_recipe_without_a_deck_keeps_its_digest() -> None:
    plain = parse_recipe(PLAIN, "mine.toml")
    assert parse_recipe(PLAIN + "\n[deck]\n", "mine.toml").digest() == plain.digest()
    assert "deck" not in plain.to_toml()
    assert parse_recipe(PLAIN + DECK, "mine.toml").digest() != plain.digest()


def test_a_deck_has_no_budget_of_one_network() -> None:
    text = PLAIN.replace("[quantise]\n", "[quantise]\nweight_bytes = 20000\n") + DECK
    line = text[: text.index("weight_bytes")].count("\n") + 1
    with pytest.raises(InputError, match=f"mine.toml:{line}: weight_bytes is what one network may take") as caught:
        parse_recipe(text, "mine.toml")
    assert "weight_bits" in caught.value.hint


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("shift_pixels = 1.0", "shift_pixel = 1.0", 14, "unknown key 'shift_pixel' in [deck.card.train]"),
        ("shift_pixels = 1.0", "shift_pixels = -1.0", 14, "expected a number in [0, 8]"),
        ("epochs = 30", "epochs = 1", 13, "exceed epochs = 1"),
        ("epochs = 30", "seed = 3", 15, "a card has seeds"),
        ('scheme = "moved"', 'scheme = "still"', 3, "a gate between 'still': it decides between two schemes"),
        ('scheme = "still"\n', "", 5, "[deck.card] lacks 'scheme'"),
        ("seeds = [0, 1]", "seeds = [0, 0]", 7, "a seed stands there twice"),
        ("seeds = [0, 1]", "seeds = [0, 1, 2, 3, 4, 5, 6, 7]", 2, "has 10 cards, expected 2 to 9"),
        ('gate = "spectral"', "tile = 4", 3, "tile says nothing without a gate"),
        ('gate = "spectral"', 'alone = ["still"]', 3, "alone says nothing without a gate"),
        ('gate = "spectral"', 'gate = "spectral"\nalone = ["quiet"]', 4, "no card is of scheme 'quiet'"),
        ('gate = "spectral"', 'gate = "soft"', 3, "expected one of none, spectral"),
        ('gate = "spectral"', "gates = 2", 3, "unknown key 'gates' in [deck]"),
        ("[[deck.card]]", "[[deck.cards]]", 5, "unknown key 'cards' in [deck]"),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, str) else None,
)
def test_what_is_wrong_with_a_deck(old: str, new: str, line: int, said: str) -> None:
    assert old in DECK
    with pytest.raises(InputError) as caught:
        parse_recipe(PLAIN + DECK.replace(old, new, 1), "mine.toml")
    assert said in str(caught.value)
    assert f"mine.toml:{LINES + line}:" in str(caught.value)


@pytest.mark.parametrize("deck", ["deck = 3\n", 'deck = { card = "all" }\n', "deck = { card = [3] }\n"])
def test_tables_that_are_none(deck: str) -> None:
    with pytest.raises(InputError, match=r"mine\.toml:1: "):
        parse_recipe(deck + PLAIN, "mine.toml")
