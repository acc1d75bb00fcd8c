"""Noise: Gaussian, of photons, and of dead pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def gaussian(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """x + sigma * N(0, 1)."""
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity]
    return x + sigma * rng.standard_normal(x.shape)


def shot(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """Poisson(c x) / c: c photons make a white pixel."""
    photons = (500, 250, 100, 75, 50)[severity]
    return rng.poisson(photons * x) / photons


def impulse(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """A part of all values becomes 0 or 1, each as likely."""
    part = (0.01, 0.02, 0.03, 0.05, 0.07)[severity]
    hit, white = rng.random(x.shape) < part, rng.random(x.shape) < 0.5
    return np.where(hit, white.astype(np.float64), x)
