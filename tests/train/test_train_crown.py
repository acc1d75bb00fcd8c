"""Linear margins: below every execution, through sums, depthwise layers, averages and grids; above intervals without those."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.ir.ops import Padding2d
from cactus_edge.train.bounds import ball, propagate
from cactus_edge.train.fakequant import clamp, fake_quantise, peaks
from cactus_edge.train.folded import Folded, detach, fold, fold_batch, forward, to_double
from cactus_edge.train.models import Layer, Network, linear
from cactus_edge.train.objectives import crown_ibp
from cactus_edge.train.objectives.crown_ibp import adjoint, falling, linear_margins
from cactus_edge.train.objectives.ibp import IBP
from cactus_edge.train.objectives.loss import Batch, Loss, Member, Step

UNIT = (Fraction(0), Fraction(1))
Make = Callable[..., Network]
Form = Callable[[Folded, Tensor], Folded]


def graph(seed: int) -> Network:
    """Sums of a signed and of a rectified value, a depthwise layer, lopsided padding, an average with a rest."""
    generator = torch.Generator().manual_seed(seed)

    def layer(o: int, i: int, k: int, size: tuple[int, int], pad: int = 0, **keys: Any) -> Layer:
        weight = torch.randn((o, i, k, k), generator=generator) / (i * k * k) ** 0.5
        bias = 0.3 * torch.randn(o, generator=generator)
        rest: dict[str, Any] = {
            "stride": (1, 1),
            "padding": Padding2d(pad, pad, pad, pad),
            "dense": False,
            "relu": True,
        }
        return Layer(weight, bias, None, size, **(rest | keys))

    lopsided = Padding2d(top=0, bottom=1, left=0, right=1)
    return Network(
        (
            layer(4, 2, 3, (7, 6), 1),
            layer(4, 1, 3, (7, 6), 1, depthwise=True, adds=0),
            layer(5, 4, 3, (7, 6), stride=(2, 2), padding=lopsided),
            layer(5, 5, 1, (3, 3), relu=False),
            layer(5, 5, 3, (3, 3), 1, adds=3),
            layer(5, 5, 1, (3, 3), relu=False, reads=2, adds=4),
            layer(6, 5, 1, (3, 3), dense=True, pool=(2, 2)),
            layer(4, 6, 1, (1, 1), dense=True, relu=False),
        )
    )


def _real(net: Folded, _: Tensor) -> Folded:
    return net


def _clamped(net: Folded, x: Tensor) -> Folded:
    return clamp(net, tuple(0.6 * p for p in peaks(net, x)))


def _int8(net: Folded, x: Tensor) -> Folded:
    return fake_quantise(net, tuple(0.6 * p for p in peaks(net, x)))


FORMS = pytest.mark.parametrize("form", [_real, _clamped, _int8], ids=["real", "clamped", "int8"])


def _samples(seed: int, count: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((count, 2, 7, 6), generator=generator), torch.randint(0, 4, (count,), generator=generator)


def check(network: Network, form: Form, eps: float = 0.05, seed: int = 0) -> float:
    """No execution beats the linear margins; how far they are above those of intervals, on the average."""
    x, y = _samples(seed)
    net = form(detach(fold(network.layers())), x)
    region, generator = ball(x, eps, UNIT), torch.Generator().manual_seed(seed + 1)
    bounds = propagate(net, region, y)
    found = linear_margins(net, region, y, bounds)
    assert found.gather(1, y[:, None]).abs().max() < 1e-5
    for turn in range(30):
        signs = 2 * torch.rand(x.shape, generator=generator) - 1
        z = region.centre + region.radius * (signs.sign() if turn % 2 else signs)
        if turn >= 18:  # towards the worst corner of one class
            z = z.requires_grad_()
            logits = forward(net, z)
            (slope,) = torch.autograd.grad((logits.gather(1, y[:, None]).squeeze(1) - logits[:, turn % 4]).sum(), z)
            z = region.centre - region.radius * slope.sign()
        logits = forward(net, z).detach()
        assert bool((logits.gather(1, y[:, None]) - logits >= found - 1e-4).all())
    return float((found - bounds.margin).mean())


@FORMS
@pytest.mark.parametrize("seed", range(3))
def test_no_execution_beats_linear_margins(make_network: Make, form: Form, seed: int) -> None:
    for network in (make_network(seed), graph(seed)):
        assert check(network, form, seed=seed) > 0 or form is not _real


def _flatter(lines: crown_ibp.Lines) -> crown_ibp.Lines:
    below, under, above, over = lines
    return below, under, above / 2, over


@pytest.mark.parametrize("fault", ["sign", "slope", "weight", "rounding"])
def test_a_planted_fault_is_caught(make_network: Make, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    real_lines, real_adjoint, real_substituted = crown_ibp._lines, crown_ibp.adjoint, crown_ibp._substituted
    match fault:
        case "sign":
            monkeypatch.setattr(
                crown_ibp, "_substituted", lambda a, lines, n: real_substituted(a, (*lines[2:], *lines[:2]), n)
            )
        case "slope":
            monkeypatch.setattr(crown_ibp, "_lines", lambda *args: _flatter(real_lines(*args)))
        case "weight":
            monkeypatch.setattr(crown_ibp, "adjoint", lambda a, weight, layer: real_adjoint(a, -weight, layer))
        case _:
            monkeypatch.setattr(crown_ibp, "_lines", lambda z, low, high, step: real_lines(z, low, high, None))
    eps = 0.0005 if fault == "rounding" else 0.002
    with pytest.raises(AssertionError):
        for seed in range(3):
            if fault == "rounding":
                check(make_network(seed), _int8, eps, seed)
            else:
                check(graph(seed), _real, eps, seed)


def test_lines_enclose_the_function_on_every_box() -> None:
    generator = torch.Generator().manual_seed(0)
    centre, radius = 4 * torch.rand(4000, generator=generator) - 2, 2 * torch.rand(4000, generator=generator)
    radius[::7] = 0
    box = crown_ibp.Box(centre.double(), radius.double())
    inf = torch.tensor(torch.inf, dtype=torch.float64)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for least, most in ((zero, inf), (zero, one), (-one, 0.5 * one), (-inf, inf)):
        below, under, above, over = crown_ibp._lines(box, least, most, None)
        for t in torch.linspace(-1, 1, 21):
            z = box.centre + t * box.radius
            f = torch.minimum(torch.maximum(z, least), most)
            assert bool((below * z + under <= f + 2e-6).all()) and bool((f <= above * z + over + 2e-6).all())


def test_a_network_without_a_kink_is_exact() -> None:
    """Where no ReLU is undecided the bound is attained."""
    network = graph(0)
    x, y = _samples(0)
    net = to_double(detach(fold(network.layers())))
    region = ball(x.double(), 1e-7, UNIT)
    found = linear_margins(net, region, y, propagate(net, region, y))
    z = region.centre.requires_grad_()
    logits = forward(net, z)
    for j in range(4):
        margin = logits.gather(1, y[:, None]).squeeze(1) - logits[:, j]
        (slope,) = torch.autograd.grad(margin.sum(), z, retain_graph=True)
        exact = margin - (slope.abs() * region.radius).sum((1, 2, 3))
        assert torch.allclose(found[:, j], exact, atol=1e-9)


def test_the_adjoint_is_the_transposed_map() -> None:
    for layer in graph(1).layers():
        channels = layer.weight.shape[0 if layer.depthwise else 1]
        x = torch.rand((3, channels, *layer.map_size), requires_grad=True)
        z = linear(x, layer.weight, layer)
        a = torch.rand_like(z)
        (expected,) = torch.autograd.grad(z, x, a)
        assert torch.allclose(adjoint(a, layer.weight, layer), expected, atol=1e-5)


def _value(loss: Loss, network: Network, progress: float) -> float:
    x, y = _samples(0)
    clean = fold_batch(network.layers(), x)
    step, batch = Step(progress, 0.05, 1.0), Batch(x, y, ball(x, 0.05, UNIT))
    return float(loss.of(Member(clean.net, clean.logits), batch, step).loss.detach())


def test_the_mix_goes_from_linear_margins_to_intervals(make_network: Make) -> None:
    network = make_network(0)
    first, middle, last = (_value(falling(1, 0), network, p) for p in (0.0, 0.5, 1.0))
    assert first < middle < last == _value(IBP, network, 1.0)
    assert _value(falling(1, 1), network, 1.0) == first
    x, y = _samples(0)
    net = detach(fold_batch(network.layers(), x).net)
    region = ball(x, 0.05, UNIT)
    margin = linear_margins(net, region, y, propagate(net, region, y))
    assert first == pytest.approx(float(F.cross_entropy(-margin, y)), rel=1e-4)


@FORMS
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.05])
def test_gradients_are_finite_and_descend(form: Form, eps: float) -> None:
    network = graph(2)
    x, y = _samples(2)

    def loss() -> Tensor:
        net = fold(network.layers())
        limits = tuple(0.6 * p for p in peaks(detach(net), x))
        net = net if form is _real else clamp(net, limits) if form is _clamped else fake_quantise(net, limits)
        region = ball(x, eps, UNIT)
        return F.cross_entropy(-linear_margins(net, region, y, propagate(net, region, y)), y)

    optimizer, values = torch.optim.Adam(network.parameters(), 0.01), []
    for _ in range(12):
        optimizer.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0]


def test_gradients_match_differences(make_network: Make) -> None:
    """In float64, along a random direction of the weights."""
    net = to_double(detach(fold(make_network(3).layers())))
    x, y = _samples(3)
    region = ball(x.double(), 0.05, UNIT)
    generator = torch.Generator().manual_seed(0)
    ways = [torch.randn(a.weight.shape, generator=generator, dtype=torch.float64) for a in net]

    def value(t: Tensor) -> Tensor:
        moved = tuple(replace(a, weight=a.weight + t * way) for a, way in zip(net, ways, strict=True))
        return linear_margins(moved, region, y, propagate(moved, region, y)).mean()

    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(t), t)
    h = 1e-7
    assert float(slope) == pytest.approx(float((value(t.detach() + h) - value(t.detach() - h)) / (2 * h)), rel=1e-3)
