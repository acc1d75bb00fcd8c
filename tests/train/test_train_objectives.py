"""Certified objectives: what lies between what, gradients without radius, the same weights for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.errors import InputError
from cactus_edge.recipe import Recipe, parse_recipe
from cactus_edge.train.attacks import Attack, climb
from cactus_edge.train.bounds import Bounds, Box, ball, propagate
from cactus_edge.train.data import Dataset
from cactus_edge.train.folded import detach, fold, fold_batch, forward
from cactus_edge.train.loop import train
from cactus_edge.train.models import Network
from cactus_edge.train.objectives import OBJECTIVES, expressive
from cactus_edge.train.objectives.expressive import cc_ibp, exp_ibp, mtl_ibp
from cactus_edge.train.objectives.ibp import IBP, warmup_regulariser
from cactus_edge.train.objectives.loss import Batch, Loss, Member, MemberLoss, Step
from cactus_edge.train.objectives.qa_ibp import hinge_and_width
from cactus_edge.train.stages import over_members

UNIT = (Fraction(0), Fraction(1))
Make = Callable[..., Network]
Between = Callable[[float, Attack], Loss]

ROBUST = Step(1.0, 0.05, 1.0)
"""The whole radius, and the robust loss alone."""

WAYS = pytest.mark.parametrize("made", [mtl_ibp, cc_ibp, exp_ibp], ids=["mtl", "cc", "exp"])


def _batch(eps: float, seed: int = 0, count: int = 12) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.rand((count, 2, 7, 6), generator=generator), torch.randint(0, 4, (count,), generator=generator)
    return Batch(x, y, ball(x, eps, UNIT))


def _loss(loss: Loss, network: Network, batch: Batch, step: Step = ROBUST) -> MemberLoss:
    clean = fold_batch(network.layers(), batch.x)
    return loss.of(Member(clean.net, clean.logits), loss.aim(clean.net, batch, step), step)


def _value(loss: Loss, network: Network, batch: Batch) -> float:
    return float(_loss(loss, network, batch).loss.detach())


def _attacked(network: Network, batch: Batch) -> float:
    """The cross-entropy at the points that the attack finds."""
    net = detach(fold_batch(network.layers(), batch.x).net)
    return float(F.cross_entropy(forward(net, climb(net, batch.region, batch.y, Attack(), seed=batch.seed)), batch.y))


def check_between(made: Between, network: Network) -> None:
    """The ends are adversarial training and IBP; between them the loss grows with the mix."""
    batch = _batch(0.05)
    values = [_value(made(mix, Attack()), network, batch) for mix in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert values[0] == pytest.approx(_attacked(network, batch), rel=1e-4)
    assert values[-1] == pytest.approx(_value(IBP, network, batch), rel=1e-4)
    assert all(a < b for a, b in pairwise(values))


@WAYS
@pytest.mark.parametrize("seed", range(3))
def test_expressive_losses_lie_between_attack_and_bounds(make_network: Make, made: Between, seed: int) -> None:
    check_between(made, make_network(seed))


@WAYS
def test_bounds_of_the_wrong_sign_are_caught(
    make_network: Make, made: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expressive, "attacked_logits", lambda member, batch: -forward(member.net, batch.points))
    with pytest.raises(AssertionError):
        check_between(made, make_network(0))


def test_the_order_of_the_three(make_network: Make) -> None:
    """At the same mix: exp <= mtl by the means of two numbers, cc <= mtl as the loss is convex."""
    batch = _batch(0.05)
    for mix in (0.2, 0.7):
        mtl, cc, exp = (_value(made(mix, Attack()), make_network(1), batch) for made in (mtl_ibp, cc_ibp, exp_ibp))
        assert exp <= mtl and cc <= mtl


def test_qa_ibp_is_hinge_and_width(make_network: Make) -> None:
    network, batch = make_network(2), _batch(0.05)
    net = detach(fold_batch(network.layers(), batch.x).net)
    margin, clean = propagate(net, batch.region, batch.y).margin, float(F.cross_entropy(forward(net, batch.x), batch.y))
    hinge = sum(
        max(0.0, 0.2 - float(margin[i, j])) for i in range(len(margin)) for j in range(4) if j != int(batch.y[i])
    ) / (4 * len(margin))
    assert _value(hinge_and_width(0.0, 0.2, 0.0), network, batch) == pytest.approx(clean, rel=1e-4)
    assert _value(hinge_and_width(3.0, 0.2, 0.0), network, batch) == pytest.approx(clean + 3 * hinge, rel=1e-4)
    without, narrow = (_value(hinge_and_width(0.0, 0.2, 1.0), network, _batch(eps)) for eps in (0.05, 0.0))
    assert without > clean and narrow == pytest.approx(clean, rel=1e-4)
    early = _loss(hinge_and_width(3.0, 0.2, 1.0), network, batch, Step(0.0, 0.05, 0.0))
    assert float(early.loss.detach()) == pytest.approx(clean, rel=1e-4)


def _recipe(tiny: Recipe, objective: str, **keys: object) -> Recipe:
    ratio = 0.4 if objective == "sabr" else 1.0
    keys |= {"mutations": "contrast"} if objective == "semantic" else {}
    return replace(tiny, train=replace(tiny.train, objective=objective, box_ratio=ratio, **keys))  # type: ignore[arg-type]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_gradients_are_finite_for_every_member(make_network: Make, tiny: Recipe, objective: str, eps: float) -> None:
    network, recipe = make_network(1, widths=(6, 6, 10)), _recipe(tiny, objective)
    recipe = replace(recipe, model=replace(recipe.model, layer=(*recipe.model.layer, recipe.model.layer[-1])))
    terms = over_members(lambda r: r.train.members)(recipe)(network, _batch(eps), Step(0.5, eps, 0.5))
    terms.loss.backward()  # type: ignore[no-untyped-call]
    for p in network.parameters():
        assert p.grad is None or bool(p.grad.isfinite().all())
    assert 0 <= terms.certified <= terms.correct <= 12


@pytest.mark.parametrize("objective", ["sabr", "exp-ibp"])
def test_attacks_follow_from_the_seed(tiny: Recipe, few_digits: Dataset, tmp_path: Path, objective: str) -> None:
    recipe = _recipe(tiny, objective, members=("full",), epochs=2, attack_steps=2)
    first = train(recipe, few_digits, tmp_path / "a", threads=1)
    torch.rand(3)  # what others draw meanwhile changes nothing
    assert train(recipe, few_digits, tmp_path / "b", threads=1).digest() == first.digest()


def _reached(network: Network, attack: Attack, seed: int = 0) -> Tensor:
    batch, net = _batch(0.05, count=24), detach(fold(network.layers()))
    points = climb(net, batch.region, batch.y, attack, seed=seed)
    assert bool((points >= batch.region.lower - 1e-6).all()) and bool((points <= batch.region.upper + 1e-6).all())
    return F.cross_entropy(forward(net, points), batch.y, reduction="none")


def test_restarts_keep_the_worst_point_of_each_sample(make_network: Make) -> None:
    network = make_network(3)
    once, thrice = (_reached(network, Attack(steps=2, restarts=n)) for n in (1, 3))
    assert bool((thrice >= once - 1e-5).all()) and float(thrice.mean()) > float(once.mean())


def test_the_steps_of_an_attack() -> None:
    assert Attack(4).sizes() == [0.625] * 4
    assert Attack(8, step=0.5, decay=0.1).sizes() == pytest.approx([0.5] * 4 + [0.05] * 3 + [0.005])


def test_steps_that_are_too_long_are_projected_back(make_network: Make) -> None:
    _reached(make_network(0), Attack(steps=3, step=50.0))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        pytest.param('objective = "sabr"', "box_ratio = 1", id="sabr_without_small_boxes"),
        pytest.param('objective = "mtl-ibp"\nbox_ratio = 0.5', "box_ratio = 0.5", id="small_boxes_of_another"),
        pytest.param('objective = "crown"', "expected one of ibp", id="unknown"),
    ],
)
def test_objectives_that_do_not_go_with_their_keys(tiny_text: str, keys: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_recipe(tiny_text.replace("batch = 16\n", f"batch = 16\n{keys}\n"), "tiny.toml")


def test_the_objective_is_part_of_the_digest_once_it_is_another(tiny: Recipe) -> None:
    assert _recipe(tiny, "ibp").digest() == tiny.digest() != _recipe(tiny, "cc-ibp").digest()


def _plain_regulariser(bounds: Bounds, region: Box) -> Tensor:
    """The formula of Shi et al. as it is written."""

    def short(ratio: Tensor) -> Tensor:
        return F.relu(0.5 - ratio) / 0.5

    total, start = torch.zeros(()), region.radius.mean()
    for pre in bounds.rectified:
        total = total + short(start / pre.radius.mean())
        active, inactive = (pre.lower > 0).float(), (pre.upper < 0).float()
        spread = (pre.centre - pre.centre.mean()) ** 2
        halves = [(pre.centre * active, -pre.centre * inactive), (spread * active, spread * inactive)]
        for a, b in ((a.mean(), b.mean()) for a, b in halves):
            total = total + short(torch.minimum(a, b) / torch.maximum(a, b).clamp(min=1e-9))
    return total / len(bounds.rectified)


@pytest.mark.parametrize("seed", range(3))
def test_the_regulariser_and_its_gradient(make_network: Make, seed: int) -> None:
    network, batch = make_network(seed), _batch(0.05, seed)
    gradients = []
    for regulariser in (warmup_regulariser, _plain_regulariser):
        bounds = propagate(fold_batch(network.layers(), batch.x).net, batch.region, batch.y)
        value = regulariser(bounds, batch.region)
        found = torch.autograd.grad(value, [p for p in network.parameters() if p.requires_grad], allow_unused=True)
        gradients.append([value, *(g for g in found if g is not None)])
    assert float(gradients[1][0].detach()) > 0
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
