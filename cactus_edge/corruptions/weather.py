"""Weather: snow, frost, fog."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cactus_edge.corruptions.geometry import magnified, plasma, power_of_two, streaked, unit

Float64 = npt.NDArray[np.float64]

LUMA = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue: ITU-R BT.601."""

ICE = np.array([0.82, 0.92, 1.0])
"""Tint of frost."""

CRYSTALS = 12
"""Cells of frost in an image."""


def snow(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """Flakes, from noise above a threshold, streaked by wind, over an image bleached by `1 - kept`."""
    mean, spread, size, threshold, radius, sigma, kept = (
        (0.1, 0.2, 1.0, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1.0, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity]
    flakes = magnified(mean + spread * rng.standard_normal(x.shape[:3]), size)
    flakes = np.where(flakes < threshold, 0, flakes).clip(0, 1)
    flakes = streaked(flakes, radius * unit(x), sigma * unit(x), rng.uniform(-135, -45, len(x)))[..., None]
    grey = x if x.shape[3] == 1 else (x @ LUMA)[..., None]
    bleached = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey + 0.5)
    found: Float64 = bleached + flakes + flakes[:, ::-1, ::-1]
    return found


def frost(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """kept * x + ice * texture. The paper adds photographs of frosted panes; this texture is computed."""
    kept, ice = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity]
    texture = _crystals(x, rng)[..., None]
    return kept * x + ice * (texture if x.shape[3] == 1 else texture * ICE)


def _crystals(x: Float64, rng: np.random.Generator) -> Float64:
    """Layers [N, H, W] in [0, 1]: bright edges of Voronoi cells around random points, broken up by fine clouds.

    Brightness at a point is exp(-(d_2 - d_1)), of the distances to the second and the nearest centre in pixels of a
    32 x 32 image.
    """
    n, h, w = x.shape[:3]
    centres = rng.random((n, CRYSTALS, 2)) * (h, w)
    down = np.arange(h)[None, None, :, None] - centres[:, :, 0, None, None]
    right = np.arange(w)[None, None, None, :] - centres[:, :, 1, None, None]
    near = np.sort(np.hypot(down, right), 1)
    edges = np.exp(-(near[:, 1] - near[:, 0]) / unit(x))
    clouds = plasma(n, power_of_two(max(h, w)), 1.25, rng)[:, :h, :w]
    found: Float64 = 0.6 * edges + 0.7 * clouds
    return found.clip(0, 1)


def fog(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """(x + thick * clouds) * m / (m + thick), m the brightest value of the image."""
    thick, decay = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))[severity]
    n, h, w = x.shape[:3]
    clouds = plasma(n, power_of_two(max(h, w)), decay, rng)[:, :h, :w, None]
    most = x.max((1, 2, 3), keepdims=True)
    found: Float64 = (x + thick * clouds) * most / (most + thick)
    return found
