"""Small boxes of SABR: inside the region, around a point that is worse than its centre; the two ends of the ratio."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F

from cactus_edge.train.attacks import Attack
from cactus_edge.train.bounds import Box, ball
from cactus_edge.train.folded import Folded, detach, fold, forward
from cactus_edge.train.models import Network
from cactus_edge.train.objectives import sabr
from cactus_edge.train.objectives.sabr import small_box

UNIT = (Fraction(0), Fraction(1))
Make = Callable[..., Network]


def check(net: Folded, ratio: float) -> None:
    """Inside the region, of the ratio's radius, and worse at its centre than the region's own centre."""
    x = torch.rand((24, 2, 7, 6), generator=torch.Generator().manual_seed(0))
    y = forward(net, x).argmax(1).detach()
    region = ball(x, 0.1, UNIT)
    found = small_box(net, region, y, ratio, Attack())
    assert torch.allclose(found.radius, ratio * region.radius)
    assert bool((found.lower >= region.lower - 1e-6).all()) and bool((found.upper <= region.upper + 1e-6).all())
    before, after = (F.cross_entropy(forward(net, z), y) for z in (region.centre, found.centre))
    assert float(after) > float(before)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.7])
def test_a_small_box_lies_inside_around_a_worse_point(make_network: Make, ratio: float) -> None:
    check(detach(fold(make_network().layers())), ratio)


def test_the_whole_region_is_a_ratio_of_one(make_network: Make) -> None:
    region = ball(torch.rand(2, 2, 7, 6), 0.1, UNIT)
    net = detach(fold(make_network().layers()))
    assert small_box(net, region, torch.zeros(2, dtype=torch.int64), 1.0, Attack()) is region


def test_the_check_sees_a_box_that_sticks_out(make_network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Box
    monkeypatch.setattr(sabr, "Box", lambda centre, radius: real(centre + radius, radius))
    with pytest.raises(AssertionError):
        check(detach(fold(make_network().layers())), 0.5)
