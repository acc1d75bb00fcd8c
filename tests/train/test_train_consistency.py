"""The Jensen-Shannon term: its value, where it is 0, and what it is told apart from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cactus_edge.recipe import Recipe
from cactus_edge.train.bounds import Box
from cactus_edge.train.data import Dataset
from cactus_edge.train.folded import fold_batch, forward
from cactus_edge.train.loop import train
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.adversarial import STANDARD
from cactus_edge.train.objectives.cactus import full
from cactus_edge.train.objectives.consistency import consistent, divergence
from cactus_edge.train.objectives.loss import Batch, Step
from cactus_edge.train.parallel import in_parts

Make = Callable[..., Network]
STEP = Step(1.0, 0.0, 0.0)


def logits(*seeds: int) -> list[torch.Tensor]:
    return [torch.randn((7, 5), generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def test_it_is_zero_for_equal_distributions_and_positive_for_others() -> None:
    (z,) = logits(0)
    assert float(divergence([z, z, z + 3])) == pytest.approx(0, abs=1e-6), "softmax does not see a shift"
    assert float(divergence([z, z, -z])) > 0.1


def test_it_is_the_mean_divergence_from_the_mixture() -> None:
    found = logits(0, 1, 2)
    shares = [z.softmax(1) for z in found]
    mean = sum(shares) / 3
    by_hand = [(p * (p.log() - mean.log())).sum(1).mean() for p in shares]
    assert torch.allclose(divergence(found), sum(by_hand) / 3, atol=1e-6)
    backwards = sum((mean * (mean.log() - p.log())).sum(1).mean() for p in shares) / 3
    assert not torch.allclose(divergence(found), backwards, atol=1e-3), "planted: the divergence the other way round"
    assert torch.allclose(divergence(found), divergence(found[::-1]), atol=1e-6)


def test_it_is_added_with_its_weight_over_the_views(make_network: Make) -> None:
    x, other = torch.rand((2, 6, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    batch = Batch(x, torch.arange(6) % 4, Box(x, torch.zeros_like(x)), views=(other, x))
    member = full(fold_batch(make_network(1).layers(), x))
    plain, both = STANDARD.of(member, batch, STEP).loss, consistent(STANDARD, 12).of(member, batch, STEP).loss
    told = divergence([member.logits(x), forward(member.net, other), forward(member.net, x)])
    assert torch.allclose(both, plain + 12 * told) and float(told.detach()) > 0
    same = consistent(STANDARD, 12).of(member, replace(batch, views=(x, x)), STEP).loss
    assert torch.allclose(same, plain, atol=1e-5)


def test_views_go_with_their_samples_into_parts() -> None:
    x = torch.arange(10.0)[:, None, None, None]
    batch = Batch(x, torch.arange(10), Box(x, x), views=(x + 100, x + 200))
    for part in in_parts(batch, 3):
        assert torch.equal(part.views[0], part.x + 100) and torch.equal(part.views[1], part.x + 200)
    assert batch.part(3).views == ()


def test_training_with_it_brings_views_closer(tiny: Recipe, few_digits: Dataset, tmp_path: Path) -> None:
    start = replace(tiny.train, objective="standard", members=("full",), augment="gaussian", epochs=4)
    found = []
    for weight in (0.01, 50.0):
        recipe = replace(
            tiny, train=replace(start, consistency=weight), compress=replace(tiny.compress, finetune_epochs=0)
        )
        net = train(recipe, few_digits, tmp_path, method="uncompressed").folded()
        x = torch.from_numpy(few_digits.test.x.transpose(0, 3, 1, 2).copy())
        noise = 0.1 * torch.randn((2, *x.shape), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            found.append(float(divergence([forward(net, x), *(forward(net, (x + n).clamp(0, 1)) for n in noise)])))
    assert found[1] < 0.7 * found[0]
