"""Networks without batch normalisation: the form that bounds, fake quantisation and the export share.

Folding is differentiable, so training bounds and quantises exactly the weights that the export will write.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cactus_edge.train.models import NORM_EPSILON, Layer, Layers, linear, per_channel, seen, walk

SIGNED_LEVELS = 127
"""Steps between 0 and the ceiling of a value that may be negative; its least is one step below -ceiling."""


@dataclass(frozen=True)
class Affine:
    """One layer y = relu?(weight * pool(x) + bias + other?); geometry as in `layer` (whose own parameters are not read).

    weight float32 [O, I, KH, KW] ([O, 1, KH, KW] depthwise), bias float32 [O]. ceiling: largest representable activation, a
    float32 scalar; the output is then clamped to [0, ceiling] and rounded to multiples of ceiling / levels with straight-through
    gradients; without ReLU it is the largest magnitude, and the steps are ceiling / SIGNED_LEVELS. levels = 0 clamps only. None
    leaves it real. sum_ceiling: likewise of weight * pool(x) + bias before `other` is added, without ReLU. read_step: step of the
    value that is read, to which its means are rounded (None: they are real). weight_bits: width of the integers that the weights are
    rounded to, where they are.
    """

    layer: Layer
    weight: Tensor
    bias: Tensor
    ceiling: Tensor | None = None
    levels: int = 255
    sum_ceiling: Tensor | None = None
    read_step: Tensor | None = None
    weight_bits: int = 8

    def read(self, x: Tensor) -> Tensor:
        """What the weights see of x [N, I, H, W]: `models.seen`, means on the grid of x. Non-decreasing."""
        found = seen(x, self.layer)
        return found if self.read_step is None else _to_multiples(found, self.read_step)

    def map(self, x: Tensor) -> Tensor:
        """weight * x + bias of x that was `read`. [N, I, H, W] -> [N, O, H', W']."""
        return linear(x, self.weight, self.layer, self.bias)

    def pre(self, x: Tensor) -> Tensor:
        """weight * pool(x) + bias. [N, I, H, W] -> [N, O, H', W']."""
        return self.map(self.read(x))

    def join(self, z: Tensor, other: Tensor | None) -> Tensor:
        """What the activation sees: z, or z (on its grid, if it has one) + other. Elementwise, non-decreasing in both."""
        if other is None:
            return z
        return (z if self.sum_ceiling is None else _signed(z, self.sum_ceiling, self.levels)) + other

    def post(self, z: Tensor) -> Tensor:
        """ReLU (if the layer has one), then the clamp or the activation grid (if it has one). Elementwise, non-decreasing."""
        if self.ceiling is None:
            return F.relu(z) if self.layer.relu else z
        if not self.layer.relu:
            return _signed(z, self.ceiling, self.levels)
        if self.levels == 0:
            return torch.minimum(F.relu(z), self.ceiling)
        return round_to_grid(F.relu(z), self.ceiling / self.levels, self.levels)

    def apply(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """The layer's output for what it reads and what it adds, if anything."""
        return self.post(self.join(self.pre(x), other))


def _signed(z: Tensor, ceiling: Tensor, levels: int) -> Tensor:
    """z clamped to [-128, 127] steps of ceiling / SIGNED_LEVELS, and rounded to them unless levels = 0."""
    step = ceiling / SIGNED_LEVELS
    if levels == 0:
        return torch.minimum(torch.maximum(z, -(SIGNED_LEVELS + 1) * step), ceiling)
    return round_to_grid(z, step, SIGNED_LEVELS, -SIGNED_LEVELS - 1)


def _to_multiples(x: Tensor, step: Tensor) -> Tensor:
    """x rounded to multiples of `step` (ties to even), gradients straight through."""
    return x + (torch.round(x / step) * step - x).detach()


def round_to_grid(y: Tensor, step: Tensor, levels: int = 255, least: int = 0) -> Tensor:
    """y rounded to step * {least, ..., levels} (ties to even), gradients straight through inside the range and 0 outside.

    Bit-equal to torch.fake_quantize_per_tensor_affine(y, step, 0, least, levels), whose scalar loop takes ten times as long on a
    CPU.
    """
    rounded: Tensor = _RoundToGrid.apply(y, step, levels, least)  # type: ignore[no-untyped-call]
    return rounded


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, step: Tensor, levels: int, least: int) -> Tensor:
        level = torch.round(y * (1 / step))
        ctx.save_for_backward((level >= least) & (level <= levels))
        return level.clamp_(least, levels).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


Folded = tuple[Affine, ...]


def forward(net: Folded, x: Tensor) -> Tensor:
    """Logits [N, classes] of x [N, C, H, W]."""
    return walk(plan(net), x, lambda i, read, other: net[i].apply(read, other)).flatten(1)


def plan(net: Folded) -> Layers:
    """The layers that the network was folded from: its geometry and what reads what."""
    return tuple(affine.layer for affine in net)


def fold(layers: Layers) -> Folded:
    """The same function with the running statistics folded into weight and bias.

    weight' = weight * s, bias' = (bias - mean) * s + beta, with s = gamma / sqrt(var + NORM_EPSILON).
    """
    return tuple(_fold(layer, None if layer.norm is None else (layer.norm.mean, layer.norm.var)) for layer in layers)


@dataclass(frozen=True)
class Pass:
    """What one clean pass over a batch yields. net: folded with the batch's statistics; logits float32 [N, classes].

    peaks: largest activation of each hidden layer, as `ranges` orders them, detached scalars of at least 1e-3.
    """

    net: Folded
    logits: Tensor
    peaks: tuple[Tensor, ...]


def fold_batch(layers: Layers, x: Tensor) -> Pass:
    """Folds with the statistics of the batch x [N, C, H, W], as batch normalisation in training mode does.

    Gradients flow through the statistics. Bounds then use the statistics of the clean batch: the convention of Shi et al. 2021.
    """
    net: list[Affine] = []
    peaks: list[Tensor] = []

    def step(i: int, read: Tensor, other: Tensor | None) -> Tensor:
        layer = layers[i]
        if layer.norm is None:
            net.append(_fold(layer, None))
            z = net[-1].pre(read)
        else:
            raw = linear(seen(read, layer), layer.weight, layer, layer.bias)
            mean, var = moments(raw)
            net.append(_fold(layer, (mean, var)))
            scale = layer.norm.gamma * torch.rsqrt(var + NORM_EPSILON)
            z = raw * per_channel(scale) + per_channel(layer.norm.beta - mean * scale)
        y = net[-1].post(net[-1].join(z, other))
        peaks.extend(ranges(net[-1], z, y))
        return y

    logits = walk(layers, x, step).flatten(1)
    return Pass(tuple(net), logits, tuple(peaks[:-1]))


def ranges(affine: Affine, z: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Largest magnitude of each int8 tensor that the layer makes, detached scalars of at least 1e-3, in the order of `Ceilings`.

    That is its output y and, where it adds a value, before it the z = weight * pool(x) + bias that goes into the sum.
    """
    top = y.detach() if affine.layer.relu else y.detach().abs()
    found = (top,) if affine.layer.adds is None else (z.detach().abs(), top)
    return tuple(t.amax().clamp(min=1e-3) for t in found)


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] per channel of z [N, C, H, W], in two passes (torch.var is a scalar loop on a CPU)."""
    found: tuple[Tensor, Tensor] = _Moments.apply(z)  # type: ignore[no-untyped-call]
    return found


class _Moments(torch.autograd.Function):
    """d mean / dz = 1 / n and d var / dz = 2 (z - mean) / n, in one pass: what autograd finds takes several."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> tuple[Tensor, Tensor]:
        mean = z.mean((0, 2, 3))
        apart = z - per_channel(mean)
        ctx.save_for_backward(apart)
        return mean, apart.square().mean((0, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_mean: Tensor, by_var: Tensor) -> Tensor:
        (apart,) = ctx.saved_tensors
        count = apart.numel() // apart.shape[1]
        found: Tensor = apart * per_channel(by_var * (2 / count))
        return found.add_(per_channel(by_mean / count))


def statistics(layers: Layers, x: Tensor) -> tuple[tuple[Tensor, Tensor] | None, ...]:
    """Mean and variance of each normalised layer's input over the samples x, each layer fed by normalised ones before it."""
    found: list[tuple[Tensor, Tensor] | None] = []

    def step(i: int, read: Tensor, other: Tensor | None) -> Tensor:
        layer = layers[i]
        z = linear(seen(read, layer), layer.weight, layer, layer.bias)
        found.append(None if layer.norm is None else moments(z))
        return _fold(layer, found[-1]).apply(read, other)

    walk(layers, x, step)
    return tuple(found)


def _fold(layer: Layer, stats: tuple[Tensor, Tensor] | None) -> Affine:
    if layer.norm is None or stats is None:
        return Affine(layer, layer.weight, layer.bias)
    mean, var = stats
    scale = layer.norm.gamma * torch.rsqrt(var + NORM_EPSILON)
    return Affine(layer, layer.weight * scale[:, None, None, None], (layer.bias - mean) * scale + layer.norm.beta)


def detach(net: Folded) -> Folded:
    """The same network cut off from gradients."""
    return mapped(net, Tensor.detach)


def to_double(net: Folded) -> Folded:
    """The same network in float64, for bounds whose rounding does not matter."""
    return mapped(net, Tensor.double)


def mapped(net: Folded, f: Callable[[Tensor], Tensor]) -> Folded:
    """The same network with f of each of its tensors."""

    def some(t: Tensor | None) -> Tensor | None:
        return None if t is None else f(t)

    return tuple(
        replace(
            a,
            weight=f(a.weight),
            bias=f(a.bias),
            ceiling=some(a.ceiling),
            sum_ceiling=some(a.sum_ceiling),
            read_step=some(a.read_step),
        )
        for a in net
    )
