"""`[train] precision`: the linear maps of training's steps in bfloat16, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from train_kit import same_after_ctrl_c, sample, shaken

from cactus_edge.ir.ops import Padding2d
from cactus_edge.recipe import Recipe
from cactus_edge.train import attacks, loop
from cactus_edge.train.attacks import Attack, climb
from cactus_edge.train.bounds import ball, propagate
from cactus_edge.train.data import Dataset
from cactus_edge.train.folded import Folded, detach, fold, forward, to_double
from cactus_edge.train.loop import train
from cactus_edge.train.models import Layer, Network, linear, products_in

Make = Callable[..., Network]


@pytest.fixture
def rough(tiny: Recipe) -> Recipe:
    """The smallest recipe, in bfloat16."""
    return replace(tiny, train=replace(tiny.train, precision="bfloat16"))


ONE = Layer(torch.ones(1, 1, 1, 1), torch.zeros(1), None, (1, 1), (1, 1), Padding2d(0, 0, 0, 0), dense=True, relu=False)


def products() -> torch.dtype:
    """What linear maps are taken in now: bfloat16 has no number between 1 and 1 + 2^-7."""
    between = torch.full((1, 1, 1, 1), 1 + 2**-20)
    return torch.float32 if float(linear(between, ONE.weight, ONE)) > 1 else torch.bfloat16


def test_linear_maps_are_torchs_autocast_and_come_back_in_float32(make_network: Make) -> None:
    """Convolutions and dense layers bit for bit; outside the context they are float32's again, whatever was raised in it."""
    net, x = detach(fold(make_network().layers())), sample().x
    for affine in net:
        exact = affine.map(x)
        with products_in(torch.bfloat16):
            found = affine.map(x)
        with torch.autocast("cpu", torch.bfloat16):
            known = linear(x, affine.weight, affine.layer, affine.bias)
        assert found.dtype == known.dtype == torch.float32 and torch.equal(found, known)
        assert not torch.equal(found, exact) and torch.equal(affine.map(x), exact)
        assert torch.allclose(found, exact, rtol=0.02, atol=0.02 * float(exact.abs().amax()))
        x = affine.post(exact)
    with pytest.raises(KeyboardInterrupt), products_in(torch.bfloat16):
        assert products() == torch.bfloat16
        raise KeyboardInterrupt
    assert products() == torch.float32


def test_bounds_in_float64_stay_there(make_network: Make) -> None:
    net, batch = to_double(fold(make_network().layers())), sample()
    region = ball(batch.x.double(), 0.1, None)
    exact = propagate(net, region, batch.y).margin
    with products_in(torch.bfloat16):
        assert torch.equal(propagate(net, region, batch.y).margin, exact)


def test_an_attack_climbs_in_bfloat16_from_float32_to_float32(
    make_network: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its gradients' passes are of one type throughout; its points are in the region, and as bad as float32's."""
    net, y = detach(fold(shaken(make_network(), 0).layers())), sample().y
    region, attack = ball(sample().x, 0.2, None), Attack(8, random_start=False)
    passed: list[torch.dtype] = []

    def spied(net: Folded, x: torch.Tensor) -> torch.Tensor:
        passed.append(forward(net, x).dtype)
        return forward(net, x)

    monkeypatch.setattr(attacks, "forward", spied)
    exact = climb(net, region, y, attack)
    with products_in(torch.bfloat16):
        found = climb(net, region, y, attack)
    assert passed == [torch.float32] * 8 + [torch.bfloat16] * 8
    assert found.dtype == torch.float32 and float((found - region.centre).abs().max()) <= 0.2 + 1e-6
    before, rough, fine = (float(F.cross_entropy(forward(net, x), y)) for x in (region.centre, found, exact))
    assert rough - before > 0.95 * (fine - before) > 0


def test_an_attack_in_bfloat16_moves_what_is_known_for_certain() -> None:
    """A sample whose loss, 1e-4, no bfloat16 probability shows: its gradient is as large as float32's."""
    sure = replace(ONE, weight=torch.tensor([[9.25], [0.0]])[:, :, None, None], bias=torch.zeros(2))
    region = ball(torch.ones(1, 1, 1, 1), 0.5, None)
    with products_in(torch.bfloat16):
        found = climb(fold((sure,)), region, torch.tensor([0]), Attack(1, random_start=False))
    assert float(found) == 0.5


def test_only_training_steps_are_rough(
    rough: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statistics and validation are float32's: the figures that a run reports are those of the network that it hands on."""
    seen: dict[str, set[torch.dtype]] = {"propagate": set(), "statistics": set(), "step": set()}

    def spied(name: str, f: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            seen[name].add(products())
            return f(*args)

        return call

    monkeypatch.setattr(loop, "propagate", spied("propagate", loop.propagate))
    monkeypatch.setattr(loop, "statistics", spied("statistics", loop.statistics))
    members = loop.stages

    def stages(*args: object) -> object:
        found = members(*args)  # type: ignore[arg-type]
        return tuple(replace(s, objective=lambda r, s=s: spied("step", s.objective(r))) for s in found)

    monkeypatch.setattr(loop, "stages", stages)
    train(rough, few_digits, tmp_path, threads=1)
    assert seen == {"propagate": {torch.float32}, "statistics": {torch.float32}, "step": {torch.bfloat16}}


def test_other_weights_than_float32s_which_are_as_good(
    rough: Recipe, tiny: Recipe, few_digits: Dataset, tmp_path: Path
) -> None:
    first, exact = (train(r, few_digits, tmp_path, threads=1) for r in (rough, tiny))
    assert first.digest() != exact.digest() and rough.digest() != tiny.digest()
    assert first.digest() == train(rough, few_digits, tmp_path / "again", threads=1).digest()
    assert abs(first.history[-1].loss / exact.history[-1].loss - 1) < 0.1


def test_a_cut_run_goes_on_with_the_bits_of_a_whole_one(rough: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    same_after_ctrl_c(rough, few_digits, tmp_path, "cactus", 4)
