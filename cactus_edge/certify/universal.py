"""One perturbation for all samples: an attack that looks for the delta of a ball under which the fewest labels still win.

Untrusted search; `verify.counterexamples` counts what remains under the delta that it returns. Signed gradient steps on the sum of the
margins of the samples that still win (Shafahi et al., Universal adversarial training, AAAI 2020, algorithm 1), with the
straight-through gradient of `certify.attack`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.gradient import margin_gradient
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Int64
from cactus_edge.verify.counterexamples import under
from cactus_edge.verify.regions import Float64, Region, double_above, points, real

BATCH = 256
"""Samples whose gradients make one step."""

LOOKED_AT = 1000
"""Samples among all, evenly spaced, for which a perturbation is looked for."""

STEPS = 15


def universal(
    program: Program,
    region: Region,
    x: npt.NDArray[Any],
    labels: Int64,
    *,
    steps: int = STEPS,
    seed: int = 0,
) -> Float64:
    """delta [*input shape], in units of the data: the perturbation with the fewest strict wins that was met.

    x [N, *input shape] as `Region.boxes` takes it; the region is a ball or box. It is looked for against all samples together,
    and against those of each label, since one direction often undoes one class. A step shrinks from half of eps to a
    thirtieth. Deterministic by seed. Raises InputError for a region of another kind, and for a program that is several.
    """
    shape, spaced = x.shape[1:], slice(None, None, -(-len(x) // LOOKED_AT))
    x, labels = x[spaced], labels[spaced]
    rng = np.random.default_rng(seed)
    # The largest doubles that are no larger than eps.
    radius = np.array([-double_above(-e) for e in region.eps])
    radius = np.broadcast_to(radius if len(region.eps) == 1 else radius.reshape(shape), shape)
    low, high = (float(end) for end in region.domain)
    best = np.zeros(shape)
    before = under(program, region, x, labels, best)
    fewest = int(before.sum())
    for group in (np.ones(len(x), np.bool_), *(labels == label for label in np.unique(labels))):
        delta, left = best * 0, before
        for step in range(steps):
            some = rng.permutation(np.flatnonzero(left & group))[:BATCH]
            if not len(some):
                break
            moved = np.clip(real(program, x[some]).astype(np.float64) + delta, low, high).astype(np.float32)
            gradient = margin_gradient(program, points(program, moved), labels[some]).sum(0)
            size = max(0.5 * (1 - step / steps), 1 / 30)
            delta = np.clip(delta - size * radius * np.sign(gradient), -radius, radius)
            left = under(program, region, x, labels, delta)
            if left.sum() < fewest:
                best, fewest = delta, int(left.sum())
    return best
