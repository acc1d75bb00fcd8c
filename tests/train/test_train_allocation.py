"""Widths of layers: whole vectors, within the budget, where the loss rises least."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from cactus_edge.recipe_sections import CompressRecipe
from cactus_edge.train.allocation import (
    COSTS,
    Sensitivity,
    allocate,
    by_sensitivity,
    certified_loss,
    macs,
    scores,
    stored_bytes,
    taylor,
    widths_to_try,
)
from cactus_edge.train.bounds import box
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.loss import Batch, Step
from cactus_edge.train.prune import choose, take

Make = Callable[..., Network]
STEP = Step(1.0, 0.01, 0.7)


@pytest.fixture
def batch() -> Batch:
    x = torch.rand((150, 2, 7, 6), generator=torch.Generator().manual_seed(1))
    return Batch(x, torch.arange(150) % 4, box(x - 0.01, x + 0.01))


@pytest.mark.parametrize(
    ("keep", "multiple", "expected"),
    [(0.25, 1, (6, 12, 16)), (0.25, 8, (8, 16, 16)), (0.25, 32, (24, 32, 32)), (1.0, 8, (24, 48, 64)), (0.01, 4, (4, 4, 4))],
)  # fmt: skip
def test_a_share_in_whole_vectors(keep: float, multiple: int, expected: tuple[int, ...]) -> None:
    compress = CompressRecipe(keep=keep, channel_multiple=multiple)
    assert tuple(compress.kept_of(n) for n in (24, 48, 64)) == expected


@pytest.mark.parametrize(("channels", "multiple"), [(24, 8), (100, 8), (7, 4), (3, 32), (512, 1)])
def test_widths_that_are_tried(channels: int, multiple: int) -> None:
    also = CompressRecipe(keep=0.3, channel_multiple=multiple).kept_of(channels)
    found = widths_to_try(channels, multiple, also)
    assert also in found and found[-1] == channels and len(found) <= 10
    assert all(w % multiple == 0 for w in found[:-1])


def test_costs_count_what_runs_and_what_is_stored(make_network: Make) -> None:
    layers = make_network(0).layers()
    assert macs(layers) == 5 * 2 * 9 * 4 * 3 + 6 * 5 * 4 * 3 * 2 + 8 * 36 + 4 * 8
    assert stored_bytes(layers) == 90 + 120 + 288 + 32 + 4 * (5 + 6 + 8 + 4)


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_holds_and_uniform_is_never_better(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    table = tuple({w: float(torch.rand(1, generator=generator)) * (16 - w) for w in (4, 8, 12, 16)} for _ in range(3))
    found = Sensitivity(0.0, table)

    def cost(widths: tuple[int, ...]) -> int:
        return 9 * widths[0] + 9 * widths[0] * widths[1] + widths[1] * widths[2] + 10 * widths[2]

    start = (8, 8, 8)
    chosen = allocate(found, start, cost, cost(start))
    assert cost(chosen) <= cost(start)
    assert found.rise(chosen) <= found.rise(start)
    every = [w for w in itertools.product((4, 8, 12, 16), repeat=3) if cost(w) <= cost(start)]
    assert found.rise(chosen) <= sorted(found.rise(w) for w in every)[len(every) // 4]


def test_a_layer_that_matters_keeps_its_channels() -> None:
    found = Sensitivity(0.0, ({4: 9.0, 8: 5.0, 16: 0.0}, {4: 0.1, 8: 0.05, 16: 0.0}))
    assert allocate(found, (8, 8), lambda w: w[0] + w[1], 20) == (16, 4)


@pytest.mark.parametrize("budget", sorted(COSTS))
def test_on_a_network(make_network: Make, batch: Batch, budget: str) -> None:
    layers = make_network(1, widths=(8, 8, 16)).layers()
    ranking = scores(layers, "reach")
    start = (4, 4, 8)
    chosen = by_sensitivity(layers, start, ranking, (batch, STEP), multiple=4, budget=budget)
    assert all(w % 4 == 0 for w in chosen)
    before, after = (COSTS[budget](take(layers, choose(layers, w))) for w in (start, chosen))
    assert after <= before


def test_the_loss_rises_as_the_gate_says(make_network: Make, batch: Batch) -> None:
    """The gate's derivative against a difference quotient, on one channel of each layer."""
    layers = make_network(2, widths=(4, 4, 4)).layers()
    few = Batch(batch.x[:100], batch.y[:100], box(batch.x[:100] - 0.01, batch.x[:100] + 0.01))
    found = taylor(layers, few, STEP)
    network = make_network(2, widths=(4, 4, 4))
    for i in range(3):
        norm = network.layers()[i].norm
        assert norm is not None
        losses = []
        for factor in (0.99, 1.01):
            with torch.no_grad():
                kept = norm.gamma[1].clone(), norm.beta[1].clone()
                norm.gamma[1] *= factor
                norm.beta[1] *= factor
                losses.append(float(certified_loss(network.layers(), few, STEP)))
                norm.gamma[1], norm.beta[1] = kept
        slope = (losses[1] - losses[0]) / 0.02
        assert float(found[i][1]) == pytest.approx(slope**2, rel=0.1, abs=1e-4)


@pytest.mark.parametrize("criterion", ["reach", "l1", "l2", "taylor"])
@pytest.mark.parametrize("batch_norm", [True, False], ids=["norm", "plain"])
def test_a_channel_of_nothing_goes_first(make_network: Make, batch: Batch, criterion: str, batch_norm: bool) -> None:
    network = make_network(5, batch_norm=batch_norm)
    with torch.no_grad():
        layer = network.layers()[1]
        layer.weight[2], layer.bias[2] = 0, 0
        if layer.norm is not None:
            layer.norm.gamma[2], layer.norm.beta[2] = 0, 0
    ranking = scores(network.layers(), criterion, (batch, STEP))
    assert 2 not in choose(network.layers(), (5, 5, 8), ranking)[1].tolist()
