"""How likely a random change of an image makes its label lose: the CC-Cert bound, on the integer network. Probabilistic.

For a random transform T of sample x, with p(x) the probabilities at the file's output: Z = max_c |p_c(x) - p_c(Tx)| and
d = half the gap between the two largest p_c(x). The label wins Tx strictly where Z < d, and for every t > 0

    P(Z >= d) <= E[exp(t Z)] exp(-t d).

The mean is estimated k times from n transforms each; the bound is the largest over the k of the least over a fixed grid of t,
divided by SHARE, because an estimate may be too low (Pautov et al., CC-Cert, AAAI 2022, arXiv 2109.10696, section 3).
All of it in logarithms: exp(t Z) overflows any float. This is an estimate from random draws, and no proof: nothing here goes
into a certificate, and `Estimate.risk` says how far the estimate itself can be trusted: CC-Cert's own answer, Cantelli's inequality
with the variance of the draws, cannot see a rare loss that was never drawn, so that of the draws' number is asked as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.certify.interval import outputs
from cactus_edge.errors import InputError
from cactus_edge.ir import atoms
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.ops import Codes
from cactus_edge.semantics import AMOUNTS as AMOUNTS
from cactus_edge.semantics import Real, Semantic
from cactus_edge.semantics import transforms as transforms
from cactus_edge.verify.regions import Exact, check_data, exact, points, real

ESTIMATES = 10
"""k: means estimated independently of each other."""

SHARE = 0.9
"""An estimate counts as too low where it is under this share of the mean: the bound is divided by it."""

GRID: Real = np.geomspace(1e-4, 1e4, 500)
"""The t that are tried; fixed in advance. Each of them gives a bound; which of the estimates is least, the draws decide."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """Per sample [N]. log_bound: natural logarithm of the bound on P(the label does not win a random transform), at most 0.

    correct: the label wins the sample itself strictly; where it does not, the bound is 1. losses: of the k n transforms drawn,
    those that the label really did not win. too_low: the chance that all k estimates were too low, by Cantelli's inequality with
    the coefficient of variation that the draws showed: a figure of theirs, and no bound.
    """

    transform: Semantic
    correct: npt.NDArray[np.bool_]
    log_bound: Real
    losses: npt.NDArray[np.int64]
    too_low: Real
    drawn: int

    def certified(self, threshold: float) -> npt.NDArray[np.bool_]:
        """Right, and bounded below the threshold: certified *probabilistically*."""
        below: npt.NDArray[np.bool_] = self.correct & (self.log_bound < math.log(threshold))
        return below

    def risk(self, threshold: float) -> Real:
        """The larger of `too_low` and of the chance that so few draws are lost where a transform is lost with that probability."""
        return np.maximum(self.too_low, at_most(self.drawn, threshold)[self.losses])


def at_most(count: int, chance: float) -> Real:
    """P(X <= i) for i = 0 ... count, float64 [count + 1], X the losses of `count` draws that are each lost with `chance` in (0, 1).

    Where a transform is lost more often, so few losses are rarer still (Clopper and Pearson 1934).
    """
    i = np.arange(count)
    steps = np.log((count - i) / (i + 1)) + math.log(chance) - math.log1p(-chance)
    logs = count * math.log1p(-chance) + np.concatenate([[0.0], np.cumsum(steps)])
    with np.errstate(under="ignore"):
        found: Real = np.minimum(np.cumsum(np.exp(logs)), 1.0)
    return found


def estimate(
    program: Program,
    transform: Semantic,
    x: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    *,
    domain: tuple[Exact, Exact],
    samples: int = 100,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Estimate:
    """The bound for each sample of x [N, *input shape], as `Region.boxes` takes it, by ESTIMATES x `samples` draws each.

    Deterministic by seed, and a sample's draws do not depend on the others. Raises DataError or InputError for unusable data, or
    a program that is not one function.
    """
    y = check_data(program, x, labels)
    if not program.definite:
        raise InputError(
            f"an estimate runs one arithmetic, and {program.profile.name} is several or an envelope",
            hint="one --profile that is no envelope",
        )
    if not 1 <= samples <= 10**6:
        raise InputError(f"{samples} samples, expected 1 to 1000000")
    low, high = (float(exact(end, "an end of the domain")) for end in domain)
    values = real(program, x)
    count = ESTIMATES * samples
    run = outputs(program, (count + 1) * len(y))
    correct, losses = np.zeros(len(y), np.bool_), np.zeros(len(y), np.int64)
    logs, too_low = np.zeros(len(y)), np.ones(len(y))
    for i in range(len(y)):
        drawn = transform.draw(values[i].astype(np.float64), count, (low, high), np.random.default_rng([seed, i]))
        x_and_drawn = np.concatenate([values[i][None].astype(np.float32), drawn.astype(np.float32)])
        p = probabilities(program, run(points(program, x_and_drawn)))
        won = p[:, y[i]] > np.delete(p, y[i], 1).max(1)
        correct[i], losses[i] = won[0], count - int(won[1:].sum())
        if won[0]:
            runner_up, top = np.sort(p[0])[-2:]
            z = np.abs(p[1:] - p[0]).max(1).reshape(ESTIMATES, samples)
            logs[i], too_low[i] = log_bound(z, (top - runner_up) / 2)
        progress(i + 1)
    return Estimate(transform, correct, logs, losses, too_low, count)


def log_bound(z: Real, d: float, grid: Real = GRID, share: float = SHARE) -> tuple[float, float]:
    """(log of min(1, max_j min_t mean_i exp(t z_ji) exp(-t d) / share), too_low) for discrepancies z [k, n] >= 0 and d > 0.

    too_low: the product over j of v / (v + (1 - share)^2 n), v the squared coefficient of variation of exp(t z_ji) over i at j's t:
    Cantelli's bound on the chance that a mean of n is below `share` of its expectation, with v as drawn.
    """
    count = z.shape[1]
    exponents = grid[:, None, None] * z
    top = exponents.max(2)
    with np.errstate(under="ignore"):
        scaled = np.exp(exponents - top[..., None])
        means = scaled.mean(2)
        logs = np.log(means) + top - grid[:, None] * d
        best = logs.argmin(0)
        at = np.arange(len(z))
        variation = scaled[best, at].var(1) / means[best, at] ** 2
    each = variation / (variation + (1 - share) ** 2 * count)
    return min(0.0, float(logs[best, at].max()) - math.log(share)), float(each.prod())


def probabilities(program: Program, out: Codes) -> Real:
    """The file's output codes as probabilities [N, classes]: its softmax where it ends in one, else the softmax of its logits."""
    tensor = program.output_tensor
    real: Real = np.float64(tensor.scale) * (out.reshape(len(out), -1).astype(np.float64) - tensor.zero_point)
    last = next((s for s in program.steps if s.out == program.output), None)
    if last is not None and isinstance(atoms.example(last.atom), atoms.Softmax):
        return real
    exponentials = np.exp(real - real.max(1, keepdims=True))
    shares: Real = exponentials / exponentials.sum(1, keepdims=True)
    return shares
