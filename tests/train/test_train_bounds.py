"""Interval bounds hold for every point of the box, on random networks, real and fake-quantised; a planted fault is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from cactus_edge.train import bounds
from cactus_edge.train.attacks import pgd
from cactus_edge.train.bounds import Box, activate, ball, box, holds, logits
from cactus_edge.train.fakequant import fake_quantise, peaks
from cactus_edge.train.folded import Affine, Folded, detach, fold, fold_batch, forward, moments
from cactus_edge.train.models import Network

UNIT = (Fraction(0), Fraction(1))
Make = Callable[..., Network]


def _points(region: Box, count: int, generator: torch.Generator) -> Tensor:
    """Random points of the box, half of them corners: [count, N, ...]."""
    t = torch.rand((count, *region.centre.shape), generator=generator)
    t[::2] = (t[::2] > 0.5).float()
    return region.lower + 2 * region.radius * t


def _violation(net: Folded, x: Tensor, y: Tensor, eps: float, seed: int) -> float:
    """By how much the worst of many points leaves the bounds of logits, margins and hidden values (<= 0: none)."""
    region = ball(x, eps, UNIT)
    found, outputs = logits(net, region, y)
    worst = -float("inf")
    for points in _points(region, 60, torch.Generator().manual_seed(seed)):
        z = points
        for affine, pre in zip(net[:-1], found.pre, strict=True):
            a = affine.pre(z)
            worst = max(worst, float((pre.lower - a).max()), float((a - pre.upper).max()))
            z = affine.post(a)
        out = net[-1].pre(z).flatten(1)
        margin = out.gather(1, y[:, None]) - out
        worst = max(worst, float((found.margin - margin).max()))
        worst = max(worst, float((outputs.lower - out).max()), float((out - outputs.upper).max()))
    return worst


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("quantised", [False, True])
def test_no_point_leaves_its_bounds(make_network: Make, seed: int, quantised: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((5, 2, 7, 6), generator=generator)
    y = torch.randint(0, 4, (5,), generator=generator)
    net = detach(fold(make_network(seed, batch_norm=seed % 2 == 0).layers()))
    if quantised:
        net = fake_quantise(net, peaks(net, x))
    # float32 sums of a few hundred terms of order one
    assert _violation(net, x, y, 0.02 * (seed + 1), seed) < 1e-4


def test_a_planted_fault_is_caught(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    net = detach(fold(make_network(0).layers()))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand((5, 2, 7, 6), generator=generator), torch.tensor([0, 1, 2, 3, 0])
    honest = bounds.through
    monkeypatch.setattr(bounds, "through", lambda a, r: Box(honest(a, r).centre, 0.5 * honest(a, r).radius))
    assert _violation(net, x, y, 0.1, 0) > 1e-2


def test_the_ball_stops_at_the_domain() -> None:
    x = torch.tensor([[[[0.0, 0.5, 1.0]]]])
    region = ball(x, Fraction(1, 4), UNIT)
    assert region.lower.flatten().tolist() == [0, 0.25, 0.75]
    assert region.upper.flatten().tolist() == [0.25, 0.75, 1]


def test_a_box_of_one_point_gives_the_logits_themselves(make_network: Make) -> None:
    net = detach(fold(make_network(3).layers()))
    x, y = torch.rand((4, 2, 7, 6), generator=torch.Generator().manual_seed(1)), torch.tensor([3, 2, 1, 0])
    found, outputs = logits(net, ball(x, 0, UNIT), y)
    real = forward(net, x)
    assert torch.allclose(outputs.centre, real, atol=1e-5) and float(outputs.radius.max()) < 1e-6
    assert torch.equal(holds(found.margin, y), real.argmax(1) == y)


def test_fused_margins_are_never_looser(make_network: Make) -> None:
    net = detach(fold(make_network(5).layers()))
    x, y = torch.rand((6, 2, 7, 6), generator=torch.Generator().manual_seed(2)), torch.zeros(6, dtype=torch.int64)
    found, outputs = logits(net, ball(x, 0.1, UNIT), y)
    apart = outputs.lower[:, :1] - outputs.upper
    assert bool((found.margin[:, 1:] >= apart[:, 1:] - 1e-5).all())
    assert bool((found.margin[:, 1:] > apart[:, 1:] + 1e-3).any())


def test_attacks_stay_inside_and_never_beat_the_certificate(make_network: Make) -> None:
    net = detach(fold(make_network(7).layers()))
    x = torch.rand((40, 2, 7, 6), generator=torch.Generator().manual_seed(3))
    y = forward(net, x).argmax(1)
    region = ball(x, 0.05, UNIT)
    z = pgd(net, x, y, 0.05, UNIT, steps=10)
    assert bool((z >= region.lower - 1e-6).all() and (z <= region.upper + 1e-6).all())
    survived = forward(net, z).argmax(1) == y
    certified = holds(logits(net, region, y)[0].margin, y)
    assert bool((survived | ~certified).all())
    assert int(survived.sum()) < 40, "an attack of this size breaks a random network somewhere"


def test_gradients_reach_every_parameter_through_the_statistics(make_network: Make) -> None:
    network = make_network(1)
    x, y = torch.rand((8, 2, 7, 6), generator=torch.Generator().manual_seed(4)), torch.zeros(8, dtype=torch.int64)
    clean = fold_batch(network.layers(), x)
    (logits(clean.net, ball(x, 0.05, UNIT), y)[0].margin.sum() + clean.logits.sum()).backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and float(parameter.grad.abs().sum()) > 0, name


def _plain_activation(affine: Affine, pre: Box) -> Box:
    return box(affine.post(pre.lower), affine.post(pre.upper))


@pytest.mark.parametrize("levels", [None, 255, 127])
def test_boxes_through_activations_are_those_of_their_ends(make_network: Make, levels: int | None) -> None:
    """Values and gradients of the one-pass form, in either memory layout."""
    generator = torch.Generator().manual_seed(0)
    affine = detach(fold(make_network().layers()))[0]
    if levels is not None:
        affine = replace(affine, ceiling=torch.tensor(0.7), levels=levels)
    for layout in (torch.contiguous_format, torch.channels_last):
        ends = [torch.randn((4, 5, 3, 3), generator=generator).to(memory_format=layout) for _ in range(4)]
        pre = Box(ends[0].requires_grad_(), ends[1].abs().requires_grad_())
        found, expected = activate(affine, pre), _plain_activation(affine, pre)
        for a, b in ((found.centre, expected.centre), (found.radius, expected.radius)):
            assert torch.allclose(a, b, atol=1e-6)
        inputs = (pre.centre, pre.radius)
        ours, theirs = (
            torch.autograd.grad((r.centre * ends[2] + r.radius * ends[3]).sum(), inputs) for r in (found, expected)
        )
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_moments_and_their_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((6, 3, 4, 5), generator=generator, dtype=torch.float64).requires_grad_()
    mean, var = moments(z)
    assert torch.allclose(mean, z.mean((0, 2, 3))) and torch.allclose(var, z.var((0, 2, 3), unbiased=False))
    assert torch.autograd.gradcheck(moments, z)
