"""Interval bounds in floating point for training: centre and radius, the last layer fused with the margin.

These bounds steer training and report the float network's certified accuracy. They are not a proof about the file that ships:
that is `verify`'s, which shares no code with this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cactus_edge.train.folded import Affine, Folded, plan
from cactus_edge.train.models import input_window, linear, walk


@dataclass(frozen=True)
class Box:
    """All tensors z with |z - centre| <= radius elementwise; radius >= 0."""

    centre: Tensor
    radius: Tensor

    @property
    def lower(self) -> Tensor:
        """centre - radius."""
        return self.centre - self.radius

    @property
    def upper(self) -> Tensor:
        """centre + radius."""
        return self.centre + self.radius


def box(lower: Tensor, upper: Tensor) -> Box:
    """The box between two ends, lower <= upper."""
    return Box((lower + upper) / 2, (upper - lower) / 2)


Radius = float | Fraction | Sequence[float | Fraction]
"""One number for all channels, or several: one, or one for each."""


def over_channels(eps: Radius, x: Tensor) -> float | Tensor:
    """eps as what broadcasts over x [N, C, H, W]: a number, or float [C, 1, 1]."""
    if isinstance(eps, float | int | Fraction):
        return float(eps)
    radii = [float(e) for e in eps]
    return radii[0] if len(radii) == 1 else torch.tensor(radii).to(x)[:, None, None]


def ball(x: Tensor, eps: Radius, domain: tuple[Fraction, Fraction] | None) -> Box:
    """The l-inf ball of radius eps around x [N, C, H, W], in the unit of the data, intersected with the domain if there is one."""
    e = over_channels(eps, x)
    if domain is None:
        return Box(x, torch.zeros_like(x) + e)
    low, high = float(domain[0]), float(domain[1])
    return box((x - e).clamp(low, high), (x + e).clamp(low, high))


def through(affine: Affine, region: Box) -> Box:
    """Box of weight * z + bias over z in `region`: centre' = W c + b, radius' = |W| r. Source: Gowal et al. 2018, arXiv 1810.12715."""
    region = read(affine, region)
    return Box(affine.map(region.centre), linear(region.radius, affine.weight.abs(), affine.layer))


def read(affine: Affine, region: Box) -> Box:
    """Box of what the layer's weights see of `region`: itself, or that of its cut values or means, which do not decrease."""
    if affine.layer.pool is None and affine.layer.window is None:
        return region
    return box(affine.read(region.lower), affine.read(region.upper))


def visible(net: Folded, region: Box) -> Box:
    """What the network tells apart of a region of its inputs: the region cut at its window, beyond which gradients are 0."""
    return cut(region, input_window(plan(net)))


def cut(region: Box, window: tuple[float, float] | None) -> Box:
    """The region with both ends brought into the window, if there is one."""
    return region if window is None else box(region.lower.clamp(*window), region.upper.clamp(*window))


def join(affine: Affine, pre: Box, other: Box | None) -> Box:
    """Box of what the activation sees: `pre` and, where the layer adds a value, that value's box added."""
    if other is None:
        return pre
    return box(affine.join(pre.lower, other.lower), affine.join(pre.upper, other.upper))


def activate(affine: Affine, pre: Box) -> Box:
    """Box after ReLU and the activation grid, both non-decreasing: the ends map to the ends."""
    if affine.layer.relu and affine.ceiling is None:
        return Box(*_Rectified.apply(pre.centre, pre.radius))  # type: ignore[no-untyped-call]
    if affine.layer.relu and affine.levels > 0:
        assert affine.ceiling is not None
        step = affine.ceiling / affine.levels
        return Box(*_RectifiedToGrid.apply(pre.centre, pre.radius, step, affine.levels))  # type: ignore[no-untyped-call]
    return box(affine.post(pre.lower), affine.post(pre.upper))


class _Rectified(torch.autograd.Function):
    """box(relu(lower), relu(upper)) in few passes over memory, which is what boxes cost beside convolutions."""

    @staticmethod
    def forward(ctx: Any, centre: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = (centre - radius).relu_(), (centre + radius).relu_()
        ctx.save_for_backward(lower, upper)
        return _halves(lower, upper)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_centre: Tensor, by_radius: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = ctx.saved_tensors
        low = torch.ops.aten.threshold_backward(by_centre - by_radius, lower, 0)
        high = torch.ops.aten.threshold_backward(by_centre + by_radius, upper, 0)
        return _halves(low, high)


class _RectifiedToGrid(torch.autograd.Function):
    """The same, rounded to step * {0, ..., levels}: gradients straight through inside the range, as `round_to_grid`'s."""

    @staticmethod
    def forward(ctx: Any, centre: Tensor, radius: Tensor, step: Tensor, levels: int) -> tuple[Tensor, Tensor]:
        lower, upper = (centre - radius).mul_(1 / step), (centre + radius).mul_(1 / step)
        ctx.save_for_backward(lower, upper)
        ctx.end = levels + 0.5
        low, high = lower.clamp(0, levels).round_(), upper.clamp(0, levels).round_()
        return (low + high).mul_(step / 2), (high - low).mul_(step / 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_centre: Tensor, by_radius: Tensor) -> tuple[Tensor, Tensor, None, None]:
        lower, upper = ctx.saved_tensors
        low = torch.ops.aten.hardtanh_backward(by_centre - by_radius, lower, 0, ctx.end)
        high = torch.ops.aten.hardtanh_backward(by_centre + by_radius, upper, 0, ctx.end)
        return *_halves(low, high), None, None


def _halves(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """(low + high) / 2 and (high - low) / 2 in a pass each."""
    middle = torch.lerp(low, high, 0.5)
    return middle, high - middle


@dataclass(frozen=True)
class Bounds:
    """Boxes of what each hidden layer's activation sees and of what the last layer reads, and the lower margins.

    margin float [N, classes]: lower bound of logit_y - logit_j, 0 for j = y. rectified: the boxes in `pre` that a ReLU follows.
    mapped: those of weight * z + bias, which are `pre` but where a layer adds a value.
    """

    pre: tuple[Box, ...]
    last_in: Box
    margin: Tensor
    rectified: tuple[Box, ...]
    mapped: tuple[Box, ...]


def propagate(net: Folded, region: Box, y: Tensor) -> Bounds:
    """Bounds of every hidden layer and of the margins of class y int64 [N] over `region` [N, C, H, W]."""
    pre: list[Box] = []
    mapped: list[Box] = []

    def step(i: int, read: Box, other: Box | None) -> Box:
        mapped.append(through(net[i], read))
        pre.append(join(net[i], mapped[-1], other))
        return activate(net[i], pre[-1])

    region = walk(plan(net[:-1]), region, step)
    rectified = tuple(found for affine, found in zip(net, pre, strict=False) if affine.layer.relu)
    return Bounds(tuple(pre), region, margins(net[-1], region, y), rectified, tuple(mapped))


def margins(last: Affine, region: Box, y: Tensor) -> Tensor:
    """Lower bound of logit_y - logit_j = (W_y - W_j) z + b_y - b_j over z in `region`: fused, so shared weights cancel.

    [N, classes], 0 for j = y.
    """
    weight, region = last.weight.flatten(1), read(last, region)
    centre = last.map(region.centre).flatten(1)
    classes = weight.shape[0]
    spread = (weight[:, None] - weight[None]).abs().reshape(classes * classes, -1)
    radius = (region.radius.flatten(1) @ spread.T).view(-1, classes, classes)
    own = y[:, None]
    return centre.gather(1, own) - centre - radius.gather(1, own[:, :, None].expand(-1, 1, classes)).squeeze(1)


def logits(net: Folded, region: Box, y: Tensor) -> tuple[Bounds, Box]:
    """As `propagate`, with the box of the logits [N, classes] in addition."""
    bounds = propagate(net, region, y)
    last = through(net[-1], bounds.last_in)
    return bounds, Box(last.centre.flatten(1), last.radius.flatten(1))


def holds(margin: Tensor, y: Tensor) -> Tensor:
    """Whether every other class loses strictly: bool [N]."""
    others = torch.ones_like(margin, dtype=torch.bool).scatter(1, y[:, None], False)
    return ((margin > 0) | ~others).all(1)


__all__ = [
    "Bounds",
    "Box",
    "Radius",
    "activate",
    "ball",
    "box",
    "cut",
    "holds",
    "join",
    "logits",
    "margins",
    "over_channels",
    "propagate",
    "read",
    "through",
    "visible",
]
