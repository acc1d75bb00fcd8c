"""How likely a random change of an image makes its label lose: the CC-Cert bound, on the integer network. Probabilistic.

For a random transform T of sample x, with p(x) the probabilities at the file's output: Z = max_c |p_c(x) - p_c(Tx)| and
d = half the gap between the two largest p_c(x). The label wins Tx strictly where Z < d, and for every t > 0

    P(Z >= d) <= E[exp(t Z)] exp(-t d).

The mean is estimated k times from n transforms each; the bound is the largest over the k of the least over a fixed grid of t,
divided by SHARE, because an estimate may be too low (Pautov et al., CC-Cert, AAAI 2022, arXiv 2109.10696, section 3).
All of it in logarithms: exp(t Z) overflows any float. This is an estimate from random draws, and no proof: nothing here goes
into a certificate, and `risk` says how far the estimate itself can be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cactus_edge.errors import InputError, InstallError
from cactus_edge.ir import atoms
from cactus_edge.ir.atoms import Program
from cactus_edge.ir.evaluate import run
from cactus_edge.verify.regions import Exact, check_data, exact, points, real

Real = npt.NDArray[np.float64]

ESTIMATES = 10
"""k: means estimated independently of each other."""

SHARE = 0.9
"""An estimate counts as too low where it is under this share of the mean: the bound is divided by it."""

GRID: Real = np.geomspace(1e-4, 1e4, 500)
"""The t that are tried; fixed in advance, so that the least over them is a bound for each mean."""

AMOUNTS = {"brightness": "0.1", "contrast": "0.2", "rotation": "10", "translation": "2", "blur": "1"}
"""Every transform with its usual amount: a share of the domain, a share, degrees, pixels, pixels."""


@dataclass(frozen=True)
class Semantic:
    """Transforms applied one after the other, each with its largest amount a; every draw is uniform and independent.

    brightness: + u of the domain's width, |u| <= a. contrast: times 1 + u around the sample's mean, |u| <= a. rotation: by
    |u| <= a degrees around the centre. translation: by |u|, |v| <= a pixels down and right. blur: Gaussian, 0 <= sigma <= a
    pixels. Between pixels linearly, beyond the border its nearest pixel; at the end clamped to the domain.
    """

    parts: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """Such as "rotation=10+brightness=0.1"."""
        return "+".join(f"{part}={amount:g}" for part, amount in self.parts)

    def draw(self, x: Real, count: int, domain: tuple[float, float], rng: np.random.Generator) -> Real:
        """`count` transforms of one sample x [*shape] in units of the data: [count, *shape]. Raises InputError for no image."""
        drawn = np.repeat(x[None], count, 0)
        for part, amount in self.parts:
            u = rng.uniform(-amount, amount, (count, 2))
            drawn = _apply(part, drawn, u, domain)
        return np.clip(drawn, *domain)


@dataclass(frozen=True, eq=False)
class Estimate:
    """Per sample [N]. log_bound: natural logarithm of the bound on P(the label does not win a random transform), at most 0.

    correct: the label wins the sample itself strictly; where it does not, the bound is 1. losses: of the k n transforms drawn,
    those that the label really did not win. risk: the chance that all k estimates were too low, by Cantelli's inequality with
    the coefficient of variation that the draws showed.
    """

    transform: Semantic
    correct: npt.NDArray[np.bool_]
    log_bound: Real
    losses: npt.NDArray[np.int64]
    risk: Real
    drawn: int

    def certified(self, threshold: float) -> npt.NDArray[np.bool_]:
        """Right, and bounded below the threshold: certified *probabilistically*."""
        below: npt.NDArray[np.bool_] = self.correct & (self.log_bound < math.log(threshold))
        return below


def transforms(text: str) -> tuple[Semantic, ...]:
    """From "rotation=10,blur,rotation+brightness=0.2": several joined by commas; joined by + they are applied together.

    Raises InputError for another form.
    """
    found = []
    for item in text.split(","):
        parts = []
        for part in item.split("+"):
            name, _, amount = part.strip().partition("=")
            if name not in AMOUNTS:
                raise InputError(
                    f"{part.strip()[:40]!r} is no transform", hint=" or ".join(AMOUNTS) + ", such as rotation=10"
                )
            value = float(exact(amount or AMOUNTS[name], f"the amount of {name}"))
            most = 1 if name in ("brightness", "contrast") else 180 if name == "rotation" else 64
            if not 0 < value <= most:
                raise InputError(f"{name}={amount}, expected more than 0 and at most {most}")
            parts.append((name, value))
        found.append(Semantic(tuple(parts)))
    return tuple(found)


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
    correct, losses = np.zeros(len(y), np.bool_), np.zeros(len(y), np.int64)
    logs, risk = np.zeros(len(y)), np.ones(len(y))
    for i in range(len(y)):
        drawn = transform.draw(values[i].astype(np.float64), count, (low, high), np.random.default_rng([seed, i]))
        p = probabilities(program, np.concatenate([values[i][None].astype(np.float32), drawn.astype(np.float32)]))
        won = p[:, y[i]] > np.delete(p, y[i], 1).max(1)
        correct[i], losses[i] = won[0], count - int(won[1:].sum())
        if won[0]:
            runner_up, top = np.sort(p[0])[-2:]
            z = np.abs(p[1:] - p[0]).max(1).reshape(ESTIMATES, samples)
            logs[i], risk[i] = log_bound(z, (top - runner_up) / 2)
        progress(i + 1)
    return Estimate(transform, correct, logs, losses, risk, count)


def log_bound(z: Real, d: float, grid: Real = GRID, share: float = SHARE) -> tuple[float, float]:
    """(log of min(1, max_j min_t mean_i exp(t z_ji) exp(-t d) / share), risk) for discrepancies z [k, n] >= 0 and d > 0.

    risk: the product over j of v / (v + (1 - share)^2 n), v the squared coefficient of variation of exp(t z_ji) over i at j's t:
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
    too_low = variation / (variation + (1 - share) ** 2 * count)
    return min(0.0, float(logs[best, at].max()) - math.log(share)), float(too_low.prod())


def probabilities(program: Program, x: npt.NDArray[np.float32]) -> Real:
    """The file's output for x as probabilities [N, classes]: its softmax where it ends in one, else the softmax of its logits."""
    tensor = program.output_tensor
    out = run(program, points(program, x)).reshape(len(x), -1)
    real: Real = np.float64(tensor.scale) * (out.astype(np.float64) - tensor.zero_point)
    last = next((s for s in program.steps if s.out == program.output), None)
    if last is not None and isinstance(atoms.example(last.atom), atoms.Softmax):
        return real
    exponentials = np.exp(real - real.max(1, keepdims=True))
    shares: Real = exponentials / exponentials.sum(1, keepdims=True)
    return shares


def _apply(part: str, x: Real, u: Real, domain: tuple[float, float]) -> Real:
    """One transform of each of x [M, *shape], with its draws u [M, 2]."""
    first = u[:, 0].reshape(-1, *(1,) * (x.ndim - 1))
    match part:
        case "brightness":
            return x + first * (domain[1] - domain[0])
        case "contrast":
            mean = x.mean(tuple(range(1, x.ndim)), keepdims=True)
            changed: Real = (1 + first) * (x - mean) + mean
            return changed
        case _:
            pass
    if x.ndim not in (3, 4):
        raise InputError(
            f"{part} of samples of shape {x.shape[1:]}, expected images: rows, columns and perhaps channels"
        )
    try:
        from scipy import ndimage
    except ImportError as error:
        raise InstallError(f"{part} needs scipy", hint="see `cactus-edge doctor`") from error
    changed = np.empty_like(x)
    for i, image in enumerate(x):
        match part:
            case "rotation":
                ndimage.rotate(image, u[i, 0], (1, 0), reshape=False, order=1, mode="nearest", output=changed[i])
            case "translation":
                offset = (*u[i], 0.0)[: image.ndim]
                ndimage.shift(image, offset, order=1, mode="nearest", output=changed[i])
            case _:
                sigma = (*np.abs(u[i, [0, 0]]), 0.0)[: image.ndim]
                ndimage.gaussian_filter(image, sigma, mode="nearest", output=changed[i])
    return changed
