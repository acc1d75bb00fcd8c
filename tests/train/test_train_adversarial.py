"""Objectives that bound nothing, optimisers and schedules that a recipe chooses, and where an attack begins and ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from train_kit import untimed

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe, parse_recipe
from cactus_edge.train.attacks import Attack, climb
from cactus_edge.train.bounds import ball
from cactus_edge.train.build import build
from cactus_edge.train.data import Dataset
from cactus_edge.train.folded import detach, fold, forward
from cactus_edge.train.loop import train
from cactus_edge.train.models import Network
from cactus_edge.train.objectives.adversarial import STANDARD, adversarial
from cactus_edge.train.objectives.loss import Batch, Member, Step
from cactus_edge.train.stages import Schedule
from cactus_edge.train.updates import optimiser

UNIT = (Fraction(0), Fraction(1))
Make = Callable[..., Network]
EPS = 0.1


def _batch(domain: tuple[Fraction, Fraction] | None = UNIT) -> Batch:
    x = torch.rand((16, 2, 7, 6), generator=torch.Generator().manual_seed(0)).round(decimals=1)
    return Batch(x, torch.arange(16) % 4, ball(x, EPS, domain))


def _tiny(tiny_text: str, train: str, compress: str = "") -> Recipe:
    text = tiny_text.replace("[train]\n", f"[train]\n{train}\n").replace("[compress]\n", f"[compress]\n{compress}\n")
    return parse_recipe(text.replace('members = ["full", "pruned", "quantised", "perturbed"]\n', ""), "tiny.toml")


def test_the_standard_loss_is_that_of_the_samples(make_network: Make) -> None:
    batch, member = _batch(), Member(detach(fold(make_network().layers())))
    found = STANDARD.of(member, STANDARD.aim(member.net, batch, Step(1, EPS, 1)), Step(1, EPS, 1))
    assert found.bounds is None
    assert torch.equal(found.loss, F.cross_entropy(forward(member.net, batch.x), batch.y))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_the_adversarial_loss_mixes_both(make_network: Make, weight: float) -> None:
    batch, member, step = _batch(), Member(detach(fold(make_network().layers()))), Step(1, EPS, weight)
    attack = Attack(4)
    loss = adversarial(attack)
    clean = F.cross_entropy(forward(member.net, batch.x), batch.y)
    points = climb(member.net, batch.region, batch.y, attack)
    attacked = F.cross_entropy(forward(member.net, points), batch.y)
    assert attacked > clean
    found = loss.of(member, loss.aim(member.net, batch, step), step)
    assert float(found.loss) == pytest.approx(float((1 - weight) * clean + weight * attacked))


def test_without_radius_the_points_are_the_samples(make_network: Make) -> None:
    batch, net = _batch(), detach(fold(make_network().layers()))
    assert adversarial(Attack(4)).aim(net, batch, Step(0, 0, 1)).points is batch.x


def test_an_attack_without_random_start_begins_at_the_sample(make_network: Make) -> None:
    batch, net = _batch(), detach(fold(make_network().layers()))
    assert not torch.equal(batch.region.centre, batch.x)  # cut at the domain, the ball's middle is another point
    still = climb(net, batch.region, batch.y, Attack(0, random_start=False), origin=batch.x)
    assert torch.allclose(still, batch.x)
    first, again = (climb(net, batch.region, batch.y, Attack(3, random_start=False), seed=s) for s in (0, 1))
    assert torch.equal(first, again)


@pytest.mark.parametrize("domain", [UNIT, None], ids=["cut", "whole"])
def test_points_stay_in_the_ball(make_network: Make, domain: tuple[Fraction, Fraction] | None) -> None:
    batch, net = _batch(domain), detach(fold(make_network().layers()))
    attack = Attack(20, step=0.3, random_start=False)
    points = climb(net, batch.region, batch.y, attack, origin=batch.x)
    assert float((points - batch.x).abs().max()) == pytest.approx(EPS, abs=1e-6)
    inside = bool((points >= -1e-6).all()) and bool((points <= 1 + 1e-6).all())
    assert inside == (domain is not None)


def test_a_network_trains_by_each(tiny_text: str, few_digits: Dataset, tmp_path: Path) -> None:
    losses = {}
    for objective in ("standard", "pgd"):
        recipe = _tiny(tiny_text, f'objective = "{objective}"\nmethod = "posthoc-l1"\nattack_steps = 3')
        trained = train(recipe, few_digits, tmp_path / objective, threads=1)
        assert trained.widths_after == (4, 7) and trained.history[-1].val_clean > 0.3
        assert all(s.train_certified == 0 for s in trained.history)
        losses[objective] = trained.history[1].loss
    assert losses["pgd"] > losses["standard"]


def test_fine_tuning_has_its_own_objective_and_optimiser(tiny_text: str, few_digits: Dataset, tmp_path: Path) -> None:
    dense = 'objective = "standard"\nmethod = "posthoc-l1"\nattack_steps = 3'
    plain, other, by = (
        train(_tiny(tiny_text, dense, keys), few_digits, tmp_path, threads=1)
        for keys in ("", 'objective = "pgd"', 'optimiser = "sgd"\nmomentum = 0.9')
    )
    assert untimed(plain)[:3] == untimed(other)[:3] == untimed(by)[:3]  # one dense network
    assert len({t.digest() for t in (plain, other, by)}) == 3


def test_a_run_by_gradient_descent_goes_on_with_the_same_bits(
    tiny_text: str, few_digits: Dataset, tmp_path: Path
) -> None:
    recipe = _tiny(tiny_text, 'objective = "standard"\noptimiser = "sgd"\nmomentum = 0.9\nweight_decay = 0.001')
    whole = train(recipe, few_digits, tmp_path / "whole", threads=1)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, few_digits, tmp_path / "parts", stop, threads=1)
    assert train(recipe, few_digits, tmp_path / "parts", threads=1).digest() == whole.digest()


def test_optimisers_take_the_steps_that_they_are_named_after(make_network: Make, tiny: Recipe) -> None:
    network = make_network()
    before = network.weight0.detach().clone()
    chosen = optimiser(network, replace(tiny.train, optimiser="sgd", momentum=0.5, weight_decay=0.1))
    chosen.param_groups[0]["lr"] = 0.2
    network.weight0.sum().backward()
    chosen.step()
    assert torch.allclose(network.weight0, before - 0.2 * (1 + 0.1 * before))
    assert isinstance(optimiser(network, tiny.train), torch.optim.Adam)


def test_schedules_by_steps_and_along_a_cosine() -> None:
    steps = Schedule(20, 0.1, 0.25, 0, 0, 0.05, 1, decay="step")
    assert [steps.rate(e) for e in (0, 4.99, 5, 19)] == pytest.approx([0.1, 0.1, 0.01, 0.01])
    cosine = Schedule(20, 0.1, 0.25, 0, 0, 0.05, 1, decay="cosine")
    assert cosine.rate(0) == pytest.approx(0.005)
    assert [cosine.rate(e) for e in (10, 20)] == pytest.approx([0.05, 0])


def test_cnn8_is_the_papers() -> None:
    model = parse_recipe(
        'name = "a"\n[data]\nset = "digits"\nvalidation_samples = 9\n[model]\nnet = "cnn8"\nbatch_norm = false\n'
        'init = "uniform"\n[train]\neps = 0\nepochs = 1\n[certify]\neps = 0\n',
        "a.toml",
    ).model
    network = build(model, (28, 28, 1), 10, 0)
    assert sum(p.numel() for p in network.parameters()) == 549_994
    for layer in network.layers():
        limit = layer.weight[0].numel() ** -0.5
        for tensor in (layer.weight, layer.bias):
            assert float(tensor.detach().abs().max()) <= limit
        assert float(layer.weight.detach().std()) == pytest.approx(limit / 3**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("train_keys", "compress_keys", "told"),
    [
        ("momentum = 0.9", "", "momentum = 0.9 with optimiser = 'adam'"),
        ("", "momentum = 0.9", "momentum = 0.9 with optimiser = 'same'"),
        ("attack_in_domain = false", "", "attack_in_domain = false with objective = 'ibp'"),
        ('attack_in_domain = false\nobjective = "pgd"', 'objective = "ibp"', "attack_in_domain = false"),
        ('objective = "pgd"\nbox_ratio = 0.5', "", "box_ratio = 0.5 with objective = 'pgd'"),
        ("", 'objective = "sabr"', "box_ratio = 1 with objective = 'sabr'"),
        ('optimiser = "lion"', "", "adam, sgd"),
    ],
)
def test_keys_that_do_not_fit_are_refused(tiny_text: str, train_keys: str, compress_keys: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        _tiny(tiny_text, train_keys, compress_keys)
    assert told in str(caught.value)


def test_nrs_needs_bounds(tiny_text: str, few_digits: Dataset, tmp_path: Path) -> None:
    recipe = _tiny(tiny_text, 'objective = "standard"\nmethod = "nrs"')
    with pytest.raises(InputError, match="bounds"):
        train(recipe, few_digits, tmp_path, threads=1)
