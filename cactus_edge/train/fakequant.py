"""Fake quantisation of a folded network with straight-through gradients: the training-time twin of the export's integers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cactus_edge.train.folded import Affine, Folded

WEIGHT_MAX = 127
"""Weights are symmetric and narrow: integers in [-127, 127]."""

Ceilings = tuple[Tensor, ...]
"""Largest representable activation of each hidden layer, float32 scalars."""


def weight_scales(weight: Tensor, *, per_channel: bool) -> Tensor:
    """Real value of one integer step: max|w| / 127, per output channel [O] or for the tensor [1]; a channel of zeros gets 1/127."""
    flat = weight.detach().abs().flatten(1)
    peak = flat.amax(1) if per_channel else flat.amax().reshape(1)
    return torch.where(peak > 0, peak, torch.ones_like(peak)) / WEIGHT_MAX


def quantise_weight(weight: Tensor, *, per_channel: bool) -> Tensor:
    """weight rounded to its int8 grid (ties to even), gradients straight through. [O, I, KH, KW]."""
    scales = weight_scales(weight, per_channel=per_channel)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    if not per_channel:
        return torch.fake_quantize_per_tensor_affine(weight, scales[0], zeros[0], -WEIGHT_MAX, WEIGHT_MAX)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -WEIGHT_MAX, WEIGHT_MAX)


def fake_quantise(net: Folded, ceilings: Ceilings, levels: int = 255) -> Folded:
    """The network with int8 weights (per channel in convolutions, per tensor in dense layers) and activations of `levels` steps.

    Biases stay real: their int32 grid, input step times weight step, is far below what matters. The input is exact already.
    """
    hidden = tuple(
        replace(
            affine,
            weight=quantise_weight(affine.weight, per_channel=not affine.layer.dense),
            ceiling=ceiling,
            levels=levels,
        )
        for affine, ceiling in zip(net[:-1], ceilings, strict=True)
    )
    return (*hidden, replace(net[-1], weight=quantise_weight(net[-1].weight, per_channel=False)))


def clamp(net: Folded, ceilings: Ceilings) -> Folded:
    """The network with real weights and its hidden activations clamped to [0, ceiling]: what int8 rounds."""
    hidden = (replace(a, ceiling=c, levels=0) for a, c in zip(net[:-1], ceilings, strict=True))
    return (*hidden, net[-1])


def usual_ceilings(net: Folded, x: Tensor, *, clip: float, batch: int) -> Ceilings:
    """clip * the mean over batches of `peaks`: the ceilings that the quantised member has seen in training, on the average."""
    found = [torch.stack(peaks(net, part)) for part in torch.split(x, batch)]
    return tuple(clip * torch.stack(found).mean(0))


def peaks(net: Folded, x: Tensor) -> Ceilings:
    """Largest clean activation of each hidden layer over the samples x [N, C, H, W]; at least 1e-3."""
    found = []
    for affine in net[:-1]:
        x = _real(affine).post(affine.pre(x))
        found.append(x.detach().amax().clamp(min=1e-3))
    return tuple(found)


def _real(affine: Affine) -> Affine:
    return replace(affine, ceiling=None)
