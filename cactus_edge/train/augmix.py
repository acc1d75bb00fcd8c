"""AugMix: chains of simple operations on a picture, mixed with one another and with the picture.

x' = (1 - m) x + m sum_k w_k c_k(x), with m from Beta(1, 1), w from Dirichlet(1, ..., 1) and `WIDTH` chains c_k of 1 to `DEPTH`
operations each, their strengths drawn up to `SEVERITY` of ten. Source: Hendrycks et al. 2020, arXiv 1912.02781 (algorithm 1;
ranges of the operations as in its code). Colour, contrast, brightness and sharpness are left out, as they are among the
corruptions that networks are judged by. Tables are those of pictures in bytes; in between values are real.

Whatever is random comes from the generator, and each value is worked out by itself: equal bits with any number of threads.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, DEPTH, SEVERITY = 3, 3, 3
POINTWISE = ("autocontrast", "equalize", "posterize", "solarize")
AFFINE = ("rotate", "shear x", "shear y", "translate x", "translate y")
OPERATIONS = (*POINTWISE, *AFFINE)


def augmix(x: Tensor, domain: tuple[Fraction, Fraction], generator: torch.Generator) -> Tensor:
    """x [N, C, H, W] in the domain -> as many mixed samples in the domain."""
    n, low, width = len(x), float(domain[0]), float(domain[1] - domain[0])
    shape = (WIDTH * n,)
    depth = torch.randint(1, DEPTH + 1, shape, generator=generator)
    drawn = torch.randint(len(OPERATIONS), (DEPTH, *shape), generator=generator)
    levels = 0.1 + (SEVERITY - 0.1) * torch.rand((DEPTH, *shape), generator=generator)
    levels = torch.where(torch.rand((DEPTH, *shape), generator=generator) < 0.5, levels, -levels)
    shares = -torch.log1p(-torch.rand((WIDTH, n), generator=generator))  # exponential: normalised, Dirichlet(1, ..., 1)
    shares, blend = shares / shares.sum(0), torch.rand(n, generator=generator)
    unit = (x - low) / width
    made = unit.repeat(WIDTH, 1, 1, 1)
    for i in range(DEPTH):
        made = _applied(made, torch.where(depth > i, drawn[i], -1), levels[i])
    mixed = torch.zeros_like(unit)
    for share, chain in zip(shares.to(x), torch.split(made, n), strict=True):
        mixed += share[:, None, None, None] * chain
    part = blend.to(x)[:, None, None, None]
    return (((1 - part) * unit + part * mixed).clamp(0, 1) * width + low).clamp(low, low + width)


def _applied(x: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """Each sample of x in [0, 1] under the operation of its index (-1: none), at its level of ten, whose sign is a direction's."""
    x = x.clone()
    for i, name in enumerate(POINTWISE):
        rows = (operation == i).nonzero().flatten().to(x.device)
        if len(rows):
            x[rows] = pointwise(name, x[rows], level[rows.cpu()].abs())
    rows = (operation >= len(POINTWISE)).nonzero().flatten()
    if len(rows):
        names = [OPERATIONS[int(i)] for i in operation[rows]]
        sizes = x.shape[2], x.shape[3]
        matrix = torch.tensor([_matrix(n, float(v), *sizes) for n, v in zip(names, level[rows], strict=True)])
        x[rows.to(x.device)] = _moved(x[rows.to(x.device)], matrix.to(x))
    return x


def pointwise(name: str, x: Tensor, level: Tensor) -> Tensor:
    """x [N, C, H, W] in [0, 1] under an operation on its values, at level [N] of ten."""
    grade = level.to(x)[:, None, None, None]
    match name:
        case "autocontrast":
            least, most = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
            return torch.where(most > least, (x - least) / (most - least).clamp(min=1e-12), x).clamp(0, 1)
        case "equalize":
            return _equalized(x)
        case "posterize":
            step = 2.0 ** (4 + (grade * 0.4).floor())
            return ((255 * x).round() / step).floor() * step / 255
        case _:
            return torch.where((255 * x).round() >= 256 - (grade * 25.6).floor(), 1 - x, x)


def _equalized(x: Tensor) -> Tensor:
    """Each map by the table that spreads its bytes as evenly as whole steps allow; as it is where that is one step or none."""
    n, c, h, w = x.shape
    byte = (255 * x).round().long().view(n * c, h * w)
    count = torch.zeros(n * c, 256, dtype=torch.int64, device=x.device).scatter_add_(1, byte, torch.ones_like(byte))
    last = count.gather(1, byte.amax(1, keepdim=True))
    step = (h * w - last) // 255
    table = ((count.cumsum(1) - count + step // 2) // step.clamp(min=1)).clamp(max=255)
    spread = (table.gather(1, byte).to(x) / 255).view_as(x)
    return torch.where((step > 0).view(n, c, 1, 1), spread, x)


def _matrix(name: str, level: float, height: int, width: int) -> list[list[float]]:
    """Rows (x, y) of the map from where a pixel goes to where it comes from, in halves of the picture from its middle."""
    whole = math.copysign(1, level) * math.floor(abs(level) * 3)
    angle, shear = math.radians(whole), 0.03 * level
    down, right = (math.copysign(1, level) * math.floor(abs(level) * size / 30) * 2 / size for size in (height, width))
    match name:
        case "rotate":
            cos, sin, ratio = math.cos(angle), math.sin(angle), height / width
            return [[cos, -sin * ratio, 0.0], [sin / ratio, cos, 0.0]]
        case "shear x":  # around the upper left corner
            return [[1.0, shear * height / width, shear * height / width], [0.0, 1.0, 0.0]]
        case "shear y":
            return [[1.0, 0.0, 0.0], [shear * width / height, 1.0, shear * width / height]]
        case "translate x":
            return [[1.0, 0.0, right], [0.0, 1.0, 0.0]]
        case _:
            return [[1.0, 0.0, 0.0], [0.0, 1.0, down]]


def _moved(x: Tensor, matrix: Tensor) -> Tensor:
    """x [N, C, H, W] under `matrix` [N, 2, 3], bilinear, 0 outside. Element by element: a product of matrices sums in any order."""
    _, _, h, w = x.shape
    across, along = ((2 * torch.arange(size, device=x.device) + 1) / size - 1 for size in (w, h))
    m = matrix[:, :, :, None, None]
    grid = [m[:, i, 0] * across + m[:, i, 1] * along[:, None] + m[:, i, 2] for i in range(2)]
    return F.grid_sample(x, torch.stack(grid, 3), mode="bilinear", padding_mode="zeros", align_corners=False)
