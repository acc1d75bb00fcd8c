"""A long attack that shares nothing with the product's: gradients of the float twin, any class, many starts, replayed on the integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from _networks import Network, Twin

from cactus_edge.ir.evaluate import run

Array = np.ndarray[Any, Any]


def survivors(
    network: Network, lower: Array, upper: Array, *, restarts: int = 20, steps: int = 40, every: int = 4
) -> Array:
    """Whether no point was found in each box of codes [N, *shape] whose output is no strict win of the sample's label.

    Sign steps down the margin to one other class, the closest one or a class in turn, from random points and corners.
    """
    program, labels = network.program, network.y
    quantize = program.quantize
    rng = np.random.default_rng(0)
    twin, rows = Twin(program.graph), np.arange(len(labels))
    classes = program.output_tensor.size
    standing = np.ones(len(labels), np.bool_)
    low, high = (torch.from_numpy(np.moveaxis(b, -1, 1).astype(np.float32)) for b in (lower, upper))
    width = (high - low).amax((1, 2, 3), keepdim=True)
    own = torch.nn.functional.one_hot(torch.from_numpy(labels), classes).bool()
    for restart in range(restarts):
        spot = torch.from_numpy(rng.random(low.shape, np.float32))
        x = low + (high - low) * (spot.round() if restart % 2 else spot)
        for step in range(steps):
            x.requires_grad_(True)
            out = twin((x - quantize.zero_point) * quantize.scale)
            others = out.masked_fill(own, -torch.inf)
            if restart >= classes:
                rival = torch.from_numpy((labels + 1 + restart % (classes - 1)) % classes)
                others = out.gather(1, rival[:, None])
            margin = out[own] - others.amax(1)
            (slope,) = torch.autograd.grad(margin.sum(), x)
            size = (width * (0.5 * (1 - step / steps))).clamp(min=1)
            x = torch.minimum(torch.maximum(x.detach() - size * slope.sign(), low), high)
            if step % every == every - 1:
                codes = np.moveaxis(x.round().numpy(), 1, -1).astype(lower.dtype)
                final = run(program, codes).reshape(len(labels), -1).astype(np.int64)
                mine = final[rows, labels].copy()
                final[rows, labels] = np.iinfo(np.int64).min
                standing &= mine > final.max(1)
    return standing
