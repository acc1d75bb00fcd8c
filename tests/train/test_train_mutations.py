"""Training on random mutations of samples: the judge's own transforms, what the objective weighs, which keys mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train_kit import MUTATIONS, sample

from cactus_edge.errors import DataError, InputError
from cactus_edge.recipe import Recipe, parse_recipe
from cactus_edge.semantics import Semantic, transforms
from cactus_edge.train.data import load_dataset
from cactus_edge.train.folded import fold_batch, forward
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.loss import Member, Step
from cactus_edge.train.objectives.semantic import mutated, semantic

Make = Callable[..., Network]
UNIT = (0.0, 1.0)


@pytest.mark.parametrize("name", ["brightness=0.3", "rotation=20", "translation=2", "blur=1.5", "contrast+blur"])
def test_training_mutates_by_the_judges_definition(name: str) -> None:
    (transform,) = transforms(name)
    x = sample().x
    rng = np.random.default_rng(3)
    rng.integers(1, size=len(x))
    expected = transform.changed(x.permute(0, 2, 3, 1).double().numpy(), UNIT, rng)
    found = mutated(x, (transform,), UNIT, 3)
    assert torch.equal(found, torch.from_numpy(expected).permute(0, 3, 1, 2).float())
    one = transform.draw(x[0].permute(1, 2, 0).double().numpy(), 4, UNIT, np.random.default_rng(1))
    rows = np.repeat(x[:1].permute(0, 2, 3, 1).double().numpy(), 4, 0)
    assert np.array_equal(one, transform.changed(rows, UNIT, np.random.default_rng(1)))


def test_every_sample_gets_one_of_the_transforms() -> None:
    x = torch.full((400, 1, 3, 3), 0.5)
    dark, bright = Semantic((("brightness", Fraction("0.1")),)), Semantic((("brightness", Fraction("0.5")),))
    found = (mutated(x, (dark, bright), (0.0, 1.0), 0) - 0.5).abs().amax((1, 2, 3))
    assert 0.2 < float((found > 0.1).float().mean()) < 0.6 and float(found.max()) <= 0.5
    assert not torch.equal(mutated(x, (bright,), UNIT, 0), mutated(x, (bright,), UNIT, 1))
    assert float(mutated(x, (bright,), (0.4, 0.6), 0).max()) <= 0.6 + 1e-6


def test_the_objective_weighs_samples_and_mutations(make_network: Make) -> None:
    net, batch = fold_batch(make_network(0).layers(), sample().x).net, sample()
    loss, member, step = semantic(transforms(MUTATIONS)), Member(net), Step(1.0, 0.0, 0.25)
    aimed = loss.aim(net, batch, step)
    assert aimed.points is not None and torch.equal(aimed.points, mutated(batch.x, transforms(MUTATIONS), UNIT, 5))
    clean, moved = (F.cross_entropy(forward(net, x), batch.y) for x in (batch.x, aimed.points))
    assert torch.allclose(loss.of(member, aimed, step).loss, 0.75 * clean + 0.25 * moved)
    assert torch.equal(loss.of(member, batch, Step(1.0, 0.0, 0.0)).loss, clean)


def test_the_points_of_a_batch_are_drawn_once(make_network: Make) -> None:
    net, one, step = fold_batch(make_network(0).layers(), sample().x).net, sample(), Step(1.0, 0.0, 0.5)
    loss = semantic(transforms(MUTATIONS))
    points = [loss.aim(net, batch, step).points for batch in (one, replace(one, points=one.x))]
    assert points[0] is points[1] is not None
    for other in (replace(one, seed=6), replace(one, x=1 - one.x)):
        found = loss.aim(net, other, step).points
        assert found is not None and torch.equal(found, mutated(other.x, transforms(MUTATIONS), UNIT, other.seed))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ('objective = "semantic"', "mutations = '' with objective = 'semantic'"),
        ('mutations = "blur"', "mutations = 'blur' with objective = 'ibp'"),
        ('objective = "semantic"\nmutations = "swirl"', "'swirl' is no transform"),
        ('objective = "semantic"\nmutations = "blur=0"', "expected more than 0 and at most 64"),
        ('objective = "semantic"\nmutations = 3', "expected a non-empty string"),
    ],
    ids=["none", "unused", "unknown", "nothing", "number"],
)
def test_mutations_that_mean_nothing_are_refused(tiny_text: str, keys: str, told: str) -> None:
    with pytest.raises(InputError, match=r"mine.toml:\d+: .*") as refused:
        parse_recipe(tiny_text.replace("[train]\n", f"[train]\n{keys}\n"), "mine.toml")
    assert told in refused.value.message


def test_a_part_of_the_training_samples(tiny: Recipe) -> None:
    whole, part = (load_dataset(replace(tiny.data, train_samples=n)) for n in (0, 100))
    assert np.array_equal(part.train.x, whole.train.x[:100]) and len(part.train.y) == 100
    assert part.validation.digest() == whole.validation.digest() and part.test.digest() == whole.test.digest()
    with pytest.raises(DataError, match="leaves 1677 to train on"):
        load_dataset(replace(tiny.data, train_samples=1678))
