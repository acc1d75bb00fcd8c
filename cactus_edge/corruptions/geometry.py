"""What several corruptions resample with. Images are float64 [N, H, W, C], layers [N, H, W]."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def unit(x: Float64) -> float:
    """Pixels of this image for one of a 32 x 32 image."""
    return float(min(x.shape[1:3])) / 32


def smooth(x: Float64, sigma: float, truncate: float = 4.0) -> Float64:
    """Gaussian blur of standard deviation sigma along rows and columns, the edge repeated."""
    from scipy.ndimage import gaussian_filter

    sigmas = (0, sigma, sigma) + (0,) * (x.ndim - 3)
    found: Float64 = gaussian_filter(x, sigmas, mode="nearest", truncate=truncate)
    return found


def streaked(x: Float64, radius: float, sigma: float, angle: Float64) -> Float64:
    """Each image averaged over the pixels behind it in its own direction: weights exp(-i^2 / (2 sigma^2)), i = 0 .. 2 ceil(radius).

    angle [N] in degrees, from the rows downward; the edge is repeated.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    n, h, w = x.shape[:3]
    along, which = np.radians(angle), np.arange(n)[:, None, None]
    found = np.zeros_like(x)
    for i, weight in zip(steps, weights, strict=True):
        down, right = np.rint(i * np.sin(along)).astype(int), np.rint(i * np.cos(along)).astype(int)
        rows = (np.arange(h) + down[:, None]).clip(0, h - 1)[:, :, None]
        columns = (np.arange(w) + right[:, None]).clip(0, w - 1)[:, None, :]
        found += weight * x[which, rows, columns]
    return found


def magnified(x: Float64, factor: float) -> Float64:
    """The middle of each image, `factor` times as large, bilinear: the same shape."""
    rows, columns = (_magnifier(size, factor) for size in x.shape[1:3])
    return along_axes(x, rows, columns)


def along_axes(x: Float64, rows: Float64, columns: Float64) -> Float64:
    """rows @ image @ columns.T for every image and channel; rows [H', H], columns [W', W]."""
    found: Float64 = np.einsum("ih,nhw...,jw->nij...", rows, x, columns, optimize=True)
    return found


def _magnifier(size: int, factor: float) -> Float64:
    """Weights [size, size] of linear interpolation at c + (i - c) / factor, c the middle."""
    middle = (size - 1) / 2
    at = middle + (np.arange(size) - middle) / factor
    found: Float64 = np.maximum(1 - np.abs(at[:, None] - np.arange(size)), 0)
    return found


def sampled(x: Float64, rows: Float64, columns: Float64) -> Float64:
    """x at real positions [N, H, W] by bilinear interpolation; beyond the edge the image is reflected."""
    h, w = x.shape[1:3]
    which = np.arange(len(x))[:, None, None]
    top, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    found = np.zeros_like(x)
    for down in (0, 1):
        for right in (0, 1):
            weight = (1 - np.abs(rows - top - down)) * (1 - np.abs(columns - left - right))
            found += weight[..., None] * x[which, reflected(top + down, h), reflected(left + right, w)]
    return found


def reflected(index: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.intp]:
    """Indices of ... c b a | a b c | c b a ... for any integers."""
    index = index % (2 * size)
    return np.minimum(index, 2 * size - 1 - index)


def plasma(count: int, size: int, decay: float, rng: np.random.Generator) -> Float64:
    """Clouds [count, size, size] in [0, 1], size a power of two: the diamond-square algorithm on a torus.

    Midpoints are means of four neighbours plus noise, which shrinks by decay^2 from one scale to the next.
    """
    field = np.zeros((count, size, size))
    step, roughness = size, 1.0
    while step >= 2:
        half = step // 2

        def midpoint(total: Float64, spread: float = roughness) -> Float64:
            return total / 4 + spread * rng.uniform(-1, 1, total.shape)

        corner = field[:, ::step, ::step]
        rows = corner + np.roll(corner, -1, 1)
        field[:, half::step, half::step] = midpoint(rows + np.roll(rows, -1, 2))
        middle = field[:, half::step, half::step]
        beside, below = corner + np.roll(corner, -1, 2), corner + np.roll(corner, -1, 1)
        field[:, ::step, half::step] = midpoint(beside + middle + np.roll(middle, 1, 1))
        field[:, half::step, ::step] = midpoint(below + middle + np.roll(middle, 1, 2))
        step, roughness = half, roughness / decay**2
    field -= field.min((1, 2), keepdims=True)
    found: Float64 = field / field.max((1, 2), keepdims=True)
    return found


def power_of_two(size: int) -> int:
    """The least power of two that is no less."""
    return 1 << (size - 1).bit_length()
