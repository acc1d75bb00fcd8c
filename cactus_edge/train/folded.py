"""Networks without batch normalisation: the form that bounds, fake quantisation and the export share.

Folding is differentiable, so training bounds and quantises exactly the weights that the export will write.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cactus_edge.train.models import NORM_EPSILON, Layer, Layers, linear, per_channel


@dataclass(frozen=True)
class Affine:
    """One layer y = relu?(weight * x + bias); geometry as in `layer` (whose own parameters are not read).

    weight float32 [O, I, KH, KW], bias float32 [O]. ceiling: largest representable activation, a float32 scalar; the output is
    then clamped to [0, ceiling] and rounded to multiples of ceiling / levels with straight-through gradients; levels = 0 clamps
    only. None leaves it real.
    """

    layer: Layer
    weight: Tensor
    bias: Tensor
    ceiling: Tensor | None = None
    levels: int = 255

    def pre(self, x: Tensor) -> Tensor:
        """weight * x + bias. [N, I, H, W] -> [N, O, H', W']."""
        return linear(x, self.weight, self.layer) + per_channel(self.bias)

    def post(self, z: Tensor) -> Tensor:
        """ReLU (if the layer has one), then the clamp or the activation grid (if it has one). Elementwise, non-decreasing."""
        y = F.relu(z) if self.layer.relu else z
        if self.ceiling is None:
            return y
        if self.levels == 0:
            return torch.minimum(y, self.ceiling)
        return round_to_grid(y, self.ceiling / self.levels, self.levels)


def round_to_grid(y: Tensor, step: Tensor, levels: int = 255) -> Tensor:
    """y rounded to step * {0, ..., levels} (ties to even), gradients straight through inside the range and 0 outside.

    Bit-equal to torch.fake_quantize_per_tensor_affine(y, step, 0, 0, levels), whose scalar loop takes ten times as long on a CPU.
    """
    rounded: Tensor = _RoundToGrid.apply(y, step, levels)  # type: ignore[no-untyped-call]
    return rounded


class _RoundToGrid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, step: Tensor, levels: int) -> Tensor:
        level = torch.round(y * (1 / step))
        ctx.save_for_backward((level >= 0) & (level <= levels))
        return level.clamp_(0, levels).mul_(step)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None


Folded = tuple[Affine, ...]


def forward(net: Folded, x: Tensor) -> Tensor:
    """Logits [N, classes] of x [N, C, H, W]."""
    for affine in net:
        x = affine.post(affine.pre(x))
    return x.flatten(1)


def fold(layers: Layers) -> Folded:
    """The same function with the running statistics folded into weight and bias.

    weight' = weight * s, bias' = (bias - mean) * s + beta, with s = gamma / sqrt(var + NORM_EPSILON).
    """
    return tuple(_fold(layer, None if layer.norm is None else (layer.norm.mean, layer.norm.var)) for layer in layers)


@dataclass(frozen=True)
class Pass:
    """What one clean pass over a batch yields. net: folded with the batch's statistics; logits float32 [N, classes].

    peaks: largest activation of each hidden layer, detached scalars of at least 1e-3.
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
    for layer in layers:
        if layer.norm is None:
            net.append(_fold(layer, None))
            x = net[-1].post(net[-1].pre(x))
        else:
            z = linear(x, layer.weight, layer) + per_channel(layer.bias)
            mean, var = moments(z)
            net.append(_fold(layer, (mean, var)))
            scale = layer.norm.gamma * torch.rsqrt(var + NORM_EPSILON)
            x = net[-1].post(z * per_channel(scale) + per_channel(layer.norm.beta - mean * scale))
        peaks.append(x.detach().amax().clamp(min=1e-3))
    return Pass(tuple(net), x.flatten(1), tuple(peaks[:-1]))


def moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] per channel of z [N, C, H, W], in two passes (torch.var is a scalar loop on a CPU)."""
    mean = z.mean((0, 2, 3))
    return mean, (z - per_channel(mean)).square().mean((0, 2, 3))


def statistics(layers: Layers, x: Tensor) -> tuple[tuple[Tensor, Tensor] | None, ...]:
    """Mean and variance of each normalised layer's input over the samples x, each layer fed by normalised ones before it."""
    found: list[tuple[Tensor, Tensor] | None] = []
    for layer in layers:
        z = linear(x, layer.weight, layer) + per_channel(layer.bias)
        stats = None if layer.norm is None else moments(z)
        found.append(stats)
        affine = _fold(layer, stats)
        x = affine.post(affine.pre(x))
    return tuple(found)


def _fold(layer: Layer, stats: tuple[Tensor, Tensor] | None) -> Affine:
    if layer.norm is None or stats is None:
        return Affine(layer, layer.weight, layer.bias)
    mean, var = stats
    scale = layer.norm.gamma * torch.rsqrt(var + NORM_EPSILON)
    return Affine(layer, layer.weight * scale[:, None, None, None], (layer.bias - mean) * scale + layer.norm.beta)


def detach(net: Folded) -> Folded:
    """The same network cut off from gradients."""
    return tuple(
        replace(
            a, weight=a.weight.detach(), bias=a.bias.detach(), ceiling=None if a.ceiling is None else a.ceiling.detach()
        )
        for a in net
    )


def to_double(net: Folded) -> Folded:
    """The same network in float64, for bounds whose rounding does not matter."""
    return tuple(
        replace(
            a, weight=a.weight.double(), bias=a.bias.double(), ceiling=None if a.ceiling is None else a.ceiling.double()
        )
        for a in net
    )
