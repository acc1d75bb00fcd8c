"""What a network makes of samples: histograms of its int8 tensors, and the mean error that rounding adds to its accumulators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cactus_edge.train.folded import Folded, plan
from cactus_edge.train.models import per_channel, walk
from cactus_edge.train.ranges import Histogram, histogram

BATCH = 500

Pair = tuple[Tensor, Tensor]
"""The same value of the real and of the rounded network."""


@dataclass(frozen=True)
class Seen:
    """What the samples make of each int8 tensor of the hidden layers, in the order of `Ceilings`, and of the logits.

    signed: whether a value may be negative. least, most: the extreme logits.
    """

    hidden: tuple[Histogram, ...]
    signed: tuple[bool, ...]
    logits: Histogram
    least: float
    most: float


def observe(net: Folded, x: Tensor) -> Seen:
    """Of the real network over the samples x [N, C, H, W], clamped where it was trained so. Peaks are at least 1e-3."""
    parts = torch.split(x, BATCH)
    peaks = [
        max(1e-3, *tops) for tops in zip(*([float(v.abs().max()) for v in values(net, p)] for p in parts), strict=True)
    ]
    counts: list[Histogram] = [histogram((), peak) for peak in peaks]
    least, most = float("inf"), -float("inf")
    for part in parts:
        found = values(net, part)
        counts = [h.joined(histogram([v.numpy()], h.peak)) for h, v in zip(counts, found, strict=True)]
        least, most = min(least, float(found[-1].min())), max(most, float(found[-1].max()))
    signed = [s for a in net[:-1] for s in (() if a.layer.adds is None else (True,)) + (not a.layer.relu,)]
    return Seen(tuple(counts[:-1]), tuple(signed), counts[-1], least, most)


def values(net: Folded, x: Tensor) -> list[Tensor]:
    """Each int8 tensor of the hidden layers as the real network has it, in the order of `Ceilings`, then the logits."""
    found: list[Tensor] = []

    def step(i: int, read: Tensor, other: Tensor | None) -> Tensor:
        z = net[i].pre(read)
        if other is not None:
            found.append(net[i].join(z, torch.zeros_like(z)))
        found.append(net[i].post(net[i].join(z, other)))
        return found[-1]

    walk(plan(net), x, step)
    return found


def bias_shifts(net: Folded, rounded: Folded, x: Tensor) -> tuple[Tensor, ...]:
    """What rounding adds to each layer's accumulators on the average over samples and places, per channel [O].

    net: the real network in its ranges; rounded: its fake-quantised form. Layer by layer, those before already without their
    shift. Source: Nagel et al. 2019, arXiv 1906.04721, section 4.2, with samples instead of statistics.
    """
    shifts: list[Tensor] = []

    def step(i: int, read: Pair, other: Pair | None) -> Pair:
        z, z_rounded = net[i].pre(read[0]), rounded[i].pre(read[1])
        shifts.append((z_rounded - z).mean((0, 2, 3)))
        z_rounded = z_rounded - per_channel(shifts[-1])
        terms = (None, None) if other is None else other
        return net[i].post(net[i].join(z, terms[0])), rounded[i].post(rounded[i].join(z_rounded, terms[1]))

    walk(plan(net), (x, x), step)
    return tuple(shifts)
