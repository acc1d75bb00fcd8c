"""Decks: the gate looks at Fourier magnitudes, the graph says what its cards say, and both are what every engine bounds soundly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from train_kit import CtrlC, untimed

from cactus_edge.certify.linear import Linear
from cactus_edge.errors import InputError, ModelError
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.evaluate import evaluate, trace
from cactus_edge.ir.graph import Graph, Tensor
from cactus_edge.ir.lowering import lower
from cactus_edge.recipe import Recipe, parse_recipe
from cactus_edge.train.data import Dataset
from cactus_edge.train.deck.cards import TrainedDeck, cards, deck_graph, fit_gate, train_deck
from cactus_edge.train.deck.gate import Gate, fitted, spectrum
from cactus_edge.train.deck.join import Means, joined
from cactus_edge.train.evaluate import float_predict
from cactus_edge.verify.decide import decide
from cactus_edge.verify.interval import propagate

TFLM = profile("tflm")
DECK = """
[deck]
gate = "spectral"

[[deck.card]]
scheme = "plain"
seeds = [0, 1]

[[deck.card]]
scheme = "gained"
seeds = [0]

[deck.card.train]
gain = 0.6
"""

Array = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def recipe(tiny_text: str) -> Recipe:
    """Three cards of the smallest recipe, two epochs each, calibrated without a search."""
    text = tiny_text.replace("epochs = 3", "epochs = 2").replace("finetune_epochs = 2", "finetune_epochs = 0")
    return parse_recipe(text.replace("[quantise]", '[quantise]\ncalibration = "min-max"') + DECK, "deck.toml")


@pytest.fixture(scope="module")
def deck(recipe: Recipe, few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrainedDeck:
    return train_deck(recipe, few_digits, tmp_path_factory.mktemp("deck"), threads=1)


@pytest.fixture(scope="module")
def graph(deck: TrainedDeck, recipe: Recipe, few_digits: Dataset) -> Graph:
    return deck_graph(deck, few_digits, recipe)


def named(graph: Graph, name: str) -> int:
    return [t.name for t in graph.tensors].index(name)


def noisy(images: Array, sigma: float, seed: int = 0) -> Array:
    drawn = np.random.default_rng(seed).standard_normal(images.shape)
    return np.clip(images + sigma * drawn, 0, 1).astype(np.float32)


# --- the gate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [2, 4, 5, 8])
def test_filters_are_the_fourier_transform(tile: int) -> None:
    found = spectrum(tile)
    window = np.random.default_rng(tile).random((tile, tile))
    transform = np.fft.fft2(window)
    values = (found.real * window).sum((1, 2))
    half = len(values) // 2
    np.testing.assert_allclose(values[half:], -values[:half], atol=1e-12)
    squares = np.bincount(found.ring[:half], values[:half] ** 2)
    lengths = np.array([[min(u, tile - u) ** 2 + min(v, tile - v) ** 2 for v in range(tile)] for u in range(tile)])
    for ring, length in enumerate(sorted(set(lengths.ravel()) - {0})):
        # A pair +-k has one magnitude; a frequency that is its own opposite has no other.
        own = [(u, v) for u in range(tile) for v in range(tile) if lengths[u, v] == length]
        weight = [1.0 if (-u % tile, -v % tile) == (u, v) else 0.5 for u, v in own]
        np.testing.assert_allclose(
            squares[ring], sum(w * abs(transform[k]) ** 2 for w, k in zip(weight, own, strict=True))
        )


def test_integer_filters_see_no_brightness(few_digits: Dataset) -> None:
    source = Tensor("input", few_digits.shape, "int8", float(np.float32(1 / 255)), -128)
    x = few_digits.train.x
    gate = fitted(source, ("a", "b"), (x[:50], noisy(x[:50], 0.1)), 8)
    assert not gate.filters.weight.astype(int).sum((1, 2, 3)).any()
    flat = np.full((2, *few_digits.shape), [[[[0.2]]], [[[0.9]]]], np.float32)
    assert len(set(gate.sums(flat).tolist())) == 1


def test_a_gate_tells_noise_from_none(few_digits: Dataset) -> None:
    source = Tensor("input", few_digits.shape, "int8", float(np.float32(1 / 255)), -128)
    x, held = few_digits.train.x, few_digits.validation.x
    gate = fitted(source, ("clean", "noise"), (x, noisy(x, 0.2)), 8)
    right = np.concatenate([gate.chosen(held) == 0, gate.chosen(noisy(held, 0.2, 1)) == 1])
    assert right.mean() > 0.8
    assert [gate.chosen_together(held), gate.chosen_together(noisy(held, 0.2, 1))] == [0, 1]
    inverted = replace(gate, weight=-gate.weight, bias=-gate.bias)
    wrong = np.concatenate([inverted.chosen(held) == 0, inverted.chosen(noisy(held, 0.2, 1)) == 1])
    assert wrong.mean() < 0.2


def test_distances_are_mahalanobis(few_digits: Dataset) -> None:
    source = Tensor("input", few_digits.shape, "int8", float(np.float32(1 / 255)), -128)
    x = few_digits.train.x
    gate = fitted(source, ("a", "b"), (x, noisy(x, 0.1)), 4)
    sums = [float(gate.sums(part).mean()) for part in (x, noisy(x, 0.1))]
    assert sums[0] < 0 < sums[1]
    # The threshold lies half way between the schemes' means.
    assert abs(sums[0] + sums[1]) <= 1


def test_samples_of_one_spectrum_are_refused(few_digits: Dataset) -> None:
    source = Tensor("input", few_digits.shape, "int8", float(np.float32(1 / 255)), -128)
    grey = tuple(np.full((5, *few_digits.shape), value, np.float32) for value in (0.5, 0.7))
    with pytest.raises(InputError, match="one spectrum each"):
        fitted(source, ("a", "b"), grey, 4)


def test_no_window_larger_than_the_input(recipe: Recipe, few_digits: Dataset) -> None:
    with pytest.raises(InputError, match="no such window fits inputs of 8 x 8"):
        fit_gate(replace(recipe, deck=replace(recipe.deck, tile=9)), few_digits)


# --- the graph --------------------------------------------------------------------------------------------------------


def expected(graph: Graph, x: Array, deck: TrainedDeck) -> npt.NDArray[np.int64]:
    """The winner by exact means of the cards' own logits, as the gate's code says; -1 where the gate is undecided."""
    found = trace(graph, x, TFLM)
    logits = np.stack([found[named(graph, f"card{i}/logits")] for i in range(len(deck.cards))])
    code = np.asarray(found[named(graph, "gate/code")])[:, 0]
    means = np.stack([logits[list(group)].mean(0) for group in deck.groups()])
    answer = np.where((code == 127)[:, None], means[1], means[0])
    best = np.sort(answer, 1)
    clear = (best[:, -1] - best[:, -2] > 2) & ((code == 127) | (code == -128))
    return np.where(clear, answer.argmax(1), -1)


def agreement(graph: Graph, x: Array, wanted: npt.NDArray[np.int64]) -> float:
    clear = wanted >= 0
    assert clear.sum() > 20
    return float((evaluate(graph, x, TFLM).argmax(1) == wanted)[clear].mean())


def test_the_deck_says_what_the_chosen_cards_say(graph: Graph, deck: TrainedDeck, few_digits: Dataset) -> None:
    x = np.concatenate([few_digits.validation.x, noisy(few_digits.validation.x, 0.3)])
    wanted = expected(graph, x, deck)
    assert agreement(graph, x, wanted) == 1
    codes = np.asarray(trace(graph, x, TFLM)[named(graph, "gate/code")])[:, 0]
    assert {-128, 127} <= set(codes.tolist())
    assert deck.gate is not None
    assert np.array_equal(deck.gate.codes(x, graph.tensors[named(graph, "gate/code")]), codes)
    parts = np.asarray(trace(graph, x, TFLM)[named(graph, "deck/chosen")])
    classes = graph.output.size
    assert (parts[codes == 127][:, :classes] == -128).all()
    assert (parts[codes == -128][:, classes:] == -128).all()


def without(graph: Graph, change: Callable[[str, npt.NDArray[np.int8]], npt.NDArray[np.int8]]) -> Graph:
    """The graph with other weights in its selection."""
    nodes = []
    for node in graph.nodes:
        name = graph.tensors[node.output].name
        weight = change(name, node.op.weight.copy()) if hasattr(node.op, "weight") else None
        nodes.append(node if weight is None else replace(node, op=replace(node.op, weight=weight)))
    return replace(graph, nodes=tuple(nodes))


def _inverted(name: str, weight: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    return -weight if name == "gate/code" else weight


def _dropped(name: str, weight: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    if name == "deck/chosen":
        weight[:, 10:20] = 0
    return weight


@pytest.mark.parametrize("fault", [_inverted, _dropped], ids=["gate inverted", "card dropped"])
def test_a_broken_deck_is_noticed(
    graph: Graph,
    deck: TrainedDeck,
    few_digits: Dataset,
    fault: Callable[[str, npt.NDArray[np.int8]], npt.NDArray[np.int8]],
) -> None:
    x = few_digits.validation.x
    assert agreement(without(graph, fault), x, expected(graph, x, deck)) < 1


def test_what_answers_is_one_group_or_two(tiny_cards: list[Graph]) -> None:
    for groups in ([], [(0,), (1,)], [()]):
        with pytest.raises(ModelError, match="expected 1, none empty"):
            joined(tiny_cards, groups, None, Means(-1, 1), symmetric=False)


def test_all_cards_answer_where_a_scheme_does_not_alone(deck: TrainedDeck, recipe: Recipe, few_digits: Dataset) -> None:
    assert deck.groups() == ((0, 1), (2,))
    mixed = replace(deck, alone=("gained",))
    assert mixed.groups() == ((0, 1, 2), (2,))
    whole, x = deck_graph(mixed, few_digits, recipe), few_digits.validation.x
    assert agreement(whole, x, expected(whole, x, mixed)) == 1


def test_cards_on_other_grids_are_refused(tiny_cards: list[Graph]) -> None:
    first, second = tiny_cards
    for where, what in ((second.outputs[0], "logits"), (second.inputs[0], "input")):
        tensors = list(second.tensors)
        tensors[where] = replace(tensors[where], scale=float(np.float32(2 * tensors[where].scale)))
        with pytest.raises(ModelError, match=f"card 1: its {what} are"):
            joined([first, replace(second, tensors=tuple(tensors))], [(0, 1)], None, Means(-1, 1), symmetric=False)


@pytest.fixture(scope="module")
def tiny_cards() -> list[Graph]:
    """Two networks of five inputs and three classes, on shared grids."""
    return [_small(seed) for seed in (0, 1)]


def _small(seed: int) -> Graph:
    from cactus_edge.ir.builder import GraphBuilder
    from cactus_edge.ir.ops import Activation, Dense, freeze

    rng, builder = np.random.default_rng(seed), GraphBuilder()
    at = builder.input(Tensor("input", (2, 2, 1), "int8", 0.0625, -128))
    hidden = Dense(freeze(rng.integers(-127, 128, (6, 4)), np.int8), freeze(rng.integers(-900, 900, 6), np.int32),
                   freeze([0.01], np.float32), Activation.RELU)  # fmt: skip
    at = builder.node(hidden, [at], Tensor("hidden", (6,), "int8", 0.0625, -128))
    last = Dense(freeze(rng.integers(-127, 128, (3, 6)), np.int8), freeze(rng.integers(-900, 900, 3), np.int32),
                 freeze([0.01], np.float32))  # fmt: skip
    return builder.finish(builder.node(last, [at], Tensor("logits", (3,), "int8", 0.25, -10)))


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("gated", [False, True], ids=["agnostic", "gated"])
def test_bounds_of_a_deck_hold_at_every_point(tiny_cards: list[Graph], *, gated: bool, symmetric: bool) -> None:
    gate = _tiny_gate(tiny_cards[0].input) if gated else None
    groups = [(0, 1), (1,)] if gated else [(0, 1)]
    whole = joined(tiny_cards, groups, gate, Means(-128, 127), symmetric=symmetric)
    program = lower(whole, TFLM)
    lines, rng, sure = Linear(program), np.random.default_rng(5), [0, 0]
    for _ in range(30):
        centre = rng.integers(-126, 126, (1, 2, 2, 1))
        low, high = (np.clip(centre + d, -128, 127).astype(np.int8) for d in (-2, 2))
        ends = zip(low.ravel().tolist(), high.ravel().tolist(), strict=True)
        points = np.stack(np.meshgrid(*(np.arange(a, b + 1) for a, b in ends)), -1).reshape(-1, 2, 2, 1)
        codes = evaluate(whole, points.astype(np.int8), TFLM)
        least, most = propagate(program, low, high)[program.output]
        assert (codes >= least).all()
        assert (codes <= most).all()
        label = evaluate(whole, centre.astype(np.int8), TFLM).argmax(1)
        wins = bool((codes[:, label[0]] > np.delete(codes, label[0], 1).max(1)).all())
        decision = decide(program, low, high, label, centre.astype(np.int8))
        (record,) = lines.records(low, high, np.zeros(1, np.int64), label)
        for way, shown in enumerate((bool(decision.certified[0]), record.verdict is not None)):
            assert wins or not shown
            sure[way] += shown
    assert sure[1] >= sure[0] > 0


def _tiny_gate(source: Tensor) -> Gate:
    rng = np.random.default_rng(3)
    x = rng.random((60, 2, 2, 1)).astype(np.float32)
    return fitted(source, ("a", "b"), (np.repeat(x.mean((1, 2), keepdims=True), 4, 1).reshape(60, 2, 2, 1), x), 2)


# --- training ---------------------------------------------------------------------------------------------------------


def test_each_card_has_its_own_recipe(recipe: Recipe) -> None:
    found = cards(replace(recipe, train=replace(recipe.train, seed=7)))
    assert [(card.scheme, card.recipe.train.seed, card.recipe.train.gain) for card in found] == [
        ("plain", 7, 0.0),
        ("plain", 8, 0.0),
        ("gained", 7, 0.6),
    ]
    assert not any(card.recipe.deck.card for card in found)


def test_an_interrupted_deck_continues(recipe: Recipe, deck: TrainedDeck, few_digits: Dataset, tmp_path: Path) -> None:
    stop = CtrlC(3)
    with pytest.raises(KeyboardInterrupt):
        train_deck(recipe, few_digits, tmp_path, lambda card, done, total, stats: stop(stats), threads=1)
    told: list[tuple[int, int, int]] = []
    resumed = train_deck(
        recipe, few_digits, tmp_path, lambda i, done, total, _: told.append((i, done, total)), threads=1
    )
    assert told == [(1, 4, 6), (2, 5, 6), (2, 6, 6)]
    assert resumed.digest() == deck.digest()
    assert [untimed(card) for card in resumed.cards] == [untimed(card) for card in deck.cards]


def test_the_float_deck_is_near_its_integers(graph: Graph, deck: TrainedDeck, few_digits: Dataset) -> None:
    x = few_digits.validation.x
    assert (float_predict(deck, x) == evaluate(graph, x, TFLM).argmax(1)).mean() > 0.9
