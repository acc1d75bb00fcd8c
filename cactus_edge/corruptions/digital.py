"""What cameras and files do: brightness, contrast, distortion, coarse pixels, JPEG."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from cactus_edge.corruptions.geometry import along_axes, sampled, smooth, unit

Float64 = npt.NDArray[np.float64]


def brightness(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """The value of hue, saturation and value, the largest of the channels, raised by a constant; hue and saturation stay."""
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity]
    value = x.max(3, keepdims=True)
    raised = (value + more).clip(0, 1)
    black = value == 0
    found: Float64 = np.where(black, raised, x * (raised / np.where(black, 1, value)))
    return found


def contrast(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """Drawn towards the mean of each channel of the image."""
    factor = (0.75, 0.5, 0.4, 0.3, 0.15)[severity]
    mean = x.mean((1, 2), keepdims=True)
    found: Float64 = (x - mean) * factor + mean
    return found


def elastic(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """A random affine map, then each pixel displaced by smooth noise. Lengths are parts of the shorter side."""
    push, width, corner = (
        (0.0, 0.0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[severity]
    n, h, w = x.shape[:3]
    side = 32 * unit(x)
    rows, columns = np.meshgrid(np.arange(h, dtype=np.float64), np.arange(w, dtype=np.float64), indexing="ij")
    at = _affine(n, h, w, corner * side, rng)
    x = sampled(x, *(a[:, 0, None, None] * rows + a[:, 1, None, None] * columns + a[:, 2, None, None] for a in at))
    if push == 0:
        return x
    down, right = (push * side * smooth(rng.uniform(-1, 1, (n, h, w)), width * side, truncate=3.0) for _ in range(2))
    return sampled(x, rows + down, columns + right)


def _affine(n: int, h: int, w: int, corner: float, rng: np.random.Generator) -> tuple[Float64, Float64]:
    """Where a pixel comes from: (row, column) = A (row, column, 1), each [n, 3], so that three points around the middle move by
    up to `corner` pixels in each direction.
    """
    third = min(h, w) // 3
    middle = np.array([h // 2, w // 2])
    corners = middle + third * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = corners + rng.uniform(-corner, corner, (n, 3, 2))
    homogeneous = np.concatenate([moved, np.ones((n, 3, 1))], 2)
    solved = np.linalg.solve(homogeneous, np.broadcast_to(corners.astype(np.float64), (n, 3, 2)))
    return solved[..., 0], solved[..., 1]


def pixelate(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """Averaged onto fewer pixels, whole ones alone, and each of those repeated: Pillow's box filter, without its rounding."""
    part = (0.95, 0.9, 0.85, 0.75, 0.65)[severity]
    rows, columns = (_coarse(size, int(size * part)) for size in x.shape[1:3])
    return along_axes(x, rows, columns)


def _coarse(size: int, fewer: int) -> Float64:
    """Weights [size, size]: for each pixel the mean over those whose middles lie in the coarse pixel that its own lies in."""
    twice = 2 * np.arange(size) + 1  # the middles, in half pixels
    within = fewer * twice - size * (2 * np.arange(fewer)[:, None] + 1)  # from the coarse pixel's, exactly
    inside = ((-size < within) & (within <= size)).astype(np.float64)
    mean = inside / inside.sum(1, keepdims=True)
    found: Float64 = mean[fewer * twice // (2 * size)]
    return found


def jpeg(x: Float64, severity: int, rng: np.random.Generator) -> Float64:
    """Written and read as JPEG by Pillow."""
    from PIL import Image

    quality = (80, 65, 58, 50, 40)[severity]
    mode = "L" if x.shape[3] == 1 else "RGB"
    found = np.empty(x.shape)
    for i, pixels in enumerate(np.rint(255 * x).astype(np.uint8)):
        stream = io.BytesIO()
        Image.fromarray(pixels.squeeze(2) if mode == "L" else pixels).save(stream, "JPEG", quality=quality)
        with Image.open(stream) as image:
            found[i] = np.asarray(image.convert(mode), np.float64).reshape(pixels.shape) / 255
    return found
