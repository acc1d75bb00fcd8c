"""Fake quantisation of a folded network with straight-through gradients: the training-time twin of the export's integers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from cactus_edge.errors import InputError, InternalError, UnsupportedError
from cactus_edge.ir.ops import WEIGHT_RANGES
from cactus_edge.train.folded import SIGNED_LEVELS, Affine, Folded, plan, ranges
from cactus_edge.train.models import sources, walk


def weight_max(bits: int) -> int:
    """Weights are symmetric and narrow: integers in [-127, 127] of 8 bits, [-7, 7] of 4."""
    return (1 << (bits - 1)) - 1


def layer_bits(bits: tuple[int, ...], layers: int) -> tuple[int, ...]:
    """The width of each layer's weights, by `[quantise] weight_bits`.

    Raises InputError for another number of widths, UnsupportedError for a width that no file stores.
    """
    if len(bits) not in (1, layers):
        raise InputError(
            f"[quantise] weight_bits names {len(bits)} widths, the network has {layers} layers with weights",
            hint="one width for all layers, or one for each; the first and the last are usually left at 8",
        )
    odd = sorted({*bits} - {*WEIGHT_RANGES})
    if odd:
        raise UnsupportedError(
            f"[quantise] weight_bits = {list(bits)}: no file stores weights of {odd[0]} bits", hint="8 or 4"
        )
    return bits if len(bits) == layers else bits * layers


def narrowed(net: Folded, bits: tuple[int, ...]) -> Folded:
    """The network whose weights are rounded to these widths (`layer_bits`) where they are rounded."""
    return tuple(replace(a, weight_bits=b) for a, b in zip(net, layer_bits(bits, len(net)), strict=True))


Ceilings = tuple[Tensor, ...]
"""Largest representable magnitude of each int8 tensor that the hidden layers make, float32 scalars.

In order: one for each hidden layer's output and, where it adds a value, one before it for what goes into the sum.
"""


def weight_scales(weight: Tensor, *, per_channel: bool, bits: int = 8) -> Tensor:
    """Real value of one integer step: max|w| / 127 (4 bits: 7), per output channel [O] or for the tensor [1]; of zeros 1/127."""
    flat = weight.detach().abs().flatten(1)
    peak = flat.amax(1) if per_channel else flat.amax().reshape(1)
    return torch.where(peak > 0, peak, torch.ones_like(peak)) / weight_max(bits)


def quantise_weight(weight: Tensor, *, per_channel: bool, bits: int = 8) -> Tensor:
    """weight rounded to its grid (ties to even), gradients straight through. [O, I, KH, KW]."""
    scales, most = weight_scales(weight, per_channel=per_channel, bits=bits), weight_max(bits)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    if not per_channel:
        return torch.fake_quantize_per_tensor_affine(weight, scales[0], zeros[0], -most, most)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -most, most)


def fake_quantise(net: Folded, ceilings: Ceilings, levels: int = 255) -> Folded:
    """The network with integer weights (per channel in convolutions, per tensor in dense layers) and activations of `levels` steps.

    Sums have two grids: of what goes into them, and of what comes out. Biases stay real: their int32 grid, input step times
    weight step, is far below what matters. The input is exact already.
    """
    ranged = _with_ceilings(net, ceilings, levels)
    steps = [step(affine) for affine in ranged]
    return tuple(
        replace(
            affine,
            weight=quantise_weight(affine.weight, per_channel=not affine.layer.dense, bits=affine.weight_bits),
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
