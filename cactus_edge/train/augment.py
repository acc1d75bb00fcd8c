"""Random small movements of training samples."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def moved(
    x: Tensor, generator: torch.Generator, *, shift_pixels: float = 0.0, rotate_degrees: float = 0.0, zoom: float = 0.0
) -> Tensor:
    """Each sample of x [N, C, H, W] rotated, scaled by 1 +- zoom and shifted, each uniformly at random; zeros outside.

    Bilinear, so that values stay inside the range of the sample and zero. Without any movement x itself, and no number is
    drawn from the generator.
    """
    if shift_pixels == 0 and rotate_degrees == 0 and zoom == 0:
        return x
    n, _, h, w = x.shape
    draw = (2 * torch.rand((n, 4), generator=generator) - 1).to(x.device)
    angle, factor = draw[:, 0] * math.radians(rotate_degrees), 1 + zoom * draw[:, 1]
    cos, sin = torch.cos(angle) * factor, torch.sin(angle) * factor
    # affine_grid measures in half maps: one pixel is 2 / size.
    right, down = draw[:, 2] * shift_pixels * 2 / w, draw[:, 3] * shift_pixels * 2 / h
    matrix = torch.stack([cos, -sin * h / w, right, sin * w / h, cos, down], 1).view(n, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
