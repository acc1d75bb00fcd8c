"""Fake quantisation of a folded network with straight-through gradients: the training-time twin of the export's integers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cactus_edge.errors import InternalError
from cactus_edge.train.folded import SIGNED_LEVELS, Affine, Folded, plan, ranges
from cactus_edge.train.models import sources, walk

WEIGHT_MAX = 127
"""Weights are symmetric and narrow: integers in [-127, 127]."""

Ceilings = tuple[Tensor, ...]
"""Largest representable magnitude of each int8 tensor that the hidden layers make, float32 scalars.

In order: one for each hidden layer's output and, where it adds a value, one before it for what goes into the sum.
"""


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

    Sums have two grids: of what goes into them, and of what comes out. Biases stay real: their int32 grid, input step times
    weight step, is far below what matters. The input is exact already.
    """
    ranged = _with_ceilings(net, ceilings, levels)
    steps = [step(affine) for affine in ranged]
    return tuple(
        replace(
            affine,
            weight=quantise_weight(affine.weight, per_channel=not affine.layer.dense),
            read_step=None if affine.layer.pool is None else steps[reads],
        )
        for affine, (reads, _) in zip(ranged, sources(plan(net)), strict=True)
    )


def step(affine: Affine) -> Tensor | None:
    """Step of the layer's output on its grid; None if it is real."""
    if affine.ceiling is None:
        return None
    return affine.ceiling / (affine.levels if affine.layer.relu else SIGNED_LEVELS)


def clamp(net: Folded, ceilings: Ceilings) -> Folded:
    """The network with real weights and its hidden activations clamped to [0, ceiling] (without ReLU to [-128/127 ceiling,
    ceiling]): what int8 rounds."""
    return _with_ceilings(net, ceilings, 0)


def ceilings_of(net: Folded) -> Ceilings | None:
    """The ceilings that `clamp` or `fake_quantise` gave the network; None if a hidden layer has none."""
    found = [c for a in net[:-1] for c in ((a.ceiling,) if a.layer.adds is None else (a.sum_ceiling, a.ceiling))]
    whole = tuple(c for c in found if c is not None)
    return whole if len(whole) == len(found) else None


def _with_ceilings(net: Folded, ceilings: Ceilings, levels: int) -> Folded:
    left = iter(ceilings)
    hidden = tuple(
        replace(a, sum_ceiling=None if a.layer.adds is None else next(left), ceiling=next(left), levels=levels)
        for a in net[:-1]
    )
    if next(left, None) is not None:
        raise InternalError(f"{len(ceilings)} ceilings for {len(net) - 1} hidden layers")
    return (*hidden, net[-1])


def usual_ceilings(net: Folded, x: Tensor, *, clip: float, batch: int) -> Ceilings:
    """clip * the mean over batches of `peaks`: the ceilings that the quantised member has seen in training, on the average."""
    found = [torch.stack(peaks(net, part)) for part in torch.split(x, batch)]
    return tuple(clip * torch.stack(found).mean(0))


def peaks(net: Folded, x: Tensor) -> Ceilings:
    """Largest clean magnitude of each int8 tensor of the hidden layers over the samples x [N, C, H, W]; at least 1e-3."""
    found: list[Tensor] = []

    def step(i: int, read: Tensor, other: Tensor | None) -> Tensor:
        affine = replace(net[i], ceiling=None, sum_ceiling=None, read_step=None)
        z = affine.pre(read)
        y = affine.post(affine.join(z, other))
        found.extend(ranges(affine, z, y))
        return y

    walk(plan(net[:-1]), x, step)
    return tuple(found)
