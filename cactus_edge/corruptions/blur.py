"""Blur: out of focus, through frosted glass, of a moving and of an approaching camera."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cactus_edge.corruptions.geometry import magnified, smooth, streaked, unit

Float64 = npt.NDArray[np.float64]


def spread(x: Float64) -> float:
    """Pixels that a blur reaches for one in a 32 x 32 image; in a smaller image too, where less than a pixel would blur nothing."""
    return max(1.0, unit(x))


def defocus(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """Convolution with a disc whose edge is softened; beyond the edge the image is reflected."""
    from scipy.ndimage import convolve, gaussian_filter

    radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity]
    radius *= spread(x)
    reach = math.ceil(radius) + 1
    at = np.arange(-reach, reach + 1)
    disc = (at[:, None] ** 2 + at**2 <= radius**2).astype(np.float64)
    kernel = gaussian_filter(disc / disc.sum(), soft, mode="constant", radius=1)
    found: Float64 = convolve(x, (kernel / kernel.sum())[None, :, :, None], mode="mirror")
    return found


def glass(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """Blurred, neighbouring pixels exchanged one after the other, blurred again."""
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity]
    sigma, reach = sigma * spread(x), round(spread(x))
    x = smooth(x, sigma)
    n, h, w = x.shape[:3]
    which = np.arange(n)
    for _ in range(rounds):
        partner = rng.integers(-reach, reach, (2, h, w, n))
        for row in range(h - 1 - reach, reach - 1, -1):
            for column in range(w - 1 - reach, reach - 1, -1):
                there = (which, row + partner[0, row, column], column + partner[1, row, column])
                here = x[:, row, column].copy()
                x[:, row, column] = x[there]
                x[there] = here
    return smooth(x, sigma)


def motion(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """Averaged along a direction within 45 degrees of the rows."""
    radius, sigma = ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5))[severity]
    return streaked(x, radius * spread(x), sigma * spread(x), rng.uniform(-45, 45, len(x)))


def zoom(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """The mean of the image and of its magnifications in steps of 1/100."""
    most = (7, 12, 16, 21, 26)[severity]  # as many as numpy's arange gives the authors
    total = x.copy()
    for hundredth in range(most):
        total += magnified(x, 1 + hundredth / 100)
    return total / (most + 1)
