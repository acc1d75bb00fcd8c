"""Networks trained inside their activation ranges: the float form that is reported is clamped where int8 ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cactus_edge.recipe import Recipe
from cactus_edge.train import loop
from cactus_edge.train.bounds import box, propagate
from cactus_edge.train.calibrate import calibrate
from cactus_edge.train.data import Dataset
from cactus_edge.train.fakequant import clamp, fake_quantise, peaks, usual_ceilings
from cactus_edge.train.folded import Folded, fold, forward
from cactus_edge.train.loop import train
from cactus_edge.train.models import Network

Make = Callable[..., Network]


def _folded(make_network: Make, seed: int) -> tuple[Folded, torch.Tensor]:
    x = torch.rand((40, 2, 7, 6), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return fold(make_network(seed).layers()), x


@pytest.mark.parametrize("seed", range(3))
def test_a_ceiling_above_everything_changes_nothing_and_a_low_one_does(make_network: Make, seed: int) -> None:
    net, x = _folded(make_network, seed)
    tops = peaks(net, x)
    assert torch.equal(forward(clamp(net, tops), x), forward(net, x))
    assert not torch.allclose(forward(clamp(net, tuple(top / 3 for top in tops)), x), forward(net, x))


@pytest.mark.parametrize("seed", range(3))
def test_rounding_is_all_that_int8_activations_add(make_network: Make, seed: int) -> None:
    net, x = _folded(make_network, seed)
    ceilings = tuple(top / 2 for top in peaks(net, x))
    clamped, z = clamp(net, ceilings), x
    for real, ceiling in zip(clamped[:-1], ceilings, strict=True):
        rounded = replace(real, levels=255)
        assert (
            float((rounded.post(rounded.pre(z)) - real.post(real.pre(z))).abs().max()) <= float(ceiling) / 255 * 0.501
        )
        z = real.post(real.pre(z))
        assert float(z.max()) <= float(ceiling)
    assert all(a.levels == 255 for a in fake_quantise(clamped, ceilings))


@pytest.mark.parametrize("seed", range(3))
def test_no_point_of_the_region_leaves_the_clamped_bounds(make_network: Make, seed: int) -> None:
    net, x = _folded(make_network, seed)
    net = clamp(net, tuple(top / 2 for top in peaks(net, x)))
    region, y = box(x - 0.05, x + 0.05), torch.zeros(len(x), dtype=torch.int64)
    margin = propagate(net, region, y).margin
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):
        z = region.lower + (region.upper - region.lower) * torch.rand(x.shape, generator=generator)
        logits = forward(net, z)
        assert bool((logits[:, :1] - logits >= margin - 1e-4).all())


def test_usual_ceilings_are_means_over_batches(make_network: Make) -> None:
    net, x = _folded(make_network, 0)
    found = usual_ceilings(net, x, clip=0.5, batch=20)
    for ceiling, a, b in zip(found, peaks(net, x[:20]), peaks(net, x[20:]), strict=True):
        assert float(ceiling) == pytest.approx(float(a + b) / 4, rel=1e-6)


def test_ceilings_are_those_of_the_parts_that_training_saw(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()

    def watching(net: Folded, x: torch.Tensor, *, clip: float, batch: int) -> tuple[torch.Tensor, ...]:
        seen.add(batch)
        return usual_ceilings(net, x, clip=clip, batch=batch)

    monkeypatch.setattr(loop, "usual_ceilings", watching)
    recipe = _with_members(tiny, "quantised")
    train(replace(recipe, train=replace(recipe.train, parts=3)), few_digits, tmp_path, threads=1)
    assert seen == {-(-recipe.train.batch // 3)}


def _with_members(recipe: Recipe, *members: str) -> Recipe:
    return replace(recipe, compress=replace(recipe.compress, members=members))  # type: ignore[arg-type]


def test_only_a_network_that_was_always_clamped_is_reported_clamped(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path
) -> None:
    inside = train(_with_members(tiny, "quantised"), few_digits, tmp_path, threads=1)
    both = train(_with_members(tiny, "full", "quantised"), few_digits, tmp_path, threads=1)
    small = train(_with_members(tiny, "quantised"), few_digits, tmp_path, threads=1, method="small")
    assert inside.ceilings is not None and all(a.ceiling is not None for a in inside.folded()[:-1])
    assert inside.folded()[-1].ceiling is None
    assert both.ceilings is None and small.ceilings is None and all(a.ceiling is None for a in small.folded())
    again = train(_with_members(tiny, "quantised"), few_digits, tmp_path, threads=1)
    assert again.ceilings == inside.ceilings


def test_the_file_keeps_the_ceilings_that_training_saw(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    recipe = _with_members(tiny, "quantised")
    trained = train(recipe, few_digits, tmp_path, threads=1)
    assert trained.ceilings is not None
    found = calibrate(trained.folded(), few_digits, recipe)
    assert found.ceilings == tuple(float(c) for c in trained.ceilings) and found.chosen.startswith("learned ranges")


def test_an_unclamped_validation_is_caught(
    tiny: Recipe, few_digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: with ceilings that are forgotten, the recorded certified accuracy is another one."""
    recipe = _with_members(tiny, "quantised")
    recipe = replace(recipe, quantise=replace(recipe.quantise, train_clip=0.3))
    honest = train(recipe, few_digits, tmp_path / "a", threads=1)
    monkeypatch.setattr(loop, "clamp", lambda net, _: net)
    forgetful = train(recipe, few_digits, tmp_path / "b", threads=1)
    assert honest.digest() == forgetful.digest()
    assert [s.val_certified for s in honest.history] != [s.val_certified for s in forgetful.history]
