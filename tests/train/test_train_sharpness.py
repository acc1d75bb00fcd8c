"""SAM, CrAM and Flying Bird: what each promises of one step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from train_kit import sample

from cactus_edge.recipe import Recipe
from cactus_edge.train.data import Dataset
from cactus_edge.train.loop import train
from cactus_edge.train.methods import cram, flying_bird, sam
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.loss import Step
from cactus_edge.train.sparsity import Sparsity, masks
from cactus_edge.train.stages import full_layers
from cactus_edge.train.updates import Update, clipped, sharp

Make = Callable[..., Network]


# SAM.


def quadratic(update: Update, scale: Tensor, start: Tensor) -> Tensor:
    """Where one step of gradient descent with rate 1 on sum a w^2 / 2 ends."""
    p = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.SGD([p], 1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (scale * p * p).sum() / 2
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    assert float(update(closure, optimizer)) == pytest.approx(float((scale * start * start).sum() / 2))
    return p.detach()


def check_sharp(update: Update) -> None:
    scale, start, rho = torch.tensor([1.0, 4.0, 0.0]), torch.tensor([3.0, 1.0, 2.0]), 0.1
    slope = scale * start
    worst = start + rho * slope / slope.norm()
    assert torch.allclose(quadratic(update, scale, start), start - scale * worst)


def test_sams_step_is_along_the_gradient_at_the_worst_point() -> None:
    check_sharp(sharp(0.0, 0.1))


@pytest.mark.parametrize("update", [clipped(0.0), sharp(0.0, 0.2)], ids=["plain", "another radius"])
def test_another_step_is_seen(update: Update) -> None:
    with pytest.raises(AssertionError):
        check_sharp(update)


def test_sam_limits_its_gradient_and_stands_where_there_is_none() -> None:
    scale, start = torch.ones(2), torch.tensor([3.0, 4.0])
    assert torch.allclose(quadratic(sharp(1.0, 0.05), scale, start), start - start / 5)
    assert torch.equal(quadratic(sharp(0.0, 0.1), scale, torch.zeros(2)), torch.zeros(2))


def test_the_record_of_sams_step_is_of_where_it_began(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nearly nothing is learnt, so that the first epoch counts the network that began, however far away the gradient is taken."""
    train_part = replace(tiny.train, epochs=1, warmup_epochs=0, ramp_epochs=0, learning_rate=1e-12)
    records = []
    for rho in (0.0, 1e3):
        monkeypatch.setattr(sam, "RHO", rho)
        made = train(replace(tiny, train=train_part), few_digits, tmp_path / str(rho), method="sam")
        records.append(made.history[0])
    near, far = records
    assert (near.loss, near.train_clean, near.train_certified) == (far.loss, far.train_clean, far.train_certified)


# CrAM.


def test_crams_mask_is_global_by_the_weights_after_the_step_up(make_network: Make) -> None:
    layers = make_network(1).layers()
    gradients = [torch.randn(t.shape, generator=torch.Generator().manual_seed(1)) for t in cram.learned(layers)]
    found = cram.compressed(layers, gradients, 0.1, 0.7)
    given = iter(gradients)
    moved = []
    for layer in layers:
        moved.append(replace(layer, weight=layer.weight.detach() + 0.1 * next(given)))
        if layer.norm is None:
            next(given)
        else:
            next(given), next(given)
    kept = masks(tuple(moved), Sparsity(None, 0.7))
    size = sum(m.numel() for m in kept)
    assert sum(int(m.sum()) for m in kept) == size - round(0.7 * size)
    shares = {float(m.float().mean()) for m in kept}
    assert len(shares) == len(kept), "global: layers keep different shares"
    for a, b, m in zip(found, moved, kept, strict=True):
        assert torch.equal(a.weight.detach(), b.weight * m)
    sum((a.weight.sum() for a in found), torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    for layer, m in zip(layers, kept, strict=True):
        assert torch.equal(layer.weight.grad, m.float()), "the gradient counts for what stays"


def test_crams_share_is_drawn_by_the_batch() -> None:
    counts = [sum(cram.drawn(seed) == share for seed in range(600)) for share in cram.SHARES]
    assert sum(counts) == 600 and min(counts) > 150 and cram.drawn(7) == cram.drawn(7)


def test_cram_adds_the_pruned_networks_gradient(make_network: Make, half: Recipe) -> None:
    network, batch, step = make_network(2), sample(), Step(1.0, 0.0, 0.5)
    objective = cram.plus(half)
    total = objective(network, batch, step)
    alone = full_layers(half)(network.layers(), network.kept_widths(), batch, step)
    assert total.correct == alone.correct and float(total.loss.detach()) > float(alone.loss.detach())


# Flying Bird.


def test_what_dies_is_small_and_what_grows_is_steep() -> None:
    mask = torch.tensor([True, True, True, True, False, False, False])
    weight = torch.tensor([4.0, -1.0, 3.0, 2.0, 0.0, 0.0, 0.0])
    gradient = torch.tensor([9.0, 0.1, 9.0, 5.0, 1.0, -7.0, 2.0])
    found = flying_bird.exchanged(mask, weight, gradient, 0.5)
    assert found.tolist() == [True, False, True, True, False, True, False], "weight 3 died and grew again"


def check_density(exchange: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(40, generator=generator) < 0.3
    count = int(mask.sum())
    for _ in range(30):
        mask = exchange(mask, torch.randn(40, generator=generator), torch.randn(40, generator=generator), 0.5)
        assert int(mask.sum()) == count


def test_the_density_never_changes() -> None:
    check_density(flying_bird.exchanged)


def test_a_mask_that_loses_weights_is_seen() -> None:
    with pytest.raises(AssertionError):
        check_density(lambda mask, weight, slope, share: mask & (weight.abs() > 0.1))


@pytest.mark.parametrize("density", [0.05, 0.3, 0.5, 0.95, 1.0])
def test_erdos_renyi_kernels_fill_the_density(density: float) -> None:
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (10, 32, 1, 1)]
    sizes = [math.prod(s) for s in shapes]
    found = flying_bird.erdos_renyi(shapes, density)
    assert sum(found) == round(density * sum(sizes))
    shares = [n / size for n, size in zip(found, sizes, strict=True)]
    assert all(0 <= share <= 1 for share in shares) and shares[1] == min(shares)


def test_what_grows_begins_at_nothing(
    half: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the optimiser made of the weights that were off."""
    grown: list[Tensor] = []
    honest = flying_bird.Dynamic.update

    def watching(network: flying_bird.Dynamic) -> None:
        before = [mask.clone() for mask in network.masks()]
        honest(network)
        for layer, old, new in zip(network.layers(), before, network.masks(), strict=True):
            grown.append(layer.weight.detach()[(new != 0) & (old == 0)].clone())

    monkeypatch.setattr(flying_bird.Dynamic, "update", watching)
    train(half, few_digits, tmp_path, method="flying-bird")
    found = torch.cat(grown)
    assert len(found) > 20 and not found.any()


def test_updates_that_were_missed_are_made_once(make_network: Make) -> None:
    """As after a return to an earlier epoch's state, in the middle of the next one."""
    layers = make_network(0).layers()
    network = flying_bird.Dynamic(layers, [layer.weight.numel() // 2 for layer in layers], torch.Generator())
    for layer in network.layers():
        layer.weight.grad = torch.ones_like(layer.weight)
    found = []
    for part in (0.02, 0.06, 0.5, 0.5, 0.51, 0.56):
        network.note(part)
        found.append(network.due)
        if network.due:
            network.update()
    assert found == [False, True, True, False, False, True]


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_flying_bird_is_sparse_at_every_step(
    half: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str
) -> None:
    seen: list[list[int]] = []
    patterns: set[bytes] = set()
    honest = flying_bird.Dynamic.hold

    def watching(network: flying_bird.Dynamic) -> None:
        honest(network)
        seen.append([int((layer.weight != 0).sum()) for layer in network.layers()])
        patterns.add(torch.cat([m.flatten() for m in network.masks()]).numpy().tobytes())

    monkeypatch.setattr(flying_bird.Dynamic, "hold", watching)
    recipe = replace(half, compress=replace(half.compress, sparsity_scope=scope))
    made = train(recipe, few_digits, tmp_path, method="flying-bird")
    total = sum(layer.weight.numel() for layer in made.network.layers())
    kept = [int((layer.weight != 0).sum()) for layer in made.network.layers()]
    assert sum(kept) == pytest.approx(total / 2, abs=2)
    assert all(a <= b for row in seen for a, b in zip(row, seen[0], strict=True)) and seen[0] == pytest.approx(
        kept, abs=2
    )
    assert len(patterns) > 5, "the mask moves"
