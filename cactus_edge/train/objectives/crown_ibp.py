"""CROWN-IBP: margins by linear bounds, substituted backwards from the last layer, over the boxes that intervals give.

Source: Zhang et al., ICLR 2020, arXiv 1906.06316: intervals up to the last ReLU, one backward pass for the margins (section 3), and
a mix of both margins that goes from the linear ones to those of intervals as the radius grows. Lines of a ReLU that is neither
on nor off are those of Zhang et al. 2018, arXiv 1811.00866: the chord above, the nearer of 0 and z below.

A margin m = sum_v <A_v, v> + constant over the values v of the graph is bounded from below layer by layer, last to first: each value is
replaced by a line of what it is computed from, the lower one where its coefficient is positive and the upper one elsewhere.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.train.bounds import Bounds, Box, visible
from cactus_edge.train.folded import SIGNED_LEVELS, Affine, Folded, plan
from cactus_edge.train.models import INPUT, Layer, sources
from cactus_edge.train.objectives.ibp import worst_case
from cactus_edge.train.objectives.loss import Batch, Loss, Member, Step, intervals, mixed

SHORTEST = 1e-6
"""Chords are no shorter: their slopes would be noise."""

Lines = tuple[Tensor, Tensor, Tensor, Tensor]
"""Slope and offset of a line below and of one above a function on a box: float, shaped as the box."""


def falling(start: float, end: float) -> Loss:
    """IBP's loss of the margins b * linear + (1 - b) * intervals, b from `start` to `end` with the ramp; lower bounds as both are."""

    def bound(member: Member, batch: Batch, step: Step) -> Bounds:
        bounds, part = intervals(member, batch, step), start + (end - start) * step.progress
        if part == 0:
            return bounds
        linear = linear_margins(member.net, batch.region, batch.y, bounds)
        return replace(bounds, margin=part * linear + (1 - part) * bounds.margin)

    return Loss(mixed(worst_case, bound))


def linear_margins(net: Folded, region: Box, y: Tensor, bounds: Bounds) -> Tensor:
    """Lower bounds [N, classes] of logit_y - logit_j over `region`, 0 for j = y, given the boxes of `propagate` there."""
    last, n = net[-1], len(y)
    classes = last.weight.shape[0]
    rows = last.weight[y][:, None] - last.weight[None]
    constant = last.bias[y][:, None] - last.bias[None]
    found, lost = _read(last, rows.flatten(0, 1))
    constant = constant - lost.view(n, classes)
    ahead: dict[int, Tensor] = {}  # value -> its coefficients [N * classes, C, H, W], until it is replaced
    wiring = sources(plan(net))

    def add(value: int, coefficients: Tensor) -> None:
        ahead[value] = ahead[value] + coefficients if value in ahead else coefficients

    add(wiring[-1][0], found)
    for i in reversed(range(len(net) - 1)):
        if i not in ahead:
            continue
        affine, (reads, adds) = net[i], wiring[i]
        coefficients, fixed = _substituted(ahead.pop(i), _activation(affine, bounds.pre[i]), classes)
        constant = constant + fixed
        if adds is not None:
            add(adds, coefficients)
            if affine.sum_ceiling is not None:
                summed = _grid(bounds.mapped[i], affine.sum_ceiling, affine.levels)
                coefficients, fixed = _substituted(coefficients, summed, classes)
                constant = constant + fixed
        constant = constant + (coefficients.sum((2, 3)) @ affine.bias).view(n, classes)
        coefficients, lost = _read(affine, adjoint(coefficients, affine.weight, affine.layer))
        constant = constant - lost.view(n, classes)
        add(reads, coefficients)
    if INPUT in ahead:
        region = visible(net, region)
        at_input = ahead[INPUT].reshape(n, classes, -1)
        constant = constant + (at_input @ region.centre.flatten(1)[:, :, None]).squeeze(2)
        constant = constant - (at_input.abs() @ region.radius.flatten(1)[:, :, None]).squeeze(2)
    return constant


def adjoint(a: Tensor, weight: Tensor, layer: Layer) -> Tensor:
    """weight^T a: the gradient of <a, weight * x> with respect to x, what `models.linear` sees. [M, O, H', W'] -> [M, I, H, W]."""
    if layer.dense:
        return (a.flatten(1) @ weight.flatten(1)).view(len(a), -1, *layer.map_size)
    (h, w), p, (kh, kw), (sh, sw) = layer.map_size, layer.padding, weight.shape[2:], layer.stride
    whole = (h + p.top + p.bottom, w + p.left + p.right)
    rest = (whole[0] - kh - (a.shape[2] - 1) * sh, whole[1] - kw - (a.shape[3] - 1) * sw)
    groups = len(weight) if layer.depthwise else 1
    found = F.conv_transpose2d(a, weight, stride=layer.stride, output_padding=rest, groups=groups)
    return found[:, :, p.top : p.top + h, p.left : p.left + w]


def _read(affine: Affine, a: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of the map that the layer reads, from those of what its weights see, and what rounding its means may cost, [M]."""
    pool, none = affine.layer.pool, a.new_zeros(())
    if pool is None:
        return a, none.expand(len(a))
    (h, w), (ph, pw) = affine.layer.in_size, pool
    spread = a.repeat_interleave(ph, 2).repeat_interleave(pw, 3) / (ph * pw)
    lost = none if affine.read_step is None else affine.read_step / 2 * a.abs().sum((1, 2, 3))
    return F.pad(spread, (0, w - spread.shape[3], 0, h - spread.shape[2])), lost.expand(len(a))


def _substituted(a: Tensor, lines: Lines, classes: int) -> tuple[Tensor, Tensor]:
    """A lower bound of <a, f(z)> as coefficients of z and a constant [N, classes]: `lines` of f, one row for `classes` rows of a."""
    below, under, above, over = (v[:, None] for v in lines)
    shape = a.shape
    a = a.reshape(-1, classes, *shape[1:])
    positive, negative = F.relu(a), -F.relu(-a)
    fixed = (positive * under + negative * over).flatten(2).sum(2)
    return (positive * below + negative * above).view(shape), fixed


def _activation(affine: Affine, z: Box) -> Lines:
    """Lines of `Affine.post` on the box z."""
    if not affine.layer.relu:
        return _grid(z, affine.ceiling, affine.levels)
    top = _unbounded(z) if affine.ceiling is None else affine.ceiling
    rounds = affine.ceiling is not None and affine.levels > 0
    return _lines(z, torch.zeros_like(top), top, top / affine.levels if rounds else None)


def _grid(z: Box, ceiling: Tensor | None, levels: int) -> Lines:
    """Lines of the signed grid, or of nothing at all where there is no ceiling."""
    if ceiling is None:
        return _lines(z, -_unbounded(z), _unbounded(z), None)
    step = ceiling / SIGNED_LEVELS
    return _lines(z, -(SIGNED_LEVELS + 1) * step, ceiling, None if levels == 0 else step)


def _unbounded(z: Box) -> Tensor:
    return z.centre.new_full((), torch.inf)


def _lines(z: Box, least: Tensor, most: Tensor, step: Tensor | None) -> Lines:
    """Lines of min(max(z, least), most), rounded to `step` if given: half a step is lost where neither end decides."""
    lower, upper = z.lower, z.upper
    above, over = _line_above(lower, upper, least, most)
    below, mirrored = _line_above(-upper, -lower, -most, -least)
    if step is None:
        return below, -mirrored, above, over
    lost = torch.where((upper > least) & (lower < most), step / 2, torch.zeros_like(lower))
    return below, -mirrored - lost, above, over + lost


def _line_above(lower: Tensor, upper: Tensor, least: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and offset of a line above min(max(z, least), most) for lower <= z <= upper.

    The chord to the end of the box or of the slope, whichever comes first, or the largest value, by which is lower in the middle.
    """
    first, last = torch.maximum(lower, least), torch.minimum(upper, most)
    slope = F.relu(last - first) / (last - lower).clamp(min=SHORTEST)
    slope = torch.where((lower >= least) & (upper <= most), 1.0, slope)
    largest = torch.maximum(torch.minimum(upper, most), least)
    chord = first + slope * (upper - lower) / 2 <= largest
    return torch.where(chord, slope, 0.0), torch.where(chord, first - slope * lower, largest)
