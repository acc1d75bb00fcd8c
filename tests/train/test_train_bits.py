"""Widths of weights within a budget of bytes: the best of those that fit, learned, remembered, and in the file's own bytes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from train_kit import CtrlC, untimed

from cactus_edge.errors import InputError
from cactus_edge.formats.nibbles import weight_bytes
from cactus_edge.formats.tflite import write_tflite
from cactus_edge.ir import ops
from cactus_edge.ir.arithmetic import profile
from cactus_edge.ir.lowering import lower
from cactus_edge.recipe import Recipe
from cactus_edge.recipe_model import ModelRecipe
from cactus_edge.train import bits
from cactus_edge.train.allocation import whole_step
from cactus_edge.train.bits import Bits, ChosenBits, Sizes, choose, chosen_bits, sizes
from cactus_edge.train.bounds import box
from cactus_edge.train.calibrate import to_graph
from cactus_edge.train.checkpoints import run_key, shared
from cactus_edge.train.data import Dataset
from cactus_edge.train.fakequant import fake_quantise, narrowed, usual_ceilings
from cactus_edge.train.folded import detach, fold
from cactus_edge.train.loop import _Run, train
from cactus_edge.train.methods.posthoc import DENSE
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.ibp import IBP
from cactus_edge.train.objectives.loss import Batch, Member
from cactus_edge.train.trained import TrainedModel
from cactus_edge.verify.tflite_read import read_tflite

Make = Callable[..., Network]
OF_TINY = (4 * 9 + 4 * 4, 7 * 64 + 4 * 7, 70 + 40)
"""Bytes of the recipe's layers in 8 bits, weights and biases."""

BUDGET = 500
"""In which one of the two larger layers may have 8 bits."""


def asking(recipe: Recipe, budget: int) -> Recipe:
    return replace(recipe, quantise=replace(recipe.quantise, weight_bytes=budget, calibration="min-max"))


def table(count: int, seed: int, *, apart: float = 1.0) -> tuple[Sizes, Callable[[Bits], float]]:
    """Sizes of so many layers, and a loss that is what narrow layers cost one by one and, by `apart`, no sum at all."""
    rng = np.random.default_rng(seed)
    full = rng.integers(8, 200, count)
    found = [{8: int(n), 4: int(n) // 2} if rng.random() < 0.9 else {8: int(n)} for n in full]
    costs = rng.random(count)
    noise = {b: apart * float(rng.normal()) for b in itertools.product((8, 4), repeat=count)}
    return found, lambda b: noise[b] + sum(c for c, w in zip(costs, b, strict=True) if w == 4)


def fitting(found: Sizes, budget: int) -> list[Bits]:
    """By definition: assignments that fit, and of which none is as wide everywhere and wider somewhere."""
    every = [
        b for b in itertools.product((8, 4), repeat=len(found)) if all(w in s for w, s in zip(b, found, strict=True))
    ]
    fit = [b for b in every if sum(s[w] for s, w in zip(found, b, strict=True)) <= budget]
    return [b for b in fit if not any(o != b and all(x >= y for x, y in zip(o, b, strict=True)) for o in fit)]


@pytest.mark.parametrize("part", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_few_layers_get_the_best_of_all_assignments(count: int, part: float) -> None:
    for seed in range(10):
        found, loss = table(count, seed)
        least, most = (sum(end(s.values()) for s in found) for end in (min, max))
        budget = math.ceil(least + part * (most - least))
        assert choose(found, budget, loss) == min(fitting(found, budget), key=loss)


def test_no_more_than_the_middle_binomial_is_measured() -> None:
    """Ten equal layers, of which five may be wide."""
    asked: list[Bits] = []

    def loss(b: Bits) -> float:
        asked.append(b)
        return sum(i * (8 - w) for i, w in enumerate(b))

    assert choose([{8: 2, 4: 1}] * bits.EXACT_LAYERS, 15, loss) == (4,) * 5 + (8,) * 5
    assert len(asked) == len(set(asked)) == math.comb(10, 5)


@pytest.mark.parametrize("seed", range(8))
def test_many_layers_fit_waste_nothing_and_are_good(seed: int) -> None:
    found, loss = table(12, seed, apart=0.1)
    least, most = (sum(end(s.values()) for s in found) for end in (min, max))
    chosen = choose(found, (least + most) // 2, loss)
    every = fitting(found, (least + most) // 2)
    assert chosen in every
    assert loss(chosen) <= sorted(map(loss, every))[len(every) // 4]


def test_the_greedy_path_alone_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault of the comparison with all assignments."""
    monkeypatch.setattr(bits, "EXACT_LAYERS", 0)
    cases = [(table(5, seed), 0.5) for seed in range(20)]
    budgets = [sum(sum(s.values()) / len(s) for s in found) for (found, _), _ in cases]
    pairs = [
        (choose(found, int(b), loss), min(fitting(found, int(b)), key=loss))
        for ((found, loss), _), b in zip(cases, budgets, strict=True)
    ]
    assert any(one != best for one, best in pairs)


@pytest.fixture
def batch() -> Batch:
    x = torch.rand((150, 2, 7, 6), generator=torch.Generator().manual_seed(1))
    return Batch(x, torch.arange(150) % 4, box(x - 0.01, x + 0.01))


@pytest.mark.parametrize("seed", range(4))
def test_a_network_is_measured_as_it_will_round(
    make_network: Make, tiny: Recipe, batch: Batch, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bits, "SAMPLES", 64)
    net = detach(fold(make_network(seed).layers()))
    ceilings = usual_ceilings(net, batch.x, clip=0.9, batch=50)
    budget = sum(s[4] for s in sizes([a.layer for a in net])) + 150
    recipe = asking(tiny, budget)

    def loss(b: Bits) -> float:
        member = Member(fake_quantise(narrowed(net, b), ceilings))
        return float(IBP.of(member, batch, whole_step(recipe)).loss)

    found = chosen_bits(net, ceilings, recipe, batch)
    every = fitting(sizes([a.layer for a in net]), budget)
    assert found.weight_bits == min(every, key=loss)
    assert found.loss == pytest.approx((loss(found.weight_bits), loss((8,) * len(net))), rel=1e-4)
    assert found.bytes <= found.budget == budget and found.measured == len({*every, (8,) * len(net)})
    assert all(c <= r for c, r in zip(found.certified, found.clean, strict=True))


def test_a_depthwise_layer_of_odd_channels_stays_wide(make_network: Make) -> None:
    layer = make_network().layers()[0]
    odd, even = (replace(layer, weight=torch.ones(n, 1, 3, 3), bias=torch.zeros(n), depthwise=True) for n in (5, 6))
    assert sizes([odd, even]) == [{8: 65}, {8: 54 + 24, 4: 27 + 24}]


@pytest.fixture(scope="module")
def chosen(tiny: Recipe, few_digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    return train(asking(tiny, BUDGET), few_digits, tmp_path_factory.mktemp("bits"), threads=1)


def stored(model: TrainedModel, dataset: Dataset, recipe: Recipe) -> tuple[list[int], int]:
    """Widths of the layers of the written file, and bytes of its weights and biases."""
    graph = read_tflite(write_tflite(to_graph(model, dataset, recipe))).graph
    found = [node.op for node in graph.nodes if isinstance(node.op, ops.Conv2d | ops.DepthwiseConv2d | ops.Dense)]
    return [op.weight_bits for op in found], sum(weight_bytes(op) + op.bias.nbytes for op in found)


@pytest.mark.parametrize(
    "budget",
    [pytest.param(sum(OF_TINY) // 2 + 50, id="tight"), pytest.param(BUDGET, id="some"), pytest.param(10**6, id="wide")],
)
def test_the_file_holds_what_was_chosen(tiny: Recipe, few_digits: Dataset, tmp_path: Path, budget: int) -> None:
    recipe = asking(tiny, budget)
    model = train(recipe, few_digits, tmp_path, threads=1)
    assert model.chosen is not None
    widths, size = stored(model, few_digits, recipe)
    assert (tuple(widths), size) == (model.chosen.weight_bits, model.chosen.bytes)
    assert size <= budget
    assert (budget < 10**6) == (4 in widths)


MODULE = """
from torch import nn

def make(shape, classes):
    return nn.Sequential(
        nn.Conv2d(1, 5, 3, 2), nn.ReLU(), nn.Conv2d(5, 5, 3, groups=5), nn.ReLU(), nn.Flatten(), nn.Linear(5, classes)
    )
"""


def test_a_module_of_ones_own_with_what_cannot_be_narrow(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "narrow_nets.py").write_text(MODULE)
    recipe = asking(replace(tiny, model=ModelRecipe(module="narrow_nets:make", folder=str(tmp_path))), 1)
    with pytest.raises(InputError, match="take 173 bytes"):
        train(recipe, few_digits, tmp_path / "runs", threads=1)
    recipe = asking(recipe, 173)
    model = train(recipe, few_digits, tmp_path / "runs", threads=1)
    assert stored(model, few_digits, recipe) == ([4, 8, 4], 173)
    lower(to_graph(model, few_digits, recipe), profile("tflm"))


def test_members_learn_with_what_was_chosen(
    chosen: TrainedModel, tiny: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to the choice as a run in 8 bits; after it as nothing else, also where the choice is not heeded."""
    plain = train(tiny, few_digits, tmp_path / "plain", threads=1)
    count = tiny.train.epochs
    assert untimed(chosen)[:count] == untimed(plain)[:count] and untimed(chosen)[count:] != untimed(plain)[count:]
    monkeypatch.setattr(_Run, "_narrow", lambda run, found: setattr(run, "_chosen", found))
    deaf = train(asking(tiny, BUDGET), few_digits, tmp_path / "deaf", threads=1)
    assert deaf.chosen == chosen.chosen and deaf.digest() == plain.digest() != chosen.digest()


@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_run_keeps_its_widths(
    chosen: TrainedModel, tiny: Recipe, few_digits: Dataset, tmp_path: Path, after: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(asking(tiny, BUDGET), few_digits, tmp_path, CtrlC(after), threads=1)
    for _ in range(2):  # goes on, and is read
        again = train(asking(tiny, BUDGET), few_digits, tmp_path, threads=1)
        assert again.chosen == chosen.chosen and again.digest() == chosen.digest()


def test_forgotten_widths_are_caught(
    chosen: TrainedModel, tiny: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault of the test above."""
    with pytest.raises(KeyboardInterrupt):
        train(asking(tiny, BUDGET), few_digits, tmp_path, CtrlC(4), threads=1)
    monkeypatch.setattr(_Run, "_narrow", lambda *_: None)
    assert train(asking(tiny, BUDGET), few_digits, tmp_path, threads=1).digest() != chosen.digest()


def test_the_choice_says_why(chosen: TrainedModel, few_digits: Dataset) -> None:
    found = chosen.chosen
    assert isinstance(found, ChosenBits) and found.budget == BUDGET
    count = len(few_digits.validation.y)
    for share in (*found.clean, *found.certified):
        assert 0 <= share <= 1 and (share * count) % 1 == pytest.approx(0, abs=1e-9)
    assert found.measured <= 2**3 and min(found.loss) > 0


@pytest.mark.parametrize(
    ("budget", "method", "words"),
    [
        pytest.param(50, "cactus", r"weight_bytes = 50: .* take 361 bytes\s+try: at least 361", id="budget"),
        pytest.param(50, "posthoc-l1", "take 361 bytes", id="dense_first"),
        pytest.param(BUDGET, "adverfine-whole", "take 661 bytes", id="no_channel_goes"),
        pytest.param(BUDGET, "small", "method 'small' has none", id="one_stage"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_is_refused_before_training(
    budget: int, method: str, words: str, tiny: Recipe, few_digits: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        train(asking(tiny, budget), few_digits, tmp_path, method=method, threads=1)
    assert not list(tmp_path.iterdir())


def test_a_budget_is_part_of_what_a_run_is(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    """But not of a dense network that knows nothing of it."""
    keys = [run_key(asking(tiny, budget), few_digits) for budget in (0, BUDGET, BUDGET + 1)]
    assert keys[0] == run_key(tiny, few_digits) and len(set(keys)) == 3
    assert asking(tiny, BUDGET).digest() != asking(tiny, 0).digest()
    dense = {shared(asking(tiny, budget), few_digits, tmp_path, DENSE, 0) for budget in (0, BUDGET)}
    assert len(dense) == 1
