"""APGD: it stays in the ball, finds no less than sign steps do, and goes on where the cross-entropy has no gradient left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from cactus_edge.train import apgd as module
from cactus_edge.train.apgd import apgd, checkpoints, cross_entropy, margin_ratio
from cactus_edge.train.attacks import Attack, climb
from cactus_edge.train.bounds import ball
from cactus_edge.train.folded import Folded, detach, fold, forward
from cactus_edge.train.models import Network

UNIT = (Fraction(0), Fraction(1))
Make = Callable[..., Network]
EPS = 0.1
STEPS = 20


def _case(make_network: Make, seed: int = 0, factor: float = 1.0) -> tuple[Folded, Tensor, Tensor]:
    """A network, its last weights scaled, and samples with the classes that it gives them."""
    net = detach(fold(make_network(seed=seed).layers()))
    last = replace(net[-1], weight=net[-1].weight * factor, bias=net[-1].bias * factor)
    net = (*net[:-1], last)
    x = torch.rand((32, 2, 7, 6), generator=torch.Generator().manual_seed(seed))
    return net, x, forward(net, x).argmax(1).detach()


def _worst(net: Folded, points: Tensor, y: Tensor) -> Tensor:
    logits = forward(net, points).detach()
    others = logits.scatter(1, y[:, None], -torch.inf).amax(1)
    return others - logits.gather(1, y[:, None])[:, 0]


def check_inside(make_network: Make, domain: tuple[Fraction, Fraction] | None) -> None:
    net, x, y = _case(make_network)
    points = apgd(net, x, y, EPS, domain, steps=STEPS, restarts=2)
    region = ball(x, EPS, domain)
    assert bool((points >= region.lower - 1e-6).all()) and bool((points <= region.upper + 1e-6).all())
    assert float((points - x).abs().max()) > EPS / 2


@pytest.mark.parametrize("domain", [UNIT, None], ids=["cut", "whole"])
def test_points_stay_in_the_ball(make_network: Make, domain: tuple[Fraction, Fraction] | None) -> None:
    check_inside(make_network, domain)


def test_the_check_sees_points_that_leave_the_ball(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module._Climb, "_inside", lambda self, point: point)
    with pytest.raises(AssertionError):
        check_inside(make_network, UNIT)


def check_stronger(make_network: Make) -> None:
    """On every network the margins that it finds are larger than those of sign steps of one size."""
    for seed in range(3):
        net, x, y = _case(make_network, seed)
        plain = climb(net, ball(x, EPS, UNIT), y, Attack(STEPS))
        found = apgd(net, x, y, EPS, UNIT, steps=STEPS)
        assert float((_worst(net, found, y) - _worst(net, plain, y)).mean()) > 0


def test_it_finds_more_than_steps_of_one_size(make_network: Make) -> None:
    check_stronger(make_network)


def test_the_check_sees_an_attack_that_goes_downhill(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOMENTUM", -0.75)
    with pytest.raises(AssertionError):
        check_stronger(make_network)


def test_large_logits_stop_the_cross_entropy_and_not_the_ratio(make_network: Make) -> None:
    net, x, y = _case(make_network, factor=1e5)
    plain = climb(net, ball(x, EPS, UNIT), y, Attack(STEPS, random_start=False), origin=x)
    assert torch.allclose(plain, x)  # every gradient is 0
    found = apgd(net, x, y, EPS, UNIT, score=margin_ratio, steps=STEPS)
    assert float((_worst(net, found, y) > _worst(net, plain, y)).float().mean()) > 0.9


def test_more_restarts_find_no_less(make_network: Make) -> None:
    net, x, y = _case(make_network)
    once, twice = (apgd(net, x, y, EPS, UNIT, steps=8, restarts=n, seed=5) for n in (1, 2))
    assert bool((_worst(net, twice, y) >= _worst(net, once, y)).all())


def test_the_ratio_is_the_papers() -> None:
    logits, y = torch.tensor([[3.0, 1.0, 0.0, -5.0], [3.0, 1.0, 0.0, -5.0]]), torch.tensor([0, 2])
    assert torch.allclose(margin_ratio(logits, y), torch.tensor([-2 / 3, 1.0]))
    assert torch.allclose(margin_ratio(1e4 * logits + 7, y), margin_ratio(logits, y))
    assert torch.allclose(margin_ratio(logits[:, :2], torch.tensor([0, 1])), torch.tensor([-2.0, 2.0]))
    assert torch.allclose(cross_entropy(logits, y), -torch.log_softmax(logits, 1)[[0, 1], y])


def test_windows_shrink_as_in_the_paper() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]
